"""What a published time implies: work, rate and share of the card's peak. No log, no torch.

Settings that the source does not state are swept, not assumed. Work is that of denoising alone, so
that a rate computed from a whole clip's seconds is the least that the card must have reached.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum

from hv15_batch.forecast.seconds import default_execution, predict_clip
from hv15_batch.machine.cards import find_card
from hv15_batch.model.options import model_options
from hv15_batch.model.shapes import (
    IMAGE_TOKENS,
    TEXT_TOKENS,
    Shape,
    attention_flop,
    linear_flop,
)
from hv15_batch.model.variant import ModelConfig, Task
from hv15_batch.references.data import Quantity, Reference

SWEPT_FRAMES = (61, 81, 121)
SWEPT_STEPS = (20, 30, 50)
"""Of models that take any number; 50 is what they are made for."""
SIZES = {"480p": (480, 848), "720p": (720, 1280)}
"""Height and width of a class of sizes, 16:9."""
FAST_ATTENTION_FACTOR = 2
"""8-bit attention kernels run at twice the bf16 rate on Ada, Hopper and Blackwell."""


class Feasibility(Enum):
    """Whether a card can meet a number with some settings, by arithmetic and the cost model."""

    meets = "predicted to meet it"
    faster_than_predicted = "below the card's peak, but faster than predicted"
    fast_attention = "impossible in bf16; not with 8-bit attention"
    impossible = "impossible, also with 8-bit attention"
    unknown = "the card's rate is not known"


@dataclass(frozen=True)
class Combination:
    """One set of settings that a number may have been measured with, and what it then implies."""

    shape: Shape
    model_pflop: float
    """Work of denoising, 10^15 FLOP."""
    tflops: float
    """Least rate that the number implies, 10^12 FLOP/s."""
    utilisation: float | None
    """`tflops` over the card's dense bf16 rate, over 1 impossible in bf16; None: card unknown."""
    fast_attention_utilisation: float | None
    """The same with attention at twice that rate, as 8-bit kernels run."""
    predicted_seconds: float | None
    """Of a warm clip on that card, resident, mask-free bf16, not compiled: the cost model."""
    feasibility: Feasibility


def combinations(reference: Reference) -> list[Combination]:
    """Return what the number implies for each set of settings that the source leaves possible.

    Empty for memory and loading.
    """
    if reference.quantity is not Quantity.clip_seconds:
        return []
    return [_combination(reference, shape) for shape in swept_shapes(reference)]


def swept_shapes(reference: Reference) -> list[Shape]:
    """Return every size, length, step count and guidance that the source may mean."""
    axes = itertools.product(
        _sizes(reference),
        swept_frames(reference),
        swept_steps(reference),
        swept_guidance(reference),
    )
    image = is_i2v(reference)
    return [Shape(*size, frames, steps, guided, image) for size, frames, steps, guided in axes]


def _combination(reference: Reference, shape: Shape) -> Combination:
    assert reference.seconds_max is not None
    linear, attention = _flop(shape, is_i2v(reference))
    tflops = (linear + attention) / reference.seconds_max / 1e12
    card = find_card(reference.card) if reference.card else None
    if card is None:
        return Combination(
            shape, (linear + attention) / 1e15, tflops, None, None, None, Feasibility.unknown
        )
    utilisation = tflops / card.dense_bf16_tflops
    fast = (linear + attention / FAST_ATTENTION_FACTOR) / reference.seconds_max / 1e12
    fast /= card.dense_bf16_tflops
    predicted = predict_clip(shape, card, default_execution(card), None)
    return Combination(
        shape=shape,
        model_pflop=(linear + attention) / 1e15,
        tflops=tflops,
        utilisation=utilisation,
        fast_attention_utilisation=fast,
        predicted_seconds=predicted.seconds,
        feasibility=_feasibility(utilisation, fast, predicted.seconds <= reference.seconds_max),
    )


def _feasibility(utilisation: float, fast: float, is_predicted: bool) -> Feasibility:
    if is_predicted:
        return Feasibility.meets
    if utilisation <= 1:
        return Feasibility.faster_than_predicted
    return Feasibility.fast_attention if fast <= 1 else Feasibility.impossible


def _flop(shape: Shape, is_image_to_video: bool) -> tuple[float, float]:
    """Return the FLOP of all forwards: matrix products, attention."""
    tokens, forwards = shape.num_video_tokens, shape.num_forwards
    text = TEXT_TOKENS + (IMAGE_TOKENS if is_image_to_video else 0)
    return forwards * linear_flop(tokens), forwards * attention_flop(tokens, text)


def options_of(reference: Reference) -> list[ModelConfig]:
    """Return the model options that the source may mean; empty where it states none."""
    return [model_options()[name] for name in reference.model_options]


def is_i2v(reference: Reference) -> bool:
    """Whether the number is of image to video, by its model: sources err about the task."""
    options = options_of(reference)
    return bool(options) and all(option.task is Task.i2v for option in options)


def _sizes(reference: Reference) -> list[tuple[int, int]]:
    if reference.height is not None and reference.width is not None:
        return [(reference.height, reference.width)]
    if reference.resolution is not None:
        return [SIZES[reference.resolution]]
    return list(SIZES.values())


def swept_frames(reference: Reference) -> tuple[int, ...]:
    """Return the numbers of frames that the source may mean; one where it states it."""
    if reference.num_frames is not None:
        return (reference.num_frames,)
    return reference.num_frames_swept or SWEPT_FRAMES


def swept_steps(reference: Reference) -> tuple[int, ...]:
    """Return the step counts that the source may mean; one where it states it."""
    if reference.num_inference_steps is not None:
        return reference.num_inference_steps
    recipes = [option.recipe.steps for option in options_of(reference)]
    return tuple(sorted(set().union(*recipes))) if recipes and all(recipes) else SWEPT_STEPS


def swept_guidance(reference: Reference) -> tuple[bool, ...]:
    """Return whether the source may mean guidance, as one or both of False and True."""
    if reference.guidance_scale is not None:
        return (reference.guidance_scale != 1.0,)
    options = options_of(reference)
    if options and all(option.recipe.guidance == 1.0 for option in options):
        return (False,)
    return (False, True)
