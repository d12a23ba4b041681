"""Reads a manifest: checks every row and every cell, and reports all faults at once.

The rules are in docs/manifest.md. Defaults of the model are filled in later, by `clips.py`. Nothing
is written. No torch; pyarrow is imported for Parquet only, and Pillow only for images.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from hv15_batch.config.files import (
    MANIFEST_SUFFIXES,
    manifests_in,
    near_manifest,
    stream_fault,
    suffix_fault,
)
from hv15_batch.errors import Refused
from hv15_batch.manifest._paths import path_fault
from hv15_batch.manifest.cells import ROWS, Faults, ManifestError, is_empty
from hv15_batch.manifest.chains.links import whole_chains
from hv15_batch.manifest.columns import Reading, Unreadable
from hv15_batch.manifest.formats.records import MAX_JSON_BYTES, RecordReader
from hv15_batch.manifest.rows import MAX_ROWS, Row, RowReader, TaskOf, task_of_ours
from hv15_batch.manifest.templates.expand import Expander
from hv15_batch.manifest.unmeant import Unmeant
from hv15_batch.model.codec import VIDEO_SUFFIXES
from hv15_batch.model.variant import Task
from hv15_batch.units import GIB, MIB

MAX_FILE_BYTES = GIB
MAX_NAMED = 5
"""A message about a folder names at most this many manifests in it."""
AS_IT_STANDS = Reading()


@dataclass(frozen=True)
class Manifest:
    """The rows of a manifest; from `scan_manifest` only those without a fault."""

    path: Path
    """Absolute."""
    name: str
    """Path as the user typed it, or `cells.ROWS`, for messages."""
    sha256: str
    """Of the file's bytes."""
    rows: tuple[Row, ...]
    content: bytes | None = None
    """The text that a run writes to `path` for rows of a DataFrame; None for a user's file."""
    notes: tuple[str, ...] = ()
    """What was read as it stands but may be a mistake, a line for each kind."""
    words: tuple[tuple[str, bytes], ...] = ()
    """Path, relative to the manifest's folder, and content of each file of words of templates."""
    models: frozenset[str | None] = frozenset()
    """The model cells of all rows, those with faults too; None is an empty one."""


def read_manifest(path: Path, task: Task, reading: Reading = AS_IT_STANDS) -> Manifest:
    """Read and check a manifest.

    Args:
        path: A file of one of `MANIFEST_SUFFIXES`.
        task: Of rows that name no model: images are required for image-to-video and refused
            otherwise.
        reading: How the settings want it to be read.

    Raises:
        Refused: There is no such file, or it is not of a kind that a manifest can be.
        ManifestError: With all faults of all rows.
    """
    manifest, faults = scan_manifest(path, task, reading)
    if faults:
        raise ManifestError(faults.messages)
    return manifest


def scan_manifest(
    path: Path,
    task: Task,
    reading: Reading = AS_IT_STANDS,
    content: bytes | None = None,
    task_of: TaskOf = task_of_ours,
) -> tuple[Manifest, Faults]:
    """Return the manifest with only its good rows, and the faults of the others.

    Args:
        path: As for `read_manifest`.
        task: As for `read_manifest`.
        reading: As for `read_manifest`.
        content: JSON Lines that the file will hold later; they are read in its place.
        task_of: As for `RowReader`.

    Raises:
        Refused: There is no such file, or it is not of a kind that a manifest can be.
    """
    if content is None:
        _check_file(path)
    absolute = Path(os.path.abspath(path))
    name = str(path) if content is None else ROWS
    faults = Faults(name)
    records = RecordReader(absolute, faults, reading, content)
    reader = RowReader(task, absolute.parent, faults, task_of)
    is_text = content is None and path.suffix.lower() == ".txt"
    unmeant = Unmeant(faults, is_text=is_text, reading=reading)
    templates = reading.templates
    expander = None
    if templates is not None:
        expander = Expander(templates, faults, absolute, has_folder=content is None)
    rows: list[Row] = []
    refused: set[str] = set()
    num_records = 0
    try:
        for record in records:
            if all(map(is_empty, record.cells.values())):
                continue
            num_records += 1
            if num_records > MAX_ROWS:
                rule = f"a manifest has at most {MAX_ROWS:,} rows; split it into several"
                faults.add(record.line, "rows", num_records, rule)
                break
            num_faults = len(faults)
            if unmeant.check(record):
                refused.add(str(record.cells.get("id")))
                continue
            row = reader.read(len(rows), record)
            if len(faults) > num_faults or reader.has_too_many_clips:
                refused.add(row.id)
                continue
            rows += [row] if expander is None else unmeant.accepted(expander.rows(row))
            if len(faults) > num_faults:
                refused.add(row.id)
            if expander is not None and expander.is_full:
                break
        unmeant.finish()
        rows = whole_chains(rows, refused, faults)
    except Unreadable:
        pass  # the fault has been noted
    except OSError as error:
        raise Refused(_unreadable(path, error)) from error
    if not num_records and not faults:
        rule = "a manifest has at least one row, and this one has none; write a prompt into it"
        faults.add(1, "rows", 0, rule)
    notes = (*records.notes, *unmeant.notes)
    sha256, models = records.sha256, frozenset(reader.models)
    words = () if expander is None else expander.words
    made = tuple(rows)
    return Manifest(absolute, name, sha256, made, content, notes, words, models), faults


def _check_file(path: Path) -> None:
    """Check that there is a file of the right kind and size.

    Raises:
        Refused: Naming the file and what to do.
    """
    if fault := stream_fault(str(path)):
        raise Refused(f"manifest={path}: {fault}.")
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(f"manifest={path}: {_missing(path)}") from None
    except (OSError, ValueError) as error:
        raise Refused(_unreadable(path, error)) from error
    suffix = path.suffix.lower()
    if stat.S_ISDIR(status.st_mode):
        raise Refused(
            f"manifest={path}: a manifest is a file, and this is a folder; {_inside(path)}."
        )
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"manifest={path}: a manifest is a regular file; this is not one; name one.")
    if suffix in VIDEO_SUFFIXES:
        raise Refused(
            f"manifest={path}: a video is no manifest; hv15-batch recipe {path.name} writes one "
            "for a clip of this program."
        )
    if suffix not in MANIFEST_SUFFIXES:
        raise Refused(f"manifest={path}: {suffix_fault(str(path))}.")
    size = f"this one {status.st_size:,} bytes"
    if status.st_size > MAX_FILE_BYTES:
        raise Refused(
            f"manifest={path}: a manifest has at most {MAX_FILE_BYTES // GIB} GiB, and {size}; "
            "split it."
        )
    if suffix == ".json" and status.st_size > MAX_JSON_BYTES:
        raise Refused(
            f"manifest={path}: a .json has at most {MAX_JSON_BYTES // MIB} MiB, and {size}; write "
            "it as JSON Lines (.jsonl), which has no such limit."
        )


def _missing(path: Path) -> str:
    """Return what to do where there is no such file."""
    fault = path_fault(str(path))
    if fault is not None and "must exist" not in fault:
        return f"{fault}."
    near = near_manifest(path)
    hint = f"did you mean {near}?" if near else "correct the path."
    return f"there is no such file; {hint}"


def _inside(folder: Path) -> str:
    names = manifests_in(folder)[:MAX_NAMED]
    if not names:
        return "name a file"
    return f"name a file in it: {', '.join(str(folder / name) for name in names)}"


def _unreadable(path: Path, error: OSError | ValueError) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"manifest={path}: it cannot be read ({reason}); correct the path or its permissions."
