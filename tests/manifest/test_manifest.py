"""Manifests: what is read, and the whole message of each fault."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hv15_batch.config.words import MANIFEST_SUFFIXES
from hv15_batch.errors import ConfigError
from hv15_batch.manifest.cells import ManifestError, format_fault, parse_seeds
from hv15_batch.manifest.read import Manifest, read_manifest
from hv15_batch.model.variant import Task

HARD_PROMPTS = [
    "plain",
    "commas, and; semicolons\tand tabs",
    'a sign that says "OPEN" and “营业中”',
    '"begins and ends quoted"',
    "two\nlines and a\r\nthird",
    "${oc.env:HOME} {braces} %s $(id) `x` \\n \\",
    "一只猫在雨中",
    "emoji 🐈‍⬛🎬 and e\u0301",
    "NA",
    "null",
    "nan",
    "None",
    "007",
    "true",
    " spaces around ",
    "=SUM(A1)",
    "# no comment",
    "line separator \u2028 and next line \x85 inside",
]
ONE_LINE_PROMPTS = [prompt for prompt in HARD_PROMPTS if "\n" not in prompt]

UTF8 = 'save it as UTF-8 (in a spreadsheet: "CSV UTF-8")'
TWICE = 'write a quotation mark inside a quoted cell twice ("")'
SEED_FORMS = "write them like 7, like 1 2 5, like 1,2,5 or like 0..3"
LABEL = "or begin it with tag_ if it is a label of your own"
TEXT = "must be text; in JSON put it in quotation marks, in Parquet write the column as string"
SIDE = "must be a multiple of 16; write it in digits, like 480"
FRAMES = "must be 4n+1; write it in digits, like 121"
STEPS = "must be a whole number of 1 or more; write it in digits, like 50"
REAL = "must be a finite number; write it like 6 or 5.5"
ID = (
    "an id is 1 to 64 of A-Z a-z 0-9 . _ -; use only these, "
    "or leave it empty and it is made from the prompt"
)


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> Path:
    path = Path(name)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(name: str, content: str | bytes, task: Task = Task.t2v) -> Manifest:
    return read_manifest(write(name, content), task)


def faults_of(name: str, content: str | bytes, task: Task = Task.t2v) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        read(name, content, task)
    return caught.value.faults


def write_csv(name: str, rows: list[list[Any]]) -> Path:
    with open(name, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return Path(name)


def write_png_header(name: str, width: int, height: int) -> None:
    """Write a PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    Path(name).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))


def write_image(name: str, size: tuple[int, int] = (96, 64), **options: Any) -> Path:
    Image.effect_noise(size, 50).convert("RGB").save(name, **options)
    return Path(name)


# What is read


def test_hard_prompts_arrive_unchanged_from_csv() -> None:
    path = write_csv("p.csv", [["prompt"], *([prompt] for prompt in HARD_PROMPTS)])

    rows = read_manifest(path, Task.t2v).rows

    assert [row.prompt for row in rows] == HARD_PROMPTS


def test_hard_prompts_arrive_unchanged_from_json_lines() -> None:
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in HARD_PROMPTS)

    assert [row.prompt for row in read("p.jsonl", lines).rows] == HARD_PROMPTS


def test_hard_prompts_arrive_unchanged_from_parquet() -> None:
    pd.DataFrame({"prompt": HARD_PROMPTS}).to_parquet("p.parquet")

    rows = read_manifest(Path("p.parquet"), Task.t2v).rows

    assert [row.prompt for row in rows] == HARD_PROMPTS


def test_hard_prompts_arrive_unchanged_from_text() -> None:
    rows = read("p.txt", "\n".join(ONE_LINE_PROMPTS)).rows

    assert [row.prompt for row in rows] == ONE_LINE_PROMPTS


prompts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200
).filter(lambda text: text.strip())


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(prompts, min_size=1, max_size=5))
def test_any_text_survives_csv_and_json_lines(texts: list[str]) -> None:
    file = io.StringIO(newline="")
    # Quoted throughout: csv.writer does not quote a lone CR in every Python version.
    writer = csv.writer(file, quoting=csv.QUOTE_ALL)
    writer.writerows([["prompt", "tag_copy"], *([text, text] for text in texts)])
    lines = "".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in texts)

    rows = read("p.csv", file.getvalue()).rows
    json_rows = read("p.jsonl", lines).rows

    assert [row.prompt for row in rows] == texts
    assert [row.tags["tag_copy"] for row in rows] == texts
    assert [row.prompt for row in json_rows] == texts


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


