"""How a run ends, and a clip of which there is no result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from hv15_batch.executor import Job
from hv15_batch.records import ClipRecord, asked_record
from hv15_batch.rundir import utc_now


@dataclass(frozen=True)
class InHand:
    """A job that the executor has."""

    job: Job
    since: datetime

    def record(
        self, known: Mapping[str, Any], status: str, error_type: str, message: str
    ) -> ClipRecord:
        """Return the record of an attempt that left none; `known` is what the parent knows."""
        return asked_record(
            self.job.clip,
            **known,
            attempt=self.job.attempt,
            status=status,
            error_type=error_type,
            error_message=message,
            started_at=self.since,
            finished_at=utc_now(),
        )


@dataclass
class Outcome:
    """How a run ended."""

    exit_code: int
    state: str
    """done, failed, stopped or interrupted."""
    message: str = ""
    records: list[ClipRecord] = field(default_factory=list)
    """Of this run, without texts."""


class StopRun(Exception):
    """Not an error: the way out of the loop."""

    def __init__(self, exit_code: int, state: str, message: str) -> None:
        """Say how the run ends."""
        super().__init__(message)
        self.exit_code, self.state, self.message = exit_code, state, message
