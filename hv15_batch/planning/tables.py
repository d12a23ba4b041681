"""plan.csv and clips.csv: every clip with its state, and every current clip with its log row."""

from __future__ import annotations

import csv
import io
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hv15_batch.clip import ClipSettings, glyph_texts
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.record import DECODE, DENOISE, DONE_STATUSES, columns, seconds_column
from hv15_batch.rundir.log import last_attempts, read_last_attempts, read_rows, segments
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing

_SETTINGS = (
    "seed",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "fps",
    "model",
)
PLAN_COLUMNS = (
    "clip_id",
    "row_id",
    "row_index",
    "line",
    "state",
    "reason",
    "from_latents",
    *_SETTINGS,
    "num_prompt_tokens",
    "predicted_denoise_seconds",
    "predicted_decode_seconds",
    "glyph_text",
    "image",
    "off_recipe",
    "settings_sha256",
    "denoise_sha256",
    "file",
    "prompt",
)


def write_plan(
    planned: Sequence[PlannedClip],
    path: Path,
    prompt_tokens: dict[str, int] | None,
    predict: Callable[[ClipSettings], tuple[float, float]] | None = None,
) -> bool:
    """Write every clip with its state to a CSV file; return whether that changed it.

    Args:
        planned: The clips, in the plan's order.
        path: The file.
        prompt_tokens: Number of tokens by prompt, where a tokenizer was at hand.
        predict: Returns the predicted seconds of denoising and of decoding a warm clip, where the
            card is known; asked of clips that are to be rendered.
    """
    data = _format_plan(planned, prompt_tokens or {}, predict).encode()
    if path.is_file() and path.read_bytes() == data:
        return False
    with publishing(path) as temporary:
        temporary.write_bytes(data)
    return True


def _format_plan(
    planned: Sequence[PlannedClip],
    prompt_tokens: dict[str, int],
    predict: Callable[[ClipSettings], tuple[float, float]] | None,
) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(PLAN_COLUMNS)
    writer.writerows(plan_rows(planned, prompt_tokens, predict))
    return text.getvalue()


def plan_rows(
    planned: Sequence[PlannedClip],
    prompt_tokens: Mapping[str, int],
    predict: Callable[[ClipSettings], tuple[float, float]] | None,
) -> Iterator[list[Any]]:
    """Yield the `PLAN_COLUMNS` of each clip; the arguments are those of `write_plan`."""
    for p in planned:
        clip, settings = p.clip, p.clip.settings
        is_from_latents = p.is_from_latents and not p.is_done
        cost = None if predict is None or p.is_done else predict(settings)
        yield [
            clip.clip_id,
            clip.row_id,
            clip.row_index,
            clip.line,
            p.state.name,
            p.reason,
            is_from_latents,
            *(getattr(settings, name) for name in _SETTINGS),
            prompt_tokens.get(settings.prompt),
            None if cost is None or is_from_latents else round(cost[0], 1),
            None if cost is None else round(cost[1], 1),
            " | ".join(glyph_texts(settings.prompt)),
            clip.image,
            clip.off_recipe,
            clip.settings_sha256,
            clip.denoise_sha256,
            p.last["file"] if p.has_result and p.last else None,
            settings.prompt,
        ]


FROM_PLAN = ("clip_id", "row_id", "row_index", "seed", "prompt", "settings_sha256")
"""As the manifest of today has them: a renamed row keeps its clip under the new name."""
CLIPS_COLUMNS = tuple(
    dict.fromkeys(
        (
            *("clip_id", "row_id", "row_index", "seed", "status", "file", *columns("asked")),
            *("model", "weights", "offload", "attention_backend", "total_seconds"),
            *(*map(seconds_column, (DENOISE, DECODE)), "is_cold", "peak_vram_reserved_bytes"),
            *("quality_flag", *columns("outcome"), "attempt", "finished_at", "settings_sha256"),
        )
    )
)
_FROM_LOG = tuple(name for name in CLIPS_COLUMNS if name not in FROM_PLAN)


def write_clips_table(run_dir: RunDir) -> None:
    """Write the table of the current manifest's clips; not yet rendered ones have no status."""
    csv.field_size_limit(sys.maxsize)  # the default refuses prompts over 128 KiB
    attempts = {r["settings_sha256"]: r for r in read_last_attempts(run_dir.log, _FROM_LOG)}
    with (
        run_dir.plan.open(encoding="utf-8", newline="") as plan,
        publishing(run_dir.clips_table) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as table,
    ):
        rows = csv.reader(plan)
        place = {name: number for number, name in enumerate(next(rows))}
        writer = csv.writer(table)
        writer.writerow(CLIPS_COLUMNS)
        for row in rows:
            record = attempts.get(row[place["settings_sha256"]], {})
            if record.get("finished_at") is not None:
                record["finished_at"] = record["finished_at"].isoformat()
            writer.writerow(
                [
                    row[place[name]] if name in FROM_PLAN else record.get(name)
                    for name in CLIPS_COLUMNS
                ]
            )


def median_of_clips(run_dir: RunDir, column: str, *, is_benchmark: bool) -> float | None:
    """Return the median of a numeric log column over the current clips that are done.

    Args:
        run_dir: With a plan.
        column: One of the log's.
        is_benchmark: Repetitions are meant, warm-ups left out, and not clips.

    Returns:
        None where none has a value.
    """
    csv.field_size_limit(sys.maxsize)
    with run_dir.plan.open(encoding="utf-8", newline="") as plan:
        current = {row["settings_sha256"] for row in csv.DictReader(plan)}
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
    """Whether clips.csv and the page were written after plan and log were changed last."""
    results = [run_dir.clips_table, run_dir.page]
    if not all(path.is_file() for path in results):
        return False
    sources = [run_dir.plan, *segments(run_dir.log)]
    changed_at = max(path.stat().st_mtime_ns for path in sources)
    return min(path.stat().st_mtime_ns for path in results) >= changed_at
