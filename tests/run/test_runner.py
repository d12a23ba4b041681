"""The loop: what ends a run, what is logged of a clip that gave no record, and signals."""

from __future__ import annotations

import html
import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fakes.runs import FakeClock, FakeExecutor, FakeRenderer, Project

from hv15_batch.clock import utc_now
from hv15_batch.config.settings import RetryConfig
from hv15_batch.dispatch import local
from hv15_batch.dispatch.protocol import Died, Event, Finished, Job, Note
from hv15_batch.machine.nvml import Gpu
from hv15_batch.run.rendering import loop
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.status import read_status
from hv15_batch.status.show import format_status


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
    # On a slow machine how long that takes is said too.
    line = r"Stopping after the current clip(, in about \d+ s)?; Ctrl-C again stops at once\.\n"
    assert re.search(line, capsys.readouterr().out)
    assert project.said[1].startswith("interrupted: 2 clips rendered, 0 failed")
    assert project.said[2] == (
        f"interrupted by SIGINT; resume with: hv15-batch resume={project.run_dir.path}"
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


def test_a_closed_terminal_ends_a_run_as_a_termination_does_and_is_named(project: Project) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    try:
        assert project.run(signalled(signal.SIGHUP)) == 143
    finally:
        signal.signal(signal.SIGHUP, before)

    assert project.records()[-1]["error_type"] == "SIGHUP"
    assert project.said[2].startswith("interrupted by SIGHUP; resume with: ")


def test_under_nohup_the_terminal_may_close(project: Project) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert project.run(signalled(signal.SIGHUP)) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, None),
        ({"only": "dog,owl"}, "only"),
        ({"force": True, "limit": 2}, "limit, force"),
        ({"add": True, "time_limit": "8h"}, "add, time_limit"),
        ({"retry": RetryConfig(suspect=True), "until": "23:59"}, "retry.suspect, until"),
    ],
)
def test_a_run_that_ends_early_says_how_to_resume_and_what_to_type_again(
    project: Project, changes: dict[str, Any], names: str | None
) -> None:
    clock = FakeClock(datetime(2026, 11, 22, 12, tzinfo=timezone.utc))
    if "force" in changes:
        project.run()

    assert project.run(signalled(signal.SIGTERM), clock=clock, **changes) == 143

    command = f"hv15-batch resume={project.run_dir.path}"
    lines = [f"resume with: {command}"]
    lines += [f"type again if you want them: {names}"] if names else []
    how = project.said.index(f"interrupted by SIGTERM; {lines[0]}")
    assert project.said[how + 1 :][: len(lines) - 1] == lines[1:]
    status = format_status(project.run_dir.path, read_status(project.run_dir.path), utc_now())
    assert status.splitlines()[3:-1] == lines
    page = project.run_dir.page.read_text(encoding="utf-8")
    assert f">{html.escape(command)}</code>" in page
    if names:
        assert f"({lines[1]})" in page
    else:
        assert "type again" not in page
    assert [line for line in project.said if "type again" in line] == lines[1:]


def test_a_suspect_whose_second_try_was_interrupted_is_not_decoded_from_the_same_latents(
    project: Project,
) -> None:
    project.write("id,prompt", "cat,a cat", "dog,suspect")
    project.run()
    again = {"retry": RetryConfig(suspect=True)}
    assert project.run(signalled(signal.SIGTERM), **again) == 143
    project.did()

    project.run(**again)

    assert [line.split("_")[0] for line in project.did()] == ["denoise dog"]


def test_of_a_sweep_the_other_jobs_are_named_too(project: Project) -> None:
    assert project.run(signalled(signal.SIGTERM), sweep="resident") == 143

    assert project.said[3] == (
        "That resumes this run only; the same command again resumes the whole sweep."
    )


def test_a_clip_that_was_forced_and_interrupted_is_done_no_more(project: Project) -> None:
    project.run()

    project.run(signalled(signal.SIGTERM), force=True)

    assert read_status(project.run_dir.path).done == 2


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