def test_the_line_is_where_the_record_starts() -> None:
    rows = read("p.csv", '\ufeffprompt,seed\r\n"one\r\ntwo",1\r\n\r\nthree,2\r\n').rows

    assert [(row.line, row.prompt) for row in rows] == [(2, "one\r\ntwo"), (5, "three")]
    assert [row.index for row in rows] == [0, 1]


def test_a_manifest_knows_its_path_name_and_hash() -> None:
    Path("sub").mkdir()
    content = b"\xef\xbb\xbfprompt\nA cat\n"
    path = write("sub/p.CSV", content)

    manifest = read_manifest(path, Task.t2v)

    assert manifest.path == Path.cwd() / "sub/p.CSV"
    assert manifest.name == "sub/p.CSV"
    assert manifest.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("suffix", MANIFEST_SUFFIXES)
def test_the_hash_is_of_the_bytes_in_every_format(suffix: str) -> None:
    path = Path(f"p{suffix}")
    if suffix == ".parquet":
        pd.DataFrame({"prompt": ["a"] * 3000}).to_parquet(path)
    else:
        write(path.name, '{"prompt": "a"}\n\n' if "json" in suffix else "prompt\na\n\n")

    manifest = read_manifest(path, Task.t2v)

    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


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


def test_parquet_types_are_read() -> None:
    table = pa.table(
        {
            "prompt": pa.array(["a", "b"], pa.large_string()).dictionary_encode(),
            "id": [1, None],
            "seed": pa.array([[1, 2], None], pa.list_(pa.int64())),
            "num_frames": [61.0, None],
            "fps": pa.array([24, None], pa.int8()),
            "tag_take": [1.5, None],
            "tag_good": [True, None],
        }
    )
    pq.write_table(table, "p.parquet")

    first, second = read_manifest(Path("p.parquet"), Task.t2v).rows

    assert (first.line, first.id, first.seeds) == (1, "1", (1, 2))
    assert (first.num_frames, first.fps) == (61, 24.0)
    assert first.tags == {"tag_take": "1.5", "tag_good": "true"}
    assert (second.line, second.seeds, second.num_frames, second.tags) == (2, None, None, {})


def test_json_values_are_read() -> None:
    record = {"prompt": "a", "id": 7, "seed": [3, 1], "height": 480.0, "fps": "24", "image": None}
    tags = {"tag_a": 1, "tag_b": False, "tag_c": "x", "tag_d": None, "tag_e": 0.5}

    [row] = read("p.ndjson", json.dumps(record | tags)).rows

    assert (row.id, row.seeds, row.height, row.fps) == ("7", (3, 1), 480, 24.0)
    assert row.tags == {"tag_a": "1", "tag_b": "false", "tag_c": "x", "tag_e": "0.5"}


def test_blank_lines_are_skipped_in_text_and_json_lines() -> None:
    assert [row.line for row in read("p.txt", "a\r\n\r\n  \r\nb").rows] == [1, 4]
    assert [row.line for row in read("p.jsonl", '\n{"prompt": "a"}\n\n').rows] == [2]


# Names of rows


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


# Images


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
        "p.csv:4: image=heavy.png: an image file has at most 64 MiB, and this one 67,108,865 "
        "bytes; save it smaller or as JPEG.",
        "p.csv:5: image=a.gif: must be a PNG, JPEG, WEBP or BMP image that can be decoded, and "
        "this file is broken or something else; open it in a viewer and save it again.",
        "p.csv:6: image=big.png: an image has at most 64 megapixels, and this one 9000x9000; "
        "scale it down (frames have under 1 megapixel).",
        "p.csv:7: image=bomb.png: an image has at most 64 megapixels, and this one far more; "
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
        "p.csv:2: image=b.png: a text-to-video model takes no image; leave the cell empty, or use "
        "an image-to-video model (model=480p_i2v).",
    )


# Seeds


