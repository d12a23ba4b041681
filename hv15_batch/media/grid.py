"""Several clips as one labelled video, side by side, for those who choose or show.

One frame of each clip is in memory at a time. Clips of other sizes are scaled into equal cells, a
clip that ends early keeps its last frame, and slower clips keep their own time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hv15_batch.config.settings import VideoConfig
from hv15_batch.files import parse_json
from hv15_batch.media.video import (
    Frames,
    check_video,
    frame_size_and_rate,
    read_comment,
    read_frames,
    write_frames,
)

MAX_CELLS = 100
"""Each clip has an open file and a decoder of its own."""
MAX_WIDTH, MAX_HEIGHT = 3840, 2160
LABEL_HEIGHT = 24
_GAP = 4
_FONT_SIZE = 14
_LEAST_SIDE = 16
_BACKGROUND, _TEXT = (16, 18, 22), (225, 228, 232)
_KEY = "hv15_batch_grid"
_MAX_COMMENT_CHARACTERS = 100_000


@dataclass(frozen=True)
class Cell:
    """A clip of the grid."""

    path: Path
    label: str


@dataclass(frozen=True)
class Layout:
    """Cells in rows and columns; sizes in pixels."""

    columns: int
    rows: int
    width: int
    """Of a cell; even."""
    height: int
    """Of a cell without its label; even."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the whole grid."""
        height = self.rows * (self.height + LABEL_HEIGHT) + (self.rows - 1) * _GAP
        return height, self.columns * self.width + (self.columns - 1) * _GAP


def layout_of(sizes: Sequence[tuple[int, int]]) -> Layout:
    """Return the rows and columns that show clips of these (height, width) largest.

    Of layouts that show them equally large, one near to 16:9 with few empty cells is taken.
    """
    height, width = (max(each[n] for each in sizes) for n in (0, 1))

    def quality(layout: Layout) -> tuple[int, float]:
        all_height, all_width = layout.size
        empty = 1 - len(sizes) / (layout.columns * layout.rows)
        return -layout.width, abs(math.log(all_width / all_height * 9 / 16)) + 2 * empty

    layouts = [_layout(columns, len(sizes), height, width) for columns in range(1, len(sizes) + 1)]
    return min(layouts, key=quality)


def _layout(columns: int, count: int, height: int, width: int) -> Layout:
    rows = math.ceil(count / columns)
    room_across = (MAX_WIDTH - (columns - 1) * _GAP) / columns
    room_down = (MAX_HEIGHT - (rows - 1) * _GAP) / rows - LABEL_HEIGHT
    scale = min(1.0, room_across / width, room_down / height)
    return Layout(columns, rows, *(_even(side * scale) for side in (width, height)))


def _even(side: float) -> int:
    return max(_LEAST_SIDE, int(side) // 2 * 2)


def write_grid(cells: Sequence[Cell], path: Path) -> Layout:
    """Write clips side by side into an H.264 mp4, and read it back.

    Args:
        cells: At least one and at most `MAX_CELLS` clips, row by row.
        path: File to write; an existing one is replaced.

    Raises:
        ValueError: A clip is no video or damaged, or the file read back differs.
        OSError: A file cannot be read or written.
    """
    if not 1 <= len(cells) <= MAX_CELLS:
        raise ValueError(f"a grid has 1 to {MAX_CELLS} clips, and these are {len(cells)}")
    facts = [frame_size_and_rate(cell.path) for cell in cells]
    layout = layout_of([size for size, _ in facts])
    rate = max(rate for _, rate in facts)
    canvas = _Canvas(layout, [cell.label for cell in cells])
    players = [_Player(cell.path, own / rate) for cell, (_, own) in zip(cells, facts, strict=True)]
    comment = json.dumps({_KEY: 1, "clips": len(cells)})
    num_frames = write_frames(
        canvas.frames(players),
        layout.size,
        path,
        fps=float(rate),
        video=VideoConfig(),
        comment=comment,
    )
    height, width = layout.size
    check_video(path, num_frames=num_frames, height=height, width=width, fps=float(rate))
    return layout


def is_grid(path: Path) -> bool:
    """Whether a file was written by `write_grid`."""
    try:
        comment = read_comment(path) or ""
        values = parse_json(comment) if len(comment) <= _MAX_COMMENT_CHARACTERS else None
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and _KEY in values


class _Player:
    """A clip's frames at the times of the grid's frames."""

    def __init__(self, path: Path, pace: Fraction) -> None:
        """Open nothing yet; `pace` is frames of the clip in one frame of the grid, at most 1."""
        self._frames = read_frames(path, num_threads=1)
        self._pace = pace
        self._place = -1
        self.is_over = False

    def at(self, number: int) -> Frames | None:
        """Return the frame that begins with frame `number` of the grid, which counts up from 0.

        None where the frame before stays, and for good where the clip is over.
        """
        if self.is_over or (number * self._pace).__floor__() <= self._place:
            return None
        self._place += 1
        frame = next(self._frames, None)
        self.is_over = frame is None
        return frame


class _Canvas:
    """The picture that is sent to the encoder; only what changed is painted again."""

    def __init__(self, layout: Layout, labels: Sequence[str]) -> None:
        height, width = layout.size
        self._layout = layout
        self._image = Image.new("RGB", (width, height), _BACKGROUND)
        pen, font = ImageDraw.Draw(self._image), ImageFont.load_default(_FONT_SIZE)
        for number, label in enumerate(labels):
            left, top = self._corner(number)
            text = _fitting(label, font, layout.width - 8)
            pen.text((left + 4, top + layout.height + 3), text, fill=_TEXT, font=font)

    def frames(self, players: Sequence[_Player]) -> Iterator[Frames]:
        """Yield the grid's frames until every clip is over: uint8 [H, W, 3]."""
        for number in range(2**31):
            for place, player in enumerate(players):
                frame = player.at(number)
                if frame is not None:
                    self._paint(place, frame)
            if all(player.is_over for player in players):
                return
            yield np.asarray(self._image)

    def _paint(self, place: int, frame: Frames) -> None:
        layout = self._layout
        left, top = self._corner(place)
        picture = Image.fromarray(frame)
        scale = min(layout.width / picture.width, layout.height / picture.height, 1.0)
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        if size != picture.size:
            picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        inset = (layout.width - size[0]) // 2, (layout.height - size[1]) // 2
        self._image.paste(picture, (left + inset[0], top + inset[1]))

    def _corner(self, place: int) -> tuple[int, int]:
        row, column = divmod(place, self._layout.columns)
        step = self._layout.height + LABEL_HEIGHT + _GAP
        return column * (self._layout.width + _GAP), row * step


def _fitting(text: str, font: Any, width: int) -> str:
    """Return a text, shortened in its middle until it fits; the font lacks other scripts."""
    text = "".join(c if c.isprintable() and ord(c) < 256 else "?" for c in text)
    kept = len(text)
    shown = text
    while font.getlength(shown) > width and kept > 1:
        kept -= 1
        shown = f"{text[: math.ceil(kept / 2)]}...{text[len(text) - kept // 2 :]}"
    return shown
