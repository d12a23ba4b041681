"""What to type to go on with a run that ended early: its directory, and what it was about."""

from __future__ import annotations

from collections.abc import Sequence

from hv15_batch.config import Config
from hv15_batch.plan import PlannedClip
from hv15_batch.records import FAILED, ClipRecord

MAX_ROWS = 20
"""Rows that are named one by one; of more, all are forced again."""


class GoOn:
    """Knows what a run has left, and with which words it goes on.

    The directory remembers manifest and settings; `only`, `limit` and `force` are of one command,
    and without them another one would render more than was asked for, or less.
    """

    def __init__(self, config: Config, todo: Sequence[PlannedClip]) -> None:
        """Begin with everything left."""
        self._config = config
        self._left = {(p.clip.clip_id, p.repeat): p.clip.row_id for p in todo}

    def finished(self, record: ClipRecord) -> None:
        """Take note of an attempt that ended."""
        if record.status != FAILED and record.clip_id is not None:
            self._left.pop((record.clip_id, record.repeat), None)

    @property
    def words(self) -> list[str]:
        """What is to be typed beside `resume=`; empty where nothing is left."""
        config, rows = self._config, list(dict.fromkeys(self._left.values()))
        if not rows:
            return []
        if config.force:
            # A forced clip that is finished looks like any other: those left are named.
            is_short = config.benchmark.repeat is None and len(rows) <= MAX_ROWS
            only = ",".join(rows) if is_short else config.only
            return ["force=true", *_only(only)]
        if config.limit is None:
            return _only(config.only)
        # A benchmark's is of clips, and of those it skips what is measured.
        limit = len(self._left) if config.benchmark.repeat is None else config.limit
        return [*_only(config.only), f"limit={limit}"]


def _only(only: str | None) -> list[str]:
    return [f"only={only}"] if only else []
