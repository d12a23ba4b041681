"""What to type to go on with a run that ended early: its directory, and what it was about."""

from __future__ import annotations

from collections.abc import Sequence

from hv15_batch.config import Config
from hv15_batch.plan import PlannedClip
from hv15_batch.records import FAILED, ClipRecord

MAX_ROWS = 20
"""Rows that are named one by one; of more, all that were asked for are made again."""


class GoOn:
    """Knows what a run has left, and with which words it goes on.

    The directory remembers manifest and settings. What is of one command it forgets: without
    `limit`, `only`, `force`, `retry.suspect` and `add` the next one would render more
    than was asked for, or less.
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
        if not self._left:
            return []
        config = self._config
        asked = {
            "add": config.add,
            "force": config.force,
            "retry.suspect": config.retry.suspect,
        }
        words = [f"{name}=true" for name, is_asked in asked.items() if is_asked]
        return [*words, *self._selection(config.force or config.retry.suspect)]

    def _selection(self, is_again: bool) -> list[str]:
        """Return `only` and `limit`; where clips are made again one that is done looks like any."""
        config, only, limit = self._config, self._config.only, self._config.limit
        if config.benchmark.repeat is None:  # which skips what is measured
            rows = list(dict.fromkeys(self._left.values()))
            if is_again and len(rows) <= MAX_ROWS:
                only = ",".join(rows)
            elif not is_again and limit is not None:
                limit = len(self._left)
        return only_words(only) + ([] if limit is None else [f"limit={limit}"])


def only_words(only: str | None) -> list[str]:
    """Return `only=` as it is typed; a row may be called null."""
    if not only:
        return []
    return ['only="null"'] if only == "null" else [f"only={only}"]
