"""What was decided once for a run directory and holds for all its runs: compilation.

Each model decides for itself, with its weights and `runtime.linear`. A run that is resumed must not
decide again: with other figures of the card, or a longer manifest, the rest of a night would differ
from its beginning in bits.
"""

from __future__ import annotations

from typing import Any

from hv15_batch.config.settings import Config
from hv15_batch.files import read_json
from hv15_batch.model.variant import Linear
from hv15_batch.record import DONE_STATUSES
from hv15_batch.rundir.log import read_records, segments
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publish_json

_COMPILE = "compile"


def read_compile(run_dir: RunDir, config: Config) -> bool | None:
    """Return whether a model's blocks are compiled in this run directory; None if not decided.

    A file that cannot be read, or that holds something else, decides nothing. A name of a model
    alone, as earlier versions wrote it, decides for 16-bit linear modules.

    Args:
        run_dir: Of the run.
        config: Settings with that model, its weights and `runtime.linear`.
    """
    stored, value = _read(run_dir), None
    if config.runtime.linear is Linear.bf16:
        value = stored.get(config.model.name)
    value = stored.get(_group(config), value)
    return value if isinstance(value, bool) else None


def write_compile(run_dir: RunDir, config: Config, is_on: bool) -> None:
    """Store whether a model's blocks are compiled, for this run and all later ones."""
    publish_json(run_dir.decided, {_COMPILE: {**_read(run_dir), _group(config): is_on}})


def logged_compile(run_dir: RunDir, config: Config) -> bool | None:
    """Return whether the last finished clip of the same kind was compiled; None without one.

    Raises:
        LogSchemaError: The log cannot be read.
    """
    if not segments(run_dir.log):
        return None
    columns = ("model", "weights", "linear", "status", "compiled", "finished_at")
    done = [
        (row["finished_at"], row["compiled"])
        for row in read_records(run_dir.log, columns).to_pylist()
        if _name(row["model"], row["weights"], row["linear"]) == _group(config)
        and row["status"] in DONE_STATUSES
        and None not in (row["compiled"], row["finished_at"])
    ]
    return bool(max(done)[1]) if done else None


def _group(config: Config) -> str:
    linear = config.runtime.linear
    logged = None if linear is Linear.bf16 else linear.name
    return _name(config.model.name, config.model.weights.name, logged)


def _name(model: str, weights: str, linear: str | None) -> str:
    """Return the name in the file, from values as the log has them."""
    return f"{model}/{weights}/{linear or Linear.bf16.name}"


def _read(run_dir: RunDir) -> dict[str, Any]:
    try:
        stored = read_json(run_dir.decided)
    except (OSError, ValueError):
        return {}
    found = stored.get(_COMPILE) if isinstance(stored, dict) else None
    return found if isinstance(found, dict) else {}
