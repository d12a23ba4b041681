"""Plants faults in clips and counts which of them `media/faults.py` finds.

    PYTHONPATH=. python benchmarks/broken_clips.py CLIP [CLIP ...]

Each clip is tried as it is and with one fault at a time. `cuts` joins the first half of a clip with
the second half of the next one.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hv15_batch.media.faults import BLACK, CUTS, FREEZE, FaultMeter
from hv15_batch.media.video import read_frames

Clip = np.ndarray[Any, np.dtype[np.uint8]]


def _freeze(clip: Clip, other: Clip, share: float) -> Clip:
    begin, length = len(clip) // 3, round(share * len(clip))
    return np.concatenate(
        [clip[:begin], clip[begin : begin + 1].repeat(length, 0), clip[begin + length :]]
    )


def _black(clip: Clip, other: Clip, share: float) -> Clip:
    begin, length = len(clip) // 3, round(share * len(clip))
    planted = clip.copy()
    planted[begin : begin + length] = np.random.default_rng(0).integers(
        0, 4, planted[begin : begin + length].shape, dtype=np.uint8
    )
    return planted


def _cut(clip: Clip, other: Clip, share: float) -> Clip:
    middle = len(clip) // 2
    return np.concatenate([clip[:middle], other[middle : len(clip)]])


PLANTED: dict[str, Callable[[Clip, Clip], Clip]] = {
    "nothing": lambda clip, other: clip,
    "stands still for 10 %": lambda clip, other: _freeze(clip, other, 0.1),
    "stands still for 30 %": lambda clip, other: _freeze(clip, other, 0.3),
    "black for 10 %": lambda clip, other: _black(clip, other, 0.1),
    "black for 30 %": lambda clip, other: _black(clip, other, 0.3),
    "cut to the next clip": lambda clip, other: _cut(clip, other, 0.5),
}


def main() -> None:
    """Print a table of what was planted and what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    clips = [np.stack(list(read_frames(path))) for path in parser.parse_args().clips]
    clips = [clip for clip in clips if clip.shape == clips[0].shape]
    print(f"{len(clips)} clips, {'x'.join(map(str, clips[0].shape[1:3]))}x{len(clips[0])}")
    print("| planted | clips | freeze | black | cuts |\n|---|---|---|---|---|")
    begin, count = time.perf_counter(), 0
    for name, plant in PLANTED.items():
        found: Counter[str] = Counter()
        for clip, other in zip(clips, [*clips[1:], clips[0]], strict=True):
            meter = FaultMeter(len(clip))
            for frame in plant(clip, other):
                meter.add(frame)
            found.update(meter.faults())
            count += len(clip)
        print(f"| {name} | {len(clips)} | {found[FREEZE]} | {found[BLACK]} | {found[CUTS]} |")
    print(f"{(time.perf_counter() - begin) / count * 1000:.2f} ms a frame")


if __name__ == "__main__":
    main()
