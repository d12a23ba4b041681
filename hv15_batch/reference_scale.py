"""A measured time carried over to the settings and the card of a published figure.

Denoising goes by FLOP, decoding by pixels times frames, both by the cards' dense bf16 rates as
their vendors state them: no log has the matmul rate that a card was measured to reach. Writing is
left out, since it runs beside the next clip. Where the figure's clips are far larger or smaller, as
the dry run has it too, that is rough: of small ones other things decide than their arithmetic.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hv15_batch.cards import find_card
from hv15_batch.costs import NEAR_SIZE, Shape, num_video_tokens, shape_of
from hv15_batch.reference_costs import Combination, dense_rate, pflop_of
from hv15_batch.references import Reference

SCALE_COLUMNS = ("denoise_seconds", "decode_seconds", "mfu")
"""Columns of the log that this module reads beside the settings."""


@dataclass(frozen=True)
class Scaled:
    """Seconds of denoising and decoding with the figure's settings on its card; not measured."""

    seconds_min: float
    """With the settings of least work among those that the source leaves possible."""
    seconds_max: float
    size_ratio: float
    """Tokens of the figure's clips over those here; of several the one farthest from 1."""

    @property
    def is_rough(self) -> bool:
        """Whether the clips are too unlike in size for their arithmetic to say how long."""
        return not 1 / NEAR_SIZE <= self.size_ratio <= NEAR_SIZE


def scale(
    reference: Reference,
    implied: Sequence[Combination],
    settings: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> Scaled | None:
    """Return the median stages of clips, scaled; None where a rate or a stage is not known.

    Args:
        reference: a published time of a clip.
        implied: settings that its source leaves possible.
        settings: what the clips share.
        rows: the clips, with `SCALE_COLUMNS`.
    """
    here = dense_rate(find_card(settings["gpu_name"] or ""))
    there = dense_rate(find_card(reference.card) if reference.card else None)
    denoise, decode = (median_of(name, rows) for name in ("denoise_seconds", "decode_seconds"))
    if here is None or there is None or denoise is None or decode is None or not implied:
        return None
    shape = shape_of(settings)
    per_pflop = denoise / pflop_of(shape, settings["task"] == "i2v")
    per_pixel = decode / _pixels(shape)
    seconds = [
        (per_pflop * c.model_pflop + per_pixel * _pixels(c.shape)) * here / there for c in implied
    ]
    ratios = [_tokens(c.shape) / _tokens(shape) for c in implied]
    farthest = max(ratios, key=lambda ratio: abs(math.log(ratio)))
    return Scaled(min(seconds), max(seconds), farthest)


def median_of(name: str, rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the median of a column over the rows that have it; None where none has."""
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.median(values) if values else None


def _tokens(shape: Shape) -> int:
    return num_video_tokens(shape.height, shape.width, shape.num_frames)


def _pixels(shape: Shape) -> int:
    """Return pixels times frames, by which decoding goes."""
    return shape.height * shape.width * shape.num_frames
