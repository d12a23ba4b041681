"""What an executor has in hand: the clip that it renders and those that it still writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hv15_batch.clock import utc_now
from hv15_batch.dispatch.protocol import Event, Finished, Job, Key, Ready, Stepped
from hv15_batch.record import ClipRecord, asked_record


@dataclass
class Held:
    """A clip that was handed over and has no record yet."""

    job: Job
    since: datetime
    has_latents: bool = False
    """It is being decoded or written; its latents are saved."""


class InHand:
    """Follows the events of one executor."""

    def __init__(self) -> None:
        """Begin with nothing in hand."""
        self._held: dict[Key, Held] = {}
        self.rendering: Key | None = None
        """The clip after which the executor has not said `Ready`, finished or not."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def keys(self) -> set[Key]:
        """The clips without a record."""
        return set(self._held)

    @property
    def jobs(self) -> list[Job]:
        """The same, in the order of handing over."""
        return [held.job for held in self._held.values()]

    def add(self, job: Job) -> None:
        """Remember a clip that is handed over."""
        self._held[job.key] = Held(job, utc_now())
        self.rendering = job.key

    def heard(self, event: Event) -> None:
        """Follow an event."""
        match event:
            case Finished(job):
                del self._held[job.key]  # maybe before `Ready`
            case Ready() | Stepped(stage="decode") if self.rendering is not None:
                if self.rendering in self._held:
                    self._held[self.rendering].has_latents = True
                if isinstance(event, Ready):
                    self.rendering = None
            case _:
                pass

    def let_go(self) -> list[Held]:
        """Return what an executor leaves behind, in the order of handing over, and forget it."""
        held, self._held = list(self._held.values()), {}
        self.rendering = None
        return held


def record_of_lost(
    lost: Held, known: Mapping[str, Any], status: str, error_type: str, message: str
) -> ClipRecord:
    """Return the record of an attempt that left none of its own."""
    return asked_record(
        lost.job.clip,
        **known,
        attempt=lost.job.attempt,
        repeat=lost.job.repeat,
        status=status,
        error_type=error_type,
        error_message=message,
        started_at=lost.since,
        finished_at=utc_now(),
    )
