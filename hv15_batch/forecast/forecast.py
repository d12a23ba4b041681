"""Predicts how long a run takes, from vendor figures and from logs of the same card. No torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hv15_batch.clip import ClipSettings, Group
from hv15_batch.config.options import config_of
from hv15_batch.config.settings import Config
from hv15_batch.forecast._eta import Course, course
from hv15_batch.forecast.calibrate import calibrate, read_log_rows
from hv15_batch.forecast.offload import (
    OffloadChoice,
    choose_cards,
    choose_offload,
    execution_of,
)
from hv15_batch.forecast.seconds import (
    DISK_BYTES_PER_SECOND,
    START_SECONDS,
    ClipCost,
    CostBasis,
    Execution,
    Scales,
    StartCost,
    default_execution,
    not_modelled,
    predict_clip,
    predict_start,
    write_seconds,
)
from hv15_batch.machine.cards import EXAMPLE, Card, find_card, typed_card
from hv15_batch.machine.machine import Machine
from hv15_batch.machine.nvml import Gpu
from hv15_batch.model.shapes import Shape
from hv15_batch.model.variant import SMALL, Weights
from hv15_batch.official.limits import is_official
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.units import GIB

NO_COST = ClipCost(0.0, 0.0, CostBasis.calibrated)
"""Of a clip of a tiny or demo model beside full-size ones: it takes seconds, and the arithmetic of
the full-size model says nothing about it."""
DISPLAY_GIB = 0.5
"""Reserved for a desktop on a GeForce card that is not in this machine; assumed."""


@dataclass(frozen=True)
class Forecast:
    """Predicted course of a run on one card."""

    card: Card
    gpu_name: str
    offload: OffloadChoice
    execution: Execution
    scales: Scales | None
    """Correction by logs of this card; None without one."""
    start: StartCost
    basis: str
    """The basis of the numbers, in words."""
    is_calibrated: bool
    """Whether clips of about these sizes were measured on this card."""
    model: str = ""
    further: Mapping[str, Forecast] = field(default_factory=dict)
    """Those of further models, by name; each starts after the one before it."""
    num_workers: int = 1
    """Cards like this one that render at a time."""
    _courses: list[tuple[tuple[PlannedClip, ...], Course]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )
    """Of these very clips; a dry run asks for them several times."""

    def of(self, settings: ClipSettings) -> Forecast:
        """Return the forecast of a clip's model."""
        return self.further.get(settings.model, self)

    @property
    def by_model(self) -> dict[str, Forecast]:
        """The forecast of each model, in the order of rendering."""
        return {self.model: self, **self.further}

    @property
    def each(self) -> tuple[Forecast, ...]:
        """The same without names."""
        return self, *self.further.values()

    def clip_cost(self, settings: ClipSettings | Shape) -> ClipCost:
        """Return the predicted cost of a warm clip, by stage; `NO_COST` for a small model's."""
        if isinstance(settings, ClipSettings) and not is_modelled(settings):
            return NO_COST
        own = self if isinstance(settings, Shape) else self.of(settings)
        return predict_clip(Shape.of(settings), own.card, own.execution, own.scales)

    def stage_seconds(self, settings: ClipSettings) -> tuple[float, float] | None:
        """Return the predicted seconds of denoising and of decoding a warm clip.

        None for a clip of a small model.
        """
        if not is_modelled(settings):
            return None
        cost = self.clip_cost(settings)
        return cost.denoise_seconds, cost.decode_seconds

    def clip_seconds(self, planned: PlannedClip) -> float:
        """Return the predicted seconds of a warm clip, which may only have to be decoded."""
        cost = self.clip_cost(planned.clip.settings)
        return cost.decode_seconds if planned.is_from_latents else cost.seconds

    def total_seconds(self, clips: Sequence[PlannedClip]) -> float:
        """Return the predicted seconds of a whole run: start, clips, and the last one's writing."""
        if not clips:
            return 0.0
        if self.num_workers > 1:
            return self.course(clips).seconds
        last = write_seconds(clips[-1].clip.settings)
        starts = sum(forecast.start.seconds for forecast in self.each)
        return starts + sum(map(self.clip_seconds, clips)) + last

    def course(self, clips: Sequence[PlannedClip]) -> Course:
        """Return the predicted course on several cards; texts are encoded once, by one of them."""
        clips = tuple(clips)
        for known, found in self._courses:
            if len(known) == len(clips) and all(map(operator.is_, known, clips)):
                return found
        work = [(planned.clip.settings.group, self.clip_seconds(planned)) for planned in clips]
        last = write_seconds(clips[-1].clip.settings) if clips else 0.0
        first = self.start.encode_seconds
        found = course(work, self.num_workers, self.group_load_seconds, first, last)
        self._courses.append((clips, found))
        return found

    def group_load_seconds(self, own: Group | None, group: Group) -> float:
        """Return how long a worker of a group (None: a new one) loads before a clip of another.

        Encoding is not part of it.
        """
        if own is not None and own[:3] == group[:3]:
            return 0.0  # only the LoRAs differ, which takes seconds
        start = self.by_model.get(group[0], self).start
        return start.seconds - start.encode_seconds

    def lengths(self, clips: Sequence[PlannedClip]) -> Iterator[tuple[float, float]]:
        """Yield the seconds until each clip is decoded, from the one before it on, and of writing.

        A model's first has its start.
        """
        if self.num_workers > 1:
            ready = self.course(clips).ready_seconds
            for before, now, planned in zip((0.0, *ready), ready, clips, strict=False):
                yield now - before, write_seconds(planned.clip.settings)
            return
        starts = {id(forecast): forecast.start.seconds for forecast in self.each}
        for planned in clips:
            settings = planned.clip.settings
            start = starts.pop(id(self.of(settings)), 0.0)
            yield start + self.clip_seconds(planned), write_seconds(settings)


