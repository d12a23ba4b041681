"""A sheet of lines, boxes, dots and texts, as SVG and as PNG. Both are drawn from one list."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from math import hypot

PAPER, INK, QUIET, GRID = "#ffffff", "#1a1f27", "#566070", "#d9dde3"
DASH = 4.0
"""Pixels of a dash, and of the gap behind it."""
_SCALE, _FINER = 2, 2
"""Pixels of the PNG for each of the sheet, and how much finer it is drawn before it is reduced."""

_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}
"""Pillow's names."""


@dataclass(frozen=True)
class Line:
    """From one point to another, in pixels from the upper left corner."""

    x0: float
    y0: float
    x1: float
    y1: float
    colour: str = GRID
    width: float = 1.0
    is_dashed: bool = False


@dataclass(frozen=True)
class Box:
    """A filled rectangle by its upper left corner."""

    x: float
    y: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True)
class Dot:
    """A filled circle by its centre."""

    x: float
    y: float
    colour: str
    radius: float = 3.5


@dataclass(frozen=True)
class Text:
    """One line of text on its baseline; `anchor` is start, middle or end."""

    x: float
    y: float
    text: str
    size: int = 12
    anchor: str = "start"
    colour: str = INK


@dataclass
class Sheet:
    """What is drawn, in its order."""

    width: float
    height: float
    items: list[Line | Box | Dot | Text] = field(default_factory=list)

    def svg(self) -> str:
        """Return the sheet as SVG: texts stay texts, nothing is loaded from elsewhere."""
        size = f"{self.width:g} {self.height:g}"
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" '
            f'width="{self.width:g}" height="{self.height:g}" font-family="sans-serif">'
        )
        paper = _svg(Box(0, 0, self.width, self.height, PAPER))
        return "\n".join([head, paper, *map(_svg, self.items), "</svg>"]) + "\n"

    def png(self) -> bytes:
        """Return the sheet as PNG with two pixels for each of its own."""
        from PIL import Image, ImageDraw, ImageFont

        scale = _SCALE * _FINER
        size = (round(self.width) * scale, round(self.height) * scale)
        image = Image.new("RGB", size, PAPER)
        pen = ImageDraw.Draw(image)
        for item in self.items:
            if isinstance(item, Line):
                for x0, y0, x1, y1 in _dashes(item) if item.is_dashed else [_ends(item)]:
                    ends = [value * scale for value in (x0, y0, x1, y1)]
                    pen.line(ends, item.colour, round(item.width * scale))
            elif isinstance(item, Box):
                corner = (item.x + item.width, item.y + item.height)
                ends = [value * scale for value in (item.x, item.y, *corner)]
                pen.rectangle(ends, item.colour)
            elif isinstance(item, Dot):
                pen.circle((item.x * scale, item.y * scale), item.radius * scale, item.colour)
            else:
                place = (item.x * scale, item.y * scale)
                font = ImageFont.load_default(item.size * scale)
                pen.text(place, item.text, item.colour, font, anchor=_ANCHORS[item.anchor])
        file = io.BytesIO()
        reduced = (round(self.width) * _SCALE, round(self.height) * _SCALE)
        image.resize(reduced, Image.Resampling.LANCZOS).save(file, "png")
        return file.getvalue()


def _svg(item: Line | Box | Dot | Text) -> str:
    if isinstance(item, Line):
        dash = f' stroke-dasharray="{DASH:g}"' if item.is_dashed else ""
        ends = f'x1="{item.x0:.2f}" y1="{item.y0:.2f}" x2="{item.x1:.2f}" y2="{item.y1:.2f}"'
        return f'<line {ends} stroke="{item.colour}" stroke-width="{item.width:g}"{dash}/>'
    if isinstance(item, Box):
        size = f'width="{item.width:.2f}" height="{item.height:.2f}"'
        return f'<rect x="{item.x:.2f}" y="{item.y:.2f}" {size} fill="{item.colour}"/>'
    if isinstance(item, Dot):
        return (
            f'<circle cx="{item.x:.2f}" cy="{item.y:.2f}" r="{item.radius:g}" '
            f'fill="{item.colour}"/>'
        )
    return (
        f'<text x="{item.x:.2f}" y="{item.y:.2f}" font-size="{item.size}" '
        f'text-anchor="{item.anchor}" fill="{item.colour}">{escape(item.text)}</text>'
    )


def _ends(line: Line) -> tuple[float, float, float, float]:
    return line.x0, line.y0, line.x1, line.y1


def _dashes(line: Line) -> Iterator[tuple[float, float, float, float]]:
    """Yield the ends of each dash."""
    x0, y0, x1, y1 = _ends(line)
    length = hypot(x1 - x0, y1 - y0)
    along = 0.0
    while along < length:
        a, b = along / length, min(along + DASH, length) / length
        yield (x0 + a * (x1 - x0), y0 + a * (y1 - y0), x0 + b * (x1 - x0), y0 + b * (y1 - y0))
        along += 2 * DASH
