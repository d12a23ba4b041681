"""A manifest's columns and rows, checked."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from hv15_batch.config.checks import check_sampling_value
from hv15_batch.manifest.cells import (
    Faults,
    Parsed,
    is_empty,
    parse_id,
    parse_real,
    parse_seeds,
    parse_tag,
    parse_text,
    parse_whole,
)
from hv15_batch.media.image import FirstFrame, FirstFrames
from hv15_batch.model.variant import Task

KNOWN_COLUMNS = (
    "prompt",
    "id",
    "seed",
    "negative_prompt",
    "image",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "flow_shift",
    "fps",
)

TAG_PREFIX = "tag_"
"""Begins the name of a column that is the user's own label."""

MAX_COLUMNS = 1_000

SIMILARITY = 0.5
"""Names less alike than this (difflib's ratio) are not suggested."""

# The row index as pandas writes it: to_csv, the same read back and written again, to_parquet.
_INDEX_COLUMN = re.compile(r"|Unnamed: 0(\.[0-9]+)*|__index_level_[0-9]+__")


class Unreadable(Exception):
    """The rest of the file makes no sense; the fault has been noted."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row as the file holds it."""

    line: int
    """Where the record starts, from 1 (the header is 1 in CSV); in Parquet the row from 1."""
    cells: dict[str, Any]
    """Text in CSV and .txt, any JSON or Arrow value otherwise; absent where the file has none."""


def is_known_column(name: str) -> bool:
    """Return whether a manifest may have a column of this name."""
    return name in KNOWN_COLUMNS or (name.startswith(TAG_PREFIX) and name.isprintable())


def is_index_column(name: str) -> bool:
    """Return whether this is the nameless row index of pandas, which is ignored."""
    return _INDEX_COLUMN.fullmatch(name) is not None


def check_header(line: int, header: Sequence[str], faults: Faults) -> list[tuple[int, str]]:
    """Return (place, name) of the columns to be read, and note those that cannot be.

    Raises:
        Unreadable: There is no `prompt`, so that no row can be checked.
    """
    if len(header) > MAX_COLUMNS:
        rule = f"a manifest has at most {MAX_COLUMNS:,} columns, and this one {len(header):,}"
        faults.add(line, "header", header[0], f"{rule}; remove some")
        raise Unreadable
    places: dict[str, int] = {}
    unknown = []
    for place, name in enumerate(header):
        if is_index_column(name):
            continue
        if name in places:
            rule = f"a name stands for one column, and {places[name] + 1} and {place + 1} share it"
            faults.add(line, "column", name, f"{rule}; rename or remove one")
        elif is_known_column(name):
            places[name] = place
        else:
            unknown.append(name)
            faults.add(line, "column", name, unknown_column_rule(name))
    if "prompt" not in places:
        if "prompt" not in map(_nearest_column, unknown):
            rule = "a manifest has a column prompt, and this one has none"
            faults.add(
                line, "header", ",".join(header), f"{rule}; name the columns in the first line"
            )
        raise Unreadable
    return [(place, name) for name, place in places.items()]


def unknown_column_rule(name: str) -> str:
    """Return what is wrong with the name of a column, and what to do."""
    nearest = _nearest_column(name)
    known = (
        f"the nearest known name is {nearest}"
        if nearest
        else f"the known names are {', '.join(KNOWN_COLUMNS)}"
    )
    return (
        f"a manifest has no such column, and {known}; correct or remove it, "
        f"or begin it with {TAG_PREFIX} if it is a label of your own"
    )


def _nearest_column(name: str) -> str | None:
    # Columns have short names, and difflib's time grows with the square of the length.
    short = name.strip(" _").lower()[:64]
    whole = [known for known in KNOWN_COLUMNS if short in known and len(short) > 2]
    if whole:
        return whole[0]  # `steps`, `frames`, `guidance`
    near = difflib.get_close_matches(short, KNOWN_COLUMNS, n=1, cutoff=SIMILARITY)
    return near[0] if near else None


MAX_CLIPS = 1_000_000
"""Seeds given in the manifest, over all rows: they are held in memory."""

MAX_REMEMBERED = 1_000
"""Accepted numbers kept, so that the same text is checked once."""

MAX_SLUG_CHARACTERS = 24