def test_a_clip_that_ends_its_worker_each_time_is_set_aside_and_the_night_goes_on(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt", "cat,a cat", "dog,die", "owl,an owl")

    assert project.run() == 3

    assert outcomes(project) == [
        ("cat", 1, "ok"),
        ("dog", 1, "failed"),
        ("dog", 2, "failed"),
        ("owl", 1, "ok"),
    ]
    record = project.records()[1]
    assert record["error_type"] == "WorkerDied"
    assert record["error_message"] == "the worker was ended by SIGKILL"
    assert record["prompt"] == "die"
    assert record["hostname"] is not None
    assert record["run_id"] == project.records()[0]["run_id"]
    assert record["denoise_seconds"] is None
    out = capsys.readouterr().out
    assert "the worker was ended by SIGKILL; starting another one\n" in out
    assert f"{record['clip_id']} is skipped: its worker died each time\n" in out
    assert project.said[1].startswith("failed: 2 clips rendered, 1 failed")
    status = json.loads(project.run_dir.status.read_text(encoding="utf-8"))
    assert (status["done"], status["failed"]) == (2, 1)


def test_a_clip_whose_second_attempt_works_heals_the_run(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,die once", "owl,an owl")

    assert project.run() == 0

    assert outcomes(project)[1:3] == [("dog", 1, "failed"), ("dog", 2, "ok")]
    assert project.said[1].startswith("done: 3 clips rendered, 0 failed")
    status = json.loads(project.run_dir.status.read_text(encoding="utf-8"))
    assert (status["done"], status["failed"]) == (3, 0)


def test_max_attempts_says_how_often_a_clip_may_end_its_worker(project: Project) -> None:
    project.write("id,prompt", "dog,die", "owl,an owl")

    assert project.run(retry=RetryConfig(max_attempts=4)) == 3

    assert [r[:2] for r in outcomes(project)] == [*(("dog", n) for n in (1, 2, 3, 4)), ("owl", 1)]


def test_workers_that_die_with_different_clips_in_a_row_stop_the_run(project: Project) -> None:
    project.write("id,prompt", "cat,die", "dog,die too", "owl,an owl")

    assert project.run() == 4

    assert outcomes(project) == [("cat", 1, "failed"), ("cat", 2, "failed"), ("dog", 1, "failed")]
    assert project.said[1].startswith("stopped: 0 clips rendered, 2 failed")
    assert project.said[-3].startswith(
        "the worker was ended by SIGKILL, 3 times without a clip in between; look at run.log, "
        "nvidia-smi and dmesg for the cause; resume with: hv15-batch resume="
    )


def test_clips_that_end_their_workers_with_others_in_between_do_not_stop_the_run(
    project: Project,
) -> None:
    project.write("id,prompt", "cat,die", "dog,a dog", "owl,die too", "fox,a fox")

    assert project.run() == 3

    assert [r for r in outcomes(project) if r[2] == "ok"] == [("dog", 1, "ok"), ("fox", 1, "ok")]


def test_a_second_loss_of_the_card_in_a_row_stops_the_run_and_blames_no_clip(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = "the GPU is lost: the driver no longer lists NVIDIA H200 (GPU-1)"
    monkeypatch.setattr(loop, "lost_gpu", lambda _card: lost)
    project.write("id,prompt", "cat,a cat", "dog,die", "owl,an owl")

    assert project.run(retry=RetryConfig(max_attempts=5)) == 4

    dog = [r for r in project.records() if r["row_id"] == "dog"]
    assert [(r["error_type"], r["error_message"]) for r in dog] == [("GpuLost", lost)] * 2
    assert project.said[-3].startswith(f"{lost}, 2 times without a clip in between; look at ")


def test_only_a_card_that_the_driver_no_longer_lists_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Gpu(0, "NVIDIA H200", "GPU-1", 2**37, 2**37, "580", None)

    def lost(*listed: Gpu, gpu: Gpu | None = card) -> str | None:
        monkeypatch.setattr(local, "read_gpus", lambda: list(listed))
        return local.lost_gpu(gpu)

    assert lost(replace(card, free_bytes=1)) is None
    assert lost(replace(card, uuid="GPU-2")) == (
        "the GPU is lost: the driver no longer lists NVIDIA H200 (GPU-1)"
    )
    assert lost(gpu=None) is None


def dies_at(row_id: str, max_deaths: int = 1) -> Callable[[Any], FakeExecutor]:
    """Executors that die when they are handed a row, what they still write being lost too."""
    deaths: list[str] = []
    handed: list[tuple[str, bool]] = []

    class Dies(FakeExecutor):
        def submit(self, job: Job) -> None:
            handed.append((job.clip.row_id, job.use_latents))
            if job.clip.row_id == row_id and len(deaths) < max_deaths:
                deaths.append(row_id)
                self._events.clear()
                self._events.append(Died("the worker was ended by SIGKILL"))
            else:
                super().submit(job)

    def make(spec: Any) -> FakeExecutor:
        return Dies(spec)

    make.handed = handed  # type: ignore[attr-defined]
    return make


def test_a_clip_that_was_only_being_written_is_decoded_again_and_not_blamed(
    project: Project,
) -> None:
    """Every attempt is blamed here, so a blamed clip would have no second one."""
    make = dies_at("dog")

    code = project.run(make, force=True, retry=RetryConfig(max_attempts=1))

    assert code == 3
    assert outcomes(project) == [
        ("cat", 1, "failed"),
        ("dog", 1, "failed"),
        ("cat", 2, "ok"),
        ("owl", 1, "ok"),
    ]
    cat = [line.split()[0] for line in project.did() if "cat" in line]
    assert cat == ["denoise", "decode"]


def test_after_a_death_with_two_clips_in_hand_each_is_tried_alone(project: Project) -> None:
    """So that a death in writing is told from one in rendering."""
    seen: list[tuple[str, ...]] = []

    class Watches(FakeExecutor):
        def __init__(self, spec: Any) -> None:
            super().__init__(spec)
            self._open: list[str] = []

        def submit(self, job: Job) -> None:
            self._open.append(job.clip.row_id)
            seen.append(tuple(self._open))
            if seen == [("cat",), ("cat", "dog")]:
                self._events.clear()
                self._events.append(Died("the worker was ended by SIGKILL"))
            else:
                super().submit(job)

        def poll(self, timeout_seconds: float) -> Event | None:
            event = super().poll(timeout_seconds)
            if isinstance(event, Finished):
                self._open.remove(event.job.clip.row_id)
            return event

    assert project.run(Watches) == 0

    assert seen == [("cat",), ("cat", "dog"), ("cat",), ("dog",), ("owl",)]


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


def test_a_text_that_ends_its_worker_costs_its_clip_only(project: Project) -> None:
    class DiesOfDog(FakeExecutor):
        def encode(self, clips: Any) -> None:
            self._events.append(Died("the worker was ended by SIGKILL"))

        def submit(self, job: Job) -> None:
            if job.clip.row_id == "dog":
                self._events.append(Died("the worker was ended by SIGKILL"))
            else:
                super().submit(job)

    assert project.run(DiesOfDog) == 3

    assert {r[0]: r[2] for r in outcomes(project)} == {"cat": "ok", "dog": "failed", "owl": "ok"}


def test_no_executor_is_started_after_the_last_clip_is_set_aside(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,die")
    made: list[FakeExecutor] = []

    def make(spec: Any) -> FakeExecutor:
        made.append(FakeExecutor(spec))
        return made[-1]

    assert project.run(make) == 3
    assert len(made) == 2


# -- recycling --------------------------------------------------------------------------------


class Counted(FakeExecutor):
    """Notes what its workers are told, and holds as much memory as the test says."""

    told: ClassVar[list[str]] = []
    gib: ClassVar[dict[str, float]] = {}

    def _tell(self, what: str) -> None:
        self.told.append(f"{what} {self.spec.worker_id}")

    def start(self) -> None:
        self._tell("start")

    def close(self) -> None:
        self._tell("close")

    def submit(self, job: Job) -> None:
        self._row = job.clip.row_id
        self._tell(self._row)
        super().submit(job)

    def resident_bytes(self) -> int | None:
        return int(self.gib.get(self._row, 4.0) * 2**30)


def counted(**gib: float) -> type[Counted]:
    return type("CountedHere", (Counted,), {"told": [], "gib": gib})


def test_a_worker_is_replaced_after_as_many_clips_as_are_set(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write("id,prompt,seed", "cat,a cat,0..4")
    executors = counted()

    assert project.run(executors, retry=RetryConfig(max_clips_per_worker=2)) == 0

    assert executors.told == [
        *("start local-0", "cat local-0", "cat local-0", "close local-0"),
        *("start local-1", "cat local-1", "cat local-1", "close local-1"),
        *("start local-2", "cat local-2", "close local-2"),
    ]
    assert len(outcomes(project)) == 5
    line = "replaced after 2 clips (retry.max_clips_per_worker=2)"
    assert f"The worker is {line}.\n" in capsys.readouterr().out
    (log,) = project.run_dir.runs.glob("*/run.log")
    assert log.read_text(encoding="utf-8").count(f"the worker is {line}") == 2


def test_a_worker_is_replaced_when_its_memory_has_grown(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is read when a clip is finished, which is while the next one is rendered."""
    project.write("id,prompt", *(f"{name},a {name}" for name in ("cat", "dog", "owl", "fox")))
    executors = counted(cat=1.0, dog=20.0, owl=22.5)

    assert project.run(executors, retry=RetryConfig(max_ram_growth_gib=2.0)) == 0

    assert executors.told[-5:] == [
        *("owl local-0", "close local-0", "start local-1", "fox local-1", "close local-1")
    ]
    assert (
        "The worker is replaced holding 2.5 GiB more than after its first clip "
        "(retry.max_ram_growth_gib=2).\n"
    ) in capsys.readouterr().out


def test_memory_that_a_smaller_profile_takes_is_no_growth(project: Project) -> None:
    project.write(
        "id,prompt", *(f"{name},a {name}" for name in ("cat", "dog", "owl", "fox", "elk"))
    )
    executors = counted(cat=4.0, dog=4.0, owl=20.0, fox=20.0)

    class ClimbsDown(executors):  # type: ignore[valid-type, misc]
        def submit(self, job: Job) -> None:
            if job.clip.row_id == "owl":
                self._events.append(Note("out of memory while denoising: continuing with stream"))
            super().submit(job)

    assert project.run(ClimbsDown, retry=RetryConfig(max_ram_growth_gib=2.0)) == 0

    assert "start local-1" not in executors.told


# -- bad clips in a row -----------------------------------------------------------------------


def test_too_many_bad_clips_in_a_row_stop_the_run(project: Project) -> None:
    bad = ["b0,fail", "b1,suspect", "b2,fail 2"]
    project.write("id,prompt", "ok,a cat", "b,fail first", "ok2,a dog", *bad, "owl,an owl", "x,y")

    assert project.run(retry=RetryConfig(max_consecutive_bad=3)) == 4

    assert "owl" not in {r[0] for r in outcomes(project)[:6]}
    assert len(outcomes(project)) in (6, 7)  # the next one may be in hand already
    message = next(line for line in project.said if "in a row" in line)
    assert message.startswith("3 clips in a row failed or are suspect (the last one b2_s0_")
    assert ": RuntimeError); look at the page and at run.log for their common cause" in message
    assert project.run() == 3


def test_bad_clips_at_the_very_end_stop_nothing(project: Project) -> None:
    project.write("id,prompt", "cat,fail", "dog,fail too")

    assert project.run(retry=RetryConfig(max_consecutive_bad=2)) == 3


def test_a_clip_that_heals_is_not_bad(project: Project) -> None:
    project.write("id,prompt", *(f"c{n},die once {n}" for n in range(4)))

    assert project.run(retry=RetryConfig(max_consecutive_bad=1)) == 0


# -- errors -----------------------------------------------------------------------------------


def test_a_failed_clip_is_logged_and_the_next_one_runs(project: Project) -> None:
    project.write("id,prompt", "cat,fail", "dog,a dog")

    assert project.run() == 3
    assert outcomes(project) == [("cat", 1, "failed"), ("dog", 1, "ok")]


def test_a_log_that_cannot_be_written_stops_the_run_and_the_clip_is_made_again_from_latents(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Callable[..., None] = RunLog._write

    def fails_for_dog(self: RunLog, record: Any) -> None:
        if record.row_id == "dog":
            raise OSError(28, "No space left on device")
        write(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "_write", fails_for_dog)
        assert project.run() == 4

    assert project.said[2].startswith(
        "the log could not be written (No space left on device); resume with: hv15-batch resume="
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
    from hv15_batch.config.settings import Order

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
    from hv15_batch.rundir import status as status_file

    written: list[dict[str, Any]] = []
    monkeypatch.setattr(
        status_file, "publish_json", lambda _path, value: written.append(dict(value))
    )
    project.write("id,prompt,seed", "cat,a cat,0..99")

    project.run()

    assert len(project.records()) == 100
    assert len(written) < 30
    assert (written[-1]["state"], written[-1]["done"]) == ("done", 100)


def test_status_and_the_last_line_show_the_same_seconds_a_clip(project: Project) -> None:
    project.run()

    assert read_status(project.run_dir.path).seconds_per_clip == 0.25
    assert ", 0.2 s per warm clip (median)" in project.said[1]


def test_the_end_of_a_limited_run_says_what_it_left_out_and_a_whole_one_does_not(
    project: Project,
) -> None:
    left_out = "to render them: hv15-batch resume="

    assert project.run(limit=1) == 0
    assert f"left out by limit= or only=; {left_out}" in "\n".join(project.said)

    project.said.clear()
    assert project.run() == 0
    assert left_out not in "\n".join(project.said)
