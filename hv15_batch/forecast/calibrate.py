"""Corrects predictions by logs of the same card: measured over predicted seconds. No torch."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hv15_batch.errors import LogSchemaError, Refused
from hv15_batch.files import read_json
from hv15_batch.forecast._measured import is_sound
from hv15_batch.forecast.seconds import Execution, Scales, predict_clip
from hv15_batch.machine.cards import Card, find_card
from hv15_batch.model.shapes import Shape
from hv15_batch.model.variant import SMALL
from hv15_batch.record import (
    DECODE,
    DENOISE,
    DONE_STATUSES,
    columns,
    is_denoised_here,
    seconds_column,
)
from hv15_batch.rundir.log import read_records, segments
from hv15_batch.rundir.publish import publish_json
from hv15_batch.weights.checkpoint import cache_root

MAX_LOGS = 20
"""Logs that are read, newest first."""
MAX_REMEMBERED = 200
"""Warm clips in the user's cache, newest first."""
MAX_ROWS = 20
"""Warm clips that count for one size and execution. The newest count, because drivers change."""
COLUMNS = (
    *columns(groups=True),
    *("attempt", "finished_at", "status", "is_cold", "denoise_attempt", "num_computed_steps"),
    *map(seconds_column, (DENOISE, DECODE)),
)


@dataclass(frozen=True)
class _Clip:
    """A warm clip of the log."""

    execution: Execution
    tokens: int
    is_copy_bound: bool
    denoise: float
    """Measured over predicted."""
    decode: float
    has_loras: bool
    """LoRAs take time that is not predicted, so they calibrate each other only."""


def calibrate(records: Iterable[dict[str, Any]], card: Card, execution: Execution) -> Scales | None:
    """Return measured over predicted seconds for an execution, from warm clips of this card.

    The factor of denoising comes from clips that agree in everything that changes its speed.
    Without such a clip, one of another profile counts if it did not wait for weights, since the
    arithmetic is the same. Without that, a clip that also differs in compilation counts. A card
    that is slower than its vendor figures is slower with and without compilation.

    Args:
        records: Log rows with the columns of `COLUMNS`, in any order.
        card: Its rows are used, and its vendor figures are the basis of the prediction.
        execution: The execution to be predicted.

    Returns:
        The factors; None where no clip shows how long denoising takes.
    """
    found = list(_clips(records, card))
    clips = [c for c in found if c.has_loras == bool(execution.lora_bytes)]
    if execution.lora_bytes and not clips:
        clips = found
    same = [c for c in clips if c.execution == execution]
    computing = [c for c in same if not c.is_copy_bound]
    copying = [c for c in same if c.is_copy_bound]
    source = None
    if not computing and (other := _like(clips, execution)):
        source = _name(other, execution)
        computing = [c for c in clips if c.execution == other and not c.is_copy_bound]
    if not computing and not copying:
        return None
    decoding = [c for c in clips if c.execution.dtype == execution.dtype]
    sizes = sorted({c.tokens for c in computing})
    return Scales(
        denoise=tuple(
            (size, statistics.median(c.denoise for c in computing if c.tokens == size))
            for size in sizes
        ),
        copy=_median(c.denoise for c in copying),
        decode=_median(c.decode for c in decoding),
        source=source,
    )


def _like(clips: Iterable[_Clip], execution: Execution) -> Execution | None:
    """Return the newest way of running that has the same arithmetic."""
    found = [c.execution for c in clips if not c.is_copy_bound]
    for compiled in (execution.compiled, not execution.compiled):
        for other in found:
            if replace(execution, offload=other.offload, compiled=compiled) == other:
                return other
    return None


def _name(other: Execution, execution: Execution) -> str:
    """Return in words how `other` differs."""
    if other.compiled == execution.compiled:
        return other.offload
    return f"{other.offload}, {'compiled' if other.compiled else 'not compiled'}"


