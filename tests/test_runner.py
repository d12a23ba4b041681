"""The loop: what ends a run, what is logged of a clip that gave no record, and signals."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_fakes import FakeExecutor, FakeRenderer, Project

from hv15_batch.executor import Died, Event, Job, Note
from hv15_batch.runlog import RunLog


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat", "dog,a dog", "owl,an owl")
    return project


def outcomes(project: Project) -> list[tuple[str, int, str]]:
    return [(r["row_id"], r["attempt"], r["status"]) for r in project.records()]


class Signalled(FakeExecutor):
    """Sends this process signals when a clip is handed over, or when its events are taken."""

    at_submit: tuple[int, ...] = ()

    def submit(self, job: Job) -> None:
        super().submit(job)
        if job.clip.row_id == "dog":
            for number in self.at_submit:
                os.kill(os.getpid(), number)


def signalled(*numbers: int) -> type[Signalled]:
    return type("SignalledTwice", (Signalled,), {"at_submit": numbers})


# -- signals ----------------------------------------------------------------------------------


def test_the_first_interrupt_finishes_the_clip_in_hand(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.run(signalled(signal.SIGINT)) == 130

    assert outcomes(project) == [("cat", 1, "ok"), ("dog", 1, "ok")]
    assert "Stopping after the clip in hand; Ctrl-C again stops at once.\n" in (
        capsys.readouterr().out
    )
    assert project.said[1].startswith("interrupted: 2 clips rendered, 0 failed")
    assert project.said[2] == (
        f"interrupted by SIGINT; go on with: hv15-batch resume={project.run_dir.path}"
    )
    assert project.run() == 0
    assert outcomes(project)[2:] == [("owl", 1, "ok")]


def test_an_interrupt_during_the_last_clip_ends_a_run_that_is_done(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,a dog")

    assert project.run(signalled(signal.SIGINT)) == 0


def test_a_second_interrupt_stops_at_once_and_logs_the_clip_as_interrupted(
    project: Project,
) -> None:
    assert project.run(signalled(signal.SIGINT, signal.SIGINT)) == 130

    assert outcomes(project)[-1] == ("dog", 1, "interrupted")
    record = project.records()[-1]
    assert (record["error_type"], record["error_message"]) == ("SIGINT", "stopped by the user")
    assert record["started_at"] <= record["finished_at"]
    assert project.run() == 0
    tried = [r for r in outcomes(project) if r[0] == "dog"]
    assert tried == [("dog", 1, "interrupted"), ("dog", 2, "ok")]


def test_a_termination_stops_at_once_with_143(project: Project) -> None:
    assert project.run(signalled(signal.SIGTERM)) == 143

    assert outcomes(project)[-1] == ("dog", 1, "interrupted")
    assert project.records()[-1]["error_type"] == "SIGTERM"
    row = next(row for row in project.plan() if row["row_id"] == "dog")
    assert (row["state"], row["reason"]) == ("retry", "interrupted before: SIGTERM")


def test_an_interrupt_while_texts_are_encoded_stops_at_once(project: Project) -> None:
    class InterruptedWhileEncoding(FakeExecutor):
        def encode(self, clips: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    assert project.run(InterruptedWhileEncoding) == 130
    assert outcomes(project) == []


def test_an_executor_that_a_group_signal_reached_first_did_not_fail_its_clip(
    project: Project,
) -> None:
    class DiesOfTheSameSignal(FakeExecutor):
        def submit(self, job: Job) -> None:
            self._events.append(Died("the worker was ended by SIGTERM"))

        def poll(self, timeout_seconds: float) -> Event | None:
            event = super().poll(timeout_seconds)
            if isinstance(event, Died):
                os.kill(os.getpid(), signal.SIGTERM)
            return event

    assert project.run(DiesOfTheSameSignal) == 143
    assert outcomes(project) == [("cat", 1, "interrupted")]


def test_signal_handlers_are_as_before_when_a_run_has_ended(project: Project) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    project.run(signalled(signal.SIGTERM))

    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


# -- deaths -----------------------------------------------------------------------------------


def test_a_dead_executor_fails_the_clip_in_hand_and_another_one_goes_on(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", "cat,a cat", "dog,die", "owl,an owl")

    assert project.run() == 3

    assert outcomes(project) == [("cat", 1, "ok"), ("dog", 1, "failed"), ("owl", 1, "ok")]
    record = project.records()[1]
    assert record["error_type"] == "WorkerDied"
    assert record["error_message"] == "the worker was ended by SIGKILL"
    assert record["prompt"] == "die"
    assert record["hostname"] is not None
    assert record["run_id"] == project.records()[0]["run_id"]
    assert record["denoise_seconds"] is None
    assert "the worker was ended by SIGKILL; starting another one\n" in capsys.readouterr().out


def test_executors_that_die_without_a_clip_in_between_stop_the_run(project: Project) -> None:
    project.write("id,prompt", "cat,die", "dog,die too", "owl,an owl")

    assert project.run() == 4

    assert outcomes(project) == [("cat", 1, "failed"), ("dog", 1, "failed")]
    assert project.said[-3].startswith(
        "the worker was ended by SIGKILL, 2 times without a clip in between; see run.log; go on "
        "with: hv15-batch resume="
    )


def test_a_death_while_encoding_is_tried_once_more(project: Project) -> None:
    tries: list[int] = []

    class DiesOnceWhileEncoding(FakeExecutor):
        def encode(self, clips: Any) -> None:
            tries.append(len(clips))
            if len(tries) == 1:
                self._events.append(Died("the worker was ended by SIGKILL"))
            else:
                super().encode(clips)

    assert project.run(DiesOnceWhileEncoding) == 0
    assert tries == [3, 3]
    assert len(outcomes(project)) == 3


def test_no_executor_is_started_after_the_last_clip_died(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,die")
    made: list[FakeExecutor] = []

    def make(spec: Any) -> FakeExecutor:
        made.append(FakeExecutor(spec))
        return made[-1]

    assert project.run(make) == 3
    assert len(made) == 1


# -- errors -----------------------------------------------------------------------------------


def test_a_failed_clip_is_logged_and_the_next_one_runs(project: Project) -> None:
    project.write("id,prompt", "cat,fail", "dog,a dog")

    assert project.run() == 3
    assert outcomes(project) == [("cat", 1, "failed"), ("dog", 1, "ok")]


def test_a_log_that_cannot_be_written_stops_the_run_and_the_clip_is_made_again_from_latents(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    append: Callable[..., None] = RunLog.append

    def fails_for_dog(self: RunLog, record: Any) -> None:
        if record.row_id == "dog":
            raise OSError(28, "No space left on device")
        append(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "append", fails_for_dog)
        assert project.run() == 4

    assert project.said[2].startswith(
        "the log could not be written (No space left on device); go on with: hv15-batch resume="
    )
    assert "dog" not in {r["row_id"] for r in project.records()}
    project.did()
    assert project.run() == 0
    assert project.did()[0].startswith("decode dog_")


def test_a_clip_may_be_finished_before_the_executor_is_free_again(project: Project) -> None:
    class WritesFast(FakeExecutor):
        def submit(self, job: Job) -> None:
            super().submit(job)
            finished, ready = self._events.pop(), self._events.pop()
            self._events += [finished, ready]

    assert project.run(WritesFast) == 0
    assert len(outcomes(project)) == 3


def test_notes_of_the_executor_are_said(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    class Notes(FakeRenderer):
        def encode(self, clips: Any, emit: Callable[[Event], None]) -> None:
            emit(Note("WARNING: the last 3 tokens of a prompt are cut off"))

    project.run(lambda spec: FakeExecutor(spec, Notes))

    assert "WARNING: the last 3 tokens of a prompt are cut off\n" in capsys.readouterr().out


def test_clips_go_to_the_executor_in_takes_or_row_by_row(project: Project) -> None:
    from hv15_batch.config import Order

    project.write("id,prompt,seed", "cat,a cat,0 1", "dog,a dog,5 6")
    project.run()
    takes = [(r["row_id"], r["seed"]) for r in project.records()]
    project.run(order=Order.rows, force=True)
    rows = [(r["row_id"], r["seed"]) for r in project.records()[4:]]

    assert takes == [("cat", 0), ("dog", 5), ("cat", 1), ("dog", 6)]
    assert rows == [("cat", 0), ("cat", 1), ("dog", 5), ("dog", 6)]


def test_status_json_is_written_about_once_a_second_not_once_a_clip(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hv15_batch import status_file

    written: list[dict[str, Any]] = []
    monkeypatch.setattr(
        status_file, "publish_json", lambda _path, value: written.append(dict(value))
    )
    project.write("id,prompt,seed", "cat,a cat,0..99")

    project.run()

    assert len(project.records()) == 100
    assert len(written) < 30
    assert (written[-1]["state"], written[-1]["done"]) == ("done", 100)
