"""When a run renders: until, time_limit, window, pause, and how much time a signal leaves it."""

from __future__ import annotations

import json
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes.runs import FakeClock, FakeRenderer, Project

from hv15_batch.clip import Clip
from hv15_batch.clock import Clock, utc_now
from hv15_batch.config.settings import Config, DispatchConfig
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import (
    EncodingEnded,
    Event,
    ExecutorSpec,
    Finished,
    Job,
    Ready,
    Stepped,
)
from hv15_batch.errors import Refused
from hv15_batch.forecast.forecast import clip_cost_function
from hv15_batch.forecast.pace import Pace
from hv15_batch.forecast.seconds import ClipCost
from hv15_batch.record import OK, asked_record
from hv15_batch.run.schedule import read_rules
from hv15_batch.rundir.status import IDLE_STATES
from hv15_batch.rundir.stored import latest_settings
from hv15_batch.status.command import main as status

TESTS = Path(__file__).parents[1]
LOAD_SECONDS = 30.0
WRITE_SECONDS = 2.0
POLL_SECONDS = 20.0
"""Nights are long: the clock moves in larger steps than a real executor is asked in."""


@pytest.fixture(autouse=True)
def _central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process live where the clock is moved in March and October."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


def at(text: str) -> datetime:
    """Return e.g. `2026-11-22 21:00` on the clock on the wall."""
    return datetime.fromisoformat(text).astimezone()


# -- a worker whose clips take time -----------------------------------------------------------


def cost_of(clip: Clip) -> ClipCost:
    """What a clip takes here: about 12 min for 17 frames and 80 min for 121."""
    cost = clip_cost_function(None)(clip.settings)
    return ClipCost(cost.denoise_seconds * 50_000, cost.decode_seconds * 50_000, False)


class TimedWorker:
    """Takes its time on a fake clock; the first clip of a worker waits for its model."""

    def __init__(self, night: Night, spec: ExecutorSpec) -> None:
        self._night, self._spec = night, spec
        self._events: deque[tuple[float, Event]] = deque()
        self._waited = 0.0
        self._is_cold = True

    def start(self) -> None:
        self._note("start")

    def encode(self, clips: Sequence[Clip]) -> None:
        self._events.append((1.0, EncodingEnded()))

    def submit(self, job: Job) -> None:
        self._note(f"begin {job.clip.row_id}")
        self._night.clips[job.clip.row_id] = job.clip
        clip, cost = job.clip, cost_of(job.clip)
        steps = clip.settings.num_inference_steps
        load = LOAD_SECONDS if self._is_cold else 0.0
        for step in range(1, steps + 1):
            seconds = cost.denoise_seconds / steps + (load if step == 1 else 0.0)
            self._events.append((seconds, Stepped(clip.clip_id, "denoise", step, steps)))
        self._events.append((0.0, Stepped(clip.clip_id, "decode", steps, steps)))
        self._events.append((cost.decode_seconds, Ready()))
        file = self._night.project.run_dir.clips / f"{clip.clip_id}.mp4"
        file.write_bytes(b"frames")
        record = asked_record(
            clip,
            file=self._night.project.run_dir.relative(file),
            file_bytes=file.stat().st_size,
            run_id=self._spec.run_id,
            worker_id=self._spec.worker_id,
            status=OK,
            attempt=job.attempt,
            denoise_attempt=job.attempt,
            denoise_seconds=cost.denoise_seconds,
            decode_seconds=cost.decode_seconds,
            write_seconds=WRITE_SECONDS,
            is_cold=self._is_cold,
            finished_at=utc_now(),
        )
        self._events.append((WRITE_SECONDS, Finished(job, record)))
        self._is_cold = False

    def poll(self, timeout_seconds: float) -> Event | None:
        if not self._events:
            self._night.clock.pass_time(timeout_seconds)
            return None
        seconds, event = self._events[0]
        passed = min(POLL_SECONDS, seconds - self._waited)
        self._night.clock.pass_time(passed)
        self._waited += passed
        if self._waited < seconds:
            self._night.at_poll()
            return None
        self._events.popleft()
        self._waited = 0.0
        self._night.after(event)
        return event

    def close(self) -> None:
        self._note("close")

    def kill(self) -> None:
        self._events.clear()

    def resident_bytes(self) -> int | None:
        return None

    def _note(self, what: str) -> None:
        self._night.journal.append((f"{self._night.clock.now():%a %H:%M:%S}", what))


