"""What is relied on inside Hydra, and sweepers and launchers that are not its own."""

from __future__ import annotations

import ast
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from fakes.command import Answer
from fakes.runs import FakeExecutor, FakeRenderer
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn

import hv15_batch
from hv15_batch.config.compose import Job, run_jobs
from hv15_batch.dispatch.protocol import ExecutorSpec
from hv15_batch.dispatch.protocol import Job as Rendering
from hv15_batch.record import FAILED, ClipRecord
from hv15_batch.run import session
from hv15_batch.rundir.log import read_rows
from hv15_batch.rundir.paths import RunDir

Command = Callable[..., Answer]

TINY = ("model=tiny_t2v", "override.height=32", "override.width=32", "override.num_frames=1")

# -- what is relied on ------------------------------------------------------------------------


def test_hydras_parser_has_no_flag_that_nobody_has_judged() -> None:
    actions = get_args_parser()._actions
    flags = {name for action in actions for name in action.option_strings if name[:2] == "--"}

    assert flags == {
        *("--help", "--version", "--hydra-help", "--cfg", "--resolve", "--package", "--multirun"),
        *("--shell-completion", "--config-dir", "--info"),
        *("--run", "--config-path", "--config-name", "--experimental-rerun"),  # refused
    }
    assert [action.nargs for action in actions if action.dest == "overrides"] == ["*"]


def test_the_object_has_the_methods_that_are_called() -> None:
    from hydra._internal.hydra import Hydra

    def names(method: str) -> list[str]:
        return list(inspect.signature(getattr(Hydra, method)).parameters)

    assert names("multirun")[1:4] == ["config_name", "task_function", "overrides"]
    assert names("show_cfg")[1:] == ["config_name", "overrides", "cfg_type", "package", "resolve"]
    assert names("show_info")[1:4] == ["info", "config_name", "overrides"]
    assert names("hydra_help")[1:] == ["config_name", "args_parser", "args"]
    assert names("shell_completion")[1:] == ["config_name", "overrides"]
    assert {"run_mode", "validate_sweep_overrides"} <= set(names("compose_config"))
    assert {"status", "_return_value"} <= set(JobReturn.__dataclass_fields__)


def test_two_modules_of_one_room_alone_use_what_is_inside_hydra() -> None:
    root = Path(hv15_batch.__file__).parent
    public = ("hydra.errors", "hydra.core.override_parser")
    users = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            inside = [n for n in names if n.partition(".")[0] == "hydra" and n != "hydra.errors"]
            if any(not name.startswith(public) for name in inside):
                users.add(path.stem)

    assert users == {"compose", "_ends"}


# -- flags of Hydra ---------------------------------------------------------------------------


def test_settings_are_printed_as_they_were_typed(command: Command) -> None:
    text = 'a "b", ${x} \\'

    answer = command("p.csv", "--cfg=job", f"run_dir={text}", "sampling.seeds=1,2", "only=null")

    printed = yaml.safe_load(answer.out)
    assert (answer.code, answer.err) == (0, "")
    assert (printed["manifest"], printed["run_dir"]) == ("p.csv", text)
    assert (printed["sampling"]["seeds"], printed["only"]) == ("1,2", None)


def test_flags_may_stand_anywhere(command: Command) -> None:
    first = command("--cfg", "job", "-p", "video", "p.csv", "video.crf=3")
    last = command("p.csv", "video.crf=3", "--package=video", "-c", "job")

    assert first == last
    assert "crf: 3\n" in first.out


