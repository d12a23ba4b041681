"""A grid shows every clip in its cell, at its own time, whatever their sizes and lengths."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hv15_batch.config.settings import VideoCodec, VideoConfig
from hv15_batch.media.grid import (
    LABEL_HEIGHT,
    MAX_CELLS,
    MAX_HEIGHT,
    MAX_WIDTH,
    Cell,
    is_grid,
    layout_of,
    write_grid,
)
from hv15_batch.media.video import frame_size_and_rate, read_frames, write_video


def clip(path: Path, levels: list[int], size: tuple[int, int] = (64, 96), fps: float = 24) -> Path:
    """Write a clip whose frames are grey, each of its level."""
    frames = np.stack([np.full((*size, 3), level, np.uint8) for level in levels])
    codec = VideoCodec.ffv1 if path.suffix == ".mkv" else VideoCodec.h264
    write_video(frames, path, fps=fps, video=VideoConfig(codec=codec), comment=None)
    return path


def levels_of(grid: Path, row: int, column: int, height: int = 64, width: int = 96) -> list[int]:
    """Return the level in the middle of a cell, frame by frame, in steps of 10."""
    y = row * (height + LABEL_HEIGHT + 4) + height // 2
    x = column * (width + 4) + width // 2
    middles = [frame[y - 4 : y + 4, x - 4 : x + 4].mean() for frame in read_frames(grid)]
    return [round(middle / 10) * 10 for middle in middles]


def test_clips_of_other_lengths_sizes_and_rates_are_each_in_their_cell(tmp_path: Path) -> None:
    cells = [
        Cell(clip(tmp_path / "a.mp4", [20, 60, 100, 140, 180, 220]), "a"),
        Cell(clip(tmp_path / "short.mkv", [50, 90]), "short"),
        Cell(clip(tmp_path / "small.mp4", [200] * 6, size=(32, 32)), "small"),
        Cell(clip(tmp_path / "slow.mp4", [30, 130, 230], fps=12), "slow"),
    ]
    grid = tmp_path / "grid.mp4"

    layout = write_grid(cells, grid)

    assert (layout.rows, layout.columns, layout.width, layout.height) == (2, 2, 96, 64)
    assert frame_size_and_rate(grid) == (layout.size, 24)
    assert levels_of(grid, 0, 0) == [20, 60, 100, 140, 180, 220]
    assert levels_of(grid, 0, 1) == [50, 90, 90, 90, 90, 90]
    assert levels_of(grid, 1, 0) == [200] * 6
    assert levels_of(grid, 1, 1) == [30, 30, 130, 130, 230, 230]
    first = next(read_frames(grid))
    beside = first[64 + LABEL_HEIGHT + 4 + 32, 4:28]
    assert beside.max() < 40  # a small clip is not enlarged; beside it is background
    for left in (0, 100):  # each cell has its label below it
        assert first[66 : 64 + LABEL_HEIGHT, left : left + 90].max() > 150


@pytest.mark.parametrize("count", [1, 2, 5, 12, 60, MAX_CELLS])
def test_a_layout_holds_all_clips_and_is_at_most_4k(count: int) -> None:
    layout = layout_of([(720, 1280)] * count)

    height, width = layout.size
    assert layout.rows * layout.columns >= count > (layout.rows - 1) * layout.columns
    assert height <= MAX_HEIGHT
    assert width <= MAX_WIDTH
    assert (height % 2, width % 2) == (0, 0)
    assert layout.width / layout.height == pytest.approx(1280 / 720, rel=0.03)


def test_more_clips_than_a_grid_holds_are_no_grid(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a grid has 1 to 100 clips, and these are 101"):
        write_grid([Cell(tmp_path / "a.mp4", "a")] * 101, tmp_path / "grid.mp4")


def test_a_grid_knows_itself_and_nothing_else(tmp_path: Path) -> None:
    one = clip(tmp_path / "a.mp4", [20, 60])
    write_grid([Cell(one, "name 長い of a clip that is far too long for its cell")], tmp_path / "g")

    assert is_grid(tmp_path / "g")
    assert not is_grid(one)
    assert not is_grid(tmp_path / "none.mp4")


def test_memory_does_not_grow_with_the_length_of_clips(tmp_path: Path) -> None:
    for name, count in (("short", 20), ("long", 200)):
        clip(tmp_path / f"{name}.mp4", [count] * count, size=(360, 640))
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from hv15_batch.media.grid import Cell, write_grid\n"
        "folder = Path(sys.argv[1])\n"
        "def peak(name):\n"
        "    write_grid([Cell(folder / f'{name}.mp4', name)] * 4, folder / 'grid.mp4')\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "peak('short')\n"
        "before = peak('short')\n"
        "print(peak('long') - before)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert int(done.stdout) < 120 * 1024  # KiB; 800 frames of 640x360 are 527 MiB
