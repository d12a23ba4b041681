"""Each preset names the sweep over what its source leaves open, and that sweep can be run."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.command import Answer
from fakes.official import official_project

from hv15_batch.model.options import conf_dir, model_options
from hv15_batch.references._implied import SWEPT_FRAMES, SWEPT_STEPS

Command = Callable[..., Answer]

PRESETS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))


def sweeps(preset: str) -> list[list[str]]:
    """Words of the sweeps in a preset's comment, after `python -m hv15_batch`."""
    text = (conf_dir() / "experiment" / f"{preset}.yaml").read_text(encoding="utf-8")
    text = text.replace("\\\n#", "")
    commands = re.findall(r"^# python -m hv15_batch (-m .*)$", text, re.MULTILINE)
    return [shlex.split(command) for command in commands]


CASES = [(preset, words) for preset in PRESETS for words in sweeps(preset)]
NAMES = [f"{preset}-{index}" for index, (preset, _) in enumerate(CASES)]


OFFICIAL = {"recipe_option_a"}
"""Presets of the official script, to which its folder and interpreter are to be added."""


def test_every_preset_names_a_sweep_of_itself() -> None:
    assert {preset for preset, _ in CASES} == set(PRESETS)
    assert all(f"experiment={preset}" in words for preset, words in CASES)


@pytest.mark.parametrize(("preset", "words"), CASES, ids=NAMES)
def test_a_sweep_plans_every_combination_that_it_names(
    preset: str, words: list[str], command: Command, tmp_path: Path
) -> None:
    swept = dict(word.split("=") for word in words if "," in word)
    jobs = 1
    for values in swept.values():
        jobs *= len(values.split(","))

    if preset in OFFICIAL:
        project = official_project(tmp_path / "official", "prompt")
        words = [*words, f"official.repo={project.repo}", f"official.python={project.python}"]

    answer = command(*words, "--dry-run")

    assert (answer.code, answer.err) == (0, "")
    plans = sorted((tmp_path / "outputs" / f"{preset}.sweep").glob("*/plan.csv"))
    assert len(plans) == jobs
    rows = [
        row
        for plan in plans
        for row in csv.DictReader(plan.read_text(encoding="utf-8").splitlines())
    ]
    for key, values in swept.items():
        name = key.removeprefix("override.")
        if name != key:
            planned = {float(row[name]) for row in rows}
            assert planned == {float(value) for value in values.split(",")}, key


def test_the_sweeps_try_what_the_combinations_table_lists() -> None:
    for preset, steps in (
        ("rtx4090_step_distilled", model_options()["480p_i2v_step_distilled"].recipe.steps),
        ("rtx4090_standard", SWEPT_STEPS),
    ):
        (words,) = sweeps(preset)
        assert f"override.num_frames={','.join(map(str, SWEPT_FRAMES))}" in words
        assert f"override.num_inference_steps={','.join(map(str, steps))}" in words


@pytest.mark.parametrize("preset", ["recipe_option_a", "recipe_option_b"])
def test_a_preset_of_the_recipe_says_line_by_line_what_differs(
    preset: str, command: Command, tmp_path: Path
) -> None:
    project = official_project(tmp_path / "official", "prompt")
    words = [f"official.repo={project.repo}", f"official.python={project.python}"]

    answer = command(f"experiment={preset}", "--dry-run", *words[: 2 * (preset in OFFICIAL)])

    assert (answer.code, answer.err) == (0, "")
    told = (conf_dir() / "experiment" / f"{preset}.txt").read_text(encoding="utf-8").splitlines()
    assert len(told) >= 7
    lines = answer.out.splitlines()
    start = lines.index(told[0])
    assert lines[start : start + len(told)] == told


def test_option_a_without_the_script_says_what_to_add(command: Command) -> None:
    answer = command("experiment=recipe_option_a", "--dry-run")

    assert answer.code == 2
    assert "official.repo=DIR" in answer.err


def test_option_a_is_the_recipes_command_where_that_can_run(
    command: Command, tmp_path: Path
) -> None:
    project = official_project(tmp_path / "official", "prompt")
    words = (f"official.repo={project.repo}", f"official.python={project.python}")

    answer = command("experiment=recipe_option_a", "--dry-run", *words)

    (line,) = [line for line in answer.out.splitlines() if "torch.distributed.run" in line]
    typed = shlex.split(line)
    pairs = dict(zip(typed[6::2], typed[7::2], strict=True))
    recipe = {
        "--prompt": "A fluffy teddy bear sits on a bed of soft pillows surrounded by children "
        "toys.",
        "--resolution": "480p",
        "--aspect_ratio": "16:9",
        "--seed": "1",
        "--rewrite": "false",
    }
    assert {name: pairs[name] for name in recipe} == recipe
    assert (pairs["--sr"], pairs["--enable_step_distill"]) == ("false", "false")
    assert (pairs["--cfg_distilled"], pairs["--num_inference_steps"]) == ("true", "50")
