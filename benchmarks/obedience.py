"""Whether clips of the demo models do what their prompts say, read from the frames by rules.

    python benchmarks/obedience.py manifest obedience.csv   # 80 prompts, with what they ask as tags
    hv15-batch obedience.csv model=demo_t2v sampling.seeds=0,1
    python benchmarks/obedience.py read outputs/obedience
    python benchmarks/obedience.py manifest i2v.csv --images  # with first frames beside it

No combination of colour, shape, motion and place in these prompts is ever drawn for training. The
rules are in `training/reading.py`; `check` shows how they read drawn scenes and wrong prompts.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from training.drawing import render
from training.pixels import canvas
from training.prompts import whole_caption
from training.reading import Reading, read_clip
from training.world import COLORS, MOTIONS, PLACES, SHAPES, Scenes, sample_kept

PROMPTS, SEED = 80, 20261130
NAMES = ("color", "shape", "motion", "place", "word")


def ask(scenes: Scenes, index: int) -> dict[str, str]:
    """Return what a prompt of a scene asks for, in the world's own names."""
    return {
        "color": list(COLORS)[scenes.color[index, 0]],
        "shape": list(SHAPES)[scenes.shape[index, 0]],
        "motion": list(MOTIONS)[scenes.motion[index]],
        "place": list(PLACES)[scenes.place[index]],
        "word": scenes.word(index),
    }


def write_manifest(file: Path, has_images: bool) -> None:
    """Write the prompts, and as tags what they ask for; first frames as `NUMBER.png` beside it."""
    scenes = sample_kept(PROMPTS, torch.Generator().manual_seed(SEED))
    rng = random.Random(SEED)
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out)
        images = ["image"] if has_images else []
        table.writerow(["prompt", *images, *(f"tag_{name}" for name in NAMES)])
        for i in range(PROMPTS):
            prompt = whole_caption(scenes, i, rng)
            if has_images:
                images = [f"{i}.png"]
                write_first_frame(scenes[i : i + 1], file.parent / images[0])
            table.writerow([prompt, *images, *(ask(scenes, i)[name] for name in NAMES)])


def write_first_frame(scene: Scenes, file: Path) -> None:
    """Draw the first frame of one scene as a picture."""
    video, _, _ = render(scene, canvas(1, "cpu", frames=1))
    pixels = ((video[0, :, 0] + 1) * 127.5).round().byte().permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(file)


def psnr_of_first(frames: torch.Tensor, file: Path) -> float:
    """Return how near a clip's first frame is to the picture that it was given, in dB."""
    given = torch.from_numpy(np.asarray(Image.open(file).convert("RGB"), dtype=np.float32))
    error = (frames[:, 0] - (given.permute(2, 0, 1) / 127.5 - 1)).square().mean() / 4
    return float(-10 * torch.log10(error))


def read_frames(file: Path) -> torch.Tensor:
    """Return the frames of a video: [3, T, H, W] in -1..1."""
    with av.open(str(file)) as video:
        frames = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in video.decode(video=0)]
    return torch.stack(frames).permute(3, 0, 1, 2).float() / 127.5 - 1


def score(asked: dict[str, str], reading: Reading) -> dict[str, bool]:
    """Return which of the attributes asked for are there.

    `direction` is asked by motions that go somewhere, `letters` by a word.
    """
    right = {name: asked[name] == getattr(reading, name) for name in ("color", "shape", "place")}
    right["motion"] = asked["motion"] == reading.motion
    x, y = (reading.track[-3:].mean(0) - reading.track[:3].mean(0))[:2].tolist()
    going = {"right": x, "left": -x, "up": -y, "down": y}
    if asked["motion"] in going:
        right["direction"] = going[asked["motion"]] > 12
    if asked["word"]:
        pairs = zip(asked["word"], reading.word, strict=True)
        right["letters"] = all(a == b for a, b in pairs)
    return right


def asked_of(row: dict[str, str]) -> dict[str, str]:
    """Return what the tags of a row of clips.csv ask for."""
    tags = json.loads(row["tags"])
    return {name: str(tags.get(f"tag_{name}") or "") for name in NAMES}


def read_runs(folders: list[Path], pictures: Path) -> list[dict[str, Any]]:
    """Return a row for each finished clip of run directories: what is right and what was read.

    Args:
        folders: run directories.
        pictures: folder to which the first frames' names are relative.
    """
    rows = []
    for folder in folders:
        with (folder / "clips.csv").open(encoding="utf-8", newline="") as file:
            clips = [row for row in csv.DictReader(file) if row["status"] in ("ok", "suspect")]
        for row in clips:
            asked = asked_of(row)
            frames = read_frames(folder / row["file"])
            reading = read_clip(frames, len(asked["word"]))
            right = score(asked, reading)
            read = {name: getattr(reading, name) for name in NAMES}
            first = psnr_of_first(frames, pictures / row["image"]) if row["image"] else None
            clip = {"prompt": row["prompt"], "seed": row["seed"], "first_frame_psnr": first}
            rows.append({**clip, "right": right, "read": read})
            wrong = [f"{k}: {read.get(k, 'wrong')}" for k, ok in right.items() if not ok]
            print(row["seed"], row["prompt"], "|", ", ".join(wrong), flush=True)
    return rows


def table(rights: list[dict[str, bool]]) -> str:
    """Return the share of each attribute as a table."""
    lines = ["| attribute | clips | right |", "|---|---|---|"]
    for name in ("color", "place", "direction", "motion", "shape", "letters"):
        asked = [right[name] for right in rights if name in right]
        if asked:
            lines.append(f"| {name} | {len(asked)} | {100 * sum(asked) / len(asked):.1f} % |")
    return "\n".join(lines)


def check(number: int, shift: int) -> str:
    """Return how the rules read drawn scenes.

    Args:
        number: of scenes.
        shift: what is asked of a scene is taken from the scene so much later; 0 for its own.
    """
    scenes = sample_kept(number, torch.Generator().manual_seed(SEED + 1))
    asked = [ask(scenes, i) for i in range(number)]
    rights = []
    for i in range(number):
        video, _, _ = render(scenes[i : i + 1], canvas(1, "cpu"))
        wanted = asked[(i + shift) % number]
        rights.append(score(wanted, read_clip(video[0], len(wanted["word"]))))
    return table(rights)


def main() -> None:
    """Do what the first word says."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("what", choices=("manifest", "read", "check"))
    arguments.add_argument("paths", nargs="*", type=Path)
    arguments.add_argument("--images", action="store_true", help="also draw first frames")
    arguments.add_argument("--pictures", type=Path, default=Path(), help="folder of first frames")
    arguments.add_argument("--scenes", type=int, default=64)
    arguments.add_argument("--json", type=Path, help="where each clip's reading goes")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    if chosen.what == "manifest":
        write_manifest(chosen.paths[0], chosen.images)
    elif chosen.what == "check":
        print(f"drawn scenes\n{check(chosen.scenes, 0)}\n")
        print(f"the same, asked for what another scene shows\n{check(chosen.scenes, 7)}")
    else:
        rows = read_runs(chosen.paths, chosen.pictures)
        if chosen.json:
            chosen.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(table([row["right"] for row in rows]))
        psnr = [row["first_frame_psnr"] for row in rows if row["first_frame_psnr"] is not None]
        if psnr:
            print(f"first frame: {sum(psnr) / len(psnr):.1f} dB, worst {min(psnr):.1f} dB")


if __name__ == "__main__":
    main()