def is_modelled(settings: ClipSettings) -> bool:
    """Whether a clip is of a full-size model, which the predictions are made for."""
    return settings.weights not in SMALL


def make_forecast(
    config: Config,
    todo: Sequence[PlannedClip],
    machine: Machine,
    log_folder: Path,
    rows: list[dict[str, Any]] | None = None,
    compiled: Mapping[str, bool] | None = None,
) -> Forecast | None:
    """Return the forecast for `runtime.card` or for this machine's card; None without either.

    It has one for each model, in the order of the clips. What is encoded, and the start of the
    processes, count in the first: models of one size are taken to share their encoders.

    Args:
        config: Decides card, profile and how the maths is carried out.
        todo: What is to be rendered.
        machine: This one.
        log_folder: Where logs of the same card are looked for.
        rows: The result of `read_log_rows`; None reads them here.
        compiled: Whether each model is compiled; for others `runtime.compile` counts.

    Raises:
        Refused: `runtime.card` is not in the table, or no offload profile fits the card.
    """
    if is_official(config):
        return None  # all that is known here is of the other engine
    num_workers = len(cards_for(config, todo, machine)) if todo else 1
    found: dict[str, Forecast] = {}
    models = [
        (own, clips) for own, clips in by_model(config, todo) if not own.model.weights.is_small
    ]
    if not models or _known_card(config, machine) is None:
        return None
    rows = read_log_rows(log_folder) if rows is None else rows
    denoised = [p.clip.settings for _, clips in models for p in clips if not p.is_from_latents]
    encoded = {
        text
        for s in denoised
        for text in (s.prompt, s.negative_prompt, s.image_sha256, s.image_source)
    }
    for own, clips in models:
        is_compiled = (compiled or {}).get(own.model.name, own.runtime.compile)
        own = replace(own, runtime=replace(own.runtime, compile=is_compiled))
        num_encoded = 0 if found else len(encoded - {None})
        returns = _num_returns(todo, own.model.name)
        forecast = _make_one(own, clips, machine, rows, num_encoded, num_workers, returns)
        if forecast is None:
            return None
        if found:
            load_seconds = forecast.start.load_seconds - START_SECONDS
            forecast = replace(forecast, start=replace(forecast.start, load_seconds=load_seconds))
        found[own.model.name] = forecast
    first, *others = found
    further = {name: found[name] for name in others}
    return replace(found[first], further=further, num_workers=num_workers)


def _num_returns(todo: Sequence[PlannedClip], model: str) -> int:
    """Return how often a chain makes a run come back to a model after clips of others."""
    names = [planned.clip.settings.model for planned in todo]
    begins = sum(now == model != before for before, now in zip(["", *names], names, strict=False))
    return max(begins - 1, 0)


def cards_for(
    config: Config, todo: Sequence[PlannedClip], machine: Machine
) -> tuple[Gpu | None, ...]:
    """Return the card of each worker that renders these clips, see `choose_cards`.

    Raises:
        Refused: see there.
    """
    if config.runtime.card is not None and (card := find_card(config.runtime.card)) is not None:
        machine = machine_with(card, machine)
    models = [own.model for own, _ in by_model(config, todo)]
    num_clips = len({planned.clip.denoise_sha256 for planned in todo})
    return choose_cards(config, machine, models, num_clips)


def sharing_ram(num_workers: int, machine: Machine) -> int:
    """Return how many workers share this machine's RAM; a dry run may be for more machines."""
    return min(num_workers, max(len(machine.gpus), 1))


def by_model(config: Config, todo: Sequence[PlannedClip]) -> list[tuple[Config, list[PlannedClip]]]:
    """Return the clips of each model and its settings, in the order of the first clips."""
    clips: dict[str, list[PlannedClip]] = {}
    for planned in todo:
        name = planned.clip.settings.model
        own = name if name in config.models else config.model.name
        clips.setdefault(own, []).append(planned)
    return [(config_of(config, name), found) for name, found in clips.items()]


def _known_card(config: Config, machine: Machine) -> tuple[Card, str] | None:
    """Return the card that is predicted for, and its name; None for an unknown one.

    Raises:
        Refused: `runtime.card` is not in the table.
    """
    name = config.runtime.card
    if name is not None and find_card(name) is None:
        name = typed_card(name).name
    gpu_name = name or (machine.gpu.name if machine.gpu else None)
    card = find_card(gpu_name) if gpu_name else None
    return None if card is None or gpu_name is None else (card, gpu_name)


