"""Pictures of the demonstration: first frames for its manifest, and a moving strip of clips.

First frames: `python benchmarks/demo_pictures.py first manifests`. The strip:
`python benchmarks/demo_pictures.py strip outputs/demo docs/demo.webp`.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import av
import torch
from PIL import Image

from training.drawing import render
from training.pixels import canvas
from training.world import COLORS, FPS, MAX_LETTERS, MOTIONS, PLACES, SHAPES, Scenes, sample_scenes

COLUMNS, MAX_BYTES = 4, 1_500_000
FIRST = {
    "demo_ball": ("blue", "ball", "right", "sea", ""),
    "demo_heart": ("red", "heart", "grow", "meadow", "GROW"),
}
"""First frames: colour, shape, the motion that begins there, place, word."""


def scene_of(color: str, shape: str, motion: str, place: str, word: str, seed: int) -> Scenes:
    """Return a scene of these, of middle size, all else drawn."""
    scene = sample_scenes(1, torch.Generator().manual_seed(seed), words=0, two=0)

    def pair(names: dict[str, object], name: str) -> torch.Tensor:
        return torch.full((1, 2), list(names).index(name))

    letters = [ord(c) - 64 for c in word] + [0] * (MAX_LETTERS - len(word))
    return replace(
        scene,
        color=pair(COLORS, color),
        shape=pair(SHAPES, shape),
        size=torch.ones(1, 2, dtype=torch.int64),
        motion=pair(MOTIONS, motion)[:, 0],
        place=pair(PLACES, place)[:, 0],
        letters=torch.tensor([letters]),
    )


def write_first_frames(folder: Path) -> None:
    """Draw the first frames that `manifests/demo_i2v.csv` names."""
    for seed, (name, wanted) in enumerate(FIRST.items()):
        video, _, _ = render(scene_of(*wanted, seed=seed), canvas(1, "cpu", frames=1))
        pixels = ((video[0, :, 0] + 1) * 127.5).round().byte().permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{name}.png", optimize=True)


def write_strip(run: Path, file: Path) -> None:
    """Write the first clip of each row side by side, moving, as WebP.

    Raises:
        SystemExit: if it is larger than a README should load.
    """
    with (run / "clips.csv").open(encoding="utf-8", newline="") as table:
        rows = {row["row_id"]: row["file"] for row in reversed(list(csv.DictReader(table)))}
    clips = []
    for path in list(rows.values())[::-1]:
        with av.open(str(run / path)) as video:
            clips.append([frame.to_image() for frame in video.decode(video=0)])
    width, height = clips[0][0].size
    frames = []
    for moment in zip(*clips, strict=True):
        frame = Image.new("RGB", (COLUMNS * width, -(-len(clips) // COLUMNS) * height))
        for i, picture in enumerate(moment):
            frame.paste(picture, (i % COLUMNS * width, i // COLUMNS * height))
        frames.append(frame)
    times = [round(1000 / FPS)] * (len(frames) - 1) + [900]
    frames[0].save(
        file, save_all=True, append_images=frames[1:], duration=times, loop=0, quality=80, method=6
    )
    size = file.stat().st_size
    print(f"{file}: {size} bytes, {len(clips)} clips of {len(frames)} frames")
    if size > MAX_BYTES:
        raise SystemExit(f"{file} has {size} bytes, more than {MAX_BYTES}")


def main() -> None:
    """Do what the first word says."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("what", choices=("first", "strip"))
    arguments.add_argument("paths", nargs="+", type=Path)
    chosen = arguments.parse_args()
    if chosen.what == "first":
        write_first_frames(chosen.paths[0])
    else:
        write_strip(*chosen.paths)


if __name__ == "__main__":
    main()
