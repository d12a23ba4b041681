"""How each worker of a run is, where there are several: for the screen and for status.json."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hv15_batch.clock import utc_now
from hv15_batch.dispatch.protocol import (
    Died,
    EncodingEnded,
    Event,
    Finished,
    Loading,
    Ready,
    Stepped,
)
from hv15_batch.machine.nvml import GpuHealth
from hv15_batch.record import FAILED
from hv15_batch.rundir.status import WorkerStatus


@dataclass
class Waiting:
    """Something is being loaded."""

    what: str
    since: float
    """Seconds of the monotonic clock."""
    is_told: bool = False


class Crew:
    """What the workers of a run do, by their events."""

    def __init__(self, places: Sequence[str], is_open: bool = False) -> None:
        """Start.

        Args:
            places: Where each worker renders, in words.
            is_open: Whether others may join.
        """
        self._is_open = is_open
        self._workers = [WorkerStatus(number, where) for number, where in enumerate(places)]
        self._since: dict[int, float] = {}  # when a worker got its first clip
        self._began: dict[int, float] = {}  # when it got the one on the device
        self._busy = [0.0] * len(self._workers)  # seconds

    @property
    def _is_alone(self) -> bool:
        return len(self._workers) == 1 and not self._is_open

    def joined(self, where: str) -> None:
        """Add a worker, with the next number."""
        self._workers.append(WorkerStatus(len(self._workers), where))
        self._busy.append(0.0)

    def submitted(self, worker: int, clip_id: str) -> None:
        """Note that a worker got a clip."""
        self._began[worker] = time.monotonic()
        self._since.setdefault(worker, self._began[worker])
        self._set(worker, clip_id=clip_id, stage="start", step=None, steps=None)

    def heard(self, worker: int, event: Event) -> None:
        """Follow an event of a worker."""
        me = self._workers[worker]
        if isinstance(event, Ready | Died) and (began := self._began.pop(worker, None)) is not None:
            self._busy[worker] += time.monotonic() - began
        match event:
            case Loading(what):
                self._set(worker, loading=what)
            case Stepped(clip_id, stage, step, steps):
                values = {"clip_id": clip_id, "stage": stage, "step": step, "steps": steps}
                self._set(worker, loading=None, **values)
            case Finished(_, record):
                name = "failed" if record.status == FAILED else "done"
                self._set(worker, **{name: getattr(me, name) + 1})
            case Ready() | EncodingEnded():
                self._set(worker, clip_id=None, stage=None, step=None, steps=None, loading=None)
            case Died():
                self._set(worker, clip_id=None, stage="lost", step=None, steps=None, loading=None)
            case _:
                self._set(worker)

    def _set(self, worker: int, **values: Any) -> None:
        me = self._workers[worker]
        for name, value in values.items():
            setattr(me, name, value)
        me.last_event_at = utc_now().isoformat(timespec="seconds")

    def measured(self, cards: Sequence[GpuHealth]) -> GpuHealth:
        """Note how each worker's card is; return what is shown as that of the run: one card's."""
        if self._is_alone:
            return cards[0]
        for me, card in zip(self._workers, cards, strict=True):
            for name, value in vars(card).items():
                setattr(me, name, value)
        return GpuHealth()

    def named(self, worker: int, text: str) -> str:
        """Return a line of a worker, with its number where there are several."""
        return text if self._is_alone else f"worker {worker}: {text}"

    def where(self, worker: int) -> str:
        """Return what follows a clip's line."""
        return "" if self._is_alone else f" (worker {worker})"

    def values(self) -> dict[str, Any]:
        """Return what status.json says of the workers; nothing of one alone."""
        if self._is_alone:
            return {}
        now = time.monotonic()
        for number, since in list(self._since.items()):
            me, seconds = self._workers[number], max(now - since, 1e-3)
            busy = self._busy[number] + now - self._began.get(number, now)
            me.clips_per_hour = me.done / seconds * 3600 if me.done else None
            me.idle_share = max(1 - busy / seconds, 0.0)
        return {"workers": [dict(vars(each)) for each in self._workers]}