@pytest.fixture
def root_log() -> Iterator[None]:
    """The root logger, put back as it was: Hydra gives it a handler for good."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.mark.parametrize("flag", ["--info", "--info=plugins", "--hydra-help"])
def test_hydra_tells_of_itself(command: Command, tmp_path: Path, root_log: None, flag: str) -> None:
    answer = command(flag)

    assert (answer.code, answer.err) == (0, "")
    assert "BasicSweeper" in answer.out or "hydra/sweeper: " in answer.out
    assert list(tmp_path.iterdir()) == []


def test_a_shell_is_told_how_to_complete_and_with_what(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = command("-sc", "install=bash")
    monkeypatch.setenv("COMP_LINE", "hv15-batch p.csv --dry-run offload=st")
    asked = command("--shell-completion", "query=bash")

    assert "hydra_bash_completion" in script.out
    assert asked == Answer(0, "offload=stream offload=stream_disk\n", "")


def test_a_folder_of_the_user_does_not_hide_the_options_here(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "offload").mkdir(parents=True)
    (tmp_path / "mine" / "offload" / "stream.yaml").write_text("kind: resident\n")
    (tmp_path / "mine" / "offload" / "own.yaml").write_text("kind: resident\n")

    kinds = [
        yaml.safe_load(command("-cd", "mine", f"offload={name}", "--cfg", "job").out)["offload"]
        for name in ("stream", "own")
    ]

    assert kinds == [{"kind": "stream"}, {"kind": "resident"}]


# -- jobs in other processes ------------------------------------------------------------------


def end_as_told(job: Job) -> int:
    """Return how many clips the job is limited to; told to other processes by its name."""
    print(os.getpid(), job.config.run_dir, job.config.limit, flush=True)
    return job.config.limit or 0


@pytest.mark.slow
@pytest.mark.parametrize("sweeper", ["basic", "silent"])
@pytest.mark.parametrize("launcher", ["basic", "processes"])
def test_the_worst_code_comes_from_every_launcher_through_every_sweeper(
    sweeper: str, launcher: str, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = list(sys.argv)
    words = ("-m", "p.csv", "limit=3,4,1", "run_dir=a b", "hydra/launcher=" + launcher)

    code = run_jobs((*words, f"hydra/sweeper={sweeper}"), end_as_told)

    told = [line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines()]
    assert code == 4
    assert sorted(rest for _, rest in told) == ["a b 1", "a b 3", "a b 4"]
    assert (launcher == "processes") == ({pid for pid, _ in told}.isdisjoint({str(os.getpid())}))
    assert sys.argv == argv


@pytest.mark.slow
def test_an_interrupt_in_another_process_ends_the_sweep() -> None:
    assert run_jobs(("-m", "p.csv", "limit=3,143", "hydra/launcher=processes"), end_as_told) == 143


@pytest.mark.slow
@pytest.mark.parametrize(("sweeper", "code"), [("basic", 3), ("silent", 4)])
def test_codes_come_from_another_machine_or_are_missed(
    sweeper: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("-m", "p.csv", "limit=3", "hydra/launcher=deaf", f"hydra/sweeper={sweeper}")

    assert run_jobs(words, end_as_told) == code
    assert ("set TMPDIR to a folder that both see" in capsys.readouterr().err) == (code == 4)


def test_an_interrupt_before_a_job_has_a_code_is_none_of_its_codes() -> None:
    def run(job: Job) -> int:
        if job.config.limit == 2:
            raise KeyboardInterrupt
        return 0

    with pytest.raises(KeyboardInterrupt):
        run_jobs(("-m", "p.csv", "limit=1,2,3"), run)


def test_what_a_preset_sweeps_names_the_folders_of_the_jobs(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "space.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      override.flow_shift: 5,7\n"
    )
    (tmp_path / "p.csv").write_text("prompt\na cat\n")

    answer = command("-m", "p.csv", "-cd", "mine", "experiment=space", *TINY, "--dry-run")

    assert (answer.code, answer.err) == (0, "")
    folders = sorted(p.name for p in (tmp_path / "outputs" / "p.sweep").iterdir())
    assert folders == ["5", "7"]


@pytest.mark.slow
def test_a_sweep_of_the_command_runs_in_other_processes(command: Command, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n")
    steps = ("override.num_inference_steps=2,3", "hydra/launcher=processes")

    answer = command("-m", "p.csv", *TINY, *steps, "override.negative_prompt=a, b", "--dry-run")

    assert (answer.code, answer.err) == (0, "")
    folders = sorted(p.name for p in (tmp_path / "outputs" / "p.sweep").iterdir())
    assert [name.partition("-")[0] for name in folders] == ["2", "2", "3", "3"]


def test_another_application_of_hydra_may_call_this_one(tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("x: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        assert run_jobs(("p.csv", "limit=3"), lambda job: job.config.limit or 0) == 3
        assert compose("theirs").x == 1
    assert not GlobalHydra.instance().is_initialized()


# -- sweep_value ------------------------------------------------------------------------------


class Lamp(FakeRenderer):
    """Its frames are the darker the nearer the shift is to 6; a shift over 8 fails."""

    def _finish(self, job: Rendering, words: list[str], columns: dict[str, Any]) -> ClipRecord:
        shift = job.clip.settings.flow_shift
        if shift > 8:
            words = ["fail"]
        record = super()._finish(job, words, columns)
        return record if record.status == FAILED else replace(record, luma_mean=abs(shift - 6) + 10)


def _lit(spec: ExecutorSpec) -> FakeExecutor:
    return FakeExecutor(spec, Lamp)


@pytest.fixture
def lamp(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A command that renders two rows with `Lamp`."""
    optuna.logging.disable_default_handler()  # it holds the stderr of the first test
    monkeypatch.setattr(session, "run", partial(session.run, make_executor=_lit))
    (tmp_path / "p.csv").write_text("prompt\na cat\na dog\n")
    return partial(command, "-m", "p.csv", *TINY, "sweep_value=luma_mean")


