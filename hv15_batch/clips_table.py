"""clips.csv: one line per current clip, for spreadsheets. Reads plan.csv and the log.

It is private: it holds prompts, ids and tags.
"""

from __future__ import annotations

import csv
import sys

from hv15_batch.rundir import RunDir, publishing
from hv15_batch.runlog import read_last_attempts, segments

COLUMNS = (
    "clip_id",
    "row_id",
    "row_index",
    "seed",
    "status",
    "file",
    "prompt",
    "negative_prompt",
    "image",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "fps",
    "tags",
    "model",
    "weights",
    "offload",
    "attention_backend",
    "total_seconds",
    "denoise_seconds",
    "decode_seconds",
    "is_cold",
    "peak_vram_reserved_bytes",
    "quality_flag",
    "error_type",
    "error_message",
    "attempt",
    "finished_at",
    "settings_sha256",
)
_FROM_PLAN = ("clip_id", "row_id", "row_index", "seed", "prompt", "settings_sha256")
"""As the manifest of today has them: a renamed row keeps its clip under the new name."""
_FROM_LOG = tuple(name for name in COLUMNS if name not in _FROM_PLAN)


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
        writer.writerow(COLUMNS)
        for row in rows:
            record = attempts.get(row[place["settings_sha256"]], {})
            if record.get("finished_at") is not None:
                record["finished_at"] = record["finished_at"].isoformat()
            writer.writerow(
                [row[place[name]] if name in _FROM_PLAN else record.get(name) for name in COLUMNS]
            )


def is_up_to_date(run_dir: RunDir) -> bool:
    """Whether clips.csv and the page were written after plan and log were changed last."""
    results = [run_dir.clips_table, run_dir.page]
    if not all(path.is_file() for path in results):
        return False
    sources = [run_dir.plan, *segments(run_dir.log)]
    changed_at = max(path.stat().st_mtime_ns for path in sources)
    return min(path.stat().st_mtime_ns for path in results) >= changed_at
