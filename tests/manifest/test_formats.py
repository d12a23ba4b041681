"""CSV, JSON Lines, Parquet and text: what arrives from each, and files that break."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes.manifests import (
    FRAMES,
    HARD_PROMPTS,
    LITERAL,
    ONE_LINE_PROMPTS,
    REAL,
    TEXT,
    faults_of,
    read,
    write,
    write_csv,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hv15_batch.config.files import MANIFEST_SUFFIXES
from hv15_batch.manifest.cells import ManifestError
from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.variant import Task

pytestmark = pytest.mark.usefixtures("in_empty_folder")


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
    rows = read("p.txt", "\n".join(ONE_LINE_PROMPTS), reading=LITERAL).rows

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

    rows = read("p.csv", file.getvalue(), reading=LITERAL).rows
    json_rows = read("p.jsonl", lines, reading=LITERAL).rows

    assert [row.prompt for row in rows] == texts
    assert [row.tags["tag_copy"] for row in rows] == texts
    assert [row.prompt for row in json_rows] == texts


def test_the_line_is_where_the_record_starts() -> None:
    rows = read("p.csv", '\ufeffprompt,seed\r\n"one\r\ntwo",1\r\n\r\nthree,2\r\n').rows

    assert [(row.line, row.prompt) for row in rows] == [(2, "one\r\ntwo"), (5, "three")]
    assert [row.index for row in rows] == [0, 1]


@pytest.mark.parametrize("suffix", MANIFEST_SUFFIXES)
def test_the_hash_is_of_the_bytes_in_every_format(suffix: str) -> None:
    path = Path(f"p{suffix}")
    if suffix == ".parquet":
        pd.DataFrame({"prompt": ["a"] * 3000}).to_parquet(path)
    else:
        first = "a cat" if suffix == ".txt" else "prompt"
        write(path.name, '{"prompt": "a"}\n\n' if "json" in suffix else f"{first}\na\n\n")

    manifest = read_manifest(path, Task.t2v)

    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


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
        "p.parquet:1: column=id: a name belongs to one column, and 2 and 3 share it; "
        "rename or remove one.",
    )


def test_a_parquet_file_broken_in_the_middle_is_refused() -> None:
    pd.DataFrame({"prompt": [f"a prompt, number {i}" for i in range(5000)]}).to_parquet("p.parquet")
    data = bytearray(Path("p.parquet").read_bytes())
    data[100:20_000] = b"\xff" * 19_900

    [fault] = faults_of("p.parquet", bytes(data))

    assert fault.startswith("p.parquet:1: file=p.parquet: a whole Parquet file can be read, and ")
    assert fault.endswith("; write it again.")


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
