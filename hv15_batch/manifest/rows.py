"""A manifest's rows, checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hv15_batch.clip import Rewrite
from hv15_batch.config.checks import check_sampling_value
from hv15_batch.manifest._paths import path_fault
from hv15_batch.manifest.cells import (
    Faults,
    Parsed,
    is_empty,
    parse_id,
    parse_loras,
    parse_real,
    parse_seeds,
    parse_tag,
    parse_text,
    parse_whole,
)
from hv15_batch.manifest.chains.cells import FrameOf, is_frame, parse_frame, parse_join
from hv15_batch.manifest.columns import TAG_PREFIX
from hv15_batch.media.image import FirstFrame, FirstFrames
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Task


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the file, unchecked."""

    line: int
    """Where the record starts, from 1 (the header is 1 in CSV); in Parquet the row from 1."""
    cells: dict[str, Any]
    """Text in CSV and .txt, any JSON or Arrow value otherwise; absent if the file has none."""


MAX_ROWS = 1_000_000

MAX_CLIPS = 1_000_000
"""Most seeds of all rows together, because they are held in memory."""

MAX_REMEMBERED = 1_000
"""Number of accepted texts that are remembered, so that each is checked once."""

MAX_SLUG_CHARACTERS = 24

_parse_side = partial(parse_whole, allowed="a multiple of 16", usual=480)
_parse_num_frames = partial(parse_whole, allowed="4n+1", usual=121)

_SAMPLING_PARSERS: dict[str, Callable[[Any], Any]] = {
    "height": _parse_side,
    "width": _parse_side,
    "num_frames": _parse_num_frames,
    "num_inference_steps": parse_whole,
    **dict.fromkeys(("guidance_scale", "flow_shift", "fps"), parse_real),
}

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
    """Conversion beyond plain RGB, see `media.conversion`."""
    image_notes: tuple[str, ...]
    """Notes for the user about the first frame."""
    model: str | None
    """Option that renders it."""
    loras: tuple[tuple[str, float], ...] | None
    """Absolute path and scale of each LoRA; empty for none."""
    tags: dict[str, str]
    """The filled `tag_*` cells by the full name of their column."""
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    fps: float | None = None
    template_id: str | None = None
    """Id of the row whose template it comes from; None without one."""
    template_draw: int | None = None
    """Number of its draw, or of its combination, from 0."""
    image_frame: FrameOf | None = None
    """The frame of another clip with which its clips begin; then there is no image file."""
    join: str | None = None
    """Name of the film that its clips are part of."""
    rewrite: Rewrite | None = None
    """How its prompt was rewritten, or is to be; None leaves it as it is."""


Content = tuple[str, str | None]
"""Prompt and SHA-256 of the first frame, or the cell that names a frame of another clip.

Rows that differ in them make different clips."""


def id_rule(given: str, first: str, where: str) -> str:
    """Return the fault of an id that another row has already, and what to do.

    Args:
        given: The id.
        first: How the other row spells it.
        where: Place of the other row, such as `line 2`.
    """
    same = "it" if first == given else f"{first}, which a disk may take for the same name,"
    return f"an id is unique, and {where} has {same} already; change one of the two"


TaskOf = Callable[[str], Task]


def task_of_ours(name: str) -> Task:
    """Return the task of a model option of this package.

    Raises:
        ValueError: There is no such option.
    """
    option = model_options().get(name)
    if option is None:
        raise ValueError(f"a row names a model option, one of {', '.join(model_options())}")
    return option.task


