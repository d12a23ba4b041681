"""The Python API: settings, plan, events and log, from a script as from the command line."""

from __future__ import annotations

import doctest
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fakes.command import Answer
from fakes.loras import lora_of, saved_lora
from fakes.runs import FakeExecutor, fake_local_executor, read_csv

import hv15_batch
from hv15_batch import api
from hv15_batch.config.compose import run_jobs
from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.manifest.cells import ManifestError
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.schema import arrow_schema

DOCS = Path(__file__).parents[1] / "docs"
SMALL = ("model=tiny_t2v", "override.height=64", "override.width=96", "override.num_frames=9")
SMALL_STEPS = (*SMALL, "override.num_inference_steps=2")
SLOW = ("torch", "pandas", "hydra", "omegaconf", "pyarrow", "numpy")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of a machine without a card."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.fixture
def fake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, where a child process renders a few bytes: see `FakeRenderer`."""
    run = partial(api.session.run, make_executor=fake_local_executor)
    monkeypatch.setattr(api.session, "run", run)
    return folder


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        call()
    return str(caught.value)


# -- names ------------------------------------------------------------------------------------


def test_importing_the_package_imports_nothing_slow(tmp_path: Path) -> None:
    code = f"""
import sys
import hv15_batch
print([name for name in {SLOW!r} if name in sys.modules], "render" in dir(hv15_batch))
hv15_batch.load_config
print("torch" in sys.modules, "pandas" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines() == ["[] True", "False False"]


def test_the_package_has_the_names_of_the_api_and_no_others() -> None:
    assert hv15_batch.__all__ == api.__all__
    assert all(getattr(hv15_batch, name) is getattr(api, name) for name in api.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'rendr'"):
        hv15_batch.rendr  # noqa: B018


# -- settings ---------------------------------------------------------------------------------


def test_settings_are_those_of_the_same_command_line(folder: Path) -> None:
    words = ("my prompts.csv", *SMALL, "sampling.seeds=1,2", "runtime.compile=true", "limit=3")
    jobs: list[Any] = []

    assert run_jobs(words, lambda job: jobs.append(job) or 0) == 0

    assert api.load_config(*words) == jobs[0].config
    assert api.load_config(*words).manifest == "my prompts.csv"


def test_an_option_of_the_users_own_is_found(folder: Path) -> None:
    (folder / "mine" / "offload").mkdir(parents=True)
    (folder / "mine" / "offload" / "slow.yaml").write_text("kind: model\n", encoding="utf-8")

    assert api.load_config("offload=slow", config_dir=folder / "mine").offload.kind.name == "model"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["override.frames=9"], "there is no setting override.frames. Did you mean"),
        (["override.num_frames=many"], "override.num_frames=many: must be a whole number."),
        (["model=480p_tv2"], "model=480p_tv2: there is no such option. Did you mean 480p_t2v?"),
        (["video.crf=99"], "video.crf=99: x264 takes 0 (lossless) to 51 (worst); try 17."),
        (["resume=outputs/none"], "no run was started there"),
    ],
)
def test_what_is_refused_is_one_error_with_the_commands_message(
    folder: Path, words: list[str], expected: str
) -> None:
    assert expected in refusal(lambda: api.load_config(*words))


def test_a_folder_of_options_that_is_not_there_is_refused(folder: Path) -> None:
    message = refusal(lambda: api.load_config(config_dir="nowhere"))

    assert message == "config_dir=nowhere: there is no such folder; correct the path."


def test_settings_that_name_a_run_to_resume_have_to_be_loaded(folder: Path) -> None:
    assert 'load_config("resume=DIR")' in refusal(lambda: api.plan(Config(resume="outputs/a")))


# -- a plan -----------------------------------------------------------------------------------


