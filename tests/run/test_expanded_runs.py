"""Runs of templates: what is rendered, logged, copied and resumed."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.command import Answer
from fakes.pages import read_data
from fakes.runs import Project, read_csv

from hv15_batch.errors import Refused
from hv15_batch.rundir.stored import latest_settings

Command = Callable[..., Answer]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "animals.txt").write_text("fox\nowl\n", encoding="utf-8")
    project.write("id,prompt,seed", "walk,A {red|grey} {@words/animals.txt} walks.,0 1", "plain,x,")
    return project


def test_every_prompt_is_rendered_with_every_seed_and_logged_with_its_number(
    project: Project,
) -> None:
    assert project.run(templates="all") == 0
    assert "Templates: 1 row makes 4 prompts (templates=all)" in project.said
    records = project.records()
    made = {(r["prompt"], r["seed"], r["template_draw"]) for r in records}
    colours, animals = ("red", "grey"), ("fox", "owl")
    assert made == {("x", 0, None)} | {
        (f"A {c} {a} walks.", seed, colours.index(c) * 2 + animals.index(a))
        for c in colours
        for a in animals
        for seed in (0, 1)
    }
    assert {r["row_id"].rpartition("-")[0] for r in records} == {"walk", ""}


def test_only_takes_all_prompts_of_a_template_or_one_of_them(project: Project) -> None:
    project.run(templates="all", only="walk", limit=3)
    assert len(project.records()) == 3
    project.run(templates="all", only="walk")
    assert len(project.records()) == 8
    assert {r["row_id"].partition("-")[0] for r in project.records()} == {"walk"}
    one = project.records()[0]["row_id"]
    project.run(templates="all", only=one, force=True)
    assert len(project.records()) == 10


def test_a_new_word_renders_its_prompts_alone(project: Project) -> None:
    project.run(templates="all")
    project.did()
    (project.folder / "words" / "animals.txt").write_text("hare\nfox\nowl\n", encoding="utf-8")
    project.run(templates="all")
    assert len(project.did()) == 4
    assert {r["prompt"] for r in project.records()[-4:]} == {
        "A red hare walks.",
        "A grey hare walks.",
    }


def test_the_settings_are_stored_and_the_words_are_copied_beside_the_manifest(
    project: Project,
) -> None:
    project.run(templates="3", templates_seed=5)
    before = {r["prompt"] for r in project.records()}
    stored = latest_settings(project.run_dir)
    assert (stored.templates, stored.templates_seed) == ("3", 5)
    folder = project.run_dir.run_folder(project.run_dir.run_ids()[-1])
    assert (folder / "words" / "animals.txt").read_text(encoding="utf-8") == "fox\nowl\n"

    copied = Project(folder, name="manifest.csv")  # a manifest of its own, with the same draws
    copied.run(templates="3", templates_seed=5)
    assert {r["prompt"] for r in copied.records()} == before


def test_a_half_written_copy_is_swept(project: Project) -> None:
    project.run(templates="all", limit=1)
    folder = project.run_dir.run_folder(project.run_dir.run_ids()[-1]) / "words"
    (folder / f".{'0' * 16}.animals.txt").touch()
    project.run(templates="all")
    assert project.strays() == []


def test_words_that_change_during_a_run_are_told_at_its_end(project: Project) -> None:
    changed = "has changed since the start; run again"
    assert project.run(templates="all", limit=1) == 0
    assert not [line for line in project.said if changed in line]

    def edit() -> None:
        (project.folder / "words" / "animals.txt").write_text("hare\n", encoding="utf-8")

    say = project.said
    project.said = type("Said", (list,), {"append": lambda s, x: (edit(), list.append(s, x))})(say)
    project.run(templates="all", limit=1)
    assert [line for line in project.said if changed in line]


def test_a_word_file_that_is_gone_is_refused_before_anything_is_touched(project: Project) -> None:
    (project.folder / "words" / "animals.txt").unlink()
    with pytest.raises(Refused, match=r"prompts.csv:2: prompt=.*words/animals.txt cannot be read"):
        project.run(templates="all")
    assert not project.run_dir.path.exists()


def test_the_page_s_command_renders_one_prompt_again_from_the_copies(
    project: Project, command: Command
) -> None:
    project.run(templates="2", templates_seed=3)
    clip = read_data(project.run_dir.path)["clips"][0]
    (project.folder / "words" / "animals.txt").unlink()
    words = [word for word in shlex.split(clip["command"])[1:] if not word.startswith("model.")]
    assert {"templates=2", "templates_seed=3", "limit=1"} <= set(words)
    answer = command(*words, "--dry-run")
    assert answer.code == 0, answer.err
    assert f": {clip['prompt']}\n" in answer.out


def test_the_command_line_takes_them_and_a_sweep_draws_others(command: Command) -> None:
    rows = [["prompt"], ["A {red|green|blue|grey} {fox|owl|cat}"]]
    with open("p.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    words = ("p.csv", "model=tiny_t2v", "--dry-run")
    answer = command(*words, "templates=all", "limit=11")
    assert answer.code == 0, answer.err
    assert "Templates: 1 row makes 12 prompts (templates=all)" in answer.out
    assert answer.out.count("  a-red-green-blue-grey") == 10
    assert "  and 1 more prompts, all of them in plan.csv" in answer.out
    answer = command(*words, "-m", "templates=3", "templates_seed=0,1")
    assert answer.code == 0, answer.err
    drawn = [
        {row["prompt"] for row in read_csv(path)} for path in Path("outputs").rglob("plan.csv")
    ]
    assert len(drawn) == 3
    assert len({frozenset(prompts) for prompts in drawn}) == 3
    answer = command(*words, "templates=some")
    assert answer.code == 2
    assert "templates=some: must be all, or how many prompts to draw for each row" in answer.err
