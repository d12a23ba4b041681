"""What is known of a clip from what the script says while it makes it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from fakes import worker
from fakes.runs import Project

from hv15_batch.dispatch.protocol import Alive, Event, Stepped
from hv15_batch.external import _watch
from hv15_batch.external._watch import Watch
from hv15_batch.machine.nvml import GpuHealthReader

HEADING = "\U0001f3ac  HunyuanVideo Generation Task"
BOX = (HEADING, "Attn mode: flash", "Use Meanflow: False")


class Script:
    """Says lines to a watch at times of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        project = Project(folder)
        project.write("id,prompt,num_inference_steps", "cat,a cat,3")
        clip = worker.jobs(project)["cat"].clip
        self.now, self.events = 0.0, list[Event]()
        monkeypatch.setattr(_watch.time, "perf_counter", lambda: self.now)
        self.watch = Watch(clip, folder / "cat.mp4", self.events.append, GpuHealthReader(None))

    def says(self, at: float, *lines: str, stream: str = "out") -> None:
        self.now = at
        for line in lines:
            self.watch.heard(stream, line)

    def bar(self, at: float, step: int) -> None:
        self.says(at, f" 1%|x | {step}/3 [00:00<00:00, 1.0it/s]", stream="error")


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(tmp_path, monkeypatch)


def test_each_state_of_the_bar_ends_a_step(script: Script) -> None:
    script.says(10.0, *BOX)
    for step, at in enumerate((11.0, 13.0, 14.0, 18.0)):
        script.bar(at, step)
        script.bar(at + 0.5, step)  # again, with another estimate
    script.now = 20.0
    script.watch.end()

    assert script.watch.columns()["step_seconds"] == [2.0, 1.0, 4.0]
    assert script.watch.columns()["denoise_seconds"] == 7.0
    assert (script.watch.load_seconds, script.watch.other_seconds) == (10.0, 3.0)
    stepped = [(e.stage, e.step) for e in script.events if isinstance(e, Stepped)]
    assert stepped == [("encode", 0), *(("denoise", step) for step in range(4)), ("decode", 3)]


@pytest.mark.parametrize("left_out", [0, 1, 3])
def test_steps_are_null_where_a_state_was_left_out(script: Script, left_out: int) -> None:
    script.says(10.0, *BOX)
    for step in range(4):
        if step != left_out:
            script.bar(11.0 + step, step)
    script.now = 20.0
    script.watch.end()

    columns = script.watch.columns()
    assert columns["step_seconds"] is columns["denoise_seconds"] is None
    assert script.watch.other_seconds == 10.0


def test_lines_are_signs_of_life_but_not_for_ever(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_watch, "_MAX_ALIVE_LINES", 20)
    for second in range(1, 100):
        script.says(float(second), "waiting", "", "waiting")

    assert script.events == [Alive()] * 10  # each second, and no more than 20 lines


def test_a_script_that_says_much_does_not_fill_the_disk(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    script.says(1.0, "x" * 10_000_000, *["y" * 1000] * 1000)

    kept = [record.getMessage() for record in caplog.records]
    assert sum(map(len, kept)) < 300_000
    assert kept[-1].endswith("is kept here")