def test_a_plan_is_what_the_dry_run_prints_and_writes(
    folder: Path, command: Callable[..., Answer]
) -> None:
    (folder / "p.csv").write_text("id,prompt,seed\nfox,a fox,0..1\n", encoding="utf-8")
    words = ("p.csv", "model=480p_t2v", "model.weights=random", "runtime.card=rtx_4090")

    planned = api.plan(api.load_config(*words))

    assert list(folder.iterdir()) == [folder / "p.csv"], "a plan writes nothing"
    assert [(c.clip.row_id, c.state.name) for c in planned.clips] == [("fox", "new")] * 2
    assert planned.offload in ("resident", "stream", "model", "stream_disk")
    assert planned.peak_bytes is not None
    assert 2**30 < planned.peak_bytes < 24 * 2**30
    assert planned.seconds is not None
    assert planned.seconds > 60
    answer = command(*words, "--dry-run")
    assert answer.out.splitlines()[:-1] == list(planned.lines)
    written = read_csv(RunDir(planned.run_dir).plan)
    table = planned.to_frame()
    assert list(table.columns) == list(written[0])
    assert [str(seed) for seed in table["seed"]] == [row["seed"] for row in written]
    assert [str(s) for s in table["predicted_denoise_seconds"]] == [
        row["predicted_denoise_seconds"] for row in written
    ]
    assert "seed" in str(table.dtypes)
    assert str(table["seed"].dtype) == "int64[pyarrow]"


def test_a_plan_of_nothing_has_the_same_columns(fake: Path) -> None:
    rows, config = frame(prompt=["a cat"]), api.load_config(*SMALL)
    list(api.render(config, rows))

    planned = api.plan(config, rows)

    assert (planned.todo, len(planned.to_frame())) == ((), 1)
    assert planned.offload == "resident"
    assert (planned.seconds, planned.peak_bytes) == (None, None)


# -- rows -------------------------------------------------------------------------------------


def test_rows_make_the_same_clips_as_a_file_that_says_the_same(folder: Path) -> None:
    (folder / "p.csv").write_text(
        'id,prompt,seed,num_frames,fps,tag_scene\nfox,"a fox, running",0..1,9,23.976,out\n'
        ",a cat,7,,,\n",
        encoding="utf-8",
    )
    rows = frame(
        id=["fox", None],
        prompt=["a fox, running", "a cat"],
        seed=[np.array([0, 1]), 7],
        num_frames=[9, np.nan],
        fps=np.array([23.976, np.nan], dtype=np.float32),
        tag_scene=["out", pd.NA],
    )
    config = api.load_config("model=tiny_t2v")

    from_rows = [c.clip for c in api.plan(config, rows).clips]
    from_file = [c.clip for c in api.plan(api.load_config("p.csv", "model=tiny_t2v")).clips]

    assert [(c.clip_id, c.settings, c.tags) for c in from_rows] == [
        (c.clip_id, c.settings, c.tags) for c in from_file
    ]
    assert api.plan(config, rows).run_dir == folder / "outputs" / "rows"
    assert config.manifest is None, "the settings given are not changed"


def test_an_index_with_a_name_is_a_column(folder: Path) -> None:
    rows = frame(id=["fox"], prompt=["a fox"]).set_index("id")

    assert api.plan(api.load_config("model=tiny_t2v"), rows).clips[0].clip.row_id == "fox"


def test_an_image_is_found_from_the_working_directory(folder: Path, photo: Path) -> None:
    (folder / "first.png").write_bytes(photo.read_bytes())
    rows = frame(prompt=["a wave"], image=["first.png"])

    clip = api.plan(api.load_config("model=tiny_i2v", "run_dir=out/a"), rows).clips[0].clip

    assert clip.image_path == str(folder / "first.png")


