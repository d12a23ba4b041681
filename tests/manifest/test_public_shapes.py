"""Small files of the shapes in which lists of prompts are published; the sentences are our own."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from fakes.manifests import faults_of, read, write
from fakes.tiny_clips import config_of

from hv15_batch.config.settings import ManifestColumns, OtherColumns
from hv15_batch.manifest.clips import make_clips, read_rows, repeats_note
from hv15_batch.manifest.columns import Reading
from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.variant import Task

pytestmark = pytest.mark.usefixtures("in_empty_folder")

SCENES = (
    "a kite above a beach",
    "two herons in shallow water",
    "a tram turns a corner at night",
    "a potter shapes a bowl",
)


def clips_made(path: Path, **changes: object) -> tuple[list[str], str | None]:
    """Return the prompts of the clips that a manifest makes, and what is told of repeated ones."""
    config = config_of(path.parent, **changes)
    manifest = read_rows(path, config)
    clips = make_clips(manifest, config, "1")
    return [clip.settings.prompt for clip in clips], repeats_note(manifest, clips)


def test_one_prompt_a_line_with_repeats_and_blank_lines() -> None:
    """A benchmark of many dimensions names a prompt under each of them."""
    lines = [*SCENES, SCENES[0], "", SCENES[2], SCENES[0], "", ""]

    prompts, note = clips_made(write("all_dimensions.txt", "\r\n".join(lines)))

    assert prompts == list(SCENES)
    assert note == (
        "Repeated in the manifest, rendered once: 2 clips, 3 times more: line 5 as line 1, line 8 "
        "as line 1, line 7 as line 3"
    )


def test_an_array_with_a_prompt_and_what_it_measures() -> None:
    records = [
        {"prompt_en": scene, "dimension": ["motion", "space"], "auxiliary_info": {"count": n}}
        for n, scene in enumerate((*SCENES, SCENES[1]))
    ]
    path = write("full_info.json", json.dumps(records, indent=4))

    faults = faults_of(path.name, path.read_bytes())
    prompts, note = clips_made(
        path,
        manifest_columns=ManifestColumns(prompt="prompt_en"),
        manifest_other=OtherColumns.ignore,
    )

    assert len(faults) == 2
    assert "type manifest_columns.prompt=prompt_en" in faults[0] + faults[1]
    assert "manifest_other=ignore" in faults[0] + faults[1]
    assert prompts == list(SCENES)
    assert note is not None


def test_an_array_of_objects_with_ids_of_several_kinds_of_names() -> None:
    records = [{"ID": f"{n:04}", "Prompt": scene} for n, scene in enumerate(SCENES)]

    rows = read("consistency.json", json.dumps(records)).rows

    assert [row.id for row in rows] == ["0000", "0001", "0002", "0003"]


def test_long_prompts_a_line_of_which_some_stand_in_quotation_marks() -> None:
    lines = [f'"{SCENES[0]}."', f"{SCENES[1]}, seen from above. " * 20, SCENES[2]]

    manifest = read("MovieBench.txt", "\n".join(lines))

    assert [row.prompt for row in manifest.rows] == lines
    (note,) = manifest.notes
    assert note.startswith(
        "Taken as typed: prompts wholly in quotation marks, which the model draws"
    )


def test_a_parquet_file_with_many_other_columns() -> None:
    frame = pd.DataFrame(
        {
            "image_name": [f"{n}.webp" for n in range(4)],
            "prompt": SCENES,
            "seed": [5, 6, 7, 8],
            "step": [50] * 4,
            "cfg": [7.0] * 4,
            "sampler": [8] * 4,
            "width": [512] * 4,
            "height": [512] * 4,
            "user_name": ["x"] * 4,
            "timestamp": pd.to_datetime(["2024-01-01"] * 4, utc=True),
            "image_nsfw": [0.1] * 4,
        },
        index=[3, 1, 2, 0],
    )
    frame.to_parquet("metadata.parquet")
    data = Path("metadata.parquet").read_bytes()

    faults = faults_of("metadata.parquet", data)
    read_as = Reading(other=OtherColumns.ignore)
    manifest = read_manifest(Path("metadata.parquet"), Task.t2v, read_as)

    told = "\n".join(faults)
    assert "type manifest_columns.guidance_scale=cfg" in told
    assert "manifest_other=ignore" in told
    assert len(faults) <= 4
    assert [(row.prompt, row.seeds, row.width) for row in manifest.rows] == [
        (scene, (seed,), 512) for scene, seed in zip(SCENES, (5, 6, 7, 8), strict=True)
    ]
    assert [row.tags for row in manifest.rows] == [{}] * 4


def test_samples_of_a_trainer_with_options_and_comments() -> None:
    lines = [
        "# prompts for samples",
        f"{SCENES[0]} --w 832 --h 480 --f 81 --d 42 --s 20",
        f"{SCENES[1]} --n blurry, low quality --w 832 --h 480 --d 1 --l 7.5 --s 28",
        "",
        "# night",
        SCENES[2],
    ]

    faults = faults_of("sample_prompts.txt", "\n".join(lines))

    assert [fault.split(":")[1] for fault in faults] == ["1", "2", "3", "5"]
    assert all("manifest_literal=true" in fault for fault in faults)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_sheet_as_excel_saves_it_in_half_of_europe(encoding: str) -> None:
    rows = [f"{n};{scene}, w\u00e4hrend es regnet;;121,0" for n, scene in enumerate(SCENES)]
    header = "Index;Prompt;Negative Prompt;Num Frames"
    path = write("Mappe1.csv", "\r\n".join([header, *rows, ";;;", ";;;", ""]).encode(encoding))

    faults = faults_of(path.name, path.read_bytes())

    (name, *numbers) = faults
    assert "column=Index: a manifest has no such column, and the nearest known name is id" in name
    assert "num_frames=121,0: must be 4n+1; write it in digits, like 121" in numbers[0]
    good = path.read_bytes().replace(b"121,0", b"121.0").replace(b"Index", b"ID")
    assert [row.num_frames for row in read(path.name, good).rows] == [121] * 4


def test_a_table_of_a_node_editor_with_paths_and_other_names() -> None:
    content = "filename,positive,negative,steps,cfg\n" + "".join(
        f"clip_{n},{scene},blurry,20,1\n" for n, scene in enumerate(SCENES)
    )
    columns = ManifestColumns(
        id="filename",
        prompt="positive",
        negative_prompt="negative",
        num_inference_steps="steps",
        guidance_scale="cfg",
    )
    path = write("queue.csv", content)

    faults = faults_of("queue.csv", content)
    prompts, _ = clips_made(path, manifest_columns=columns)

    assert len(faults) == 5
    assert prompts == list(SCENES)
