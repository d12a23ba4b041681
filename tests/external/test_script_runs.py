"""Runs with the official script, which a stand-in stands for: outcomes, resume, log, processes."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes.command import CARD
from fakes.official import OfficialProject, official_project

from hv15_batch.config.settings import BenchmarkConfig, QualityConfig, RetryConfig, RuntimeConfig
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import ExecutorSpec
from hv15_batch.errors import EXIT_OK, EXIT_SOME_FAILED, Refused
from hv15_batch.external._served import Served
from hv15_batch.external.renderer import ScriptRenderer
from hv15_batch.machine.machine import read_machine
from hv15_batch.machine.nvml import GpuHealth, GpuHealthReader
from hv15_batch.media.tag import read_clip_tag
from hv15_batch.media.video import read_frames
from hv15_batch.model.variant import Engine
from hv15_batch.recipe import make_recipe
from hv15_batch.run import outlook, session
from hv15_batch.run.rendering.stalls import Patience

FAULTS = {
    "[exit 3]": "ScriptFailed",
    "[late exit 5]": "ScriptFailed",
    "[moved]": "OutputMissing",
    "[raise]": "ScriptFailed",
    "[kill]": "ScriptFailed",
    "[no file]": "OutputMissing",
    "[short]": "OutputDamaged",
    "[broken]": "OutputDamaged",
    "[renamed]": "NotAsAsked",
    "[upscaled]": "NotAsAsked",
    "[other seed]": "NotAsAsked",
    "[silent]": "OutputUnconfirmed",
    "[no box]": "OutputUnconfirmed",
    "[fell back]": "AttentionFellBack",
    "[not rewritten]": "RewriteFailed",
}
"""What the stand-in does, and the error that the log has."""
MODES = pytest.mark.parametrize("load_once", [False, True], ids=["torchrun", "once"])

SAMPLED = pytest.mark.parametrize(
    "load_once", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["torchrun", "once"]
)


def project_of(folder: Path, *prompts: str) -> OfficialProject:
    return official_project(
        folder, *(json.dumps({"id": f"r{n}", "prompt": p}) for n, p in enumerate(prompts))
    )


@pytest.fixture
def project(tmp_path: Path) -> OfficialProject:
    made = project_of(tmp_path, "a cat", "a dog")
    made.name = "prompts.jsonl"
    (tmp_path / "prompts.csv").rename(made.manifest)
    return made


def rewrite(project: OfficialProject, *prompts: str) -> None:
    project.write(*(json.dumps({"id": f"r{n}", "prompt": p}) for n, p in enumerate(prompts)))


@MODES
def test_a_clip_is_ok_only_if_exit_words_and_file_agree(
    project: OfficialProject, load_once: bool
) -> None:
    rewrite(project, "a cat", *FAULTS, "a good one")

    code = project.render(official={"load_once": load_once})

    found = project.statuses()
    assert code == EXIT_SOME_FAILED
    assert found["r0"] == found[f"r{len(FAULTS) + 1}"] == ("ok", None)
    expected = {f"r{n}": ("failed", kind) for n, kind in enumerate(FAULTS.values(), 1)}
    assert {name: found[name] for name in expected} == expected
    files = sorted(path.name for path in project.run_dir.clips.iterdir())
    assert [name[:2] for name in files] == ["r0", "r1"]
    assert len(files) == 2
    assert project.strays() == []
    failed = [r for r in project.records() if r["status"] == "failed"]
    assert all(r["file"] is r["file_sha256"] is None and r["error_message"] for r in failed)


@SAMPLED
def test_a_process_that_ends_well_without_a_word_is_a_failure(
    project: OfficialProject, load_once: bool
) -> None:
    rewrite(project, "[gone]")

    assert project.render(official={"load_once": load_once}) == EXIT_SOME_FAILED

    kind = "ScriptFailed" if load_once else "OutputUnconfirmed"
    assert project.statuses() == {"r0": ("failed", kind)}


@MODES
def test_what_the_script_does_not_tell_is_null(project: OfficialProject, load_once: bool) -> None:
    assert project.render(official={"load_once": load_once}) == EXIT_OK

    for number, row in enumerate(project.records()):
        told = {name for name, value in row.items() if value is not None}
        assert row["attention_backend"] == "flash"
        assert row["dtype"] == "bfloat16"
        assert row["repo"] == str(project.repo / "ckpts")
        assert row["engine"].startswith("official@")
        assert row["engine_version"] == row["engine"].split()[0].removeprefix("official@")
        assert row["total_seconds"] > row["write_seconds"] > 0
        assert row["step_seconds"] is None or len(row["step_seconds"]) == 2
        assert row["is_cold"] is (load_once and number == 0)
        assert (row["load_seconds"] is None) is (load_once and number > 0)
        assert not told & {
            *("revision", "mask_free", "compiled", "offload", "vae_tile_size", "decode_device"),
            *("encode_seconds", "decode_seconds", "model_pflop", "tflops", "mfu"),
            *("num_text_tokens", "num_computed_steps", "latents_file", "latents_sha256"),
            *("peak_vram_allocated_bytes", "peak_ram_bytes", "torch_version", "diffusers_version"),
            *("peak_vram_device_bytes", "gpu_name", "gpu_uuid", "energy_joules"),
        }


def test_frames_are_published_as_the_script_wrote_them_and_with_a_tag(
    project: OfficialProject,
) -> None:
    assert project.render() == EXIT_OK

    first = project.records()[0]
    clip = project.run_dir.path / first["file"]
    assert clip.stat().st_size == first["file_bytes"]
    assert len(list(read_frames(clip))) == 5
    assert (project.run_dir.thumbs / f"{clip.stem}.jpg").is_file()
    tag = read_clip_tag(str(clip))
    assert tag.settings_sha256 == first["settings_sha256"]
    assert tag.settings.engine == first["engine"]
    assert (tag.settings.revision, tag.settings.video) == (None, {})
    recipe = make_recipe(tag, project.folder)
    assert not any(word.startswith(("official.", "runtime.engine")) for word in recipe.settings)
    assert any("official.repo=DIR" in note for note in recipe.notes)


@MODES
def test_steps_are_timed_by_the_scripts_bar(project: OfficialProject, load_once: bool) -> None:
    rewrite(project, "[slow]")

    assert project.render(official={"load_once": load_once}) == EXIT_OK

    row = project.records()[0]
    assert len(row["step_seconds"]) == row["num_inference_steps"] == 2
    assert all(seconds > 0 for seconds in row["step_seconds"])
    assert row["denoise_seconds"] == pytest.approx(sum(row["step_seconds"]))
    assert row["denoise_seconds"] > 0.2  # of 0.4; what starves this process is not counted
    assert row["total_seconds"] > row["denoise_seconds"] + row["write_seconds"]


@MODES
def test_noise_and_a_missing_newline_change_nothing(
    project: OfficialProject, load_once: bool
) -> None:
    rewrite(project, "[loud]", "[open end]", "a cat")

    assert project.render(official={"load_once": load_once}) == EXIT_OK

    kept = next(project.run_dir.runs.glob("*/run.log"))
    assert kept.stat().st_size < 2**19
    assert "more of r0" in kept.read_text()


@MODES
def test_clips_are_not_made_by_code_that_was_changed_since_planning(
    project: OfficialProject, load_once: bool
) -> None:
    (project.repo / "hyvideo").mkdir()
    (project.repo / "hyvideo" / "steps.py").write_text("STEPS = 50\n")
    rewrite(project, "a cat", "[edits]", "a dog")

    assert project.render(official={"load_once": load_once}) == EXIT_SOME_FAILED

    changed = ("failed", "ScriptChanged")
    assert project.statuses() == {"r0": ("ok", None), "r1": changed, "r2": changed}
    assert "its code was changed" in project.records()[-1]["error_message"]
    assert len(project.rows()) == 2
    assert len(list(project.run_dir.clips.iterdir())) == 1


def test_clips_are_not_made_with_weights_that_were_changed_since_planning(
    project: OfficialProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = project.repo / "ckpts" / "vae" / "model.safetensors"
    vae.parent.mkdir()
    vae.write_bytes(b"one")
    start = ScriptRenderer.__init__

    def changed_before(self: ScriptRenderer, spec: ExecutorSpec) -> None:
        start(self, spec)
        vae.write_bytes(b"another")

    monkeypatch.setattr(ScriptRenderer, "__init__", changed_before)
    assert project.render() == EXIT_SOME_FAILED

    assert {each[1] for each in project.statuses().values()} == {"ScriptChanged"}
    assert "its ckpts was changed" in project.records()[0]["error_message"]
    assert project.rows() == []


def test_a_process_that_dies_behind_its_answer_harms_no_clip(
    project: OfficialProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(project, "[dies] a", "[dies] b", "[dies] c")
    render = Served.render

    def render_when_dead(self: Served, *args: Any) -> int | None:
        limit = time.monotonic() + 20
        while self.num_rows and not self.is_gone and time.monotonic() < limit:
            time.sleep(0.01)
        return render(self, *args)

    # It is found dead only when it is given its next row, however it is looked at before.
    monkeypatch.setattr(Served, "render", render_when_dead)

    assert project.render(official={"load_once": True}) == EXIT_OK

    assert [status for status, _ in project.statuses().values()] == ["ok"] * 3
    assert len(project.noted("imports.txt")) == len(project.rows()) == 3
    assert [row["is_cold"] for row in project.records()] == [True] * 3


def test_another_size_and_frame_rate_are_told_of_and_kept(
    project: OfficialProject, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(project, "[half speed]", "a cat", "a dog")

    assert project.render() == EXIT_OK

    told = capsys.readouterr().out  # a fake worker tells what it checks one clip later
    assert "WARNING: r0_" in told
    assert "is 48x64, and 480x848 was expected" in told
    assert told.count("has 12 frames a second, and 24 were expected") == 1


def test_a_plain_picture_is_suspect_as_with_the_other_engine(project: OfficialProject) -> None:
    rewrite(project, "[plain]")

    assert project.render() == EXIT_OK

    assert project.records()[0]["quality_flag"] == "flat"


class AlwaysCut:
    """Finds a cut in every clip."""

    def __init__(self, num_frames: int) -> None:
        self._left = num_frames

    def add(self, _frame: object) -> None:
        self._left -= 1

    def faults(self) -> list[str]:
        assert self._left == 0
        return ["cuts"]


def test_a_clip_that_is_faulty_in_a_part_is_suspect_as_with_the_other_engine(
    project: OfficialProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hv15_batch.external._publish.FaultMeter", AlwaysCut)

    assert project.render(quality=QualityConfig(parts=False)) == EXIT_OK
    assert [record["quality_flag"] for record in project.records()] == [None, None]
    assert project.render(force=True) == EXIT_OK
    assert [record["quality_flag"] for record in project.records()[2:]] == ["cuts", "cuts"]
    assert {record["status"] for record in project.records()[2:]} == {"suspect"}


def test_a_second_run_has_nothing_to_do_and_a_changed_flag_is_refused(
    project: OfficialProject,
) -> None:
    assert project.render() == EXIT_OK
    assert project.render(official={"load_once": True}) == EXIT_OK
    assert project.render(official={"arguments": "--offloading false"}) == EXIT_OK
    assert len(project.records()) == 2

    with pytest.raises(Refused, match=r"\(engine no flags -> use_fp8_gemm=true; 2 clips\)"):
        project.render(official={"arguments": "--use_fp8_gemm"})
    with pytest.raises(Refused, match=r"engine .*official@.* -> none"):
        project.render(runtime=RuntimeConfig(), official={"repo": None, "python": None})

    assert project.render(official={"arguments": ["--use_fp8_gemm", True]}, add=True) == EXIT_OK
    assert [row["engine"].endswith(" use_fp8_gemm=true") for row in project.records()] == [
        *(False, False),
        *(True, True),
    ]
    assert "--use_fp8_gemm" in project.rows()[-1]


def test_one_process_loads_each_model_once(project: OfficialProject) -> None:
    project.write(
        *(
            json.dumps({"prompt": f"{model} {n}", "model": model})
            for n in range(2)
            for model in ("480p_t2v", "480p_t2v_distilled")
        )
    )

    runtime = RuntimeConfig(engine=Engine.official, allow_off_recipe=True)
    assert project.render(official={"load_once": True}, runtime=runtime) == EXIT_OK

    assert len(project.noted("imports.txt")) == 1
    assert project.noted("loads.txt") == ["480p_t2v", "480p_t2v_distilled"]
    assert len(project.rows()) == 4


def test_another_process_takes_the_clip_after_an_error(project: OfficialProject) -> None:
    rewrite(project, "a cat", "[raise]", "a dog")

    project.render(official={"load_once": True})

    assert len(project.noted("imports.txt")) == 2
    assert [status for status, _ in project.statuses().values()] == ["ok", "failed", "ok"]


def test_sage_is_asked_for_in_either_way_and_must_be_what_it_uses(
    project: OfficialProject,
) -> None:
    rewrite(project, "a cat", "[fell back] to flash2")

    project.render(official={"arguments": "--use_sageattn true"})

    statuses = project.statuses()
    assert statuses == {"r0": ("ok", None), "r1": ("failed", "AttentionFellBack")}
    assert project.records()[0]["attention_backend"] == "sageattn"
    assert project.records()[1]["attention_backend"] == "flash2"
    runtime = RuntimeConfig(engine=Engine.official, attention_backend="sage")
    project.render(runtime=runtime, add=True)
    assert [r["status"] for r in project.records()[2:]] == ["ok", "failed"]
    assert project.rows()[-1].count("--use_sageattn") == 1


def test_on_a_card_its_memory_is_read_from_outside_and_nothing_is_predicted(
    project: OfficialProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = replace(read_machine(), gpus=(CARD,))
    for module in (session, outlook):
        monkeypatch.setattr(module, "read_machine", lambda: here)
    used = GpuHealth(vram_used_bytes=5 * 2**30)
    monkeypatch.setattr(GpuHealthReader, "read", lambda _: used)

    assert project.run(dry_run=True) == EXIT_OK
    told = "\n".join(project.said)
    assert "Time: not predicted for the official script" in told
    assert "Memory" not in told
    assert project.render() == EXIT_OK

    assert not any("Offload" in line or "Compilation" in line for line in project.said)
    rows = project.records()
    assert {row["peak_vram_device_bytes"] for row in rows} == {5 * 2**30}
    assert {row["gpu_name"] for row in rows} == {CARD.name}
    assert {row["gpu_uuid"] for row in rows} == {CARD.uuid}


@SAMPLED
def test_a_repetition_is_measured_and_leaves_no_file(
    project: OfficialProject, load_once: bool
) -> None:
    rewrite(project, "a cat")

    code = project.render(official={"load_once": load_once}, benchmark=BenchmarkConfig(repeat=2))

    assert code == EXIT_OK
    rows = project.records()
    assert [(row["repeat"], row["file"], row["status"]) for row in rows] == [
        (number, None, "ok") for number in range(3)
    ]
    assert all(row["total_seconds"] and row["file_bytes"] for row in rows)
    assert list(project.run_dir.clips.iterdir()) == []


# -- processes --------------------------------------------------------------------------------


def processes_of(project: OfficialProject) -> list[psutil.Process]:
    """What runs the stand-in, or was started by it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(str(project.repo) in word for word in words) or "time.sleep(3600)" in str(words):
            found.append(process)
    return found