class TimedWorkerBeside(TimedWorker):
    """One of several on one clock: it moves on while the others work."""

    waitable = None

    def __init__(self, night: Night, spec: ExecutorSpec) -> None:
        super().__init__(night, spec)
        self._free_at = 0.0  # when its last event came, on the clock

    def poll(self, timeout_seconds: float) -> Event | None:
        clock = self._night.clock
        if not self._events:
            self._free_at = clock.elapsed_seconds()
            clock.pass_time(timeout_seconds)
            return None
        seconds, event = self._events[0]
        left = self._free_at + seconds - clock.elapsed_seconds()
        if left > 0:
            clock.pass_time(min(left, POLL_SECONDS))
            return None
        self._events.popleft()
        self._free_at += seconds
        return event


@pytest.fixture
def workers_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for pipes: what a worker takes passes on the clock alone."""
    monkeypatch.setattr(multiprocessing.connection, "wait", lambda _pipes, _seconds: [])


class Night:
    """A project, a clock that is moved by its worker, and what the worker did when."""

    def __init__(self, folder: Path, start: str = "2026-11-22 21:00") -> None:
        self.project = Project(folder)
        self.clock = FakeClock(at(start))
        self.journal: list[tuple[str, str]] = []
        self.at_poll: Callable[[], None] = lambda: None
        self.after: Callable[[Event], None] = lambda event: None
        self.clips: dict[str, Clip] = {}
        self.states: list[tuple[str, str | None]] = []
        self.clock.at_sleep = self.look

    def look(self) -> None:
        """Remember what status.json says while nothing is rendered, once it is written."""
        if not self.states:
            end = time.monotonic() + 30
            while self.status()["state"] not in IDLE_STATES and time.monotonic() < end:
                time.sleep(0.05)
        values = self.status()
        self.states.append((values["state"], values["goes_on_at"]))

    def run(self, **changes: Any) -> int:
        return self.project.run(lambda spec: TimedWorker(self, spec), clock=self.clock, **changes)

    @property
    def did(self) -> list[str]:
        return [what for _, what in self.journal]

    def status(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.project.run_dir.status.read_text("utf-8"))
        return values

    def outcomes(self) -> list[tuple[str, str]]:
        return [(r["row_id"], r["status"]) for r in self.project.records()]


@pytest.fixture
def night(tmp_path: Path) -> Night:
    """Four clips; `long` takes about sixteen times what the others take."""
    night = Night(tmp_path)
    night.project.write(
        "id,prompt,num_frames", "a,one,17", "b,two,17", "long,three,121", "c,four,17"
    )
    return night


# -- until and time_limit ---------------------------------------------------------------------


def test_until_stops_before_a_clip_that_would_not_be_finished_and_goes_on_when_run_again(
    night: Night,
) -> None:
    assert night.run(until="22:00") == 4

    # 79 min are too long at 21:25, though two clips of 12 min have just been finished.
    assert night.outcomes() == [("a", "ok"), ("b", "ok")]
    assert night.project.said[2] == (
        "until=22:00: the next clip takes about 1 h 20 min; resume with: hv15-batch "
        f"resume={night.project.run_dir.path}"
    )
    assert night.run() == 0
    assert len(night.outcomes()) == 4


def test_a_clip_is_judged_by_its_own_length_and_a_short_one_is_still_begun(night: Night) -> None:
    night.project.write("id,prompt,num_frames", "long,three,121", "a,one,17", "b,two,17")

    assert night.run(until="22:40") == 4  # the long one is over at about 22:20

    assert night.outcomes() == [("long", "ok"), ("a", "ok")]


def test_time_limit_counts_from_the_start_of_the_command(night: Night) -> None:
    night.clock.pass_time(1200)  # spent before the first clip, e.g. on a download

    assert night.run(time_limit="43m") == 4

    assert night.outcomes() == [("a", "ok")]
    assert night.project.said[2].startswith("time_limit=43m: the next clip takes about 13 min; ")


def test_a_time_limit_that_is_over_starts_no_worker(night: Night) -> None:
    night.clock.pass_time(3600)

    assert night.run(time_limit="1h") == 4

    assert night.journal == []
    assert night.project.said[2].startswith("time_limit=1h: the time is over; ")


def test_until_of_a_later_job_of_a_sweep_is_still_that_of_the_command(night: Night) -> None:
    night.clock.pass_time(9 * 3600)  # it is 06:00, and until=05:00 was meant for 05:00 today

    assert night.run(until="05:00") == 4
    assert night.journal == []


@pytest.mark.usefixtures("workers_side_by_side")
def test_of_several_workers_each_takes_what_it_can_end_in_time(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long clip would be first and does not fit. Worker 1 is slow, and worker 0 is not."""

    def clip_seconds(_pace: Pace, job: Job, worker: int = 0) -> float:
        return float(cost_of(job.clip).seconds) + (3600.0 if worker == 1 else LOAD_SECONDS)

    monkeypatch.setattr(Pace, "clip_seconds", clip_seconds)
    night.project.write(
        "id,prompt,num_frames", "long,three,121", "a,one,17", "b,two,17", "c,four,17"
    )

    def run(**changes: Any) -> int:
        make = partial(TimedWorkerBeside, night)
        return night.project.run(
            make, clock=night.clock, dispatch=DispatchConfig(workers=2), **changes
        )

    assert run(until="21:30") == 4
    assert sorted(night.outcomes()) == [("a", "ok"), ("b", "ok")]
    assert night.project.said[2].startswith("until=21:30: the next clip takes about ")
    assert {r["worker_id"] for r in night.project.records()} == {"local-0-0"}

    assert run() == 0
    assert sorted(night.outcomes()) == [(row, "ok") for row in ("a", "b", "c", "long")]


