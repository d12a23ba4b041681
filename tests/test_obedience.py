"""The rules that read clips of the demo models: right on drawn scenes, and hard to please."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from training.drawing import render
from training.pixels import canvas
from training.reading import read_clip
from training.world import MOTIONS, is_kept, sample_kept

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import obedience


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_drawn_scenes_are_read_right_and_those_of_other_prompts_are_not() -> None:
    number = len(MOTIONS)
    scenes = sample_kept(number, torch.Generator().manual_seed(8))
    own: list[bool] = []
    other: list[bool] = []
    for i in range(number):
        video, _, _ = render(scenes[i : i + 1], canvas(1, "cpu"))
        for j, rights in ((i, own), ((i + 3) % number, other)):
            asked = obedience.ask(scenes, j)
            reading = read_clip(video[0], len(asked["word"]))
            rights += obedience.score(asked, reading).values()
    assert sum(own) / len(own) > 0.95
    assert sum(other) / len(other) < 0.35


def test_prompts_name_what_they_ask_and_are_no_training_sentences(tmp_path: Path) -> None:
    file = tmp_path / "obedience.csv"
    obedience.write_manifest(file, has_images=False)
    with file.open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    scenes = sample_kept(obedience.PROMPTS, torch.Generator().manual_seed(obedience.SEED))

    kept = is_kept(scenes.color[:, 0], scenes.shape[:, 0], scenes.motion, scenes.place)
    assert kept.all()
    assert len({row["prompt"] for row in rows}) == len(rows) == obedience.PROMPTS
    for i, row in enumerate(rows):
        assert {name: row[f"tag_{name}"] for name in obedience.NAMES} == obedience.ask(scenes, i)
        assert row["tag_color"] in row["prompt"]
        assert not row["tag_word"] or f'"{row["tag_word"]}"' in row["prompt"]
