"""The status of a run directory as a whole: that of its run, or of all its shards together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hv15_batch.errors import Refused
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.status import (
    ACTIVE_STATES,
    Holder,
    Status,
    count_of_shards,
    is_gone,
    read_holder,
    read_status,
)
from hv15_batch.units import parse_time

_WORST_LAST = ("done", "interrupted", "stopped", "failed")
_INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class OverallStatus(Status):
    """The status of all shards that were started; what one process has is of an active one."""

    shards: Sequence[tuple[str, Status]] = ()
    """Each shard as it is typed, for example `2/4`, and its status."""
    num_shards: int = 0
    """How many there are, those that were never started included."""


def overall_status(run_dir: Path) -> Status:
    """Return the status of a run directory, of all its shards if those rendered there last.

    Raises:
        Refused: There is none, or it cannot be understood.
    """
    count, newest = count_of_shards(run_dir), None
    found = _newest(run_dir, count)
    if not found or count is None:
        return read_status(run_dir)
    if RunDir(run_dir).status.is_file():
        newest = read_status(run_dir)
    if newest is not None and all(_seen_at(newest) > _seen_at(each) for _, each in found):
        return newest
    return _combined([(name, _as_it_is(status)) for name, status in found], count)


def _newest(run_dir: Path, count: int | None) -> list[tuple[str, Status]]:
    """Return each share with its newest status: 0/n and n/n are the same one."""
    found: dict[int, tuple[str, Status]] = {}
    for directory in RunDir(run_dir).shard_dirs():
        shard = directory.shard
        if shard is None or shard.count != count or not directory.status.is_file():
            continue
        status = read_status(directory.own)
        known = found.get(shard.remainder)
        if known is None or _seen_at(status) > _seen_at(known[1]):
            found[shard.remainder] = str(shard), status
    return list(found.values())


def current_run(run_dir: Path) -> Status | Holder:
    """Return the status of the active run or of active shards, else of the last ones.

    A run that has started and not yet written its status is a `Holder`, because the file is still
    that of the run before.

    Raises:
        Refused: There is neither, or the status cannot be understood.
    """
    holder = read_holder(run_dir)
    holders = [holder, *(read_holder(d.own) for d in RunDir(run_dir).shard_dirs())]
    try:
        status = overall_status(run_dir)
    except Refused:
        starting = next(filter(None, holders), None)
        if starting is None:
            raise
        return starting
    return status if holder is None or holder.run_id == status.run_id else holder


def _combined(parts: Sequence[tuple[str, Status]], count: int) -> OverallStatus:
    each = [status for _, status in parts]
    active = [status for status in each if status.state in ACTIVE_STATES]
    shown = max(active or each, key=lambda s: (_badness(s), _seen_at(s)))
    known = {field.name: getattr(shown, field.name) for field in fields(Status)}
    ends: dict[str, Any] = {name: _last_end(active, name) for name in ("eta_p50", "eta_p90")}
    counts = {n: sum(getattr(s, n) for s in each) for n in ("total", "done", "failed", "suspect")}
    again = dict.fromkeys(name for status in each for name in status.type_again)
    whole = OverallStatus(**known, shards=tuple(parts), num_shards=count)
    return replace(whole, **counts, **ends, type_again=tuple(again))


def _badness(status: Status) -> int:
    return _WORST_LAST.index(status.state) if status.state in _WORST_LAST else -1


def _as_it_is(status: Status) -> Status:
    """Return a status in which a run whose process is gone is no longer active."""
    if not is_gone(status):
        return status
    message = f"interrupted: process {status.pid} is gone, and wrote no last status"
    return replace(status, state=_INTERRUPTED, message=message)


def _last_end(active: Sequence[Status], name: str) -> str | None:
    """Return the latest expected end; None while one of the shards has none."""
    ends = [getattr(status, name) for status in active]
    return None if not ends or None in ends else max(ends, key=parse_time)


def _seen_at(status: Status) -> Any:
    return parse_time(status.updated_at)