def _make_one(
    config: Config,
    todo: Sequence[PlannedClip],
    machine: Machine,
    rows: list[dict[str, Any]],
    num_encoded: int,
    num_workers: int,
    num_returns: int,
) -> Forecast | None:
    """Return the forecast of one model's clips; None without a known card.

    `num_returns` is how often the model is loaded again, after clips of others.
    """
    known = _known_card(config, machine)
    if known is None:
        return None
    card, gpu_name = known
    settings = [p.clip.settings for p in todo]
    here = machine_with(card, machine) if config.runtime.card else machine
    loras = lora_bytes(todo)
    offload = choose_offload(config, settings, here, loras, sharing_ram(num_workers, machine))
    execution = execution_of(config, card)
    execution = replace(execution, offload=offload.kind.name, lora_bytes=loras)
    scales = calibrate(rows, card, execution)
    denoised = [p.clip.settings for p in todo if not p.is_from_latents]
    shapes = list(map(Shape.of, denoised))
    reads_weights = config.model.weights is not Weights.random
    rounds = {p.clip.level for p in todo if p.clip.source and not p.is_from_latents}
    start = predict_start(
        *(shapes, num_encoded, execution),
        reads_weights=reads_weights,
        num_rounds=len(rounds - {todo[0].clip.level}),
        num_returns=num_returns,
    )
    costs = [predict_clip(shape, card, execution, scales) for shape in set(shapes)]
    basis = min((c.basis for c in costs), default=_decoding_basis(scales))
    computes = any(not c.is_copy_bound for c in costs)
    text = _basis_text(card, gpu_name, execution, scales, basis, computes=computes)
    is_calibrated = basis is CostBasis.calibrated
    return Forecast(
        *(card, gpu_name, offload, execution, scales, start, text, is_calibrated), config.model.name
    )


def lora_bytes(todo: Sequence[PlannedClip]) -> int:
    """Return the bytes of the largest set of LoRAs, in 16 bits."""
    return max((sum(lora.num_bytes for lora in p.clip.loras) for p in todo), default=0)


def _decoding_basis(scales: Scales | None) -> CostBasis:
    """Return the basis of the predicted time of clips that are only decoded."""
    is_measured = scales is not None and scales.decode is not None
    return CostBasis.calibrated if is_measured else CostBasis.estimated


def _basis_text(
    card: Card,
    gpu_name: str,
    execution: Execution,
    scales: Scales | None,
    basis: CostBasis,
    *,
    computes: bool,
) -> str:
    """Return the basis of a forecast in words.

    `computes` is whether some clip waits for the card's arithmetic, rather than for weights.
    """
    log = f"the log of this {gpu_name}"
    if scales is not None and scales.source is not None and computes:
        log = f"this {gpu_name}'s log of {scales.source}"
    if basis is CostBasis.calibrated:
        parts = [f"calibrated by {log}"]
    elif basis is CostBasis.scaled:
        parts = [f"roughly calibrated by {log}, of far larger or smaller clips"]
    else:
        parts = [f"an estimate from the {card.name}'s vendor figures"]
    if execution.offload == "stream_disk" and (scales is None or scales.copy is None):
        parts.append(f"a disk that gives {DISK_BYTES_PER_SECOND / 1e9:.0f} GB/s is assumed")
    if basis is CostBasis.estimated and (missing := not_modelled(card, execution)):
        parts.append(f"not modelled: {missing}")
    return "; ".join(parts)


def clip_cost_function(forecast: Forecast | None) -> Callable[[ClipSettings | Shape], ClipCost]:
    """Return a function that predicts a clip; without a forecast only its proportions count."""
    if forecast is not None:
        return forecast.clip_cost
    card = find_card(EXAMPLE)  # any card: costs are only compared with each other
    assert card is not None
    return lambda settings: predict_clip(Shape.of(settings), card, default_execution(card), None)


def costs_by_model(
    forecast: Forecast | None, todo: Sequence[PlannedClip]
) -> dict[str, Callable[[ClipSettings | Shape], ClipCost]]:
    """Return what `clip_cost_function` returns for models that differ from the first one.

    Small models beside full-size ones have no cost.
    """
    further = forecast.further if forecast else {}
    costs: dict[str, Callable[[ClipSettings | Shape], ClipCost]] = {
        name: own.clip_cost for name, own in further.items()
    }
    small = {p.clip.settings.model for p in todo if not is_modelled(p.clip.settings)}
    if len(small) < len({p.clip.settings.model for p in todo}):
        costs |= dict.fromkeys(small, _no_cost)
    return costs


def _no_cost(settings: ClipSettings | Shape) -> ClipCost:
    return NO_COST


def machine_with(card: Card, machine: Machine) -> Machine:
    """Return this machine as if it had that card, all of it free except what a desktop takes."""
    size = int(card.memory_gib * GIB)
    free = size - (int(DISPLAY_GIB * GIB) if card.has_display else 0)
    return replace(machine, gpus=(Gpu(0, card.name, "", size, free, "", None),))