@pytest.mark.parametrize(
    ("value", "seeds"),
    [
        ("7", (7,)),
        ("1 2 5", (1, 2, 5)),
        ("1,2,5", (1, 2, 5)),
        ("1, 2 ,5\n6", (1, 2, 5, 6)),
        ("0..3", (0, 1, 2, 3)),
        ("0..1 9", (0, 1, 9)),
        ("7.0", (7,)),
        ("007", (7,)),
        (str(2**63 - 1), (2**63 - 1,)),
        (7, (7,)),
        (7.0, (7,)),
        ([5, 1], (5, 1)),
        (["0..1", 3], (0, 1, 3)),
    ],
)
def test_every_way_to_write_seeds_is_read(value: Any, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(value) == seeds


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("x", f"seeds are integers from 0 to 2^63-1, and x is none; {SEED_FORMS}"),
        ("1,,2", f"seeds are integers from 0 to 2^63-1, and '' is none; {SEED_FORMS}"),
        ("-1", f"seeds are integers from 0 to 2^63-1, and -1 is none; {SEED_FORMS}"),
        ("1-5", f"seeds are integers from 0 to 2^63-1, and 1-5 is none; {SEED_FORMS}"),
        ("٣", f"seeds are integers from 0 to 2^63-1, and ٣ is none; {SEED_FORMS}"),
        (1.5, f"seeds are integers from 0 to 2^63-1, and 1.5 is none; {SEED_FORMS}"),
        (True, f"seeds are integers from 0 to 2^63-1, and true is none; {SEED_FORMS}"),
        (None, f"seeds are integers from 0 to 2^63-1, and null is none; {SEED_FORMS}"),
        ([[1]], f"seeds are integers from 0 to 2^63-1, and [1] is none; {SEED_FORMS}"),
        ([], f"seeds are integers from 0 to 2^63-1, at least one; {SEED_FORMS}"),
        (
            2**63,
            "seeds are integers from 0 to 2^63-1, and 9223372036854775808 is larger; "
            "use a smaller one",
        ),
        ("3..0", "a range of seeds goes up, and 3..0 goes down; write 0..3"),
        ("1 2 1", "a seed makes one clip, and 1 comes twice; give it once"),
        (
            f"0..{2**62}",
            "a row takes at most 10,000 seeds, and here are 4,611,686,018,427,387,905; "
            "use fewer, or several rows",
        ),
    ],
)
def test_what_is_no_seed_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_seeds(value)


# Faults: each with its whole text

