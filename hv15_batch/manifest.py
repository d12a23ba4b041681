"""The manifest: read every row, check every cell, report all faults at once.

Rules are those of the README's table of columns. Nothing is resolved against the model's defaults
here (`plan` does), and nothing is ever written. Torch-free; pyarrow is imported for Parquet only
and Pillow only where there are images.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hv15_batch.config import ConfigError, Task, check_sampling_value
from hv15_batch.manifest_cells import (
    Faults,
    Parsed,
    format_fault,
    is_empty,
    parse_id,
    parse_real,
    parse_seeds,
    parse_tag,
    parse_text,
    parse_whole,
)
from hv15_batch.manifest_columns import TAG_PREFIX, Record
from hv15_batch.manifest_formats import MANIFEST_SUFFIXES, RecordReader
from hv15_batch.manifest_images import FirstFrame, FirstFrames

__all__ = [
    "MANIFEST_SUFFIXES",
    "Manifest",
    "ManifestError",
    "Row",
    "format_fault",
    "parse_seeds",
    "read_manifest",
]

MAX_FILE_BYTES = 1024**3
MAX_ROWS = 1_000_000
MAX_CLIPS = 1_000_000
"""Seeds given in the manifest, over all rows: they are held in memory."""

MAX_SHOWN_FAULTS = 50
MAX_SLUG_CHARACTERS = 24

_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")


class ManifestError(ConfigError):
    """A manifest with faults; its text is the first 50, one a line, and how many more."""

    def __init__(self, faults: Sequence[str]) -> None:
        # As the only argument, so that the error survives pickling.
        super().__init__(tuple(faults))
        self.faults = tuple(faults)
        """Every fault: `file:line: column=value: what is allowed; what to do.`"""

    def __str__(self) -> str:
        """Return what is printed."""
        lines = list(self.faults[:MAX_SHOWN_FAULTS])
        rest = len(self.faults) - len(lines)
        return "\n".join([*lines, f"and {rest:,} more"] if rest else lines)


@dataclass(frozen=True, slots=True)
class Row:
    """One checked row. None means the default: of the command or of the model option."""

    index: int
    """Place in the manifest, from 0."""
    line: int
    """Where the record starts, from 1 (the header is 1 in CSV); in Parquet the row from 1."""
    id: str
    """As given, or made from the prompt."""
    id_given: bool
    prompt: str
    seeds: tuple[int, ...] | None
    negative_prompt: str | None
    image: str | None
    """The cell, as typed."""
    image_path: str | None
    """Absolute."""
    image_sha256: str | None
    """Of the file's bytes."""
    image_size: tuple[int, int] | None
    """(height, width) in pixels, after the EXIF orientation is applied."""
    height: int | None
    width: int | None
    num_frames: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    flow_shift: float | None
    fps: float | None
    tags: dict[str, str]
    """The filled `tag_*` cells by the full name of their column."""


@dataclass(frozen=True)
class Manifest:
    """A manifest without faults."""

    path: Path
    """Absolute."""
    name: str
    """Path as the user typed it, for messages."""
    sha256: str
    """Of the file's bytes."""
    rows: tuple[Row, ...]


def read_manifest(path: Path, task: Task) -> Manifest:
    """Read and check a manifest.

    Args:
        path: CSV, JSON Lines, Parquet or .txt file.
        task: Of the model: images are required for image-to-video and refused otherwise.

    Raises:
        ConfigError: There is no such file, or it is no manifest at all.
        ManifestError: With all faults of all rows.
    """
    _check_file(path)
    absolute = Path(os.path.abspath(path))
    faults = Faults(str(path))
    records = RecordReader(absolute, faults)
    reader = _RowReader(task, absolute.parent, faults)
    rows: list[Row] = []
    num_records = 0
    try:
        for record in records:
            num_records += 1
            if num_records > MAX_ROWS:
                rule = f"a manifest has at most {MAX_ROWS:,} rows; split it into several"
                faults.add(record.line, "rows", num_records, rule)
                break
            rows.append(reader.read(len(rows), record))
    except OSError as error:
        raise ConfigError(_unreadable(path, error)) from error
    if not num_records and not faults.messages:
        rule = "a manifest has at least one row, and this one has none; write a prompt into it"
        faults.add(1, "rows", 0, rule)
    if faults.messages:
        raise ManifestError(faults.messages)
    return Manifest(path=absolute, name=str(path), sha256=records.sha256, rows=tuple(rows))


def _check_file(path: Path) -> None:
    """Check that there is a file of the right kind and size.

    Raises:
        ConfigError: Naming the file and what to do.
    """
    if not path.exists():
        near = difflib.get_close_matches(path.name, _manifests_in(path.parent), n=1)
        hint = f"did you mean {path.with_name(near[0])}?" if near else "correct the path."
        raise ConfigError(f"manifest={path}: there is no such file; {hint}")
    if not path.is_file():
        raise ConfigError(f"manifest={path}: a manifest is a file, and this is none; name a file.")
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise ConfigError(
            f"manifest={path}: a manifest ends in {', '.join(MANIFEST_SUFFIXES)}; "
            "rename it if it is one of these."
        )
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(_unreadable(path, error)) from error
    if size > MAX_FILE_BYTES:
        raise ConfigError(
            f"manifest={path}: a manifest has at most {MAX_FILE_BYTES // 1024**3} GiB, and this "
            f"one {size:,} bytes; split it."
        )