def logged(tmp_path: Path) -> dict[float, list[float | None]]:
    """Return what the log says of each shift that was tried."""
    values: dict[float, list[float | None]] = {}
    for folder in (tmp_path / "outputs" / "p.sweep").iterdir():
        for row in read_rows(RunDir(folder).log, ["flow_shift", "luma_mean"]):
            values.setdefault(row["flow_shift"], []).append(row["luma_mean"])
    return values


def result(answer: Answer) -> Any:
    text = answer.out.partition("Result of the sweep:\n")[2]
    return yaml.safe_load(
        "\n".join(takewhile(re.compile("name:|best_|  ").match, text.split("\n")))
    )


def near(shift: float) -> float:
    return abs(shift - 6)


OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1")
SEED = "hydra.sweeper.sampler.seed=1"


def test_optuna_finds_the_least_of_a_column(lamp: Command, tmp_path: Path) -> None:
    answer = lamp(
        "override.flow_shift=interval(4.0,7.9)", *OPTUNA, SEED, "hydra.sweeper.n_trials=8"
    )

    assert answer.code == 0, answer.err
    values = logged(tmp_path)
    assert len(values) == 8
    best, measured = min(values.items(), key=lambda item: item[1])
    assert len(measured) == 2
    found = result(answer)
    assert found["best_params"] == {"override.flow_shift": best}
    assert found["best_value"] == measured[0] == abs(best - 6) + 10


def test_a_job_that_fails_is_no_value_and_the_worst_code_is_that_of_the_sweep(
    lamp: Command, tmp_path: Path
) -> None:
    answer = lamp(
        "override.flow_shift=interval(4.0,12.0)", *OPTUNA, SEED, "hydra.sweeper.n_trials=8"
    )

    assert answer.code == 3
    values = logged(tmp_path)
    failed = [shift for shift, measured in values.items() if measured == [None, None]]
    assert len(values) == 8  # a failed one ended nothing
    assert 0 < len(failed) < 8
    rest = [shift for shift in values if shift not in failed]
    assert result(answer)["best_params"] == {"override.flow_shift": min(rest, key=near)}