@pytest.mark.parametrize(
    "cell",
    [
        "sub/x.safetensors:0.5",
        [{"path": "sub/x.safetensors", "scale": 0.5}],
        {"path": Path("sub/x.safetensors"), "scale": np.float32(0.5)},
        np.array([{"path": "sub/x.safetensors", "scale": 0.5}], object),
        {"path": "sub/x.safetensors", "scale": np.float32(0.3)},
        ["sub/x.safetensors"],
        [Path("sub/x.safetensors")],
    ],
    ids=["text", "list", "object", "array", "narrow", "texts", "paths"],
)
def test_loras_are_found_from_the_working_directory_in_each_form(
    folder: Path, cell: Any, request: pytest.FixtureRequest
) -> None:
    scale = {"narrow": 0.3, "texts": 1.0, "paths": 1.0}.get(request.node.callspec.id, 0.5)
    (folder / "sub").mkdir()
    saved_lora(folder / "sub" / "x.safetensors", lora_of("tiny_t2v"))
    rows = pd.DataFrame({"prompt": ["a", "b", "c"], "loras": [cell, None, "none"]}, dtype=object)

    clips = api.plan(api.load_config("model=tiny_t2v"), rows).clips

    found = {p.clip.settings.prompt: p.clip.loras for p in clips}
    assert [(lora.path, lora.scale) for lora in found["a"]] == [
        (str(folder / "sub" / "x.safetensors"), scale)
    ]
    assert found["b"] == found["c"] == ()


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ([{"file": "x.safetensors"}], "a list of LoRAs has objects with path and scale"),
        ([3], "a list of LoRAs has objects with path and scale"),
        (["x.safetensors"], "the file must exist, and .*x.safetensors does not"),
        ("a.safetensors 0.5", "the file must exist, and .*a.safetensors does not"),
        (3, "must be text"),
    ],
)
def test_loras_of_another_form_are_told_by_row(folder: Path, cell: Any, said: str) -> None:
    rows = pd.DataFrame({"prompt": ["a"], "loras": [cell]}, dtype=object)

    with pytest.raises(ManifestError, match=f"rows: row 1: loras=.*{said}"):
        api.plan(api.load_config("model=tiny_t2v"), rows)


def test_rows_name_models(folder: Path) -> None:
    rows = frame(prompt=["a", "b"], model=["demo_t2v", None])

    found = {p.clip.settings.model for p in api.plan(api.load_config("model=tiny_t2v"), rows).clips}

    assert found == {"demo_t2v", "tiny_t2v"}


def test_every_fault_of_every_row_is_told_by_row(folder: Path) -> None:
    rows = frame(
        id=["a", "b", "a"],
        prompt=["a fox", None, "a cat"],
        num_frames=[9, 120, 9],
        seed=["0", "1", -1],
        caption=["x", "y", "z"],
    )
    with pytest.raises(ManifestError) as caught:
        api.plan(api.load_config("model=tiny_t2v"), rows)

    told = str(caught.value)
    assert "rows: row 1: column=caption: a manifest has no such column" in told
    assert "rows: row 2: num_frames=120: must be 4n+1; nearest are 117 and 121." in told
    assert "rows: row 2: prompt='': must not be empty" in told
    assert "rows: row 3: seed=-1: seeds are integers from 0 to 2^63-1" in told
    assert "rows: row 3: id=a: an id is unique, and row 1 has it already" in told


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (frame(seed=["1"]), "rows: row 1: header=seed: a manifest has a column prompt"),
        (frame(text=["a"]), "type manifest_columns.prompt=text"),
        (frame(prompt=[]), "rows: row 1: rows=0: a manifest has at least one row"),
        (frame(id=["x", "x"], prompt=["a", "b"]), "rows: row 2: id=x: an id is unique, and row 1"),
        (frame(prompt=[pd.Timestamp(0)]), "rows: row 1: prompt="),
        (frame(prompt=pd.Series(["\ud800"], dtype="object")), "half of a surrogate pair"),
        (
            pd.DataFrame([["a", "b"]], columns=["prompt", "prompt"]),
            "rows: row 1: column=prompt: a name belongs to one column, and 1 and 2 share it",
        ),
        (
            frame(id=["a"], prompt=["b"]).set_index("id", drop=False),
            "rows: row 1: column=id: a name belongs to one column, and 1 and 2 share it",
        ),
        ([{"prompt": "a"}], "rows=list: must be a pandas DataFrame; convert it to one."),
    ],
)
def test_rows_that_are_no_manifest_are_refused(folder: Path, rows: Any, expected: str) -> None:
    assert expected in refusal(lambda: api.plan(api.load_config("model=tiny_t2v"), rows))


