"""The manifest: read every row, check every cell, report all faults at once.

Rules are those of the README's table of columns. Nothing is resolved against the model's defaults
here (`plan` does), and nothing is ever written. Torch-free; pyarrow is imported for Parquet only
and Pillow only where there are images.
"""

from __future__ import annotations

import difflib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from hv15_batch.config.words import MANIFEST_SUFFIXES
from hv15_batch.errors import Refused
from hv15_batch.manifest._formats import RecordReader
from hv15_batch.manifest.cells import ROWS, Faults, ManifestError
from hv15_batch.manifest.rows import Row, RowReader
from hv15_batch.model.variant import Task
from hv15_batch.units import GIB

VIDEO_SUFFIXES = (".mp4", ".mkv")
MAX_FILE_BYTES = GIB
MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class Manifest:
    """A manifest's rows; after `scan_manifest` those that have no fault."""

    path: Path
    """Absolute."""
    name: str
    """Path as the user typed it, or `cells.ROWS`, for messages."""
    sha256: str
    """Of the file's bytes."""
    rows: tuple[Row, ...]
    content: bytes | None = None
    """What a run is to write to `path`: rows that came from a DataFrame; None for a user's file."""


def read_manifest(path: Path, task: Task) -> Manifest:
    """Read and check a manifest.

    Args:
        path: CSV, JSON Lines, Parquet or .txt file.
        task: Of the model: images are required for image-to-video and refused otherwise.

    Raises:
        Refused: There is no such file, or it is no manifest at all.
        ManifestError: With all faults of all rows.
    """
    manifest, faults = scan_manifest(path, task)
    if faults:
        raise ManifestError(faults.messages)
    return manifest


def scan_manifest(path: Path, task: Task, content: bytes | None = None) -> tuple[Manifest, Faults]:
    """Return what `read_manifest` does, of the good rows only, and the faults of the others.

    With `content`, JSON Lines, no file is read: it is what the file will hold.

    Raises:
        Refused: There is no such file, or it is no manifest at all.
    """
    if content is None:
        _check_file(path)
    absolute = Path(os.path.abspath(path))
    name = str(path) if content is None else ROWS
    faults = Faults(name)
    records = RecordReader(absolute, faults, content)
    reader = RowReader(task, absolute.parent, faults)
    rows: list[Row] = []
    num_records = 0
    try:
        for record in records:
            num_records += 1
            if num_records > MAX_ROWS:
                rule = f"a manifest has at most {MAX_ROWS:,} rows; split it into several"
                faults.add(record.line, "rows", num_records, rule)
                break
            num_faults = len(faults)
            row = reader.read(len(rows), record)
            if len(faults) == num_faults and not reader.has_too_many_clips:
                rows.append(row)
    except OSError as error:
        raise Refused(_unreadable(path, error)) from error
    if not num_records and not faults:
        rule = "a manifest has at least one row, and this one has none; write a prompt into it"
        faults.add(1, "rows", 0, rule)
    return Manifest(absolute, name, records.sha256, tuple(rows), content), faults


def _check_file(path: Path) -> None:
    """Check that there is a file of the right kind and size.

    Raises:
        Refused: Naming the file and what to do.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        near = difflib.get_close_matches(path.name, _manifests_in(path.parent), n=1)
        hint = f"did you mean {path.with_name(near[0])}?" if near else "correct the path."
        raise Refused(f"manifest={path}: there is no such file; {hint}") from None
    except OSError as error:
        raise Refused(_unreadable(path, error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"manifest={path}: a manifest is a file, and this is none; name a file.")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise Refused(
            f"manifest={path}: a video is no manifest; hv15-batch recipe {path.name} writes one "
            "for a clip of this program."
        )
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise Refused(
            f"manifest={path}: a manifest ends in {', '.join(MANIFEST_SUFFIXES)}; "
            "rename it if it is one of these."
        )
    if status.st_size > MAX_FILE_BYTES:
        raise Refused(
            f"manifest={path}: a manifest has at most {MAX_FILE_BYTES // GIB} GiB, and this "
            f"one {status.st_size:,} bytes; split it."
        )


def _manifests_in(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []  # the folder is missing too: then there is nothing to suggest
    return [name for name in names if Path(name).suffix.lower() in MANIFEST_SUFFIXES]


def _unreadable(path: Path, error: OSError) -> str:
    return (
        f"manifest={path}: it cannot be read ({error.strerror}); "
        "correct the path or its permissions."
    )