BAD_MANIFESTS: dict[str, tuple[str, str | bytes, tuple[str, ...]]] = {
    "empty file": (
        "p.csv", "",
        ("p.csv:1: rows=0: a manifest has at least one row, and this one has none; "
         "write a prompt into it.",),
    ),
    "header only": (
        "p.csv", "\ufeffprompt,seed\n\n",
        ("p.csv:1: rows=0: a manifest has at least one row, and this one has none; "
         "write a prompt into it.",),
    ),
    "empty and blank prompts": (
        "p.csv", 'prompt,seed\n,1\n"  ",2\n',
        ("p.csv:2: prompt='': must not be empty; "
         "write what the clip shows, or delete the row.",
         "p.csv:3: prompt='  ': must not be empty; "
         "write what the clip shows, or delete the row."),
    ),
    "semicolons": (
        "p.csv", "prompt;seed\na cat;1\n",
        ("p.csv:1: header=prompt;seed: cells are separated by commas, and here by semicolons; "
         "save the file with commas.",),
    ),
    "quoted semicolons": (
        "p.csv", '"prompt";"seed"\n"a, cat";1\n',
        ('p.csv:1: header="prompt";"seed": cells are separated by commas, and here by '
         "semicolons; save the file with commas.",),
    ),
    "tabs": (
        "p.csv", "prompt\tseed\na cat\t1\n",
        ("p.csv:1: header='prompt\\tseed': cells are separated by commas, and here by tabs; "
         "save the file with commas.",),
    ),
    "Latin-1": (
        "p.csv", "prompt\na cat\ncafé\n".encode("latin-1"),
        ("p.csv:3: byte=0xe9: a manifest is UTF-8, and the byte at offset 16 is not; "
         f"{UTF8}.",),
    ),
    "Latin-1 after a byte order mark": (
        "p.txt", b"\xef\xbb\xbfcaf\xe9\n",
        (f"p.txt:1: byte=0xe9: a manifest is UTF-8, and the byte at offset 6 is not; {UTF8}.",),
    ),
    "UTF-16": (
        "p.csv", "prompt\na\n".encode("utf-16"),
        (f"p.csv:1: bytes=0xfffe: a manifest is UTF-8, and this file begins like UTF-16; {UTF8}.",),
    ),
    "NUL": (
        "p.csv", "prompt\na\0b\n",
        ("p.csv:2: byte=0x00: text holds no NUL, and the byte at offset 8 is one (a binary file, "
         f"or UTF-16); {UTF8}.",),
    ),
    "unclosed quote at the end": (
        "p.csv", 'prompt,seed\na,1\n"a cat,2\nb,3\n',
        ("p.csv:3: line=\"a cat,2: a quotation mark that opens a cell is closed, and here one is "
         f"not; close it, and {TWICE}.",),
    ),
    "unclosed quote before a quoted record": (
        "p.csv", 'prompt,seed\n"a cat,2\n"a dog",3\n',
        ("p.csv:2: line=\"a cat,2: a comma or the end of the line follows the quotation mark that "
         "closes a cell, and here something else does some lines further on; close the cell where "
         f"it ends, and {TWICE}.",),
    ),
    "single quotation marks inside a quoted cell": (
        "p.csv", 'prompt\nx\n"OPEN" says the sign\n',
        ("p.csv:3: line=\"OPEN\" says the sign: a comma or the end of the line follows the "
         "quotation mark that closes a cell, and here something else does; close the cell where "
         f"it ends, and {TWICE}.",),
    ),
    "CR line ends": (
        "p.csv", "prompt\ra cat\rb\r",
        ("p.csv:1: line='prompt\\ra cat\\rb': lines end with LF or CRLF, and a lone CR was found; "
         "save it with such line ends.",),
    ),
    "CR line ends in text": (
        "p.txt", "a\rb\r\n",
        ("p.txt:1: line='a\\rb': lines end with LF or CRLF, and a lone CR was found; "
         "save it with such line ends.",),
    ),
    "cell beyond the limit": (
        "p.csv", "prompt\n" + "a" * 1_000_001 + "\n",
        ("p.csv:2: line=" + "a" * 59 + "…: a cell has at most 1,000,000 characters, and here is "
         "one with more; shorten it, or close its quotation mark.",),
    ),
    "prompt beyond the limit in JSON": (
        "p.jsonl", json.dumps({"prompt": "a" * 1_000_001}),
        ("p.jsonl:1: prompt=" + "a" * 59 + "…: a cell holds at most 1,000,000 characters and this "
         "one 1,000,001; shorten it.",),
    ),
    "ragged rows": (
        "p.csv", "prompt,seed\na cat, a dog,1\nb\nc,1\n",
        ("p.csv:2: line=a cat, a dog,1: a record has a cell for each column, and here are 3 for "
         "2; put a text with commas in quotation marks, without a space before them.",
         "p.csv:3: line=b: a record has a cell for each column, and here are 1 for 2; "
         "add the missing commas (an empty cell means the default)."),
    ),
    "text in a nameless column": (
        "p.csv", "prompt,\na cat, a dog\n",
        ("p.csv:2: line=a cat, a dog: a cell stands in a column with a name, and cell 2 does not; "
         "name the column in the header, or put a text with commas in quotation marks.",),
    ),
    "unknown columns": (
        "p.csv", "prompt,Seeds,cat_of_mine_zzzz,frames\na,1,2,3\n",
        ("p.csv:1: column=Seeds: a manifest has no such column, and the nearest known name is "
         f"seed; correct or remove it, {LABEL}.",
         "p.csv:1: column=cat_of_mine_zzzz: a manifest has no such column, and the known names "
         "are prompt, id, seed, negative_prompt, image, height, width, num_frames, "
         "num_inference_steps, guidance_scale, flow_shift, fps; correct or remove it, "
         f"{LABEL}.",
         "p.csv:1: column=frames: a manifest has no such column, and the nearest known name is "
         f"num_frames; correct or remove it, {LABEL}."),
    ),
    "misspelt prompt column": (
        "p.csv", "Prompt,seed\na,x\n",
        ("p.csv:1: column=Prompt: a manifest has no such column, and the nearest known name is "
         f"prompt; correct or remove it, {LABEL}.",),
    ),
    "no prompt column": (
        "p.csv", "id,seed\na,1\n",
        ("p.csv:1: header=id,seed: a manifest has a column prompt, and this one has none; "
         "name the columns in the first line.",),
    ),
    "column named twice": (
        "p.csv", "prompt,seed,seed\na,1,2\n",
        ("p.csv:1: column=seed: a name stands for one column, and 2 and 3 share it; "
         "rename or remove one.",),
    ),
    "header of commas": (
        "p.csv", "," * 1_000_000 + "\n",
        ("p.csv:1: header='': a manifest has at most 1,000 columns, and this one 1,000,001; "
         "remove some.",),
    ),
    "label that cannot be printed": (
        "p.jsonl", '{"prompt": "a", "tag_\\ud800": "x"}',
        ("p.jsonl:1: column='tag_\\ud800': a manifest has no such column, and the known names are "
         "prompt, id, seed, negative_prompt, image, height, width, num_frames, "
         "num_inference_steps, guidance_scale, flow_shift, fps; correct or remove it, "
         f"{LABEL}.",),
    ),
    "too many columns": (
        "p.csv", "prompt" + ",tag_a" * 1000 + "\n",
        ("p.csv:1: header=prompt: a manifest has at most 1,000 columns, and this one 1,001; "
         "remove some.",),
    ),
    "sizes": (
        "p.csv", "prompt,height,width\na,490,848\nb,-480,0\nc,480,x\n",
        ("p.csv:2: height=490: must be a multiple of 16; nearest are 480 and 496.",
         "p.csv:3: height=-480: must be a multiple of 16; the least is 16.",
         "p.csv:3: width=0: must be a multiple of 16; the least is 16.",
         f"p.csv:4: width=x: {SIDE}."),
    ),
    "frames and steps": (
        "p.csv", "prompt,num_frames,num_inference_steps\na,120,50\nb,121.5,0\nc,nan,1e3\n",
        ("p.csv:2: num_frames=120: must be 4n+1; nearest are 117 and 121.",
         f"p.csv:3: num_frames=121.5: {FRAMES}.",
         "p.csv:3: num_inference_steps=0: must be 1 to 1000; 50 is usual, 8 or 12 for "
         "step-distilled models.",
         f"p.csv:4: num_frames=nan: {FRAMES}.",
         f"p.csv:4: num_inference_steps=1e3: {STEPS}."),
    ),
    "numbers": (
        "p.csv", 'prompt,guidance_scale,flow_shift,fps\na,nan,inf,-inf\nb,"6,5",six,1e999\n',
        (f"p.csv:2: guidance_scale=nan: {REAL}.",
         f"p.csv:2: flow_shift=inf: {REAL}.",
         f"p.csv:2: fps=-inf: {REAL}.",
         f"p.csv:3: guidance_scale=6,5: {REAL}.",
         f"p.csv:3: flow_shift=six: {REAL}.",
         f"p.csv:3: fps=1e999: {REAL}."),
    ),
    "numbers out of range": (
        "p.csv", "prompt,guidance_scale,flow_shift,fps\na,0.5,0,0\n",
        ("p.csv:2: guidance_scale=0.5: must be 1 (no guidance) to 100; 6 is usual.",
         "p.csv:2: flow_shift=0: must be over 0 and at most 100; 5 to 9 is usual.",
         "p.csv:2: fps=0: must be 1 to 240; the model was trained at 24."),
    ),
    "seed": (
        "p.csv", "prompt,seed\na,-1\nb,0..99999999999\n",
        (f"p.csv:2: seed=-1: seeds are integers from 0 to 2^63-1, and -1 is none; {SEED_FORMS}.",
         "p.csv:3: seed=0..99999999999: a row takes at most 10,000 seeds, and here are "
         "100,000,000,000; use fewer, or several rows."),
    ),
    "too many clips": (
        "p.csv", "prompt,seed\n" + "a,0..9999\n" * 102,
        ("p.csv:102: seed=0..9999: a manifest makes at most 1,000,000 clips, and here they are "
         "more; split it into several.",),
    ),
    "ids": (
        "p.csv", f"prompt,id\na,a b\nb,../x\nc,.hidden\nd,..\ne,{'x' * 65}\nf,猫\n",
        (f"p.csv:2: id=a b: {ID}.",
         f"p.csv:3: id=../x: {ID}.",
         "p.csv:4: id=.hidden: an id must not begin with a full stop, as temporary files do; "
         "remove it.",
         "p.csv:5: id=..: an id must not begin with a full stop, as temporary files do; "
         "remove it.",
         f"p.csv:6: id={'x' * 59}…: {ID}.",
         f"p.csv:7: id=猫: {ID}."),
    ),
    "duplicate ids": (
        "p.csv", "prompt,id\na,cat\nb,Cat\nc,cat\n",
        ("p.csv:3: id=Cat: an id is unique, and line 2 has cat, which a disk may take for the "
         "same name, already; change one of the two.",
         "p.csv:4: id=cat: an id is unique, and line 2 has it already; change one of the two."),
    ),
    "broken JSON line": (
        "p.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n{"prompt": }\n{"prompt": "c"}\n',
        ("p.jsonl:2: line={\"prompt\": \"b\": a line is one JSON object, and this one breaks at "
         "character 15 (Expecting ',' delimiter); correct it.",
         "p.jsonl:3: line={\"prompt\": }: a line is one JSON object, and this one breaks at "
         "character 12 (Expecting value); correct it."),
    ),
    "JSON list": (
        "p.jsonl", '[\n{"prompt": "a"}\n]\n',
        ("p.jsonl:1: line=[: JSON Lines has one object on each line, and this file is a JSON "
         "array; write one object on each line, without the list and the commas around them.",),
    ),
    "JSON lists on later lines": (
        "p.jsonl", '{"prompt": "a"}\n[1]\n[\n{"prompt": 7}\n',
        ('p.jsonl:2: line=[1]: a line is one JSON object, such as {"prompt": "a cat"}, and here is '
         "something else; write one object on each line, without a list around them.",
         "p.jsonl:3: line=[: a line is one JSON object, and this one breaks at character 2 "
         "(Expecting value); correct it.",
         f"p.jsonl:4: prompt=7: {TEXT}."),
    ),
    "JSON line without an object": (
        "p.jsonl", '"a cat"\n',
        ('p.jsonl:1: line="a cat": a line is one JSON object, such as {"prompt": "a cat"}, and '
         "here is something else; write one object on each line, without a list around them.",),
    ),
    "JSON name twice": (
        "p.jsonl", '{"prompt": "a", "seed": 1, "seed": 2}\n',
        ('p.jsonl:1: line={"prompt": "a", "seed": 1, "seed": 2}: a name stands once in an object, '
         "and seed stands twice; remove one.",),
    ),
    "JSON NaN": (
        "p.jsonl", '{"prompt": "a", "fps": NaN}\n',
        ('p.jsonl:1: line={"prompt": "a", "fps": NaN}: numbers are finite, and NaN is not; '
         "write null for the default.",),
    ),
    "JSON nested deeply": (
        "p.jsonl", '{"prompt":' + "[" * 200_000 + "\n",
        ('p.jsonl:1: line={"prompt":' + "[" * 49 + "…: a line is one JSON object, and this one is "
         "nested too deeply; write plain values.",),
    ),
    "JSON integer of many digits": (
        "p.jsonl", '{"prompt": "a", "seed": ' + "1" * 5000 + "}\n",
        ('p.jsonl:1: line={"prompt": "a", "seed": ' + "1" * 35 + "…: an integer has at most 100 "
         "digits, and here is one of 5,000; put it in quotation marks if it is text.",),
    ),
    "JSON types": (
        "p.jsonl",
        '{"prompt": 7, "num_frames": true, "fps": false, "tag_a": [1], "id": 1.5}\n'
        '{"prompt": "\\ud800", "seed": true, "negative_prompt": "a\\u0000b", "tag_b": {}}\n',
        (f"p.jsonl:1: prompt=7: {TEXT}.",
         f"p.jsonl:1: id=1.5: {ID}.",
         f"p.jsonl:1: num_frames=true: {FRAMES}.",
         f"p.jsonl:1: fps=false: {REAL}.",
         "p.jsonl:1: tag_a=[1]: a label is a single value; write it as text.",
         "p.jsonl:2: prompt='\\ud800': text must be valid Unicode, and character 1 is half of a "
         "surrogate pair; write the character itself.",
         "p.jsonl:2: negative_prompt='a\\x00b': text holds no NUL characters; remove them.",
         f"p.jsonl:2: seed=true: seeds are integers from 0 to 2^63-1, and true is none; "
         f"{SEED_FORMS}.",
         "p.jsonl:2: tag_b={}: a label is a single value; write it as text."),
    ),
    "JSON unknown column is told once": (
        "p.jsonl", '{"prompt": "a", "steps_": 1}\n' * 3,
        ("p.jsonl:1: column=steps_: a manifest has no such column, and the nearest known "
         f"name is num_inference_steps; correct or remove it, {LABEL}.",),
    ),
    "JSON without a prompt": (
        "p.jsonl", '{"seed": 1}\n{"prompt": null}\n',
        ("p.jsonl:1: prompt='': must not be empty; "
         "write what the clip shows, or delete the row.",
         "p.jsonl:2: prompt='': must not be empty; "
         "write what the clip shows, or delete the row."),
    ),
    "broken Parquet": (
        "p.parquet", b"prompt\na cat\n",
        ("p.parquet:1: file=p.parquet: a whole Parquet file can be read, and this one breaks after "
         "row 0 (Parquet magic bytes not found in footer. Either the file is corrupted or this is "
         "not a parquet file); write it again.",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_a_bad_manifest_is_refused_with_its_whole_message(case: str) -> None:
    name, content, faults = BAD_MANIFESTS[case]

    assert faults_of(name, content) == faults


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_every_fault_says_place_value_rule_and_action_on_one_printable_line(case: str) -> None:
    name, content, _ = BAD_MANIFESTS[case]

    for fault in faults_of(name, content):
        place, _, rest = fault.partition(": ")
        assert place.rsplit(":", 1)[0] == name
        assert place.rsplit(":", 1)[1].isdigit()
        assert "=" in rest
        assert "; " in rest
        assert fault.endswith(".")
        assert fault.isprintable()
        fault.encode()


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_a_narrow_float_in_parquet_is_the_number_that_was_written(kind: pa.DataType) -> None:
    table = pa.table(
        {
            "prompt": ["a", "b"],
            "fps": pa.array([23.98, None], kind),
            "guidance_scale": pa.array([1.1, 6.0], kind),
            "num_frames": pa.array([121.0, 5.0], kind),
            "tag_lens": pa.array([0.1, None], kind),
        }
    )
    pq.write_table(table, "p.parquet")

    first, second = read_manifest(Path("p.parquet"), Task.t2v).rows

    assert (first.fps, first.guidance_scale, first.num_frames) == (23.98, 1.1, 121)
    assert (second.fps, second.guidance_scale, second.num_frames) == (None, 6.0, 5)
    assert first.tags == {"tag_lens": "0.1"}


def test_parquet_faults_name_the_row() -> None:
    table = pa.table(
        {
            "prompt": pa.array([b"a", b"b"], pa.binary()),
            "fps": [24.0, float("nan")],
            "num_frames": [61.5, 61.0],
        }
    )
    pq.write_table(table, "p.parquet")

    with pytest.raises(ManifestError) as caught:
        read_manifest(Path("p.parquet"), Task.t2v)

    assert caught.value.faults == (
        f"p.parquet:1: prompt=\"b'a'\": {TEXT}.",
        f"p.parquet:1: num_frames=61.5: {FRAMES}.",
        f"p.parquet:2: prompt=\"b'b'\": {TEXT}.",
        f"p.parquet:2: fps=NaN: {REAL}.",
    )


def test_parquet_column_faults_are_those_of_a_header() -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["prompt", "id", "id"]), "p.parquet")

    with pytest.raises(ManifestError) as caught:
        read_manifest(Path("p.parquet"), Task.t2v)

    assert caught.value.faults == (
        "p.parquet:1: column=id: a name stands for one column, and 2 and 3 share it; "
        "rename or remove one.",
    )


def test_a_parquet_file_broken_in_the_middle_is_refused() -> None:
    pd.DataFrame({"prompt": [f"a prompt, number {i}" for i in range(5000)]}).to_parquet("p.parquet")
    data = bytearray(Path("p.parquet").read_bytes())
    data[100:20_000] = b"\xff" * 19_900

    [fault] = faults_of("p.parquet", bytes(data))

    assert fault.startswith("p.parquet:1: file=p.parquet: a whole Parquet file can be read, and ")
    assert fault.endswith("; write it again.")


def test_all_faults_are_told_at_once_in_file_order() -> None:
    content = "prompt,seed,num_frames\n,x,120\na,1,121\nb,1,1.5\n"

    assert [fault.split("=")[0] for fault in faults_of("p.csv", content)] == [
        "p.csv:2: prompt",
        "p.csv:2: seed",
        "p.csv:2: num_frames",
        "p.csv:4: num_frames",
    ]


def test_rows_before_a_broken_quote_are_checked_too() -> None:
    assert [fault.split("=")[0] for fault in faults_of("p.csv", 'prompt,seed\na,x\n"b')] == [
        "p.csv:2: seed",
        "p.csv:3: line",
    ]


def test_fifty_faults_are_printed_and_the_rest_counted() -> None:
    with pytest.raises(ManifestError) as caught:
        read("p.csv", "prompt,seed\n" + "a,x\n" * 1300)

    lines = str(caught.value).splitlines()
    assert len(caught.value.faults) == 1300
    assert len(lines) == 51
    assert lines[:50] == list(caught.value.faults[:50])
    assert lines[50] == "and 1,250 more"


def test_a_manifest_error_is_a_configuration_error_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ManifestError(["one", "two"])))

    assert isinstance(error, ConfigError)
    assert error.faults == ("one", "two")
    assert str(error) == "one\ntwo"


