"""plan.csv (every clip with its state), and clips.csv (every current clip as logged)."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv

from hv15_batch.clip import ClipSettings, glyph_texts
from hv15_batch.errors import LogSchemaError
from hv15_batch.files import read_bytes
from hv15_batch.planning.plan import PlannedClip, State
from hv15_batch.record import DECODE, DENOISE, DONE_STATUSES, columns, seconds_column
from hv15_batch.rundir.frames import films_folder
from hv15_batch.rundir.log import last_attempts, read_last_attempts, read_rows, segments
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing
from hv15_batch.rundir.schema import arrow_schema
from hv15_batch.units import GIB

MAX_PLAN_BYTES = GIB
"""Limit of plan.csv: about a thousand bytes for each of at most a million clips."""

_SETTINGS = (
    *("seed", "height", "width", "num_frames", "num_inference_steps", "guidance_scale"),
    *("flow_shift", "fps", "model"),
)
_settings_of = attrgetter(*_SETTINGS)
_OWN_TYPES = {
    "other_ids": pa.string(),
    "line": pa.int64(),
    "state": pa.string(),
    "reason": pa.string(),
    "from_latents": pa.bool_(),
    "num_prompt_tokens": pa.int64(),
    "predicted_denoise_seconds": pa.float64(),
    "predicted_decode_seconds": pa.float64(),
    "glyph_text": pa.string(),
    "film": pa.string(),
}
"""Columns of the plan that the log lacks."""
SKIPPED = State.skipped.name
"""Status of a clip without a row in the log: the one that it follows failed or is suspect."""
PLAN_COLUMNS = (
    *("clip_id", "row_id", "other_ids", "row_index", "line", "state", "reason", "from_latents"),
    *_SETTINGS,
    *("num_prompt_tokens", "predicted_denoise_seconds", "predicted_decode_seconds"),
    *("glyph_text", "image", "image_source", "film", "off_recipe"),
    *("settings_sha256", "denoise_sha256", "file", "prompt"),
)


def write_plan(
    planned: Sequence[PlannedClip],
    path: Path,
    prompt_tokens: dict[str, int] | None,
    predict: Callable[[ClipSettings], tuple[float, float] | None] | None = None,
) -> bool:
    """Write every clip with its state; return whether that changed anything.

    Args:
        planned: The clips, in the plan's order.
        path: Where `plan.csv` goes.
        prompt_tokens: Number of tokens by prompt; None without a tokenizer.
        predict: Returns the predicted seconds of denoising and of decoding a warm clip, None for
            one of a small model; None where the card is unknown. It is called for clips that are
            to be rendered.
    """
    return publish_plan(plan_rows(planned, prompt_tokens or {}, predict), path)


def plan_rows(
    planned: Sequence[PlannedClip],
    prompt_tokens: Mapping[str, int],
    predict: Callable[[ClipSettings], tuple[float, float] | None] | None,
) -> list[dict[str, Any]]:
    """Return the `PLAN_COLUMNS` of each clip; the arguments are those of `write_plan`."""
    return [_plan_row(p, prompt_tokens, predict) for p in planned]


def publish_plan(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Write rows with `PLAN_COLUMNS` as `write_plan` does; return whether that changed anything."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(PLAN_COLUMNS)
    writer.writerows(map(itemgetter(*PLAN_COLUMNS), rows))
    data = text.getvalue().encode()
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return False
    with publishing(path) as temporary:
        temporary.write_bytes(data)
    return True


def read_plan(run_dir: RunDir) -> list[dict[str, Any]]:
    """Return the clips of the current manifest with the log's types; empty without a plan.

    Raises:
        LogSchemaError: the plan cannot be read.
    """
    if not run_dir.plan.is_file():
        return []
    try:
        content = read_bytes(run_dir.plan, MAX_PLAN_BYTES)
        found: list[dict[str, Any]] = _typed(content).to_pylist()
        if any(row[name] is None for row in found for name in ("clip_id", "row_index", "seed")):
            raise ValueError("clips without a name or a place")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise LogSchemaError(f"{run_dir.plan}: not readable ({error}); run again.") from error
    return found


def _typed(plan: bytes) -> pa.Table:
    """Return a plan.csv with the log's types; empty cells, and columns that it lacks, are null.

    Arrow reads the text itself: a list of rows would make it import pandas, for a quarter second.
    """
    schema = _plan_schema()
    return arrow_csv.read_csv(
        io.BytesIO(plan),
        # In one block, since no row may be longer than one.
        read_options=arrow_csv.ReadOptions(block_size=max(len(plan), 1), use_threads=False),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(
            column_types=schema,
            include_columns=PLAN_COLUMNS,
            include_missing_columns=True,
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


def _plan_schema() -> pa.Schema:
    logged = arrow_schema()
    return pa.schema(
        [
            pa.field(name, _OWN_TYPES[name] if name in _OWN_TYPES else logged.field(name).type)
            for name in PLAN_COLUMNS
        ]
    )


def _plan_row(
    p: PlannedClip,
    prompt_tokens: Mapping[str, int],
    predict: Callable[[ClipSettings], tuple[float, float] | None] | None,
) -> dict[str, Any]:
    clip, settings = p.clip, p.clip.settings
    is_from_latents = p.is_from_latents and p.is_left
    cost = None if predict is None or not p.is_left else predict(settings)
    return {
        **dict(zip(_SETTINGS, _settings_of(settings), strict=True)),
        "clip_id": clip.clip_id,
        "row_id": clip.row_id,
        "other_ids": " ".join(clip.other_ids),
        "row_index": clip.row_index,
        "line": clip.line,
        "state": p.state.name,
        "reason": p.reason,
        "from_latents": is_from_latents,
        "num_prompt_tokens": prompt_tokens.get(settings.prompt),
        "predicted_denoise_seconds": None if cost is None or is_from_latents else round(cost[0], 1),
        "predicted_decode_seconds": None if cost is None else round(cost[1], 1),
        "glyph_text": " | ".join(glyph_texts(settings.prompt)),
        "image": clip.image,
        "image_source": settings.image_source,
        "film": " ".join(name for name, _ in clip.films),
        "off_recipe": clip.off_recipe,
        "settings_sha256": clip.settings_sha256,
        "denoise_sha256": clip.denoise_sha256,
        "file": p.last["file"] if p.has_result and p.last else None,
        "prompt": settings.prompt,
    }


FROM_PLAN = ("clip_id", "row_id", "row_index", "seed", "prompt", "settings_sha256")
"""Taken from the current manifest, so that a renamed row keeps its clip under the new name."""
CLIPS_COLUMNS = tuple(
    dict.fromkeys(
        (
            *("clip_id", "row_id", "other_ids", "row_index", "seed", "status", "file"),
            *columns("asked"),
            *("model", "weights", "offload", "attention_backend", "total_seconds"),
            *(*map(seconds_column, (DENOISE, DECODE)), "is_cold", "peak_vram_reserved_bytes"),
            *("quality_flag", *columns("outcome"), "attempt", "finished_at", "settings_sha256"),
        )
    )
)
_OF_MANIFEST = (*FROM_PLAN, "other_ids")
_FROM_LOG = tuple(name for name in CLIPS_COLUMNS if name not in _OF_MANIFEST)


def write_clips_table(run_dir: RunDir) -> None:
    """Write the table of the current manifest's clips; those never tried have no status."""
    attempts = {r["settings_sha256"]: r for r in read_last_attempts(run_dir.log, _FROM_LOG)}
    with (
        publishing(run_dir.clips_table) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as table,
    ):
        writer = csv.DictWriter(table, CLIPS_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for row in read_plan(run_dir):
            record = attempts.get(row["settings_sha256"], {})
            if row["state"] == SKIPPED:
                record = {"status": SKIPPED, "error_message": row["reason"]}
            if record.get("finished_at") is not None:
                record["finished_at"] = record["finished_at"].isoformat()
            writer.writerow(record | {name: row[name] for name in _OF_MANIFEST})


def median_of_clips(run_dir: RunDir, column: str, *, is_benchmark: bool) -> float | None:
    """Return the median of a numeric log column over the current clips that are done.

    Args:
        run_dir: A run directory with a plan.
        column: A numeric column of the log, in its own unit.
        is_benchmark: Whether to use repetitions instead of clips; warm-ups are left out.

    Returns:
        The median in the column's unit; None where no clip has a value.
    """
    current = {row["settings_sha256"] for row in read_plan(run_dir)}
    columns = dict.fromkeys([column, "settings_sha256", "attempt", "repeat", "status"])
    rows = read_rows(run_dir.log, list(columns))
    measured = [row for row in rows if row["repeat"]] if is_benchmark else last_attempts(rows)
    values = [
        row[column]
        for row in measured
        if row["settings_sha256"] in current
        and row["status"] in DONE_STATUSES
        and row[column] is not None
    ]
    return float(statistics.median(values)) if values else None


def is_up_to_date(run_dir: RunDir) -> bool:
    """Whether clips.csv and the page were written after plan, log and films were changed last."""
    results = [run_dir.clips_table, run_dir.page]
    if not all(path.is_file() for path in results):
        return False
    films = films_folder(run_dir)
    sources = [run_dir.plan, *segments(run_dir.log), *([films] if films.is_dir() else [])]
    changed_at = max(path.stat().st_mtime_ns for path in sources)
    return min(path.stat().st_mtime_ns for path in results) >= changed_at
