"""Rows: columns, defaults, names and first frames."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from fakes.manifests import (
    faults_of,
    read,
    write,
    write_image,
    write_png_header,
)
from PIL import Image

from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.variant import Task

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def test_every_column_is_read() -> None:
    [row] = read(
        "p.csv",
        "prompt,id,seed,negative_prompt,height,width,num_frames,num_inference_steps,"
        "guidance_scale,flow_shift,fps,tag_scene,tag_empty\n"
        'A cat,cat.1,"0..2, 7",blurry,480,848,121.0,50,6,5.5,24,roof,\n',
    ).rows

    assert (row.index, row.line, row.id, row.id_given) == (0, 2, "cat.1", True)
    assert (row.prompt, row.negative_prompt) == ("A cat", "blurry")
    assert row.seeds == (0, 1, 2, 7)
    assert (row.height, row.width, row.num_frames, row.num_inference_steps) == (480, 848, 121, 50)
    assert type(row.num_frames) is int
    assert (row.guidance_scale, row.flow_shift, row.fps) == (6.0, 5.5, 24.0)
    assert row.tags == {"tag_scene": "roof"}


def test_an_id_is_read_without_spaces_around_it_and_as_a_whole_number() -> None:
    rows = read("p.csv", "prompt,id\na, cat \nb,7\n").rows
    records = [{"prompt": "a", "id": 7.0}, {"prompt": "b", "id": None}, {"prompt": "c", "id": 12}]

    assert [row.id for row in rows] == ["cat", "7"]
    assert [row.id for row in read("p.json", json.dumps(records)).rows if row.id_given] == [
        "7",
        "12",
    ]


def test_an_empty_cell_is_the_default() -> None:
    [row] = read(
        "p.csv",
        "prompt,id,seed,negative_prompt,image,height,num_frames,guidance_scale\nA cat,, ,,,,,\n",
    ).rows

    assert row.seeds is None
    assert row.negative_prompt is None
    assert row.image is None
    assert row.height is None
    assert row.num_frames is None
    assert row.guidance_scale is None
    assert not row.id_given


def test_the_index_that_pandas_writes_is_ignored() -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "num_frames": [61, None]}, index=[5, 7])
    frame.to_csv("once.csv")
    pd.read_csv("once.csv").to_csv("twice.csv")
    frame.to_parquet("p.parquet")

    for name in ("once.csv", "twice.csv", "p.parquet"):
        rows = read_manifest(Path(name), Task.t2v).rows
        assert [(row.prompt, row.num_frames) for row in rows] == [("a", 61), ("b", None)]


def test_a_nameless_column_of_empty_cells_is_ignored() -> None:
    assert read("p.csv", "prompt,seed,\na,1,\n").rows[0].seeds == (1,)


@pytest.mark.parametrize(
    ("prompt", "slug"),
    [
        ('A Cat, on the "Roof" of a house', "a-cat-on-the-roof-of-a"),
        ("Pneumonoultramicroscopicsilicovolcanoconiosis again", "pneumonoultramicroscopic"),
        ("一只猫 named Tom", "named-tom"),
        ("一只猫", "clip"),
    ],
)
def test_a_row_without_an_id_is_named_after_its_prompt(prompt: str, slug: str) -> None:
    [row] = read("p.txt", prompt).rows

    content = json.dumps([prompt, None, None]).encode()
    assert row.id == f"{slug}-{hashlib.sha256(content).hexdigest()[:6]}"


def test_a_derived_id_depends_on_content_and_not_on_place() -> None:
    before = read("p.csv", "prompt,negative_prompt\na,\na,blurry\n").rows
    after = read("p.csv", "prompt,negative_prompt\nnew,\na,blurry\na,\na,\n").rows

    assert before[0].id != before[1].id
    assert [row.id for row in after[1:]] == [before[1].id, before[0].id, before[0].id]


def test_a_prompt_without_ascii_words_is_named_after_its_image() -> None:
    write_image("My Roof 2.png")

    [row] = read("p.csv", "prompt,image\n猫,My Roof 2.png\n", Task.i2v).rows

    assert row.id.startswith("my-roof-2-")


def test_an_image_is_found_beside_the_manifest_hashed_and_measured() -> None:
    Path("sub").mkdir()
    path = write_image("sub/first frame.png", (96, 64))
    write("sub/p.csv", "prompt,image\na,first frame.png\nb,./first frame.png\n")

    first, second = read_manifest(Path("sub/p.csv"), Task.i2v).rows

    assert first.image == "first frame.png"
    assert first.image_path == str(Path.cwd() / "sub/first frame.png")
    assert first.image_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert first.image_size == (64, 96)
    assert second.image_sha256 == first.image_sha256


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_every_image_format_is_read(suffix: str) -> None:
    write_image(f"a.{suffix}", (200, 100))

    assert read("p.csv", f"prompt,image\na,a.{suffix}\n", Task.i2v).rows[0].image_size == (100, 200)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_size_of_an_image_is_the_one_a_viewer_shows(suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    write_image(f"a.{suffix}", (200, 100), exif=exif)

    assert read("p.csv", f"prompt,image\na,a.{suffix}\n", Task.i2v).rows[0].image_size == (200, 100)


def test_a_png_with_one_wrong_byte_is_refused() -> None:
    data = bytearray(write_image("a.png").read_bytes())
    data[len(data) // 2] ^= 1
    Path("a.png").write_bytes(data)

    assert len(faults_of("p.csv", "prompt,image\na,a.png\n", Task.i2v)) == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
def test_a_truncated_image_is_refused(suffix: str) -> None:
    data = write_image(f"a.{suffix}", (200, 100)).read_bytes()
    Path(f"a.{suffix}").write_bytes(data[: len(data) * 9 // 10])

    assert faults_of("p.csv", f"prompt,image\na,a.{suffix}\n", Task.i2v) == (
        f"p.csv:2: image=a.{suffix}: must be a PNG, JPEG, WEBP or BMP image that can be decoded, "
        "and this file is broken or something else; open it in a viewer and save it again.",
    )


def test_unusable_images_are_refused_with_the_reason() -> None:
    write_image("long.png", (330, 64))
    write_image("a.gif")
    write_png_header("big.png", 9000, 9000)
    write_png_header("bomb.png", 20_000, 10_000)
    Path("folder").mkdir()
    with open("heavy.png", "wb") as file:
        file.truncate(64 * 1024**2 + 1)
    names = ["none.png", "folder", "heavy.png", "a.gif", "big.png", "bomb.png", "long.png"]
    content = "prompt,image\n" + "".join(f"a,{name}\n" for name in names)
    here = Path.cwd()

    assert faults_of("p.csv", content, Task.i2v) == (
        f"p.csv:2: image=none.png: the file must exist, and {here}/none.png does not; "
        "correct the path, which starts at the manifest's folder.",
        f"p.csv:3: image=folder: must be a PNG, JPEG, WEBP or BMP image, and {here}/folder is no "
        "regular file; name an image file.",
        "p.csv:4: image=heavy.png: an image file has at most 64 MiB, and this one has 67,108,865 "
        "bytes; save it smaller or as JPEG.",
        "p.csv:5: image=a.gif: must be a PNG, JPEG, WEBP or BMP image, and this is a GIF image; "
        "convert it: magick 'a.gif[0]' a.png.",
        "p.csv:6: image=big.png: an image has at most 64 megapixels, and this one has 9000x9000; "
        "scale it down (frames have under 1 megapixel).",
        "p.csv:7: image=bomb.png: an image has at most 64 megapixels, and this one has far more; "
        "scale it down (frames have under 1 megapixel).",
        "p.csv:8: image=long.png: an image is at most 4:1, and this one is 330x64 pixels; crop it.",
    )


def test_an_image_is_required_for_image_to_video_and_its_size_is_not_given() -> None:
    write_image("a.png")
    content = "prompt,image,height\na,,\nb,a.png,480\n"

    assert faults_of("p.csv", content, Task.i2v) == (
        "p.csv:2: image='': an image-to-video model needs a first frame; name an image file.",
        "p.csv:3: height=480: an image-to-video model takes its size from the image; "
        "leave it out (the dry run shows the size).",
    )


def test_an_image_is_refused_for_text_to_video() -> None:
    assert faults_of("p.csv", "prompt,image\na,b.png\n") == (
        "p.csv:2: image=b.png: a text-to-video model uses no image; leave the cell empty, or use "
        "an image-to-video model (model=480p_i2v).",
    )
