"""Predicts how long a run takes, from vendor figures and from logs of the same card. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hv15_batch.clip import ClipSettings
from hv15_batch.config.settings import Config
from hv15_batch.forecast.calibrate import calibrate, read_log_rows
from hv15_batch.forecast.offload import OffloadChoice, choose_offload, execution_of
from hv15_batch.forecast.seconds import (
    DISK_BYTES_PER_SECOND,
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
from hv15_batch.model.variant import Weights
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.units import GIB

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

    def clip_cost(self, settings: ClipSettings | Shape) -> ClipCost:
        """Return the predicted cost of a warm clip, by stage."""
        return predict_clip(Shape.of(settings), self.card, self.execution, self.scales)

    def stage_seconds(self, settings: ClipSettings) -> tuple[float, float]:
        """Return the predicted seconds of denoising and of decoding a warm clip."""
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
        last = write_seconds(clips[-1].clip.settings)
        return self.start.seconds + sum(map(self.clip_seconds, clips)) + last

    def lengths(self, clips: Sequence[PlannedClip]) -> Iterator[tuple[float, float]]:
        """Yield the seconds of each clip and of its writing; the first waits for the start."""
        start = self.start.seconds
        for planned in clips:
            yield start + self.clip_seconds(planned), write_seconds(planned.clip.settings)
            start = 0.0


def make_forecast(
    config: Config,
    todo: Sequence[PlannedClip],
    machine: Machine,
    log_folder: Path,
    rows: list[dict[str, Any]] | None = None,
) -> Forecast | None:
    """Return the forecast for `runtime.card` or for this machine's card; None without either.

    Args:
        config: Decides card, profile and how the maths is carried out.
        todo: What is to be rendered.
        machine: This one.
        log_folder: Where logs of the same card are looked for.
        rows: The result of `read_log_rows`; None reads them here.

    Raises:
        Refused: `runtime.card` is not in the table, or no offload profile fits the card.
    """
    if config.model.weights.is_small or not todo:
        return None
    name = config.runtime.card
    if name is not None and find_card(name) is None:
        name = typed_card(name).name
    gpu_name = name or (machine.gpu.name if machine.gpu else None)
    card = find_card(gpu_name) if gpu_name else None
    if card is None or gpu_name is None:
        return None
    settings = [p.clip.settings for p in todo]
    here = machine_with(card, machine) if name else machine
    loras = lora_bytes(todo)
    offload = choose_offload(config, settings, here, loras)
    execution = execution_of(config, card)
    execution = replace(execution, offload=offload.kind.name, lora_bytes=loras)
    scales = calibrate(read_log_rows(log_folder) if rows is None else rows, card, execution)
    denoised = [p.clip.settings for p in todo if not p.is_from_latents]
    shapes = list(map(Shape.of, denoised))
    encoded = {text for s in denoised for text in (s.prompt, s.negative_prompt, s.image_sha256)}
    reads_weights = config.model.weights is not Weights.random
    start = predict_start(shapes, len(encoded - {None}), execution, reads_weights=reads_weights)
    costs = [predict_clip(shape, card, execution, scales) for shape in set(shapes)]
    basis = min((c.basis for c in costs), default=_decoding_basis(scales))
    computes = any(not c.is_copy_bound for c in costs)
    text = _basis_text(card, gpu_name, execution, scales, basis, computes=computes)
    is_calibrated = basis is CostBasis.calibrated
    return Forecast(card, gpu_name, offload, execution, scales, start, text, is_calibrated)


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


def machine_with(card: Card, machine: Machine) -> Machine:
    """Return this machine as if it had that card, all of it free except what a desktop takes."""
    size = int(card.memory_gib * GIB)
    free = size - (int(DISPLAY_GIB * GIB) if card.has_display else 0)
    return replace(machine, gpus=(Gpu(0, card.name, "", size, free, "", None),))
