"""Shows a run: a live line on a terminal, plain lines elsewhere, and status.json.

It decides nothing.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TextIO

from hv15_batch.dispatch.protocol import (
    Died,
    Encoded,
    Event,
    Finished,
    Job,
    Loading,
    Note,
    Stepped,
)
from hv15_batch.errors import Secondary
from hv15_batch.forecast.pace import Pace
from hv15_batch.machine.machine import free_disk_bytes
from hv15_batch.machine.nvml import GpuHealth, GpuHealthReader
from hv15_batch.record import ENCODE, FAILED, SUSPECT, ClipRecord, attempt_seconds
from hv15_batch.redaction import redacted, shown
from hv15_batch.run._crew import Crew, Waiting
from hv15_batch.run.outcome import ClipFinished, Listen, Message, format_error
from hv15_batch.run.schedule import Wait
from hv15_batch.rundir.status import IDLE_STATES, StatusFile
from hv15_batch.status.live_line import LiveLine
from hv15_batch.status.show import line_facts
from hv15_batch.status.terminal import can_redraw
from hv15_batch.units import format_duration, format_gib

_NO_CLIP = {"clip_id": None, "stage": None, "step": None, "steps": None, "loading": None}
_NO_ETA = {"eta_p50": None, "eta_p90": None, "eta_basis": None}


Rendering = tuple[str | None, int | None]
"""A clip, or one repetition of it in a benchmark."""


LOADING_SECONDS = 2.0
"""Without a terminal, loading that takes longer prints a line."""
FACTS_SECONDS = 2.0
"""Expected end, temperature and memory are shown anew this often."""

_P = ParamSpec("_P")


def _shown(method: Callable[Concatenate[Progress, _P], None]) -> Callable[..., None]:
    """Wrap a method so that its failure does not end the run, see `Secondary`."""

    @wraps(method)
    def guarded(self: Progress, *args: _P.args, **named: _P.kwargs) -> None:
        with self.guard:
            method(self, *args, **named)

    return guarded


def _from_now(seconds: float) -> datetime:
    return datetime.now().astimezone() + timedelta(seconds=seconds)


class Progress:
    """Counts clips and shows them."""

    def __init__(
        self,
        status_file: Path,
        run_id: str,
        total: int,
        done: int,
        out: TextIO | None = None,
        *,
        again: Collection[Rendering] = (),
        type_again: Sequence[str] = (),
        pace: Pace | None = None,
        ends_after: Callable[[float], datetime] = _from_now,
        cards: Sequence[str | None] = (None,),
        listen: Listen | None = None,
        workers: Sequence[str] = ("",),
        may_grow: bool = False,
    ) -> None:
        """Start with `done` of `total` clips finished by earlier runs.

        Args:
            status_file: Tells other processes how far the run is.
            run_id: This run.
            total: Clips of the manifest.
            done: How many of them were finished before.
            out: Stream for the live line and others; None means stdout.
            again: Finished clips that this run renders again.
            type_again: Names of settings that `resume=` does not take over.
            pace: Predicts when all clips will be done; gets each event before this does. None
                predicts nothing.
            ends_after: Returns when work of so many seconds will be done, `window` included.
            cards: UUID of each worker's card, which is watched; None for none.
            listen: Receives the events, and nothing is shown; None shows them.
            workers: Where each worker renders, in words, e.g. its card.
            may_grow: Whether further workers may join.
        """
        self._crew = Crew(workers, may_grow)
        self._out = out or sys.stdout
        self._listen = listen
        self._line = LiveLine(self._out) if listen is None and can_redraw(self._out) else None
        self.guard = Secondary("something of the run could not be shown")
        self._loading: dict[int, Waiting] = {}
        self._number = 0  # ended clips
        self._facts_shown_at = 0.0
        self._pace = pace
        self._cards = [GpuHealthReader(uuid) for uuid in cards]
        self._folder = status_file.parent
        self._ends_after = ends_after
        self._failed: set[Rendering] = set()
        self._suspect: set[Rendering] = set()
        self._done: set[Rendering] = set(again)
        self._ended: set[Rendering] = set()
        self._num_todo = 0
        self._done_before = done - len(self._done)  # not touched by this run
        self._state = self._state_before = "encoding"
        values = _first_values(run_id, total, done) | {"type_again": list(type_again)}
        values |= self._crew.values()
        self._status = StatusFile(status_file, values, self._sample)

    @_shown
    def say(self, text: str) -> None:
        """Print a line above the live one."""
        text = shown(text)
        if self._listen is not None:
            self._listen(Message(text))
            return
        with suppress(OSError):  # a full disk or a closed pipe must not end the run
            if self._line is not None:
                self._line.print(text)
            else:
                print(text, file=self._out, flush=True)

    @_shown
    def joined(self, where: str) -> None:
        """Show that a worker joined, with the next number."""
        self._crew.joined(where)
        self._cards.append(GpuHealthReader(None))  # its card is on another machine

    def say_of(self, worker: int, text: str) -> None:
        """Print a line about a worker."""
        self.say(self._crew.named(worker, text))

    @_shown
    def submitted(self, job: Job, worker: int = 0) -> None:
        """Show that a clip was handed to a worker."""
        self._crew.submitted(worker, job.clip.clip_id)
        self.started(job.clip.clip_id, worker)

    @_shown
    def heard(self, event: Event, worker: int = 0) -> None:
        """Show an event of a worker."""
        if worker in self._loading and not isinstance(event, Note):
            self._loaded(worker, is_there=not isinstance(event, Died))
        self._crew.heard(worker, event)
        match event:
            case Note():
                self.say(self._crew.named(worker, event.text))
            case Loading(what):
                self.loading(what, worker)
            case Encoded():
                self.encoding(event.done, event.total)
            case Stepped(clip_id, stage, step, steps):
                self.stepped(clip_id, stage, step, steps, worker)
            case Finished(_, record):
                self._ended.add((record.clip_id, record.repeat))
                self.finished_clip(record, len(self._ended), self._num_todo, worker)
            case _:
                pass

    @_shown
    def loading(self, what: str, worker: int = 0) -> None:
        """Show what is being loaded, and for how long."""
        self._loading[worker] = Waiting(what, time.monotonic())
        if self._line is not None:
            self._line.show_loading(what, worker)
        self._status.update(loading=what)

    def _loaded(self, worker: int, is_there: bool) -> None:
        ended = self._loading.pop(worker)
        seconds = time.monotonic() - ended.since
        if self._line is not None:
            self._line.clear_current(worker=worker)
        elif ended.is_told and is_there:
            text = f"loaded {ended.what} in {format_duration(seconds)}"
            self.say(self._crew.named(worker, text))
        self._status.update(loading=next((each.what for each in self._loading.values()), None))

    @_shown
    def tick(self) -> None:
        """Update the seconds on the screen; called often while nothing happens."""
        now = time.monotonic()
        if self._line is not None:
            if now - self._facts_shown_at >= FACTS_SECONDS:
                self._show_clips()
            self._line.tick()
            return
        for worker, each in self._loading.items():
            if not each.is_told and now - each.since >= LOADING_SECONDS:
                each.is_told = True
                self.say(self._crew.named(worker, f"loading {each.what}"))

    @_shown
    def encoding(self, done: int, total: int) -> None:
        """Show that another text or image was encoded."""
        if self._state != "encoding":
            return  # a damaged cache entry is encoded again during the run
        if self._line is not None:
            self._line.show_whole(ENCODE, done, total)
        elif done == total:
            self.say(f"encoded {total} {'text or image' if total == 1 else 'texts and images'}")
        self._status.update(stage=ENCODE, step=done, steps=total)

    @_shown
    def rendering(self, todo: int, again: Collection[Rendering] = ()) -> None:
        """Show that the rendering of clips starts; `again` are finished ones that were added."""
        self._num_todo = todo
        self._done_before -= len(set(again) - self._done)
        self._done |= set(again)
        self._state = "rendering"
        self._show_clips()
        self._status.update(state=self._state, stage=None, step=None, steps=None)

    @_shown
    def started(self, clip_id: str, worker: int = 0) -> None:
        """Show that a worker has a clip."""
        if self._line is not None:
            self._line.show_stage(clip_id, "start", worker)
        self._status.update(**{**_NO_CLIP, "clip_id": clip_id})

    @_shown
    def waiting(self, wait: Wait) -> None:
        """Show that the run waits, why, and until when."""
        self.say(wait.line)
        if self._line is not None:
            self._line.clear_current()
        self._state_before = self._state_before if self._state in IDLE_STATES else self._state
        self._state = wait.state
        moment = wait.until.isoformat(timespec="seconds") if wait.until else None
        what = {"state": wait.state, "message": wait.reason, "goes_on_at": moment, **_NO_CLIP}
        self._status.update(**what)

    @_shown
    def resuming(self) -> None:
        """Show that a wait is over."""
        self.say("Resuming.")
        self._state = self._state_before
        self._status.update(state=self._state, message="", goes_on_at=None)

    @_shown
    def stepped(self, clip_id: str, stage: str, step: int, steps: int, worker: int = 0) -> None:
        """Show a denoising step or another stage of a worker's current clip."""
        if self._line is not None:
            self._line.show_steps(clip_id, stage, step, steps, worker)
        if self._listen is not None:
            self._listen(Stepped(clip_id, stage, step, steps))
        self._status.update(clip_id=clip_id, stage=stage, step=step, steps=steps)

    @_shown
    def finished_clip(self, record: ClipRecord, number: int, todo: int, worker: int = 0) -> None:
        """Show an ended attempt."""
        self._count(record)
        self.say(f"{_line(record, number, todo)}{self._crew.where(worker)}")
        self._number = number
        if self._line is not None:
            self._line.clear_current(record.clip_id, worker)
        self._show_clips()
        self._status.update(
            done=self._num_done,
            failed=len(self._failed),
            suspect=len(self._suspect),
            seconds_per_clip=self._pace.seconds_per_clip if self._pace else None,
            **self._expected_end(),
        )
        if self._listen is not None:
            self._listen(ClipFinished(record, number, todo))

    @_shown
    def interrupted(self, clip_id: str, repeat: int | None) -> None:
        """Count a current clip as not finished, even if an earlier run had finished it."""
        self._done.discard((clip_id, repeat))
        self._status.update(done=self._num_done)

    def snapshot(self) -> dict[str, Any]:
        """Return the content of status.json as of now."""
        return self._status.snapshot()

    @_shown
    def end(self, state: str, message: str = "") -> None:
        """Leave the live line and write the last status."""
        self._state = state
        self._status.close(
            state=state,
            message=redacted(message),
            goes_on_at=None,
            **_NO_CLIP,
            **_NO_ETA,
            **self._crew.values(),
        )
        for card in self._cards:
            card.close()
        if self._line is not None:
            self._line.close()

    def _count(self, record: ClipRecord) -> None:
        """Count clips, not attempts: one that failed may be tried again."""
        rendering = (record.clip_id, record.repeat)
        self._failed.discard(rendering)
        self._done.discard(rendering)
        self._suspect.discard(rendering)
        if record.status == FAILED:
            self._failed.add(rendering)
            return
        self._done.add(rendering)
        if record.status == SUSPECT:
            self._suspect.add(rendering)

    @property
    def _num_done(self) -> int:
        return self._done_before + len(self._done)

    def _sample(self) -> dict[str, Any]:
        """Return what is not kept up to date by each event: the card, disk, end and workers."""
        try:
            free = free_disk_bytes(self._folder)
        except OSError:
            free = None
        health = self._crew.measured([card.read() for card in self._cards])
        now = {**asdict(health), "free_disk_bytes": free, **self._expected_end()}
        return now | self._crew.values()

    def _expected_end(self) -> dict[str, Any]:
        is_going_on = self._state in ("encoding", "rendering", "waiting")
        left = self._pace.left() if self._pace is not None and is_going_on else None
        if left is None:
            return dict(_NO_ETA)
        p50, p90 = (
            self._ends_after(seconds).isoformat(timespec="seconds")
            for seconds in (left.p50_seconds, left.p90_seconds)
        )
        return {"eta_p50": p50, "eta_p90": p90, "eta_basis": left.basis.name}

    def _show_clips(self) -> None:
        if self._line is None or self._state != "rendering":
            return
        self._facts_shown_at = time.monotonic()
        facts = line_facts(self._status.snapshot(), len(self._failed), len(self._suspect))
        self._line.show_whole("clips", self._number, self._num_todo, facts)


def _first_values(run_id: str, total: int, done: int) -> dict[str, Any]:
    return {
        "state": "encoding",
        "run_id": run_id,
        "pid": os.getpid(),
        "hostname": socket.gethostname(),
        "total": total,
        "done": done,
        "failed": 0,
        "suspect": 0,
        **_NO_CLIP,
        "seconds_per_clip": None,
        **_NO_ETA,
        **asdict(GpuHealth()),
        "free_disk_bytes": None,
        "message": "",
        "goes_on_at": None,
    }


def _line(record: ClipRecord, number: int, todo: int) -> str:
    head = f"[{number}/{todo}] {record.clip_id}"
    if record.status == FAILED:
        return f"{head} failed: {format_error(record)}"
    seconds, parts = attempt_seconds(vars(record)), []
    if seconds is not None:
        parts.append(f"{seconds:.1f} s")
    if record.peak_vram_reserved_bytes is not None:
        parts.append(f"{format_gib(record.peak_vram_reserved_bytes)} GiB")
    if record.status == SUSPECT:
        parts.append(f"suspect: {record.quality_flag}")
    return f"{head} {', '.join(parts)}"
