"""Each preset names the sweep over what its source leaves open, and that sweep can be run."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.command import Answer

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