def test_where_no_job_gives_a_value_the_sweep_says_so(lamp: Command) -> None:
    answer = lamp("override.flow_shift=choice(9,10)", *OPTUNA, "hydra.sweeper.n_trials=2")
    dry = lamp("override.flow_shift=choice(6,7)", *OPTUNA, "hydra.sweeper.n_trials=2", "--dry-run")

    assert (answer.code, dry.code) == (3, 0)
    for told in (answer, dry):
        assert "sweep_value=luma_mean: no run gave a value (" in told.err
        assert "Traceback" not in told.err


@pytest.mark.parametrize("words", [(), ("benchmark.repeat=2",)])
def test_a_sweep_of_hydras_own_gets_the_median_and_keeps_the_codes(
    lamp: Command, tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    returned: list[Any] = []

    def launch(self: Any, *args: Any, **named: Any) -> Any:
        jobs = original(self, *args, **named)
        returned.extend(job.return_value for job in jobs)
        return jobs

    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    original = BasicLauncher.launch
    monkeypatch.setattr(BasicLauncher, "launch", launch)

    answer = lamp("override.flow_shift=5,9,6.5", *words)

    assert answer.code == 3, answer.err
    assert returned == [11.0, None, 10.5]


def test_the_median_is_of_the_clips_of_the_manifest_as_it_is(
    lamp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lamp("override.flow_shift=5").code == 0
    manifest = tmp_path / "p.csv"
    manifest.write_text("prompt,flow_shift\na cat,5\na cow,7.5\na hen,7\n")

    answer = lamp(*OPTUNA, "limit=choice(9)", "hydra.sweeper.n_trials=1")

    assert answer.code == 0, answer.err
    assert result(answer)["best_value"] == 11.0  # of 11, 11.5 and 11


def test_a_resumed_job_of_such_a_sweep_is_a_run_like_others(lamp: Command, tmp_path: Path) -> None:
    assert lamp("override.flow_shift=5,7").code == 0

    answer = lamp.func(f"resume={tmp_path}/outputs/p.sweep/5")  # type: ignore[attr-defined]

    assert (answer.code, answer.err) == (0, "")
    assert "2 of 2 done" in answer.out


@pytest.mark.parametrize("word", ["hydra.verbose=true", "hydra/launcher=basic"])
def test_hydras_own_settings_go_with_a_resume(lamp: Command, tmp_path: Path, word: str) -> None:
    assert lamp.func("p.csv", "model=tiny_t2v").code == 0  # type: ignore[attr-defined]

    answer = lamp.func(f"resume={tmp_path}/outputs/p", word)  # type: ignore[attr-defined]

    assert (answer.code, answer.err) == (0, "")
    assert "done" in answer.out


def test_a_preset_may_ask_hydra_what_was_chosen(command: Command, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "by_model.yaml").write_text(
        "# @package _global_\nrun_dir: runs/${hydra:runtime.choices.model}\n"
    )
    words = ("p.csv", "--config-dir", "mine", "experiment=by_model", "model=tiny_t2v", "--dry-run")

    answer = command(*words)

    assert answer.code == 0, answer.err
    assert str(tmp_path / "runs" / "tiny_t2v" / "plan.csv") in answer.out


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("from=clip.mp4", "hv15-batch recipe FILE"),
        ("image=a.png", "the manifest's column image"),
        ("verify=true", "hv15-batch compare RUN_A RUN_B"),
        ("report.public=true", "hold nothing private"),
    ],
)
def test_a_setting_that_is_gone_names_what_takes_its_place(
    command: Command, tmp_path: Path, word: str, instead: str
) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n")

    answer = command("p.csv", "model=tiny_t2v", word)

    assert answer.code == 2
    assert instead in answer.err


def test_an_option_of_ones_own_without_a_recipe_is_told_what_to_add(
    command: Command, tmp_path: Path
) -> None:
    (tmp_path / "p.csv").write_text("prompt\na cat\n")
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text(
        "name: own\nrepo: a/b\ndistillation: cfg\n"
    )

    answer = command("p.csv", "--config-dir", "mine", "model=own", "--dry-run")

    assert answer.code == 2
    assert "recipe: {steps: [50], guidance: 1.0}" in answer.err
