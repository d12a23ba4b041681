"""Faults in a part of a clip, as FFmpeg's filters see them: it stands still, is black, or cuts.

They find bad clips, not pretty ones. A prompt may ask for any of them, so a look decides.

Source: FFmpeg 8.1 filters freezedetect, blackdetect and scdet; PyAV brings them.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av.error
import numpy as np
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from hv15_batch.errors import Secondary

FREEZE = "freeze"
BLACK = "black"
CUTS = "cuts"

LEAST_SHARE = 0.2
"""Of a clip's frames that must stand still or be black, one after the other."""
LEAST_FRAMES = 6
_FREEZE_NOISE = 0.0002
"""Mean absolute difference of two frames that count as one; of 1. freezedetect's own is 0.001,
which a small thing that moves slowly stays below."""
_BLACK_PIXELS = 0.98
_BLACK_LUMA = 0.06
"""Of 1, above black. Lower than blackdetect's 0.10, which takes in scenes at night."""
_CUT_SCORE = 10.0
"""Of 100: scdet's own limit."""
_MAX_SIDE = 320
"""Frames are looked at in about this size: every so many pixels are taken."""
_EMPTY = (av.error.BlockingIOError, av.error.EOFError)


class FaultMeter:
    """Looks at a clip frame by frame; one frame is in memory. A failure of it costs no clip."""

    def __init__(self, num_frames: int) -> None:
        """Begin without a frame; a clip of very few frames has no faults.

        Args:
            num_frames: Of the whole clip.
        """
        self._num_frames = num_frames
        self._least = max(LEAST_FRAMES, round(LEAST_SHARE * num_frames))
        self._graph: Graph | None = None
        self._number = 0
        self._last: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self._black_since: int | None = None
        self._found: set[str] = set()
        self._looking = Secondary("parts of a clip were not looked at")
        self._is_whole = num_frames >= LEAST_FRAMES

    def add(self, frame: np.ndarray[Any, Any]) -> None:
        """Take in the next frame: uint8 [H, W, 3]; all have one size."""
        if self._is_whole:
            with self._looking:
                self._add(frame)
            self._is_whole = self._looking.error is None

    def _add(self, frame: np.ndarray[Any, Any]) -> None:
        step = -(-max(frame.shape[:2]) // _MAX_SIDE)
        pixels = np.ascontiguousarray(frame[::step, ::step])
        if self._graph is None:
            self._graph = _graph(pixels.shape[0], pixels.shape[1], self._least)
        self._send(self._graph, pixels)
        self._last = pixels
        self._number += 1

    def _send(self, graph: Graph, pixels: np.ndarray[Any, Any]) -> None:
        frame = VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = self._number, Fraction(1)
        graph.push(frame)
        self._take(graph)

    def faults(self) -> list[str]:
        """Return which of `freeze`, `black` and `cuts` were found, in this order.

        To be asked once, after the last frame.
        """
        if self._graph is None or not self._is_whole:
            return []
        with self._looking:
            # A stretch ends with the next frame that differs, so one more is sent.
            self._send(self._graph, 255 - self._last)
            self._graph.push(None)
            self._take(self._graph)
        return [fault for fault in (FREEZE, BLACK, CUTS) if fault in self._found]

    def _take(self, graph: Graph) -> None:
        while True:
            try:
                frame = graph.pull()
            except _EMPTY:
                return
            assert isinstance(frame, VideoFrame)
            assert frame.pts is not None
            told = frame.metadata
            if "lavfi.freezedetect.freeze_start" in told:
                self._found.add(FREEZE)
            # The beginning is told at once, however short the stretch will be.
            if "lavfi.black_start" in told:
                self._black_since = frame.pts
            if "lavfi.black_end" in told:
                self._end_black(frame.pts)
            # The first difference has none before it to compare with; the last one is not a clip's.
            if "lavfi.scd.time" in told and 1 < frame.pts < self._num_frames:
                self._found.add(CUTS)

    def _end_black(self, number: int) -> None:
        if self._black_since is not None and number - self._black_since >= self._least:
            self._found.add(BLACK)
        self._black_since = None


def _graph(height: int, width: int, least: int) -> Graph:
    """Return the three filters in a row; a frame lasts one second there."""
    graph = Graph()
    source = graph.add_buffer(
        width=width, height=height, format=VideoFormat("rgb24"), time_base=Fraction(1)
    )
    graph.link_nodes(
        source,
        graph.add("freezedetect", f"noise={_FREEZE_NOISE}:duration={least}"),
        graph.add("blackdetect", f"d=0:pic_th={_BLACK_PIXELS}:pix_th={_BLACK_LUMA}"),
        graph.add("scdet", f"threshold={_CUT_SCORE}"),
        graph.add("buffersink"),
    ).configure()
    return graph
