"""Pictures of what guidance, steps, seeds and an empty prompt do to clips of the demo models.

python benchmarks/quality.py OUT --curves
python benchmarks/quality_pictures.py curves OUT/curves.json docs/guidance_and_steps.png
python benchmarks/quality_pictures.py seeds OUT docs/seeds.webp       # renders on the CPU
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideo15Pipeline
from obedience import read_frames
from PIL import Image, ImageDraw, ImageFont
from quality import GUIDANCES, STEPS, curve
from quality_clips import ATTRIBUTES, finished

from hv15_batch.engine.load.tiny import ensure_checkpoint
from hv15_batch.model.options import small_model
from hv15_batch.weights.checkpoint import tiny_root

COLOURS = {1: "#1f5fa8", 3: "#b4521e", 6: "#2e7d4f"}
TITLES = dict(
    zip(
        ATTRIBUTES,
        ("colour", "place", "direction", "kind of motion", "shape", "whole words"),
        strict=True,
    )
)
SCALE = 2
"""Drawn so much larger, for soft lines."""
PANEL, GAP, LEFT, TOP, COLUMNS = (190, 120), 52, 52, 34, 4
PROMPT, SEEDS, EMPTY = "A purple star moves from left to right over the sea.", 8, 4
MOMENTS = (0, 12, 24)
"""Frames of a clip that the sheet shows."""

Line = list[tuple[int, float]]


def shares(found: dict[str, Any], attribute: str, guidance: int) -> Line:
    """Return how many per cent of the clips have an attribute, at each number of steps."""
    line = []
    for steps in STEPS:
        right, asked = found.get(curve(guidance, steps), {}).get("right", {}).get(attribute, (0, 0))
        if asked:
            line.append((steps, 100 * right / asked))
    return line


def likeness(found: dict[str, Any], guidance: int) -> Line:
    """Return the median PSNR to the clip with the most steps, at each number of steps."""
    rows = [(steps, found.get(curve(guidance, steps), {})) for steps in STEPS[:-1]]
    return [(n, row["psnr_median_db"]) for n, row in rows if row.get("psnr_median_db")]


def draw_curves(results: Path, file: Path) -> None:
    """Draw obedience and likeness over steps, a line for each guidance."""
    found = {row["name"]: row for row in json.loads(results.read_text(encoding="utf-8"))}
    panels = [
        (f"{TITLES[name]}, %", {g: shares(found, name, g) for g in GUIDANCES}, (60, 100))
        for name in ATTRIBUTES
    ]
    title = f"PSNR to the clip of {STEPS[-1]} steps, dB"
    panels.append((title, {g: likeness(found, g) for g in GUIDANCES}, (10, 50)))
    rows = -(-(len(panels) + 1) // COLUMNS)
    size = (LEFT + COLUMNS * (PANEL[0] + GAP), TOP + rows * (PANEL[1] + GAP + 8))
    image = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), "white")
    for number, panel in enumerate(panels):
        draw_panel(image, number, *panel)
    clips = max(
        (row["clips"] for row in found.values() if row["name"].startswith("guid")), default=0
    )
    draw_legend(image, len(panels), f"{clips} clips for each point")
    image.resize(size, Image.Resampling.LANCZOS).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size} bytes")


def corner(number: int) -> tuple[int, int]:
    """Return the upper left corner of a panel."""
    row, column = divmod(number, COLUMNS)
    return LEFT + column * (PANEL[0] + GAP), TOP + row * (PANEL[1] + GAP + 8)


def pen_of(image: Image.Image) -> tuple[ImageDraw.ImageDraw, Any]:
    """Return what draws and what writes."""
    return ImageDraw.Draw(image), ImageFont.load_default(12 * SCALE)


def draw_panel(
    image: Image.Image, number: int, title: str, lines: dict[int, Line], limits: tuple[int, int]
) -> None:
    """Draw one quantity over the steps."""
    pen, font = pen_of(image)
    (x0, y0), (wide, high), (low, most) = corner(number), PANEL, limits

    def at(steps: float, value: float) -> tuple[float, float]:
        across = x0 + wide * steps / STEPS[-1]
        share = (min(max(value, low), most) - low) / (most - low)
        return across * SCALE, (y0 + high * (1 - share)) * SCALE

    pen.text((x0 * SCALE, (y0 - 20) * SCALE), title, "#222222", font)
    for value in range(low, most + 1, (most - low) // 4):
        y = at(0, value)[1]
        pen.line([(x0 * SCALE, y), ((x0 + wide) * SCALE, y)], "#dddddd", SCALE)
        pen.text(((x0 - 6) * SCALE, y), str(value), "#555555", font, anchor="rm")
    for steps in STEPS:
        x, y = at(steps, low)
        pen.text((x, y + 5 * SCALE), str(steps), "#555555", font, anchor="mt")
    # The higher guidance lies below, so that equal lines show both.
    for shift, guidance in enumerate(reversed(lines)):
        points = [at(*point) for point in lines[guidance]]
        if not points:
            continue
        pen.line(points, COLOURS[guidance], (4 - shift) * SCALE, joint="curve")
        for x, y in points:
            radius = (4.5 - shift) * SCALE
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), COLOURS[guidance])


def draw_legend(image: Image.Image, number: int, text: str) -> None:
    """Name the lines and the axis."""
    pen, font = pen_of(image)
    x, y = corner(number)
    for row, guidance in enumerate(GUIDANCES):
        middle = (y + 10 + 22 * row) * SCALE
        pen.line([(x * SCALE, middle), ((x + 26) * SCALE, middle)], COLOURS[guidance], 3 * SCALE)
        name = "guidance 1 (none)" if guidance == 1 else f"guidance {guidance}"
        pen.text(((x + 34) * SCALE, middle), name, "#222222", font, anchor="lm")
    for row, line in enumerate(("across: denoising steps", text)):
        pen.text((x * SCALE, (y + 84 + 18 * row) * SCALE), line, "#555555", font)


# -- seeds ------------------------------------------------------------------------------------


def render_seeds(out: Path) -> list[torch.Tensor]:
    """Return clips of one prompt with several seeds: each [3, 25, 128, 192] in -1..1."""
    out.mkdir(parents=True, exist_ok=True)
    manifest, folder = out / "seeds.csv", out / "seeds"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["prompt", "seed"], [PROMPT, f"0..{SEEDS - 1}"]])
    words = [f"manifest={manifest}", "model=demo_t2v", f"run_dir={folder}", "video.codec=ffv1"]
    subprocess.run([sys.executable, "-m", "hv15_batch", *words], check=True)
    return [read_frames(folder / row["file"]) for row in finished(folder)]


def render_empty() -> list[torch.Tensor]:
    """Return clips of an empty prompt, of plain diffusers: a manifest takes none."""
    model = small_model("demo_t2v")
    pipeline = HunyuanVideo15Pipeline.from_pretrained(ensure_checkpoint(model, tiny_root()))
    defaults, clips = model.default_sampling, []
    for seed in range(EMPTY):
        frames = pipeline(
            prompt="",
            height=defaults.height,
            width=defaults.width,
            num_frames=defaults.num_frames,
            num_inference_steps=defaults.num_inference_steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        ).frames[0]
        clips.append(frames.permute(1, 0, 2, 3).float() * 2 - 1)
    return clips


def draw_seeds(out: Path, file: Path) -> None:
    """Write a sheet: a column for each clip, three moments below each other."""
    clips = [*render_seeds(out), *render_empty()]
    tiles = [[picture(clip[:, moment]) for moment in MOMENTS] for clip in clips]
    width, height = tiles[0][0].size
    columns, gap, bar = SEEDS // 2, 6, 22
    blocks = [tiles[:columns], tiles[columns:SEEDS], tiles[SEEDS:]]
    tall = bar + len(MOMENTS) * height + gap
    sheet = Image.new("RGB", (columns * (width + gap) - gap, len(blocks) * tall), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, block in enumerate(blocks):
        for column, column_of in enumerate(block):
            left, top = column * (width + gap), row * tall
            is_empty = row == len(blocks) - 1
            name = "empty prompt, seed" if is_empty else "seed"
            number = column if is_empty else row * columns + column
            pen.text((left + 2, top + 3), f"{name} {number}", "#222222", font)
            for place, tile in enumerate(column_of):
                sheet.paste(tile, (left, top + bar + place * height))
    sheet.save(file, quality=82, method=6)
    print(f"{file}: {file.stat().st_size} bytes")


def picture(frame: torch.Tensor) -> Image.Image:
    """Return a frame [3, H, W] in -1..1 as a picture."""
    pixels = ((frame + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def main(words: Sequence[str] | None = None) -> None:
    """Do what the first word says."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("what", choices=("curves", "seeds"))
    arguments.add_argument("source", type=Path, help="curves.json, or a folder to render to")
    arguments.add_argument("file", type=Path, help="the picture")
    chosen = arguments.parse_args(words)
    (draw_curves if chosen.what == "curves" else draw_seeds)(chosen.source, chosen.file)


if __name__ == "__main__":
    main()