def _manifests_in(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []  # the folder is missing too: then there is nothing to suggest
    return [name for name in names if Path(name).suffix.lower() in MANIFEST_SUFFIXES]


def _unreadable(path: Path, error: OSError) -> str:
    return f"manifest={path}: it cannot be read ({error.strerror}); correct its permissions."


class _RowReader:
    """Turns records into rows; remembers ids, images and the number of clips."""

    def __init__(self, task: Task, folder: Path, faults: Faults) -> None:
        self._task = task
        self._faults = faults
        self._images = FirstFrames(str(folder))
        self._ids: dict[str, tuple[str, int]] = {}
        self._num_clips = 0

    def read(self, index: int, record: Record) -> Row:
        """Return the row; a refused cell is noted as a fault and reads as None."""
        prompt = self._prompt(record)
        negative_prompt = self._cell(record, "negative_prompt", parse_text)
        image = self._cell(record, "image", parse_text)
        frame = self._first_frame(record)
        given_id = self._id(record)
        return Row(
            index=index,
            line=record.line,
            id=given_id or _derived_id(prompt, image, negative_prompt),
            id_given=given_id is not None,
            prompt=prompt,
            seeds=self._seeds(record),
            negative_prompt=negative_prompt,
            image=image,
            image_path=frame.path if frame else None,
            image_sha256=frame.sha256 if frame else None,
            image_size=frame.size if frame else None,
            height=self._sampling(record, "height", parse_whole),
            width=self._sampling(record, "width", parse_whole),
            num_frames=self._sampling(record, "num_frames", parse_whole),
            num_inference_steps=self._sampling(record, "num_inference_steps", parse_whole),
            guidance_scale=self._sampling(record, "guidance_scale", parse_real),
            flow_shift=self._sampling(record, "flow_shift", parse_real),
            fps=self._sampling(record, "fps", parse_real),
            tags=self._tags(record),
        )

    def _cell(
        self, record: Record, column: str, parse: Callable[[Any], Parsed]
    ) -> Parsed | None:
        return self._faults.try_cell(record.line, column, record.cells.get(column), parse)

    def _prompt(self, record: Record) -> str:
        value = record.cells.get("prompt")
        if is_empty(value):
            rule = "must not be empty; write what the clip shows, or delete the row"
            self._faults.add(record.line, "prompt", value or "", rule)
        return self._cell(record, "prompt", parse_text) or ""

    def _id(self, record: Record) -> str | None:
        given = self._cell(record, "id", parse_id)
        if given is None:
            return None
        first, line = self._ids.setdefault(given.lower(), (given, record.line))
        if line != record.line:
            same = "it" if first == given else f"{first}, which a disk may take for the same name,"
            rule = f"an id is unique, and line {line} has {same} already; change one of the two"
            self._faults.add(record.line, "id", given, rule)
        return given

    def _seeds(self, record: Record) -> tuple[int, ...] | None:
        if self._num_clips > MAX_CLIPS:
            return None
        seeds = self._cell(record, "seed", parse_seeds)
        self._num_clips += len(seeds) if seeds else 1
        if self._num_clips > MAX_CLIPS:
            rule = f"a manifest makes at most {MAX_CLIPS:,} clips, and here they are more"
            self._faults.add(
                record.line, "seed", record.cells.get("seed"), f"{rule}; split it into several"
            )
        return seeds

    def _sampling(
        self, record: Record, column: str, parse: Callable[[Any], Parsed]
    ) -> Parsed | None:
        def parse_and_check(value: Any) -> Parsed:
            number = parse(value)
            rule = check_sampling_value(column, number, self._task)
            if rule:
                raise ValueError(rule)
            return number

        return self._cell(record, column, parse_and_check)

    def _first_frame(self, record: Record) -> FirstFrame | None:
        value = record.cells.get("image")
        if self._task is Task.i2v:
            if is_empty(value):
                rule = "an image-to-video model needs a first frame; name an image file"
                self._faults.add(record.line, "image", value or "", rule)
            return self._cell(
                record, "image", lambda cell: self._images.read(cell) if isinstance(cell, str) else None
            )
        if not is_empty(value):
            rule = "a text-to-video model takes no image; leave the cell empty, or use an"
            self._faults.add(
                record.line, "image", value, f"{rule} image-to-video model (model=480p_i2v)"
            )
        return None

    def _tags(self, record: Record) -> dict[str, str]:
        tags = {}
        for column in record.cells:
            if column.startswith(TAG_PREFIX):
                label = self._cell(record, column, parse_tag)
                if label is not None:
                    tags[column] = label
        return tags


def _derived_id(prompt: str, image: str | None, negative_prompt: str | None) -> str:
    """Return a readable name that depends on the row's content and not on its place."""
    image_name = Path(image).stem if image else ""
    slug = _slug(prompt) or _slug(image_name) or "clip"
    content = json.dumps([prompt, image, negative_prompt])
    return f"{slug}-{hashlib.sha256(content.encode()).hexdigest()[:6]}"


def _slug(text: str) -> str:
    """Return the first ASCII words in lower case, as many as fit and at least part of one."""
    slug = ""
    for match in _ASCII_WORD.finditer(text):
        word = match[0].lower()
        if slug and len(slug) + 1 + len(word) > MAX_SLUG_CHARACTERS:
            break
        slug = f"{slug}-{word}" if slug else word[:MAX_SLUG_CHARACTERS]
    return slug
