"""Columns: names however they are spelled, names of other tools, and columns without a meaning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from fakes.command import Answer
from fakes.manifests import OTHERS, faults_of, read, write

from hv15_batch import api
from hv15_batch.config.settings import Config, ManifestColumns, OtherColumns
from hv15_batch.errors import Refused
from hv15_batch.manifest._hints import meaning
from hv15_batch.manifest.columns import KNOWN_COLUMNS, Reading, reading_of
from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.variant import Task

pytestmark = pytest.mark.usefixtures("in_empty_folder")

Command = Callable[..., Answer]
IGNORE = Reading(other=OtherColumns.ignore)
TAG = Reading(other=OtherColumns.tag)


def test_names_count_without_case_spaces_hyphens_and_marks_of_order() -> None:
    header = " Prompt ,SEED,Negative Prompt,num-frames,Guidance_Scale,flowShift,TAG Scene,Tag-b"
    row = read("p.csv", f"\ufeff\ufeff{header}\na cat,1,dark,9,5,7,roof,x\n").rows[0]

    assert (row.prompt, row.seeds, row.negative_prompt) == ("a cat", (1,), "dark")
    assert (row.num_frames, row.guidance_scale, row.flow_shift) == (9, 5.0, 7.0)
    assert row.tags == {"tag_Scene": "roof", "tag_b": "x"}
    assert read("p.jsonl", '{"PROMPT": "a", "Num Frames": 9}').rows[0].num_frames == 9


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "prompt,Num Frames,num_frames\na,9,9\n"),
        ("p.json", '[{"prompt": "a", "Num Frames": 9, "num_frames": 9}]'),
        ("p.csv", "prompt,tag_A,tag_a\na,1,2\n"),
    ],
)
def test_two_names_of_one_column_are_refused_with_both(name: str, content: str) -> None:
    (fault,) = faults_of(name, content)

    first, second = ("tag_A", "tag_a") if "tag" in content else ("Num Frames", "num_frames")
    assert f"share it, {first} and {second}; rename or remove one." in fault


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((word, "prompt") for word in ("caption", "Text", "video_prompt", "prompt_en", "promt")),
        *((word, "num_inference_steps") for word in ("steps", "Sampling Steps", "stpes")),
        *((word, "guidance_scale") for word in ("cfg", "cfg-scale", "guidance", "guidance_scle")),
        *((word, "num_frames") for word in ("frames", "length", "video_length", "num_frmaes")),
        *((word, "negative_prompt") for word in ("negative", "neg", "negativ_prompt")),
        *((word, "image") for word in ("image_path", "img", "first_frame", "iamge")),
        *((word, "flow_shift") for word in ("shift", "flow_shfit")),
        *((word, "id") for word in ("filename", "name", "video_id")),
        ("w", "width"),
        ("h", "height"),
        ("hieght", "height"),
        ("Seeds", "seed"),
        ("frame rate", "fps"),
    ],
)
def test_a_name_of_another_tool_is_told_with_its_meaning(name: str, known: str) -> None:
    prompt = "" if known == "prompt" else "prompt,"
    (fault, *_) = faults_of("p.csv", f"{prompt}{name}\na" + ",1" * bool(prompt) + "\n")

    assert f"the nearest known name is {known}; rename it, type " in fault
    assert f"manifest_columns.{known}={name}" in fault


@pytest.mark.parametrize(
    "name",
    [
        *("videopath", "video_path", "weight", "weights", "speed", "light", "style", "scene"),
        *("category", "sequence", "with", "need", "feed", "test", "stage", "stops", "idea"),
        *("frame", "duration", "size", "resolution", "remodel", "joint", "score", "source"),
        *("temps", "wide", "eight", "mage", "hit", "fits", "prompter_name", "image_embedding"),
        *("embedded_guidance", "shiftwork", "negation", "timestamp", "x" * 100, "", "\u0301"),
    ],
)
def test_no_wrong_hint_is_given(name: str) -> None:
    assert meaning(name, KNOWN_COLUMNS) is None


@pytest.mark.parametrize(
    ("name", "where"),
    [("resolution", "two columns, height and width"), ("duration", "num_frames, in frames")],
)
def test_what_has_no_column_of_its_own_is_told_where_it_goes(name: str, where: str) -> None:
    (fault,) = faults_of("p.csv", f"prompt,{name}\na,1\n")

    assert where in fault


def test_a_hint_never_names_a_column_that_is_there() -> None:
    (fault,) = faults_of("p.csv", "prompt,text,caption\na,b,c\n")

    assert "columns=text, caption: a manifest has none of these 2" in fault
    assert "nearest" not in fault


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "Caption,steps\na cat,9\n"),
        ("p.tsv", "caption\tsteps\na cat\t9\n"),
        ("p.jsonl", '{"caption": "a cat", "steps": 9}'),
        ("p.json", '[{"caption": "a cat", "steps": 9}]'),
    ],
)
def test_a_column_stands_for_another_where_the_settings_say_so(name: str, content: str) -> None:
    reading = Reading(names={"prompt": "caption", "num_inference_steps": "steps"})

    (row,) = read(name, content, reading=reading).rows

    assert (row.prompt, row.num_inference_steps) == ("a cat", 9)
    assert len(faults_of(name, content)) == 2


def test_a_mapping_without_its_column_or_beside_the_real_one_is_refused() -> None:
    reading = Reading(names={"prompt": "caption"})

    for name, content in {"p.csv": "text\na\n", "p.jsonl": '{"text": "a"}', "p.txt": "a"}.items():
        faults = faults_of(name, content, reading=reading)
        assert any("manifest_columns.prompt=caption: the file has no such" in f for f in faults)
    (fault,) = faults_of("p.csv", "prompt,caption\na,b\n", reading=reading)
    assert "column=prompt: manifest_columns.prompt=caption takes another column in its" in fault


def test_one_column_cannot_stand_for_two() -> None:
    columns = ManifestColumns(prompt="text", id="text")

    with pytest.raises(Refused, match=r"^manifest_columns\.id=text: a column has one meaning"):
        reading_of(Config(manifest_columns=columns))


def test_five_hundred_rows_with_a_foreign_prompt_column_are_one_message() -> None:
    (fault,) = faults_of("p.jsonl", '{"caption": "a cat"}\n' * 527)

    assert fault.startswith("p.jsonl:1: column=caption: ")


def test_other_columns_are_left_out_or_become_labels() -> None:
    record = {"prompt": "a", "style": "noir", "score": 0.5, "ids": [1, 2], "meta": {"b": None}}
    pd.DataFrame([record]).to_parquet("p.parquet")
    labels = {
        "tag_style": "noir",
        "tag_score": "0.5",
        "tag_ids": "[1, 2]",
        "tag_meta": '{"b": null}',
    }
    for reading, tags, how in ((IGNORE, {}, "Left out"), (TAG, labels, "Taken as labels")):
        of_json = read("p.json", json.dumps([record]), reading=reading)
        of_parquet = read_manifest(Path("p.parquet"), Task.t2v, reading)

        assert of_json.rows[0].tags == of_parquet.rows[0].tags == tags
        assert of_json.notes == of_parquet.notes
        assert of_json.notes[0].startswith(f"{how}, as manifest_other=")
        assert of_json.notes[0].endswith(": style, score, ids, meta")


def test_a_label_made_of_a_column_does_not_take_the_place_of_another() -> None:
    (fault,) = faults_of("p.csv", "prompt,tag_style,style\na,1,2\n", reading=TAG)

    assert "share it, tag_style and style; rename or remove one." in fault


def test_what_may_be_a_column_of_another_name_is_told_where_it_is_left_out() -> None:
    manifest = read("p.csv", "prompt,steps,mood\na,9,calm\n", reading=IGNORE)

    assert manifest.notes == (
        "Left out, as manifest_other=ignore says: steps (meant as num_inference_steps?), mood",
    )
    for name, content in {"p.csv": "caption,mood\na,b\n", "p.jsonl": '{"caption": "a"}'}.items():
        faults = faults_of(name, content, reading=IGNORE)
        assert any("type manifest_columns.prompt=caption" in fault for fault in faults)


@pytest.mark.parametrize("first", ["A cat runs", "Beschreibung;Stil", "one\ttwo", "a, b, c"])
def test_a_table_without_a_header_is_told_so_in_one_message(first: str) -> None:
    (fault,) = faults_of("p.csv", f"{first}\n{first}\n")

    assert fault.endswith(
        ": a manifest has a column prompt, and this one has none; name the columns in the first "
        "line."
    )


def test_unknown_columns_beside_one_that_is_meant_are_told_at_once() -> None:
    faults = faults_of("p.csv", "caption,mood\na,b\n")

    assert ["column=caption" in fault for fault in faults] == [True, False]
    assert "column=mood: a manifest has no such column" in faults[1]


def test_thirty_columns_without_a_meaning_are_one_message() -> None:
    names = ",".join(f"column_{number:02}" for number in range(30))

    (fault,) = faults_of("p.csv", f"prompt,{names}\na{',' * 30}\n")

    assert "column_00, column_01" in fault
    assert "a manifest has none of these 30, and the known names are prompt, id" in fault
    assert fault.endswith(f"; {OTHERS}.")


def test_the_settings_are_typed_as_text_or_stand_in_an_experiment(command: Command) -> None:
    name = "Video Caption (en), ${long}"
    write("p.csv", f'"{name}",mood\n# a cat --seed 5,calm\n')
    Path("mine/experiment").mkdir(parents=True)
    write(
        "mine/experiment/sheets.yaml",
        "# @package _global_\nmanifest_literal: true\nmanifest_other: ignore\n"
        "manifest_columns:\n  prompt: 'Video Caption (en), \\${long}'\n",
    )
    typed = (f"manifest_columns.prompt={name}", "manifest_other=tag", "manifest_literal=true")

    for words in (typed, ("--config-dir=mine", "experiment=sheets")):
        answer = command("p.csv", "model=tiny_t2v", *words, "--dry-run")
        assert answer.code == 0, answer.err
        assert "p.csv: 1 row, 1 clip: 1 new" in answer.out
        assert "as manifest_other=" in answer.out


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("manifest_other=keep", "manifest_other"),
        ("manifest_literal=maybe", "manifest_literal"),
        ("manifest_columns.caption=prompt", "there is no setting manifest_columns.caption."),
        ("manifest_columns=caption", "manifest_columns is a section; set its members, for ex"),
        ("manifest_columns.prmpt=x", "Did you mean manifest_columns.prompt?"),
    ],
)
def test_what_is_no_such_setting_is_refused(command: Command, word: str, told: str) -> None:
    write("p.csv", "prompt\na cat\n")

    answer = command("p.csv", "model=tiny_t2v", word, "--dry-run")

    assert answer.code == 2
    assert told in answer.err
    assert "Traceback" not in answer.err


def test_a_sweep_reads_the_manifest_alike_in_every_job(command: Command) -> None:
    write("p.csv", "caption\na cat\n")

    answer = command(
        *("-m", "p.csv", "model=tiny_t2v", "manifest_columns.prompt=caption"),
        *("override.fps=12,24", "--dry-run"),
    )

    assert answer.code == 0, answer.err
    assert answer.out.count("p.csv: 1 row, 1 clip") == 2


def test_rows_of_a_data_frame_follow_the_same_settings(tmp_path: Path) -> None:
    rows = pd.DataFrame({"Caption": ["a cat", None], "mood": ["calm", None]})
    config = api.load_config(
        "model=tiny_t2v", "manifest_columns.prompt=caption", "manifest_other=tag"
    )

    (planned,) = api.plan(config, rows).clips

    assert planned.clip.settings.prompt == "a cat"
    assert planned.clip.tags == {"tag_mood": "calm"}