def test_a_fault_is_one_line_with_a_short_value() -> None:
    fault = format_fault("a.csv", 3, "prompt", "x\n" * 1000, "is too long", "shorten it")

    shown = repr(("x\n" * 1000)[:59] + "…")
    assert fault == f"a.csv:3: prompt={shown}: is too long; shorten it."


# Files that are none


def test_a_missing_manifest_is_refused_and_the_nearest_name_given() -> None:
    write("prompts.csv", "prompt\na\n")
    Path("folder.csv").mkdir()

    for path, message in {
        "promts.csv": "there is no such file; did you mean prompts.csv?",
        "zzz.csv": "there is no such file; correct the path.",
        "none/zzz.csv": "there is no such file; correct the path.",
        "prompts.csv/x.csv": "there is no such file; correct the path.",
        "folder.csv": "a manifest is a file, and this is none; name a file.",
        "/dev/zero": "a manifest is a file, and this is none; name a file.",
    }.items():
        with pytest.raises(ConfigError) as caught:
            read_manifest(Path(path), Task.t2v)
        assert str(caught.value) == f"manifest={path}: {message}"


def test_a_file_of_another_kind_or_size_is_refused() -> None:
    write("p.xlsx", b"PK")
    with open("huge.csv", "wb") as file:
        file.truncate(1024**3 + 1)

    for name, message in {
        "p.xlsx": "a manifest ends in .csv, .jsonl, .ndjson, .parquet, .txt; "
        "rename it if it is one of these.",
        "huge.csv": "a manifest has at most 1 GiB, and this one 1,073,741,825 bytes; split it.",
    }.items():
        with pytest.raises(ConfigError) as caught:
            read_manifest(Path(name), Task.t2v)
        assert str(caught.value) == f"manifest={name}: {message}"


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
def test_a_line_of_a_gigabyte_is_refused_without_reading_it(suffix: str) -> None:
    # Sparse after the first 9 MB: what is read is refused before the zeros begin.
    path = write(f"p{suffix}", b"a" * 9_000_000)
    with path.open("r+b") as file:
        file.truncate(10**9)

    started = time.process_time()
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, Task.t2v)

    assert time.process_time() - started < 2
    assert caught.value.faults == (
        f"p{suffix}:1: line={'a' * 59}…: a line has at most 8 MiB, and this one more; "
        "write each record on a line of its own.",
    )


