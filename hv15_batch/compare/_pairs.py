"""Which clips of two runs belong together: the same row and seed, the same prompt and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hv15_batch.errors import Refused
from hv15_batch.files import parse_json
from hv15_batch.media.tag import MAX_TAG_CHARACTERS
from hv15_batch.media.video import read_comment
from hv15_batch.planning.tables import read_plan
from hv15_batch.record import DONE_STATUSES, columns
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.store import fetched
from hv15_batch.rundir.stored import read_rows_of_runs
from hv15_batch.units import shortened

Record = dict[str, Any]
"""A row of the log with what its run says of it (`rundir.stored`), by column."""
Key = tuple[str, int]
"""Row id and seed."""

SIZE_COLUMNS = ("height", "width", "num_frames")
MAX_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Pair:
    """One row with one seed, rendered in both runs."""

    row_id: str
    seed: int
    a: Record
    b: Record
    fault: str | None
    """Why the two cannot be compared; None where they can."""


@dataclass(frozen=True)
class Matched:
    """What two runs have in common."""

    a: RunDir
    b: RunDir
    pairs: list[Pair]
    """In the manifest order of A."""
    rows_a: list[Record]
    """The whole log of A, which its figures of time and memory are from."""
    rows_b: list[Record]
    only_in_a: int
    """Clips of A that B lacks."""
    only_in_b: int


def match_runs(path_a: Path, path_b: Path) -> Matched:
    """Return the clips that two runs have in common.

    Raises:
        Refused: no run directory, nothing in common, or a row whose prompt or first frame is
            another one in the other run.
        LogSchemaError: a log cannot be read.
    """
    a, b = (RunDir(path.expanduser().absolute()) for path in (path_a, path_b))
    for run_dir in (a, b):
        run_dir.check_started()
    if a.path.resolve() == b.path.resolve():
        raise Refused(f"{a.path}: named twice; name two run directories.")
    rows_a, rows_b = (read_rows_of_runs(run_dir, columns()) for run_dir in (a, b))
    clips_a, clips_b = _finished(a, rows_a), _finished(b, rows_b)
    common = [key for key in clips_a if key in clips_b]
    if not common:
        raise Refused(_nothing_in_common(a, b, clips_a, clips_b))
    common.sort(key=lambda key: clips_a[key]["row_index"] or 0)  # stable: seeds keep their order
    pairs = [_pair(a, b, clips_a[key], clips_b[key]) for key in common]
    return Matched(
        a=a,
        b=b,
        pairs=pairs,
        rows_a=rows_a,
        rows_b=rows_b,
        only_in_a=len(clips_a) - len(common),
        only_in_b=len(clips_b) - len(common),
    )


def _finished(run_dir: RunDir, rows: Sequence[Record]) -> dict[Key, Record]:
    """Return the last finished attempt at each clip, in the order of the log; no repetitions.

    A row that was rendered with several settings counts with those of the current plan.
    """
    current = {row["settings_sha256"] for row in read_plan(run_dir)}
    done = [row for row in rows if row["status"] in DONE_STATUSES and row["repeat"] is None]
    ranked = sorted(done, key=lambda row: _rank(row, current))  # stable: else the later one
    clips = {_key(row): row for row in ranked}
    return {key: clips[key] for key in dict.fromkeys(map(_key, done))}


def _key(record: Record) -> Key:
    return record["row_id"], record["seed"]


def _rank(record: Record, current: set[str]) -> tuple[bool, str, int]:
    is_current = record["settings_sha256"] in current
    return is_current, record["run_id"] or "", record["attempt"] or 0


def _pair(run_a: RunDir, run_b: RunDir, a: Record, b: Record) -> Pair:
    """Return two clips as a pair.

    Raises:
        Refused: they show different things.
    """
    where = f"row {a['row_id']}, seed {a['seed']}"
    if a["prompt"] != b["prompt"]:
        raise Refused(
            f"{where}: the prompts differ: {_quoted(a)} in {run_a.path}, "
            f"{_quoted(b)} in {run_b.path}; compare runs of one manifest."
        )
    images = [_image_sha256(run_a, a), _image_sha256(run_b, b)]
    if a["image"] or b["image"]:
        are_known = None not in images
        if images[0] != images[1] if are_known else a["image"] != b["image"]:
            raise Refused(
                f"{where}: the first frames differ: {a['image']!r} in {run_a.path}, "
                f"{b['image']!r} in {run_b.path}; compare runs of one manifest and its images."
            )
    sizes = [[record[column] for column in SIZE_COLUMNS] for record in (a, b)]
    fault = None
    if sizes[0] != sizes[1]:
        texts = [f"{height}x{width}, {frames} frames" for height, width, frames in sizes]
        fault = f"sizes differ: {texts[0]} and {texts[1]}"
    elif _begin_otherwise(a, b):
        fault = "first frames differ: the clips that they follow have other pixels"
    return Pair(a["row_id"], a["seed"], a, b, fault)


def _begin_otherwise(a: Record, b: Record) -> bool:
    """Whether two clips that follow others began with other pixels, which only the log knows."""
    pixels = {record["image_sha256"] for record in (a, b)}
    are_followers = None not in (a["image_source"], b["image_source"])
    return are_followers and None not in pixels and len(pixels) > 1


def _image_sha256(run_dir: RunDir, record: Record) -> str | None:
    """Return the content hash of a clip's first frame, which its file's tag has."""
    value = _read_tag(run_dir, record).get("image_sha256")
    return value if isinstance(value, str) else None


def _read_tag(run_dir: RunDir, record: Record) -> dict[str, Any]:
    """Return the settings that a clip's file carries; empty where there are none."""
    if not record["file"]:
        return {}
    try:
        comment = read_comment(fetched(run_dir, record["file"])) or "{}"
        tag = parse_json(comment) if len(comment) <= MAX_TAG_CHARACTERS else None
    except (OSError, ValueError):
        return {}
    return tag if isinstance(tag, dict) else {}


def _nothing_in_common(
    a: RunDir, b: RunDir, clips_a: dict[Key, Record], clips_b: dict[Key, Record]
) -> str:
    for run_dir, clips in ((a, clips_a), (b, clips_b)):
        if not clips:
            return f"{run_dir.path}: no clip is finished there; render some first."
    first_a, first_b = next(iter(clips_a)), next(iter(clips_b))
    return (
        f"{a.path} and {b.path} have no row with the same id and seed in common (the first are "
        f"{first_a[0]} with seed {first_a[1]}, and {first_b[0]} with seed {first_b[1]}); compare "
        "runs of one manifest."
    )


def _quoted(record: Record) -> str:
    return repr(shortened(record["prompt"] or "", MAX_SHOWN_CHARACTERS))
