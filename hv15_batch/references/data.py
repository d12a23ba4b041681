"""Published numbers ("references") as typed data, read from `conf/reference/*.yaml`.

Data only: `check` compares a log with them, `_implied` computes what they imply.
"""

from __future__ import annotations

import datetime
import math
import re
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from hv15_batch.errors import Refused
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Task

TOLERANCE = 0.05
"""In both directions from a single number: two specimens of one card differ by some percent."""
ABOUT_TOLERANCE = 0.10
"""The same where the source says "about"."""
GB = 10**9


class Quantity(Enum):
    """What was published."""

    clip_seconds = "clip_seconds"
    load_seconds = "load_seconds"
    vram = "vram"


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One published number. None means that the source does not state it."""

    name: str
    """Short name, unique over all files."""
    quantity: Quantity
    figure: str
    """The number in the source's own terms."""
    hardware: str
    """As the source states it."""
    source: str
    """Who published it."""
    not_stated: tuple[str, ...]
    """What the source leaves open, of all that decides the number."""
    card: str | None = None
    """Name in `machine.cards.CARDS`; None where the source means any card."""
    card_vram_gib: float | None = None
    """Memory of the card where it isn't what cards of its name have."""
    url: str | None = None
    date: datetime.date | None = None
    """Day of publication."""
    seconds_min: float | None = None
    """Lower end; equal to `seconds_max` for a single number, None for an upper bound ("within")."""
    seconds_max: float | None = None
    vram_gb_min: float | None = None
    """As printed by the source, which does not say whether GB is 10^9 or 2^30 bytes."""
    is_approximate: bool = False
    """The source says "about"."""
    engine: str | None = None
    """Software that rendered."""
    model: str | None = None
    """Option of `conf/model/`, where the source leaves no doubt."""
    model_stated: str | None = None
    """The source's words where they do not name one option."""
    models: tuple[str, ...] | None = None
    """Options that `model_stated` may mean."""
    task: Task | None = None
    """As the source calls it, also where that is wrong (see `note`)."""
    resolution: str | None = None
    """Where only a class of sizes is stated, such as 480p."""
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: tuple[int, ...] | None = None
    """More than one where the source names alternatives."""
    guidance_scale: float | None = None
    flow_shift: float | None = None
    dtype: str | None = None
    offload: str | None = None
    """The source's words."""
    offload_kinds: tuple[str, ...] | None = None
    """Profiles of this project that `offload` may mean."""
    mask_free: bool | None = None
    """Whether it was measured without an attention mask, where the source says so."""
    num_frames_stated: str | None = None
    """The source's words where it states a length, but no number of frames."""
    num_frames_swept: tuple[int, ...] | None = None
    """Numbers of frames that `num_frames_stated` may mean; None where it states no length."""
    note: str | None = None
    """What to know before comparing with it."""

    @property
    def model_options(self) -> tuple[str, ...]:
        """Options of `conf/model/` that the source may mean; empty where it states none."""
        return (self.model,) if self.model is not None else self.models or ()

    @property
    def figure_max(self) -> float:
        """The upper end in seconds or bytes, GB read as 10^9."""
        if self.quantity is Quantity.vram:
            assert self.vram_gb_min is not None
            return self.vram_gb_min * GB
        assert self.seconds_max is not None
        return self.seconds_max


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """One YAML file; `source`, `url` and `date` hold for each of its figures."""

    source: str
    figures: list[dict[str, Any]]
    url: str | None = None
    date: datetime.date | None = None


_NAMES = {"array": "a list", "object": "keys with values"}
"""What msgspec calls it, and what YAML's users do."""
_ENUMS = {"quantity": Quantity, "task": Task}
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def read_references(folder: Path) -> list[Reference]:
    """Return every reference of the YAML files in `folder`, in order of file name.

    A file holds `source`, `url`, `date` once and a list `figures`; a figure may have its own
    `date`. All other keys are the fields of `Reference`.

    Raises:
        FileNotFoundError: `folder` does not exist.
        Refused: an unknown, missing or wrongly typed key; names file, figure and key.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; references are read from it.")
    references: list[Reference] = []
    for path in sorted(folder.glob("*.yaml")):
        references.extend(_read_file(path))
    seen: set[str] = set()
    for reference in references:
        if reference.name in seen:
            raise Refused(f"{folder}: two figures are named {reference.name!r}; rename one.")
        seen.add(reference.name)
    return references


def bounds_of(reference: Reference) -> tuple[float, float]:
    """Return from where to where a measured value reproduces the number, in seconds or bytes."""
    high = reference.figure_max
    about = ABOUT_TOLERANCE if reference.is_approximate else 0.0
    if reference.quantity is Quantity.vram:  # "about", or a minimum: what a card must have at least
        return high * (1 - about) if about else -math.inf, high * (1 + about)
    if reference.seconds_min is None:
        return -math.inf, high * (1 + about)
    single = TOLERANCE if reference.seconds_min == high else 0.0
    tolerance = max(about, single)
    return reference.seconds_min * (1 - tolerance), high * (1 + tolerance)


def _read_file(path: Path) -> list[Reference]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise Refused(f"{path}: not valid YAML: {error}.") from error
    file = _convert(path, "", content, _File)
    shared = {"source": file.source, "url": file.url, "date": file.date}
    figures = enumerate(file.figures, start=1)
    return [_make(path, number, {**shared, **figure}) for number, figure in figures]


def _make(path: Path, number: int, values: dict[str, Any]) -> Reference:
    where = f" in figure {values.get('name', number)}"
    reference = _convert(path, where, values, Reference)
    is_vram = reference.quantity is Quantity.vram
    if (reference.vram_gb_min if is_vram else reference.seconds_max) is None:
        key = "vram_gb_min" if is_vram else "seconds_max"
        raise Refused(
            f"{path}: missing key {key!r}{where}: a {reference.quantity.name} figure needs it."
        )
    for name in reference.model_options:
        if name not in model_options():
            key = "model" if reference.model else "models"
            known = ", ".join(model_options())
            raise Refused(f"{path}: {key}={name!r}{where}: must be one of {known}.")
    return reference


def _convert(path: Path, where: str, values: Any, struct: type[_Struct]) -> _Struct:
    """Return `values` as a struct; a number is never made from text.

    Raises:
        Refused: names file, figure, key and value, and what is allowed.
    """
    try:
        return msgspec.convert(values, struct)
    except msgspec.ValidationError as error:
        raise Refused(f"{path}: {_fault(str(error), where, values, struct)}.") from error


def _fault(text: str, where: str, values: Any, struct: type[msgspec.Struct]) -> str:
    """Return what msgspec found, with the value that it does not show."""
    text, _, place = text.partition(" - at `$")
    if unknown := re.search(r"unknown field `(.*)`", text):
        known = ", ".join(struct.__struct_fields__)
        return f"unknown key {unknown[1]!r}{where}; known keys are {known}"
    if missing := re.search(r"missing required field `(.*)`", text):
        return f"missing key {missing[1]!r}{where}"
    key = place.rstrip("`").removeprefix(".")
    for step in re.findall(r"\w+", key):
        values = values[int(step)] if step.isdigit() else values[step]
    what = text
    if key in _ENUMS:
        what = f"must be one of {', '.join(member.value for member in _ENUMS[key])}"
    elif expected := re.search(r"Expected `(.*)`, got", text):
        names = [_NAMES.get(name, name) for name in expected[1].split(" | ")]
        what = f"must be {' or '.join(names)}"
    return f"{key or 'the file'}={values!r}{where}: {what}"