def test_a_manifest_and_rows_are_one_too_many(folder: Path) -> None:
    config = api.load_config("p.csv", "model=tiny_t2v")

    message = refusal(lambda: api.render(config, frame(prompt=["a"])))

    assert message == "manifest=p.csv: rows are given too; leave one out."


# -- events -----------------------------------------------------------------------------------


def test_a_run_tells_what_happens_and_prints_nothing(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = frame(id=["fox", "cat"], prompt=["a fox", "fail"])

    events = list(api.render(api.load_config(*SMALL), rows))

    assert capsys.readouterr().out == ""
    [started] = [e for e in events if isinstance(e, api.Started)]
    assert (started.num_clips, started.num_done, started.num_todo) == (2, 0, 2)
    assert started.run_dir == fake / "outputs" / "rows"
    assert any(isinstance(e, api.Stepped) and e.stage == "decode" for e in events)
    ended = [e for e in events if isinstance(e, api.ClipFinished)]
    assert [(e.record.row_id, e.record.status, e.number, e.num_todo) for e in ended] == [
        ("fox", "ok", 1, 2),
        ("cat", "failed", 2, 2),
    ]
    last = events[-1]
    assert isinstance(last, api.Finished)
    assert (last.outcome.state, last.outcome.exit_code) == ("failed", 3)
    assert last.outcome.message == "1 of 2 clips failed"
    said = [e.text for e in events if isinstance(e, api.Message)]
    assert said[0] == f"{fake / 'outputs' / 'rows'}: new"
    assert said[-1] == f"Clips: {fake / 'outputs' / 'rows' / 'clips'}"
    assert [type(e) for e in events].count(api.Finished) == 1


def test_rows_are_resumed_from_the_run_directory(
    fake: Path, command: Callable[..., Answer]
) -> None:
    rows, config = frame(id=["fox", "cat"], prompt=["a fox", "a cat"]), api.load_config(*SMALL)
    list(api.render(config, rows))

    again = list(api.render(config, rows.iloc[::-1]))
    answer = command("resume=outputs/rows")

    assert not [e for e in again if isinstance(e, api.ClipFinished)]
    assert isinstance(again[-1], api.Finished)
    assert (again[-1].outcome.state, again[-1].outcome.exit_code) == ("done", 0)
    assert (answer.code, answer.out.splitlines()[0]) == (
        0,
        f"{fake / 'outputs' / 'rows'}: 2 of 2 done",
    )
    stored = (fake / "outputs" / "rows" / "rows.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["id"] for line in stored.splitlines()] == ["cat", "fox"]


def test_a_dry_run_renders_nothing_and_tells_the_plans_lines(fake: Path) -> None:
    rows, config = frame(prompt=["a fox"]), api.load_config(*SMALL, "dry_run=true")

    events = list(api.render(config, rows))

    out = fake / "outputs" / "rows"
    lines = [*api.plan(config, rows).lines, f"Every clip: {out / 'plan.csv'}"]
    assert events[:-1] == [api.Message(line) for line in lines]
    assert [path.name for path in out.iterdir()] == ["plan.csv"]


def states_after(run_dir: Path) -> tuple[str, list[str]]:
    log = api.read_log(run_dir)
    status = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    return status["state"], sorted(log["status"])


@pytest.mark.parametrize("way", ["break", "error", "interrupt"])
def test_a_run_that_is_left_early_ends_in_order_and_is_resumed(fake: Path, way: str) -> None:
    rows = frame(id=["fox", "cat"], prompt=["a fox", "sleep 60 once"])
    config, out = api.load_config(*SMALL), fake / "outputs" / "rows"

    def leave() -> None:
        for event in api.render(config, rows):
            if isinstance(event, api.ClipFinished) and way == "break":
                break
            if isinstance(event, api.ClipFinished) and way == "error":
                raise RuntimeError("of the caller")
            if isinstance(event, api.ClipFinished):
                # As Ctrl-C does, while the next event is waited for.
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    expected = {"break": None, "error": RuntimeError, "interrupt": KeyboardInterrupt}[way]
    if expected is None:
        leave()
    else:
        with pytest.raises(expected):
            leave()

    assert states_after(out) == ("interrupted", ["interrupted", "ok"])
    assert not [t for t in threading.enumerate() if t.name == "hv15_batch-run"]
    *_, last = api.render(config, rows)
    assert isinstance(last, api.Finished)
    assert last.outcome.exit_code == 0
    assert states_after(out) == ("done", ["ok", "ok"])


def test_a_generator_that_is_still_held_when_python_ends_ends_in_order(fake: Path) -> None:
    script = fake / "held.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from functools import partial
import pandas as pd
from fakes.runs import fake_local_executor
from hv15_batch import api
if __name__ == "__main__":
    api.session.run = partial(api.session.run, make_executor=fake_local_executor)
    rows = pd.DataFrame({{"prompt": ["a fox", "sleep 60 once"]}})
    events = api.render(api.load_config(*{SMALL!r}), rows)
    for event in events:
        if isinstance(event, api.ClipFinished):
            break
""",
        encoding="utf-8",
    )

    subprocess.run([sys.executable, str(script)], cwd=fake, check=True, timeout=100)

    assert states_after(fake / "outputs" / "rows") == ("interrupted", ["interrupted", "ok"])


def test_an_error_of_the_run_reaches_the_caller(fake: Path) -> None:
    message = refusal(lambda: list(api.render(api.load_config(*SMALL), frame(prompt=["refuse"]))))

    assert message == "runtime.attention_backend=flash: not here; use auto."
    assert api.load_config("model=tiny_t2v"), "the next call is as good as new"


def test_logging_of_the_caller_stays_as_it_is(fake: Path, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    for event in api.render(api.load_config(*SMALL), frame(prompt=["a fox"])):
        if isinstance(event, api.ClipFinished):
            assert logging.getLogger().handlers == handlers

    assert (logging.getLogger().handlers, logging.getLogger().level) == (handlers, level)
    [text] = (fake / "outputs" / "rows" / "runs").glob("*/run.log")
    assert "done: 1 clip rendered" in text.read_text(encoding="utf-8")


# -- the log ----------------------------------------------------------------------------------


@pytest.fixture
def sweep(folder: Path) -> Iterator[Path]:
    """Two runs of the same rows, with other steps and another profile, in one folder."""
    (folder / "p.csv").write_text("id,prompt,seed\nfox,a fox,0..1\ncat,fail once,0\n", "utf-8")
    for name, offload, steps in (("a", "auto", 2), ("b", "stream", 3)):
        words = (*SMALL, f"override.num_inference_steps={steps}", f"offload={offload}")
        config = api.load_config("p.csv", *words, f"run_dir=all/{name}", "retry.suspect=true")
        for _ in range(2 if name == "a" else 1):
            api.session.run(config, (), None, lambda _: None, make_executor=FakeExecutor)
    return folder / "all"


def test_a_log_has_a_row_for_each_current_clip_and_the_settings_that_differ(sweep: Path) -> None:
    log = api.read_log(sweep)

    names = arrow_schema().names
    assert list(log.columns) == [
        *names,
        "run_dir",
        "offload.kind",
        "override.num_inference_steps",
    ]
    assert [str(t) for t in log.dtypes[["seed", "total_seconds", "is_cold"]]] == [
        "int64[pyarrow]",
        "double[pyarrow]",
        "bool[pyarrow]",
    ]
    assert sorted(set(log["run_dir"])) == [str(sweep / "a"), str(sweep / "b")]
    table = log[["row_id", "seed", "status", "offload.kind", "override.num_inference_steps"]]
    assert table.to_numpy().tolist() == [
        ["fox", 0, "ok", "auto", 2],
        ["cat", 0, "ok", "auto", 2],
        ["fox", 1, "ok", "auto", 2],
        ["fox", 0, "ok", "stream", 3],
        ["cat", 0, "failed", "stream", 3],
        ["fox", 1, "ok", "stream", 3],
    ]


def test_all_attempts_are_there_when_asked_for(sweep: Path) -> None:
    log = api.read_log(sweep / "a", all_attempts=True)

    assert list(log["status"]) == ["ok", "failed", "ok", "ok"]
    assert list(api.read_log(sweep / "a").columns) == [*arrow_schema().names, "run_dir"]


def test_only_clips_of_the_current_manifest_count_under_their_current_names(sweep: Path) -> None:
    (sweep.parent / "p.csv").write_text("id,prompt\nred-fox,a fox\n", encoding="utf-8")
    config = api.load_config("resume=all/a")
    api.session.run(config, (), None, lambda _: None, make_executor=FakeExecutor)

    log = api.read_log(sweep / "a")

    assert [(row.row_id, row.seed) for row in log.itertuples()] == [("red-fox", 0)]


def test_a_sweep_of_the_model_adds_no_column_for_what_follows_from_it(folder: Path) -> None:
    (folder / "p.csv").write_text("prompt\na fox\n", encoding="utf-8")
    for name in ("tiny_t2v", "demo"):
        config = api.load_config("p.csv", *SMALL, f"run_dir=all/{name}")
        config.model.name = name
        config.model.repo = None if name == "tiny_t2v" else "not compared"
        from hv15_batch.rundir.stored import write_settings

        run_dir = RunDir(folder / "all" / name)
        run_dir.create()
        run_dir.run_folder("r1").mkdir()
        write_settings(run_dir.run_folder("r1"), config)
        from hv15_batch.record import ClipRecord
        from hv15_batch.rundir.log import RunLog

        record = ClipRecord(run_id="r1", settings_sha256=name, attempt=1, model=name)
        RunLog(run_dir.log, "r1").append(record)

    log = api.read_log("all")

    assert list(log.columns) == [*arrow_schema().names, "run_dir"]
    assert sorted(log["model"]) == ["demo", "tiny_t2v"]


def test_a_folder_without_a_run_is_refused(folder: Path) -> None:
    assert "no run directory (it has no log)" in refusal(lambda: api.read_log(folder))
    assert "names no run" in refusal(api.read_log)


# -- with the tiny model ----------------------------------------------------------------------


def test_the_examples_in_the_docstrings_are_true(folder: Path) -> None:
    (folder / "prompts.csv").write_text(
        "id,prompt,height,width,num_frames,num_inference_steps\nfox,a fox,64,96,9,2\n",
        encoding="utf-8",
    )
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()

    for function in (api.load_config, api.plan, api.render, api.read_log):
        [test] = finder.find(function, globs=vars(api))
        assert test.examples
        runner.run(test)

    assert runner.summarize().failed == 0


def test_the_examples_in_the_docs_run_as_a_script_without_a_main_guard(folder: Path) -> None:
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    blocks = text.split("```python\n")[1:]
    assert len(blocks) == 4
    code = "\n".join(block.partition("```")[0] for block in blocks)
    words = ", ".join(f'"{word}"' for word in SMALL_STEPS)
    assert '"model=480p_t2v_distilled"' in code
    assert "__main__" not in code
    script = folder / "script.py"
    script.write_text(code.replace('"model=480p_t2v_distilled"', words), encoding="utf-8")
    (folder / "prompts.csv").write_text("id,prompt\nfox,a fox\n", encoding="utf-8")

    done = subprocess.run(
        [sys.executable, script.name], cwd=folder, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stderr
    assert "done: exit code 0" in done.stdout
    assert done.stdout.count(": exit code 0") == 1, "the script runs once, not in the worker"