@pytest.mark.usefixtures("workers_side_by_side")
def test_a_worker_takes_a_short_clip_while_the_long_one_must_wait_for_the_next_window(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Pace, "clip_seconds", lambda _pace, job, worker=0: cost_of(job.clip).seconds
    )
    make = partial(TimedWorkerBeside, night)

    two = DispatchConfig(workers=2)
    assert night.project.run(make, clock=night.clock, dispatch=two, window="20:00-21:45") == 0

    began = {what: when for when, what in night.journal if what.startswith("begin")}
    assert {began[f"begin {row}"][:3] for row in "abc"} == {"Sun"}
    assert began["begin long"].startswith("Mon 20:00")


# -- window -----------------------------------------------------------------------------------


def test_outside_of_its_window_a_run_waits_without_a_worker(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    assert night.run(window="22:00-07:00") == 0

    assert night.journal[0] == ("Sun 22:00:00", "start")
    assert set(night.states) == {("waiting", "2026-11-22T22:00:00+01:00")}
    out = capsys.readouterr().out
    assert "Waiting until Sun 22:00 (window=22:00-07:00); the card is free.\nResuming.\n" in out


def test_at_the_end_of_its_window_the_worker_ends_and_another_one_begins_at_the_next(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    assert night.run(window="22:00-23:40") == 0

    assert night.did == [
        *("start", "begin a", "begin b", "close"),
        *("start", "begin long", "begin c", "close"),
    ]
    assert night.journal[4][0].startswith("Mon 22:00:")
    assert night.journal[3][0].startswith("Sun 22:25:")
    assert (
        "Waiting until Mon 22:00 (window=22:00-23:40, the next clip takes about 1 h 20 min); the "
        "card is free.\n"
    ) in capsys.readouterr().out
    assert night.status()["state"] == "done"
    assert night.status()["goes_on_at"] is None


def test_no_clip_reaches_beyond_its_window(night: Night) -> None:
    night.project.write("id,prompt,num_frames", *(f"r{n},clip {n},17" for n in range(20)))
    ends: list[datetime] = []
    night.after = lambda event: (
        ends.append(night.clock.now()) if isinstance(event, Finished) else None
    )

    assert night.run(window="22:00-23:10") == 0

    assert len(ends) == 20
    assert all("22:00" <= f"{end:%H:%M}" <= "23:10" for end in ends)
    assert [sum(f"{end:%d}" == day for end in ends) for day in ("22", "23", "24", "25")] == [5] * 4


def test_a_clip_that_turns_out_longer_than_the_window_stops_the_run(night: Night) -> None:
    assert night.run(window="22:00-23:00") == 4

    assert night.outcomes() == [("a", "ok"), ("b", "ok")]
    assert night.project.said[2].startswith(
        "window=22:00-23:00: the next clip takes about 1 h 20 min, longer than the window; widen it"
    )


def test_a_window_that_opens_after_the_deadline_is_not_waited_for(night: Night) -> None:
    assert night.run(window="22:00-07:00", until="21:30") == 4

    assert night.journal == []
    assert night.clock.elapsed_seconds() == 0
    assert night.project.said[2].startswith("until=21:30: the window opens later; ")


def test_ctrl_c_while_waiting_ends_the_run_at_once(night: Night) -> None:
    night.clock.at_sleep = lambda: os.kill(os.getpid(), signal.SIGINT)

    assert night.run(window="22:00-07:00") == 130

    assert night.clock.elapsed_seconds() <= 20
    assert night.project.said[2].startswith(
        "interrupted by SIGINT; resume with: hv15-batch resume="
    )


def window_of(text: str) -> Any:
    return read_rules(Config(window=text), Clock()).window


@pytest.mark.parametrize(
    ("text", "now", "opening", "closing"),
    [
        ("22:00-07:00", "2026-11-22 21:00", "2026-11-22 22:00", "2026-11-23 07:00"),
        ("22:00-07:00", "2026-11-23 03:00", "2026-11-22 22:00", "2026-11-23 07:00"),
        ("22:00-07:00", "2026-11-23 07:00", "2026-11-23 22:00", "2026-11-24 07:00"),
        ("9:00-17:30", "2026-11-22 12:00", "2026-11-22 09:00", "2026-11-22 17:30"),
        ("22:00-00:00", "2026-12-31 23:00", "2026-12-31 22:00", "2027-01-01 00:00"),
        # The night of 29 March is an hour short, that of 25 October an hour long.
        ("22:00-07:00", "2026-03-28 23:00", "2026-03-28 22:00", "2026-03-29 07:00"),
        ("22:00-07:00", "2026-10-25 02:30", "2026-10-24 22:00", "2026-10-25 07:00"),
        ("02:15-02:45", "2026-03-29 01:00", "2026-03-29 03:15", "2026-03-29 03:45"),
    ],
)
def test_a_window_is_read_from_the_clock_on_the_wall(
    text: str, now: str, opening: str, closing: str
) -> None:
    assert window_of(text).current(at(now)) == (at(opening), at(closing))


def test_a_window_takes_the_hour_that_the_clock_skips_or_repeats_into_account() -> None:
    window = window_of("22:00-07:00")
    lengths = [
        (closing - opening).total_seconds() / 3600
        for opening, closing in (
            window.current(at(now)) for now in ("2026-03-28 23:00", "2026-10-24 23:00")
        )
    ]

    assert lengths == [8, 10]
    # 8.5 hours do not fit into the short night, but into the next one.
    assert window.begin(at("2026-03-28 22:00"), 8.5 * 3600) == at("2026-03-29 22:00")


def test_the_expected_end_of_much_work_leaves_the_days_out() -> None:
    rules = read_rules(Config(window="22:00-07:00"), FakeClock(at("2026-11-22 21:00")))

    assert rules.ends_after(9 * 3600) == at("2026-11-23 07:00")
    assert rules.ends_after(20 * 3600) == at("2026-11-25 00:00")
    assert read_rules(Config(), rules.clock).ends_after(20 * 3600) == at("2026-11-23 17:00")


def test_a_window_that_the_clock_skips_is_the_next_days() -> None:
    opening, _ = window_of("02:30-03:10").current(at("2026-03-29 01:00"))

    assert opening == at("2026-03-30 02:30")


# -- pause ------------------------------------------------------------------------------------


def test_a_paused_run_lets_go_of_the_card_before_its_next_clip_until_it_may_resume(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    pause = night.project.run_dir.pause
    looks = iter(range(10))

    def look() -> None:
        night.look()
        if next(looks) == 5:
            assert status([str(pause.parent), "--unpause"]) == 0

    def after(event: Event) -> None:
        if isinstance(event, Stepped) and len(night.did) == 2:
            assert status([str(pause.parent), "--pause"]) == 0

    night.clock.at_sleep, night.after = look, after

    assert night.run() == 0

    assert night.did[:4] == ["start", "begin a", "close", "start"]
    assert night.states == [("paused", None)] * 6
    out = capsys.readouterr().out
    how = f"hv15-batch status {pause.parent} --unpause"
    assert f"pauses before its next clip; to resume: {how}\n" in out
    assert f"Paused ({how} resumes); the card is free.\n" in out
    assert len(night.outcomes()) == 4


def test_a_paused_run_is_ended_by_its_deadline(night: Night) -> None:
    night.project.run_dir.path.mkdir()
    night.project.run_dir.runs.mkdir()
    night.project.run_dir.pause.touch()

    assert night.run(until="22:00") == 4

    assert night.journal == []
    assert night.project.said[2].startswith("until=22:00: the time is over; ")
    assert f"{night.clock.now():%H:%M}" == "22:00"


def test_a_pause_is_shown_with_the_way_to_end_it(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(night.project.run_dir.path)
    lines: list[str] = []

    def look() -> None:
        night.look()
        status([folder])
        lines.extend(capsys.readouterr().out.splitlines())
        status([folder, "--unpause"])

    night.clock.at_sleep = look
    night.project.run_dir.path.mkdir()
    night.project.run_dir.runs.mkdir()
    night.project.run_dir.pause.touch()

    assert night.run() == 0
    assert f"paused: hv15-batch status {folder} --unpause resumes" in lines


def test_a_wait_is_shown_with_its_end(night: Night, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []

    def look() -> None:
        if not lines:
            night.look()
            status([str(night.project.run_dir.path)])
            lines.extend(capsys.readouterr().out.splitlines())

    night.clock.at_sleep = look

    assert night.run(window="22:00-07:00") == 0
    assert "waiting until 2026-11-22 22:00 CET: window=22:00-07:00" in lines


def test_pause_where_no_run_is_at_work_says_that_the_next_one_waits(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    night.run()
    folder = night.project.run_dir.path
    capsys.readouterr()

    assert status([str(folder), "--pause"]) == 0
    assert status([str(folder), "--unpause"]) == 0
    assert status([str(folder), "--unpause"]) == 0

    how = f"hv15-batch status {folder} --unpause"
    end = ["no longer paused; no run is active", f"resume with: hv15-batch resume={folder}"]
    assert capsys.readouterr().out.splitlines() == [
        f"no run is active; the next one will wait; to resume: {how}",
        *end * 2,
    ]


# -- signals ----------------------------------------------------------------------------------


def during(night: Night, row: str, stage: str, *numbers: int) -> None:
    """Send signals when that clip has begun that stage."""
    left = list(numbers)

    def at_poll() -> None:
        if left and night.did[-1] == f"begin {row}" and stages[-1] == stage:
            os.kill(os.getpid(), left.pop(0))

    stages = [""]

    def after(event: Event) -> None:
        if isinstance(event, Stepped):
            stages.append(event.stage)
        elif isinstance(event, Ready):
            stages.append("write")

    night.at_poll, night.after = at_poll, after


@pytest.mark.parametrize("row", ["b", "long"])
def test_the_first_interrupt_says_how_long_the_clip_in_hand_takes(
    night: Night, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    during(night, row, "denoise", signal.SIGINT)  # one of its two steps is done

    assert night.run() == 130

    assert night.outcomes()[-1] == (row, "ok")
    cost = cost_of(night.clips[row])
    left = cost.denoise_seconds / 2 + cost.decode_seconds + WRITE_SECONDS
    line = f"Stopping after the current clip, in about {left / 60:.0f} min; Ctrl-C again "
    assert line in capsys.readouterr().out


def test_before_anything_is_measured_an_interrupt_promises_no_time(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    during(night, "a", "denoise", signal.SIGINT)

    assert night.run() == 130

    line = "Stopping after the current clip; Ctrl-C again stops at once.\n"
    assert line in capsys.readouterr().out


def test_a_termination_lets_a_clip_that_is_being_written_finish(
    night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    night.project.write("id,prompt,num_frames", "a,one,17", "b,two,17")
    terminated: list[float] = []

    def after(event: Event) -> None:
        if isinstance(event, Ready) and len(night.outcomes()) == 1:
            terminated.append(night.clock.elapsed_seconds())
            os.kill(os.getpid(), signal.SIGTERM)

    night.after = after

    assert night.run() == 0  # it was the last one

    assert night.outcomes() == [("a", "ok"), ("b", "ok")]
    assert night.clock.elapsed_seconds() - terminated[0] < WRITE_SECONDS + 1
    assert "Ending in at most 6 s: a clip is only being written.\n" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["denoise", "decode"])
def test_a_termination_does_not_wait_for_what_would_take_longer(night: Night, stage: str) -> None:
    """The decode of a long clip takes minutes here; its latents are saved."""
    during(night, "long", stage, signal.SIGTERM)
    sent: list[float] = []
    send = night.at_poll

    def at_poll() -> None:
        before = signal.getsignal(signal.SIGTERM)
        assert callable(before)
        send()
        sent.append(night.clock.elapsed_seconds())

    night.at_poll = at_poll

    assert night.run() == 143

    assert night.outcomes()[-1] == ("long", "interrupted")
    assert night.clock.elapsed_seconds() - sent[-1] <= 1


def test_a_termination_has_a_deadline_though_the_clip_was_expected_in_time(night: Night) -> None:
    terminated: list[float] = []
    last = deque[Event](maxlen=1)

    class Hangs(TimedWorker):
        """Never says that the second clip is written."""

        def poll(self, timeout_seconds: float) -> Event | None:
            if self._events and isinstance(self._events[0][1], Finished) and night.outcomes():
                self._events.clear()
            return super().poll(timeout_seconds)

    def after(event: Event) -> None:
        last.append(event)
        if isinstance(event, Ready) and night.outcomes():
            terminated.append(night.clock.elapsed_seconds())
            os.kill(os.getpid(), signal.SIGTERM)

    night.after = after

    code = night.project.run(lambda spec: Hangs(night, spec), clock=night.clock)

    assert code == 143
    assert night.outcomes() == [("a", "ok"), ("b", "interrupted")]
    assert night.clock.elapsed_seconds() - terminated[0] < 7


def test_a_second_termination_stops_at_once(night: Night) -> None:
    during(night, "b", "write", signal.SIGTERM, signal.SIGTERM)

    assert night.run() == 143


@pytest.mark.slow
def test_a_termination_of_the_whole_group_ends_run_and_worker_in_time(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,sleep 60")
    words = [sys.executable, "-m", "fakes.run_parent", str(tmp_path)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen(words, cwd=TESTS, **pipes) as parent:
        while not (tmp_path / "journal.txt").exists():
            assert parent.poll() is None
            time.sleep(0.05)
        children = psutil.Process(parent.pid).children(recursive=True)
        began = time.monotonic()
        os.killpg(parent.pid, signal.SIGTERM)
        parent.communicate(timeout=30)

    assert parent.returncode == 143
    assert time.monotonic() - began < 10  # what `docker stop` leaves
    psutil.wait_procs(children, timeout=10)
    left = [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
    assert children
    assert left == []
    assert [(r["status"], r["error_type"]) for r in project.records()] == [
        ("interrupted", "SIGTERM")
    ]


@pytest.mark.slow
def test_while_paused_no_worker_process_is_left_that_could_hold_the_card(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,sleep 0.2", "dog,sleep 0.1")
    clock = FakeClock(at("2026-11-22 21:00"))
    workers: list[int] = []

    def look() -> None:
        children = psutil.Process().children(recursive=True)
        workers.append(sum("spawn_main" in " ".join(child.cmdline()) for child in children))
        project.run_dir.pause.unlink()

    class PausesWhenItBegins(LocalExecutor):
        def submit(self, job: Job) -> None:
            super().submit(job)
            if job.clip.row_id == "cat":
                project.run_dir.pause.touch()

    clock.at_sleep = look

    code = project.run(lambda spec: PausesWhenItBegins(spec, FakeRenderer), clock=clock)

    assert code == 0
    assert workers == [0]
    assert [r["row_id"] for r in project.records()] == ["cat", "dog"]


# -- what is asked ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"until": "25:00"},
            "until=25:00: must be a time of day, 00:00 to 23:59, for example 07:00.",
        ),
        ({"until": "7"}, "until=7: must be a time of day, 00:00 to 23:59, for example 07:00."),
        (
            {"window": "22:00"},
            "window=22:00: must be two times of day, 00:00 to 23:59, for example 22:00-07:00.",
        ),
        (
            {"window": "22:00-7"},
            "window=22:00-7: must be two times of day, 00:00 to 23:59, for example 22:00-07:00.",
        ),
        (
            {"window": "07:00-7:00"},
            "window=07:00-7:00: begin and end must differ; leave it out for all day.",
        ),
        *(
            (
                {"time_limit": text},
                f"time_limit={text}: must be over 0 and at most a year, with its unit (h, min, s), "
                "for example 8h, 90min or 1h30m.",
            )
            for text in ("8", "", "0s", "-1h", "1.5h", "30m1h", "9999h", "1h 99999999999s")
        ),
    ],
)
def test_a_text_that_is_no_time_is_refused_before_anything_is_touched(
    night: Night, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(Refused) as refused:
        night.run(**settings)

    assert str(refused.value) == message
    assert not night.project.run_dir.path.exists()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8h", 28_800),
        ("90min", 5400),
        ("90m", 5400),
        ("1h30m", 5400),
        ("1h 30min", 5400),
        ("1h30min5s", 5405),
        ("45s", 45),
    ],
)
def test_a_time_limit_is_read(text: str, seconds: float) -> None:
    clock = FakeClock(at("2026-11-22 21:00"))

    [deadline] = read_rules(Config(time_limit=text), clock).deadlines

    assert deadline.seconds_left(clock) == seconds


@pytest.mark.parametrize(
    ("text", "start", "moment"),
    [
        ("07:00", "2026-11-22 21:00", "2026-11-23 07:00"),
        ("07:00", "2026-11-22 06:59", "2026-11-22 07:00"),
        ("07:00", "2026-11-22 07:00", "2026-11-23 07:00"),
        ("7:00", "2026-10-24 21:00", "2026-10-25 07:00"),
        ("02:30", "2026-03-28 23:00", "2026-03-29 03:30"),
    ],
)
def test_until_is_the_next_moment_at_which_the_clock_shows_it(
    text: str, start: str, moment: str
) -> None:
    [deadline] = read_rules(Config(until=text), FakeClock(at(start))).deadlines

    assert deadline.moment == at(moment)


def test_a_resumed_run_keeps_its_window_but_not_the_limits_of_one_run(night: Night) -> None:
    night.run(window="20:00-07:00", until="21:01", time_limit="2h")

    stored = latest_settings(night.project.run_dir)

    assert (stored.window, stored.until, stored.time_limit) == ("20:00-07:00", None, None)


def test_a_real_clock_counts_from_its_start_and_lets_time_pass() -> None:
    clock = Clock()

    clock.sleep(0.01)

    assert 0.01 <= clock.elapsed_seconds() < 60
    assert timedelta(0) <= clock.now() - clock.started < timedelta(seconds=60)
