"""What was decided once for a run directory and holds for all its runs: compilation, by model.

A run that is resumed must not decide again: with other figures of the card, or a longer manifest,
the rest of a night would differ from its beginning in bits.
"""

from __future__ import annotations

from typing import Any

from hv15_batch.files import read_json
from hv15_batch.record import DONE_STATUSES
from hv15_batch.rundir.log import read_records, segments
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publish_json

_COMPILE = "compile"


def read_compile(run_dir: RunDir, model: str) -> bool | None:
    """Return whether a model's blocks are compiled in this run directory; None if not decided.

    A file that cannot be read, or that holds something else, decides nothing.
    """
    value = _read(run_dir).get(model)
    return value if isinstance(value, bool) else None


def write_compile(run_dir: RunDir, model: str, is_on: bool) -> None:
    """Store whether a model's blocks are compiled, for this run and all later ones."""
    publish_json(run_dir.decided, {_COMPILE: {**_read(run_dir), model: is_on}})


def logged_compile(run_dir: RunDir, model: str) -> bool | None:
    """Return whether the last finished clip of a model was compiled; None without one.

    Raises:
        LogSchemaError: The log cannot be read.
    """
    if not segments(run_dir.log):
        return None
    columns = ("model", "status", "compiled", "finished_at")
    done = [
        (row["finished_at"], row["compiled"])
        for row in read_records(run_dir.log, columns).to_pylist()
        if row["model"] == model
        and row["status"] in DONE_STATUSES
        and None not in (row["compiled"], row["finished_at"])
    ]
    return bool(max(done)[1]) if done else None


def _read(run_dir: RunDir) -> dict[str, Any]:
    try:
        stored = read_json(run_dir.decided)
    except (OSError, ValueError):
        return {}
    found = stored.get(_COMPILE) if isinstance(stored, dict) else None
    return found if isinstance(found, dict) else {}