def run_in_child(project: OfficialProject, **changes: Any) -> int:
    """Run with a worker process, which loses patience in seconds. torchrun itself takes some."""
    patience = Patience(20.0, 20.0)
    return session.run(
        project.config(**changes), (), None, project.said.append, LocalExecutor, patience
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("load_once", [False, True], ids=["torchrun", "once"])
def test_a_script_that_hangs_is_ended_with_all_that_it_started(
    project: OfficialProject, load_once: bool
) -> None:
    rewrite(project, "[hang] [child]", "a cat")
    before = {process.pid for process in processes_of(project)}

    code = run_in_child(
        project, official={"load_once": load_once}, retry=RetryConfig(max_attempts=1)
    )

    assert code == EXIT_SOME_FAILED
    assert project.statuses() == {"r0": ("failed", "WorkerStalled"), "r1": ("ok", None)}
    assert {process.pid for process in processes_of(project)} <= before
    assert project.strays() == []


@SAMPLED
def test_a_typed_limit_ends_a_script_that_is_silent(
    project: OfficialProject, load_once: bool
) -> None:
    rewrite(project, "[hang] [child]", "a cat")
    before = {process.pid for process in processes_of(project)}
    retry = RetryConfig(max_attempts=1, stall_minutes=0.1)
    config = project.config(official={"load_once": load_once}, retry=retry)

    code = session.run(config, (), None, project.said.append, LocalExecutor)

    assert code == EXIT_SOME_FAILED
    assert project.statuses() == {"r0": ("failed", "WorkerStalled"), "r1": ("ok", None)}
    assert "6 s are allowed, see retry.stall_minutes" in project.records()[0]["error_message"]
    assert {process.pid for process in processes_of(project)} <= before
    assert project.strays() == []


def test_the_recipes_torchrun_runs_a_row(project: OfficialProject) -> None:
    rewrite(project, "a cat")

    assert project.render(official={"python": sys.executable}) == EXIT_OK

    process, rank, port = project.noted("imports.txt")[0].split()
    assert (rank, port != "None") == ("0", True)
    assert not psutil.pid_exists(int(process)) or time.sleep(1) is None
