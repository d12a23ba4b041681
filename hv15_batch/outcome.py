"""How a run ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from hv15_batch.records import ClipRecord


@dataclass
class Outcome:
    """How a run ended."""

    exit_code: int
    state: str
    """done, failed, stopped or interrupted."""
    message: str = ""
    records: list[ClipRecord] = field(default_factory=list)
    """The last attempt of this run at each clip, without texts."""


class StopRun(Exception):
    """Not an error: the way out of the loop."""

    def __init__(self, exit_code: int, state: str, message: str) -> None:
        """Say how the run ends."""
        super().__init__(message)
        self.exit_code, self.state, self.message = exit_code, state, message
