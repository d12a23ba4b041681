"""The pixels to draw, and the brushes: soft edges, glows, colours.

Lengths are pixels of a 128x192 frame, x to the right, y downwards, time runs from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch

from training.world import FRAMES, HEIGHT, WIDTH


@dataclass
class Canvas:
    """The pixels to draw: coordinates that broadcast to [B, 1, T, H, W].

    Attributes:
        x: [B, 1, 1, 1, W], pixels.
        y: [B, 1, 1, H, 1], pixels.
        t: [B, 1, T, 1, 1], 0..1.
    """

    x: torch.Tensor
    y: torch.Tensor
    t: torch.Tensor

    def rows(self, index: torch.Tensor) -> Canvas:
        """Return the canvas of some of the scenes."""
        return Canvas(self.x[index], self.y[index], self.t[index])


def canvas(
    number: int,
    device: torch.device | str,
    frames: int = FRAMES,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    first: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> Canvas:
    """Return the pixels of whole clips, or of pieces of clips.

    Args:
        number: of clips.
        device: to draw on.
        frames: of each piece.
        size: height and width of each piece, pixels.
        first: frame, row and column at which each piece begins, int64 [B]; None for the first.
    """
    if first is None:
        zero = torch.zeros(number, dtype=torch.int64, device=device)
        first = (zero, zero, zero)
    t0, y0, x0 = (f.to(device).float().view(-1, 1) for f in first)
    t = (t0 + torch.arange(frames, device=device)) / (FRAMES - 1)
    y = y0 + torch.arange(size[0], device=device) + 0.5
    x = x0 + torch.arange(size[1], device=device) + 0.5
    return Canvas(x[:, None, None, None], y[:, None, None, :, None], t[:, None, :, None, None])


def rgb(like: torch.Tensor, *values: float) -> torch.Tensor:
    """Return a colour on the device of `like`: [1, 3, 1, 1, 1]."""
    return _constant(values, like.device).view(1, 3, 1, 1, 1)


def table(values: Iterable[Any], index: torch.Tensor) -> torch.Tensor:
    """Return the values at an index [B], of numbers [B] or of colours [B, 3]."""
    return _constant(tuple(values), index.device)[index]


@cache
def _constant(values: tuple[Any, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device, dtype=torch.float32)


@lru_cache(maxsize=256)
def row_index(rows: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return rows of a batch as an index, copied to the device once."""
    return torch.tensor(rows, device=device)


def mix(a: torch.Tensor, b: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return a where the share is 0, b where it is 1."""
    return a + (b - a) * share


def smooth(low: float, high: float, x: torch.Tensor) -> torch.Tensor:
    """Return a soft step from 0 at `low` to 1 at `high`."""
    s = ((x - low) / (high - low)).clamp(0, 1)
    return s * s * (3 - 2 * s)


def glow(
    x: torch.Tensor, y: torch.Tensor, cx: torch.Tensor, cy: torch.Tensor, a: float, b: float
) -> torch.Tensor:
    """Return a soft spot around (cx, cy), a wide and b high: 1 in the middle."""
    return torch.exp(-(((x - cx) / a) ** 2) - ((y - cy) / b) ** 2)


def ridge(x: torch.Tensor, phase: torch.Tensor, length: float) -> torch.Tensor:
    """Return a smooth outline in -1..1."""
    angle = 2 * math.pi * (x / length + phase)
    return 0.65 * torch.sin(angle) + 0.35 * torch.sin(1.7 * angle + 9 * phase)


class Numbers:
    """The varying numbers of some scenes, each shaped to broadcast over pixels."""

    def __init__(self, values: torch.Tensor) -> None:
        """Take numbers in 0..1, [B, N]."""
        self.values = values

    def __call__(self, index: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Return one number of each scene between two limits: [B, 1, 1, 1, 1]."""
        return (low + (high - low) * self.values[:, index]).view(-1, 1, 1, 1, 1)