class RowReader:
    """Turns records into rows; remembers ids, images and the number of clips."""

    def __init__(self, task: Task, folder: Path, faults: Faults, task_of: TaskOf) -> None:
        """Start.

        Args:
            task: Of rows without a cell `model`.
            folder: Where relative paths start.
            faults: Where faults are noted.
            task_of: Returns the task of a model option; ValueError where there is no such option.
        """
        self._default_task = task
        self._task: Task | None = task
        """Of the row that is being read; None where its model is not known."""
        self.models: set[str | None] = set()
        """The model cells so far, those of rows with other faults too; None is an empty one."""
        self._task_of = task_of
        self._faults = faults
        self._images = FirstFrames(str(folder))
        self._ids: dict[str, tuple[str, int, Content]] = {}
        self._num_clips = 0
        self._accepted: dict[tuple[str, str, Task | None] | None, Any] = {}

    @property
    def has_too_many_clips(self) -> bool:
        """Whether the rows so far make more than `MAX_CLIPS`. Then seeds are no longer read."""
        return self._num_clips > MAX_CLIPS

    def read(self, index: int, record: Record) -> Row:
        """Return the row; a refused cell is noted as a fault and reads as None."""
        model = self._model(record)
        prompt = self._prompt(record)
        negative_prompt = self._cell(record, "negative_prompt", parse_text)
        image = self._cell(record, "image", parse_text)
        source = self._frame_of(record, image)
        frame = None if source else self._first_frame(record, image)
        given_id = self._id(record, (prompt, frame.sha256 if frame else image if source else None))
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
            model=model,
            loras=self._loras(record),
            **self._sampling(record),
            tags=self._tags(record),
            image_frame=source,
            join=self._cell(record, "join", parse_join),
        )

    def _cell(self, record: Record, column: str, parse: Callable[[Any], Parsed]) -> Parsed | None:
        value = record.cells.get(column)
        return None if value is None else self._faults.try_cell(record.line, column, value, parse)

    def _model(self, record: Record) -> str | None:
        """Return the row's own model option; its task decides what other cells may hold."""
        if is_empty(record.cells.get("model")):
            self._task = self._default_task
            self.models.add(None)
            return None
        self._task = None

        def parse_and_find(value: Any) -> str:
            name = parse_text(value).strip()
            self._task = self._task_of(name)
            self.models.add(name)
            return name

        return self._cell(record, "model", parse_and_find)

    def _prompt(self, record: Record) -> str:
        value = record.cells.get("prompt")
        if is_empty(value):
            rule = "must not be empty; write what the clip shows, or delete the row"
            self._faults.add(record.line, "prompt", value or "", rule)
        return self._cell(record, "prompt", parse_text) or ""

    def _id(self, record: Record, content: Content) -> str | None:
        """Return the row's own id; refuse one that a row of other content has already.

        Rows that may make the same clips keep it; `clips` checks them with the settings.
        """
        given = self._cell(record, "id", parse_id)
        if given is None:
            return None
        first, line, other = self._ids.setdefault(given.lower(), (given, record.line, content))
        if line != record.line and other != content:
            rule = id_rule(given, first, f"{self._faults.unit} {line}")
            self._faults.add(record.line, "id", given, rule)
        return given

    def _seeds(self, record: Record) -> tuple[int, ...] | None:
        if self.has_too_many_clips:
            return None
        seeds = self._cell(record, "seed", parse_seeds)
        self._num_clips += len(seeds) if seeds else 1
        if self.has_too_many_clips:
            rule = f"a manifest makes at most {MAX_CLIPS:,} clips, and this one makes more"
            self._faults.add(
                record.line, "seed", record.cells.get("seed"), f"{rule}; split it into several"
            )
        return seeds

    def _sampling(self, record: Record) -> dict[str, Any]:
        """Return the sampling values that the row has cells for, by column."""
        return {
            column: self._sampling_value(record, column)
            for column in _SAMPLING_PARSERS
            if column in record.cells
        }

    def _sampling_value(self, record: Record, column: str) -> Any:
        value = record.cells[column]
        # Many rows share a value. Only text is remembered, because 1, 1.0 and true are equal.
        key = (column, value, self._task) if isinstance(value, str) else None
        if key in self._accepted:
            return self._accepted[key]

        def parse_and_check(value: Any) -> Any:
            number = _SAMPLING_PARSERS[column](value)
            rule = check_sampling_value(column, number, self._task)
            if rule:
                raise ValueError(rule)
            return number

        number = self._cell(record, column, parse_and_check)
        if key is not None and number is not None and len(self._accepted) < MAX_REMEMBERED:
            self._accepted[key] = number
        return number

    def _frame_of(self, record: Record, image: str | None) -> FrameOf | None:
        """Return the frame of another clip that a cell names; None for all other cells."""
        if self._task is not Task.i2v or not is_frame(image, self._images.folder):
            return None
        return self._faults.try_cell(record.line, "image", image, parse_frame) or FrameOf("", "")

    def _first_frame(self, record: Record, image: str | None) -> FirstFrame | None:
        value = record.cells.get("image")
        if self._task is None:
            return None
        if self._task is Task.t2v:
            if not is_empty(value):
                rule = "a text-to-video model uses no image; leave the cell empty, or use an"
                self._faults.add(
                    record.line, "image", value, f"{rule} image-to-video model (model=480p_i2v)"
                )
            return None
        if is_empty(value):
            rule = "an image-to-video model needs a first frame; name an image file"
            self._faults.add(record.line, "image", value or "", rule)
        return self._faults.try_cell(record.line, "image", image, self._read_image)

    def _read_image(self, image: str) -> FirstFrame:
        try:
            return self._images.read(image)
        except ValueError:
            fault = path_fault(image, self._images.folder)
            if fault is None:
                raise
            raise ValueError(fault) from None

    def _loras(self, record: Record) -> tuple[tuple[str, float], ...] | None:
        def parse_and_find(value: Any) -> tuple[tuple[str, float], ...]:
            found = parse_loras(value)
            return tuple((self._lora_path(path), scale) for path, scale in found)

        return self._cell(record, "loras", parse_and_find)

    def _lora_path(self, path: str) -> str:
        """Return the absolute path of a LoRA.

        Raises:
            ValueError: there is no such file, or it is of another kind.
        """
        folder = self._images.folder
        if fault := path_fault(path, folder):
            raise ValueError(fault)
        whole = os.path.abspath(os.path.join(folder, path))
        if not whole.endswith(".safetensors"):
            raise ValueError(f"a LoRA is a .safetensors file, and {path} is none; name one")
        if not os.path.isfile(whole):
            raise ValueError(f"the file must exist, and {whole} does not; correct the path")
        return whole

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