def read_log_rows(log_folder: Path) -> list[dict[str, Any]]:
    """Return the rows of this run directory's log and of those beside it, sweeps included.

    Those in the user's cache follow (`remember`).
    """
    beside = log_folder.parent.parent
    roots = [beside, beside.parent] if beside.suffix == ".sweep" else [beside]
    folders = {log_folder}
    for root in roots:
        folders |= {*root.glob("*/log"), *root.glob("*.sweep/*/log")}
    newest = sorted(folders, key=_written_at, reverse=True)
    rows: list[dict[str, Any]] = []
    for folder in newest[:MAX_LOGS]:
        try:
            rows += read_records(folder, COLUMNS).to_pylist()
        except LogSchemaError:
            continue  # a damaged log of another directory does not stop this run
    seen = {(row["finished_at"], row["denoise_seconds"]) for row in rows}
    kept = (r for r in remembered() if (r["finished_at"], r["denoise_seconds"]) not in seen)
    return [*rows, *kept]


def is_warm_measurement(row: dict[str, Any]) -> bool:
    """Whether a row with `COLUMNS` says how long a full-size clip takes."""
    return _counts(row)


def remember(rows: Iterable[dict[str, Any]]) -> Path:
    """Keep the warm clips of these rows in the user's cache, and return the file.

    They calibrate the predictions of runs in other folders, which do not see this log.

    Raises:
        Refused, OSError: there is no such folder, or it cannot be written.
    """
    new = [{name: row[name] for name in COLUMNS} for row in rows if _counts(row)]
    known = _without_doubles([*new, *remembered()])
    known.sort(key=_finished, reverse=True)
    path = _store()
    path.parent.mkdir(parents=True, exist_ok=True)
    publish_json(
        path,
        [row | {"finished_at": row["finished_at"].isoformat()} for row in known[:MAX_REMEMBERED]],
    )
    return path


def remembered() -> list[dict[str, Any]]:
    """Return the rows that `remember` kept; none where the file cannot be read.

    A row with a value that means nothing here is passed over.
    """
    try:
        stored = read_json(_store())
    except (Refused, OSError, ValueError):
        return []
    rows = map(_parsed, stored if isinstance(stored, list) else [])
    return [row for row in rows if row is not None and _counts(row)]


def _parsed(stored: Any) -> dict[str, Any] | None:
    """Return a row of the file with its moment, or None where it is none."""
    if not isinstance(stored, dict) or set(stored) != set(COLUMNS):
        return None
    try:
        return stored | {"finished_at": datetime.fromisoformat(stored["finished_at"])}
    except (ValueError, TypeError):
        return None


def _store() -> Path:
    return cache_root() / "measured.json"


def _without_doubles(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({(r["finished_at"], r["denoise_seconds"]): r for r in rows}.values())


def _clips(records: Iterable[dict[str, Any]], card: Card) -> Iterator[_Clip]:
    """Yield the warm clips of a card, newest first; `MAX_ROWS` of each size and execution."""
    rows = [row for row in records if _counts(row) and find_card(row["gpu_name"] or "") is card]
    rows.sort(key=_finished, reverse=True)
    seen: dict[tuple[Execution, int, bool], int] = defaultdict(int)
    for row in rows:
        execution = Execution(
            attention_backend=row["attention_backend"],
            offload=row["offload"],
            compiled=bool(row["compiled"]),
            mask_free=bool(row["mask_free"]),
            dtype=row["dtype"],
            linear=row["linear"],
        )
        shape = Shape.of_row(row)
        tokens, has_loras = shape.num_video_tokens, bool(row["loras"])
        seen[execution, tokens, has_loras] += 1
        if seen[execution, tokens, has_loras] > MAX_ROWS:
            continue
        predicted = predict_clip(shape, card, execution, None)
        yield _Clip(
            execution,
            tokens,
            predicted.is_copy_bound,
            row["denoise_seconds"] / predicted.denoise_seconds,
            row["decode_seconds"] / predicted.decode_seconds,
            has_loras,
        )


def _counts(row: dict[str, Any]) -> bool:
    """Whether a row is a warm clip whose seconds are its own, and can be used (`is_sound`).

    Reused latents have the denoising seconds of another attempt, maybe on another card.
    """
    return (
        is_sound(row, COLUMNS)
        and row["status"] in DONE_STATUSES
        and row["weights"] not in SMALL
        and not row["is_cold"]
        and is_denoised_here(row)
    )


def _finished(row: dict[str, Any]) -> float:
    return row["finished_at"].timestamp() if row["finished_at"] else 0.0


def _written_at(log_folder: Path) -> float:
    return max((path.stat().st_mtime for path in segments(log_folder)), default=0.0)


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None