def test_an_unclosed_quote_in_a_large_file_is_refused_early() -> None:
    path = write("p.csv", 'prompt\n"' + "a cat on a roof\n" * 4_000_000)

    started = time.process_time()
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, Task.t2v)

    assert time.process_time() - started < 2
    assert caught.value.faults == (
        'p.csv:2: line="a cat on a roof: a cell has at most 1,000,000 characters, and here is '
        "one with more; shorten it, or close its quotation mark.",
    )


def test_the_process_keeps_its_csv_limit() -> None:
    limit = csv.field_size_limit()

    read("p.csv", "prompt\na\n")
    faults_of("p.csv", 'prompt\n"a\n')

    assert csv.field_size_limit() == limit


def test_ten_thousand_rows_are_read_in_time() -> None:
    rows = [[f'A cat, number {i}, says "{i}"', "0..3", 121.0, 6] for i in range(10_000)]
    path = write_csv("p.csv", [["prompt", "seed", "num_frames", "guidance_scale"], *rows])

    started = time.process_time()
    manifest = read_manifest(path, Task.t2v)

    assert time.process_time() - started < 1.5
    assert len(manifest.rows) == 10_000


def test_reading_csv_imports_no_heavy_package() -> None:
    write("p.csv", "prompt\na\n")
    code = (
        "import sys; from pathlib import Path; from hv15_batch.config.checks import Task\n"
        "from hv15_batch.manifest.read import read_manifest\n"
        "read_manifest(Path('p.csv'), Task.t2v)\n"
        "print([n for n in ('torch', 'pandas', 'pyarrow', 'PIL', 'numpy') if n in sys.modules])"
    )

    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root}
    )

    assert done.stdout == "[]\n", done.stderr