_parse_side = partial(parse_whole, allowed="a multiple of 16", usual=480)
_parse_num_frames = partial(parse_whole, allowed="4n+1", usual=121)

_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")


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
    image_conversion: str | None
    """What is done beyond making it RGB, see `media.conversion`."""
    image_notes: tuple[str, ...]
    """What a person should know of the first frame."""
    height: int | None
    width: int | None
    num_frames: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    flow_shift: float | None
    fps: float | None
    tags: dict[str, str]
    """The filled `tag_*` cells by the full name of their column."""


class RowReader:
    """Turns records into rows; remembers ids, images and the number of clips."""

    def __init__(self, task: Task, folder: Path, faults: Faults) -> None:
        self._task = task
        self._faults = faults
        self._images = FirstFrames(str(folder))
        self._ids: dict[str, tuple[str, int]] = {}
        self._num_clips = 0
        self._accepted: dict[tuple[str, str] | None, Any] = {}

    @property
    def has_too_many_clips(self) -> bool:
        """Whether the rows so far make more than `MAX_CLIPS`: then seeds are no longer read."""
        return self._num_clips > MAX_CLIPS

    def read(self, index: int, record: Record) -> Row:
        """Return the row; a refused cell is noted as a fault and reads as None."""
        prompt = self._prompt(record)
        negative_prompt = self._cell(record, "negative_prompt", parse_text)
        image = self._cell(record, "image", parse_text)
        frame = self._first_frame(record, image)
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
            image_conversion=frame.conversion if frame else None,
            image_notes=frame.notes if frame else (),
            height=self._sampling(record, "height", _parse_side),
            width=self._sampling(record, "width", _parse_side),
            num_frames=self._sampling(record, "num_frames", _parse_num_frames),
            num_inference_steps=self._sampling(record, "num_inference_steps", parse_whole),
            guidance_scale=self._sampling(record, "guidance_scale", parse_real),
            flow_shift=self._sampling(record, "flow_shift", parse_real),
            fps=self._sampling(record, "fps", parse_real),
            tags=self._tags(record),
        )

    def _cell(self, record: Record, column: str, parse: Callable[[Any], Parsed]) -> Parsed | None:
        value = record.cells.get(column)
        return None if value is None else self._faults.try_cell(record.line, column, value, parse)

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
            where = f"{self._faults.unit} {line}"
            rule = f"an id is unique, and {where} has {same} already; change one of the two"
            self._faults.add(record.line, "id", given, rule)
        return given

    def _seeds(self, record: Record) -> tuple[int, ...] | None:
        if self.has_too_many_clips:
            return None
        seeds = self._cell(record, "seed", parse_seeds)
        self._num_clips += len(seeds) if seeds else 1
        if self.has_too_many_clips:
            rule = f"a manifest makes at most {MAX_CLIPS:,} clips, and here they are more"
            self._faults.add(
                record.line, "seed", record.cells.get("seed"), f"{rule}; split it into several"
            )
        return seeds

    def _sampling(
        self, record: Record, column: str, parse: Callable[[Any], Parsed]
    ) -> Parsed | None:
        value = record.cells.get(column)
        if value is None:
            return None
        # Most rows of a column say the same, and only text tells 1 from 1.0 and true.
        key = (column, value) if isinstance(value, str) else None
        if key in self._accepted:
            return cast("Parsed", self._accepted[key])

        def parse_and_check(value: Any) -> Parsed:
            number = parse(value)
            rule = check_sampling_value(column, number, self._task)
            if rule:
                raise ValueError(rule)
            return number

        number = self._cell(record, column, parse_and_check)
        if key is not None and number is not None and len(self._accepted) < MAX_REMEMBERED:
            self._accepted[key] = number
        return number

    def _first_frame(self, record: Record, image: str | None) -> FirstFrame | None:
        value = record.cells.get("image")
        if self._task is Task.t2v:
            if not is_empty(value):
                rule = "a text-to-video model takes no image; leave the cell empty, or use an"
                self._faults.add(
                    record.line, "image", value, f"{rule} image-to-video model (model=480p_i2v)"
                )
            return None
        if is_empty(value):
            rule = "an image-to-video model needs a first frame; name an image file"
            self._faults.add(record.line, "image", value or "", rule)
        return self._faults.try_cell(record.line, "image", image, self._images.read)

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
