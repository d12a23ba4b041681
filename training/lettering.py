"""The lettering of the made-up world: 26 capital letters of strokes, and a reader by template.

Each letter fills one cell of 16x16 pixels, which is one cell of the VAE's latents.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CELL = 16
STROKE = 2.3
"""Width of a stroke, pixels."""

_Stroke = list[tuple[float, float]]


def _arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float) -> _Stroke:
    """Return an arc as points; angles in degrees, 0 to the right, 90 upwards."""
    steps = max(4, round(abs(end - start) / 15))
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return [(cx + rx * math.cos(a), cy + ry * math.sin(a)) for a in angles]


# Strokes in a box of width 0..1 and height 0..1, y upwards.
_LETTERS: dict[str, list[_Stroke]] = {
    "A": [[(0, 0), (0.5, 1), (1, 0)], [(0.2, 0.34), (0.8, 0.34)]],
    "B": [[(0, 0), (0, 1), *_arc(0.58, 0.76, 0.34, 0.24, 90, -90), (0, 0.52)],
          [(0.6, 0.52), *_arc(0.62, 0.26, 0.38, 0.26, 90, -90), (0, 0)]],
    "C": [_arc(0.54, 0.5, 0.54, 0.5, 48, 312)],
    "D": [[(0, 0), (0, 1), *_arc(0.42, 0.5, 0.58, 0.5, 90, -90), (0, 0)]],
    "E": [[(0.94, 0), (0.04, 0), (0.04, 1), (0.94, 1)], [(0.04, 0.52), (0.8, 0.52)]],
    "F": [[(0.06, 0), (0.06, 1), (0.96, 1)], [(0.06, 0.5), (0.82, 0.5)]],
    "G": [[*_arc(0.54, 0.5, 0.54, 0.5, 50, 340), (1.0, 0.44), (0.6, 0.44)]],
    "H": [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 0.5), (1, 0.5)]],
    "I": [[(0.5, 0), (0.5, 1)], [(0.2, 1), (0.8, 1)], [(0.2, 0), (0.8, 0)]],
    "J": [[(0.36, 1), (0.86, 1), *_arc(0.46, 0.34, 0.40, 0.34, 0, -160)]],
    "K": [[(0, 0), (0, 1)], [(0.95, 1), (0.05, 0.42)], [(0.34, 0.60), (1, 0)]],
    "L": [[(0.08, 1), (0.08, 0), (0.95, 0)]],
    "M": [[(0, 0), (0, 1), (0.5, 0.36), (1, 1), (1, 0)]],
    "N": [[(0, 0), (0, 1), (1, 0), (1, 1)]],
    "O": [_arc(0.5, 0.5, 0.54, 0.5, 0, 360)],
    "P": [[(0.02, 0), (0.02, 1), *_arc(0.6, 0.72, 0.38, 0.28, 90, -90), (0.02, 0.44)]],
    "Q": [_arc(0.5, 0.5, 0.54, 0.5, 0, 360), [(0.6, 0.34), (1.04, -0.06)]],
    "R": [[(0.02, 0), (0.02, 1), *_arc(0.6, 0.74, 0.38, 0.26, 90, -90), (0.02, 0.48)],
          [(0.5, 0.48), (1, 0)]],
    "S": [[*_arc(0.5, 0.74, 0.42, 0.26, 30, 270), *_arc(0.5, 0.24, 0.46, 0.24, 90, -150)]],
    "T": [[(0, 1), (1, 1)], [(0.5, 1), (0.5, 0)]],
    "U": [[(0, 1), *_arc(0.5, 0.42, 0.5, 0.42, 180, 360), (1, 1)]],
    "V": [[(0, 1), (0.5, 0), (1, 1)]],
    "W": [[(-0.08, 1), (0.22, 0), (0.5, 0.72), (0.78, 0), (1.08, 1)]],
    "X": [[(0, 0), (1, 1)], [(0, 1), (1, 0)]],
    "Y": [[(0, 1), (0.5, 0.48), (1, 1)], [(0.5, 0.48), (0.5, 0)]],
    "Z": [[(0.02, 1), (0.98, 1), (0, 0), (1, 0)]],
}  # fmt: skip
_LEFT, _WIDE, _TOP, _HIGH = 3.6, 8.8, 2.9, 10.2


@cache
def glyph_atlas(device: torch.device) -> torch.Tensor:
    """Return the ink of every letter: float32 [27, 16, 16] in 0..1, the first one empty."""
    atlas = torch.zeros(1 + len(ALPHABET), CELL, CELL)
    centres = torch.arange(CELL) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    for number, letter in enumerate(ALPHABET, start=1):
        nearest = torch.full((CELL, CELL), 1e9)
        for stroke in _LETTERS[letter]:
            points = [(_LEFT + _WIDE * u, _TOP + _HIGH * (1 - v)) for u, v in stroke]
            for a, b in pairwise(points):
                nearest = torch.minimum(nearest, _to_segment(x, y, a, b))
        atlas[number] = (STROKE / 2 + 0.5 - nearest).clamp(0, 1)
    return atlas.to(device)


def _to_segment(
    x: torch.Tensor, y: torch.Tensor, a: tuple[float, float], b: tuple[float, float]
) -> torch.Tensor:
    """Return the distance of pixels to a line from a to b."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    along = ((x - a[0]) * dx + (y - a[1]) * dy) / max(dx * dx + dy * dy, 1e-9)
    along = along.clamp(0, 1)
    return ((x - a[0] - along * dx) ** 2 + (y - a[1] - along * dy) ** 2).sqrt()


def read_letters(frames: torch.Tensor, row: int, column: int, number: int) -> torch.Tensor:
    """Read the letters on signs by the nearest template.

    Args:
        frames: [B, 3, H, W] in -1..1.
        row: of the word in cells.
        column: of its first letter in cells.
        number: of cells to read.

    Returns:
        int64 [B, number], 1 for A; a cell without a letter gives some number.
    """
    top, left = row * CELL, column * CELL
    grey = frames.float().mean(1)[:, top : top + CELL, left : left + number * CELL]
    cells = grey.reshape(-1, CELL, number, CELL).transpose(1, 2).flatten(2)
    templates = -glyph_atlas(frames.device)[1:].flatten(1)
    cells = cells - cells.mean(-1, keepdim=True)
    templates = templates - templates.mean(-1, keepdim=True)
    templates = templates / templates.norm(dim=-1, keepdim=True)
    return (cells @ templates.T).argmax(-1) + 1
