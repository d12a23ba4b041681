"""`experiment=this_card`: predicted, measured and kept for later; and the first clip's pace."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.command import CARD, Answer, settings_of
from fakes.runs import FakeClock, FakeExecutor, FakeRenderer, Project

from hv15_batch.config.settings import BenchmarkConfig, Config, RuntimeConfig
from hv15_batch.dispatch.protocol import ExecutorSpec, Finished
from hv15_batch.errors import Refused
from hv15_batch.forecast import compilation
from hv15_batch.machine.machine import read_machine
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Weights
from hv15_batch.record import ClipRecord
from hv15_batch.run import _preflight, outlook, session
from hv15_batch.run.schedule import FirstClip
from hv15_batch.units import GIB

HERE = replace(read_machine(), gpus=(CARD,), ram_available_bytes=64 * GIB)
DENOISE, DECODE = 90.0, 20.0
"""Seconds of a clip of four steps on the fake card; 57.1 and 14.2 are predicted."""


class Measuring(FakeRenderer):
    """Says that each clip took these seconds on this card; the first also compiled."""

    clock: FakeClock | None = None
    number = 0

    def _finish(self, job: Any, words: list[str], columns: dict[str, Any]) -> ClipRecord:
        record = super()._finish(job, words, columns)
        cls = type(self)
        cls.number += 1
        is_cold = cls.number == 1
        denoise = DENOISE + 22.0 * is_cold
        if cls.clock is not None:
            cls.clock.pass_time(denoise + DECODE)
        return replace(
            record,
            gpu_name=CARD.name,
            weights="random",
            task="t2v",
            attention_backend="_native_flash",
            mask_free=True,
            compiled=self._spec.config.runtime.compile is True,
            dtype="bfloat16",
            offload=self._spec.offload.name,
            is_cold=is_cold,
            denoise_seconds=denoise,
            decode_seconds=DECODE,
            step_seconds=[denoise / 4] * 4,
            num_computed_steps=4,
            peak_vram_device_bytes=20 * GIB,
        )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    for module in (session, outlook):
        monkeypatch.setattr(module, "read_machine", lambda: HERE)
    for module in (compilation, _preflight):
        monkeypatch.setattr(module, "compiler_fault", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Measuring, "clock", None)
    monkeypatch.setattr(Measuring, "number", 0)
    project = Project(tmp_path)
    project.write("id,prompt", "card,a fox")
    return project


def executor(spec: ExecutorSpec) -> FakeExecutor:
    return FakeExecutor(spec, Measuring)


def preset() -> Config:
    (job,) = settings_of("experiment=this_card")
    return job.config


def full_size(**changes: Any) -> dict[str, Any]:
    model = replace(model_options()["480p_t2v_4step"], weights=Weights.random)
    return {"model": model, "runtime": RuntimeConfig(compile=True), **changes}


def test_the_preset_measures_and_what_it_finds_calibrates_runs_in_other_folders(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = preset()
    changes = full_size(model=asked.model, runtime=asked.runtime, benchmark=asked.benchmark)

    assert project.run(executor, **changes) == 0

    told = "\n".join(project.said)
    assert (
        "Measured on this NVIDIA GeForce RTX 4090: 480x848 121 frames, 4 steps, 2 warm clips: "
        "denoise 90.0 s, 57.1 predicted (+58%); decode 20.0 s, 14.2 predicted (+41%); "
        "card 20.0 GiB, " in told
    )
    assert "(the prediction was an estimate from the rtx_4090's vendor figures)" in told
    assert f"calibrated by it: {tmp_path / 'cache' / 'hv15_batch' / 'measured.json'}" in told
    elsewhere = Project(tmp_path / "other" / "folder")
    elsewhere.folder.mkdir(parents=True)
    elsewhere.write("id,prompt", "cat,a cat")
    assert elsewhere.run(**full_size(dry_run=True)) == 0
    (line,) = [line for line in elsewhere.said if line.startswith("Time: ")]
    assert "110 s per warm clip" in line
    assert "(calibrated by the log of this NVIDIA GeForce RTX 4090)" in line


def test_a_run_without_the_setting_keeps_nothing_outside_its_folder(
    project: Project, tmp_path: Path
) -> None:
    assert project.run(executor, **full_size()) == 0

    assert not list((tmp_path / "cache").rglob("measured.json"))
    assert not any(line.startswith("Measured on ") for line in project.said)


def test_without_a_warm_clip_nothing_is_claimed(project: Project, tmp_path: Path) -> None:
    one = BenchmarkConfig(calibrate=True)

    assert project.run(executor, **full_size(benchmark=one)) == 0

    assert "Measured: no warm clip, so there is nothing to compare with the prediction" in (
        project.said
    )
    assert not list((tmp_path / "cache").rglob("measured.json"))


def test_it_takes_about_five_minutes_on_the_card_that_messages_name(
    command: Callable[..., Answer],
) -> None:
    answer = command("experiment=this_card", "--dry-run", "runtime.card=rtx_4090")

    assert answer.code == 0, answer.err
    assert "random weights: nothing is downloaded" in answer.out
    minutes = re.search(r"^Time: (\d) min in all", answer.out, re.MULTILINE)
    assert minutes is not None
    assert 3 <= int(minutes[1]) <= 6


def test_without_a_card_it_says_what_it_cannot_do_and_what_can_be_done(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    answer = command("experiment=this_card")

    assert answer.code == 2
    assert answer.err == (
        "benchmark.calibrate=true: measures a full-size model on a CUDA card, and none is visible "
        "here; to predict for a card by its name use --dry-run runtime.card=rtx_4090.\n"
    )
    assert not (tmp_path / "outputs").exists()
    dry = command("experiment=this_card", "--dry-run")
    assert dry.code == 0
    assert f"A run would be refused: {answer.err.strip()}" in dry.out.splitlines()


def test_a_typed_compilation_without_a_compiler_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = "it needs a C compiler: sudo apt install build-essential"
    monkeypatch.setattr(_preflight, "compiler_fault", lambda: fault)

    with pytest.raises(Refused) as refused:
        project.run(executor, **full_size())

    told = f"runtime.compile=true: {fault}, or type runtime.compile=false."
    assert str(refused.value) == told
    assert project.run(dry_run=True, **full_size()) == 0
    assert f"A run would be refused: {told}" in project.said
    project.said.clear()
    runtime = RuntimeConfig(compile=True, card="rtx_4090")
    assert project.run(**{**full_size(), "dry_run": True, "runtime": runtime}) == 0
    assert told not in "\n".join(project.said)


# -- the first clip's pace --------------------------------------------------------------------


def test_what_the_line_promises_is_what_the_night_holds(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", *[f"r{n},a fox {n}" for n in range(50)])
    clock = FakeClock(datetime(2026, 11, 22, 22, 0).astimezone())
    Measuring.clock = clock

    assert project.run(executor, clock=clock, **full_size(time_limit="1h")) == 4

    (line,) = [line for line in capsys.readouterr().out.splitlines() if "first clip's" in line]
    promised = re.fullmatch(
        r"At the first clip's pace (\d+) of 49 more clips will be done until Sun 23:00 "
        r"\(time_limit=1h\)\.",
        line,
    )
    assert promised is not None, line
    rendered = len([r for r in project.records() if r["status"] == "ok"])
    assert int(promised[1]) == pytest.approx(rendered - 1, abs=1)


def test_without_a_deadline_there_is_no_such_line(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", "a,a fox", "b,a cat")

    assert project.run(executor, **full_size()) == 0

    assert "first clip's pace" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("record", "share"),
    [
        ({"is_cold": True, "compiled": True}, 0.78),
        ({"is_cold": True, "compiled": False}, 1.0),
        ({"is_cold": False, "compiled": True}, 1.0),
    ],
)
def test_only_a_clip_that_compiled_is_said_to_have_taken_longer(
    record: dict[str, Any], share: float
) -> None:
    """In a run of several models another one may be compiled."""
    asked: list[float] = []

    def lengths(found: float) -> list[tuple[float, float]]:
        asked.append(found)
        return []

    rules: Any = SimpleNamespace(deadlines=("time_limit=1h",), finishes=lambda found: found)
    pace: Any = SimpleNamespace(lengths=lengths, is_modelled=lambda _job: True)
    job: Any = None
    event = Finished(job, ClipRecord(status="ok", denoise_seconds=100.0, **record))

    FirstClip(rules, pace, print, 22.0).heard(event)

    assert asked == [pytest.approx(share)]
