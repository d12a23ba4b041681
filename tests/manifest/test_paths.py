"""Paths and names of files that lead nowhere: each is named with its own way out."""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes.command import Answer
from fakes.manifests import faults_of, read, write, write_image

from hv15_batch.config.files import MANIFEST_SUFFIXES
from hv15_batch.errors import Refused
from hv15_batch.manifest import rows as manifest_rows
from hv15_batch.manifest.cells import ManifestError
from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.variant import Task

pytestmark = pytest.mark.usefixtures("in_empty_folder")
Command = Callable[..., Answer]


def image_fault(cell: str) -> str:
    quoted = cell.replace('"', '""')
    (fault,) = faults_of("p.csv", f'prompt,image\na,"{quoted}"\n', Task.i2v)
    return fault


@pytest.mark.parametrize(
    ("cell", "fix"),
    [
        ("C:\\Users\\me\\a.png", "the drive is a folder; write /mnt/c/Users/me/a.png."),
        ("d:/Bilder/a b.png", "the drive is a folder; write /mnt/d/Bilder/a b.png."),
        ("\\\\wsl$\\Ubuntu\\home\\me\\a.png", "a file of this system; write /home/me/a.png."),
        ("//wsl.localhost/Ubuntu/home/me/a.png", "a file of this system; write /home/me/a.png."),
        ("\\\\server\\share\\a.png", "mount the share (under WSL: sudo mount -t drvfs), and"),
        (
            "frames\\a.png",
            "folders are separated by /, and here by backslashes; write frames/",
        ),
        ("https://example.invalid/a.png", "this is an address; download it and name the file."),
        ("s3://bucket/a.png", "this is an address; download it and name the file."),
        ("file:///home/me/a.png", "must be a path and no address; write /home/me/a.png."),
        ('"a.png"', "a path has no quotation marks or spaces around it; write a.png."),
        (" a.png ", "a path has no quotation marks or spaces around it; write a.png."),
        ("A.png", "names are case-sensitive, and the file is called a.png; write"),
        ("SUB/b.PNG", "names are case-sensitive, and the file is called sub/b.png"),
        ("a.jpg", "does not; write a.png if that is meant."),
        ("zzzz.png", "does not; correct the path, which starts at the manifest's folder."),
    ],
)
def test_a_path_that_leads_nowhere_is_told_with_its_fix(cell: str, fix: str) -> None:
    Path("sub").mkdir()
    write_image("a.png")
    write_image("sub/b.png")

    fault = image_fault(cell)

    assert fault.startswith("p.csv:2: image=")
    assert fix in fault


def test_a_home_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")

    assert image_fault("~/a.png").endswith("~ is not replaced in a manifest; write /home/me/a.png.")


def test_a_name_with_accents_composed_in_another_way_is_told() -> None:
    write_image(unicodedata.normalize("NFD", "caf\u00e9.png"))

    fault = image_fault(unicodedata.normalize("NFC", "caf\u00e9.png"))

    assert "the file's accents are composed in another way (Unicode); copy the name from" in fault


def test_a_path_that_is_there_is_taken_however_it_looks() -> None:
    for name in ("C:\\a.png", "a\\b.png", " a.png ", "A.PNG"):
        write_image(name, format="PNG")
        (row,) = read("p.csv", f'prompt,image\na,"{name}"\n', Task.i2v).rows
        assert row.image_path == str(Path.cwd() / name)


SUFFIXES = f"a manifest ends in {', '.join(MANIFEST_SUFFIXES)}; "
WAYS_OUT = {
    "p.xlsx": SUFFIXES + 'save this spreadsheet as "CSV UTF-8" (File, Save As) and name that.',
    "p.ods": SUFFIXES + 'save this spreadsheet as "CSV UTF-8" (File, Save As) and name that.',
    "p.csv.gz": SUFFIXES + "unpack this file (gunzip -k p.csv.gz) and name what was in it.",
    "my p.zip": SUFFIXES + "unpack this file (unzip 'my p.zip') and name what was in it.",
    "p.7z": SUFFIXES + "unpack this file and name what was in it.",
    "p.yaml": SUFFIXES + "write its prompts as .jsonl or .csv and name that (settings of your own "
    "are experiment=).",
    "p.md": SUFFIXES
    + "write its prompts into a .txt, one on a line without bullets or numbers, and name that.",
    "p.feather": SUFFIXES + "write this table as .parquet or .csv and name that.",
    "p.tab": SUFFIXES + "rename this file to .tsv.",
    "p.png": SUFFIXES + "name this picture in the column image of one.",
    "plain": SUFFIXES + "give this file the suffix of its format.",
    "p.dat": SUFFIXES + "rename it if it is one of these.",
}


@pytest.mark.parametrize("name", WAYS_OUT)
def test_a_file_of_another_kind_is_told_its_own_way_out(command: Command, name: str) -> None:
    write(name, "prompt\nA cat\n")

    for word in (name, f"manifest={name}"):
        answer = command(word, "model=tiny_t2v")
        assert answer.code == 2
        assert answer.err.strip() == f"manifest={name}: {WAYS_OUT[name]}"


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/63", "/proc/self/fd/0"])
def test_a_stream_is_refused_with_what_to_do(command: Command, name: str) -> None:
    for word in (name, f"manifest={name}"):
        answer = command(word, "model=tiny_t2v")
        assert answer.code == 2
        assert answer.err.startswith(f"manifest={name}: a manifest is a file that the next run can")
        assert "; write it into a file, for example prompts.txt, and name that." in answer.err


@pytest.mark.parametrize("name", ["prompts.cvs", "prompts.jsn", "promts.csv", "prompts"])
def test_a_misspelt_name_is_told_with_the_nearest_that_is_there(
    command: Command, name: str
) -> None:
    write("prompts.csv", "prompt\nA cat\n")

    for word in (name, f"manifest={name}"):
        answer = command(word, "model=tiny_t2v")
        assert answer.code == 2
        assert answer.err.strip() == (
            f"manifest={name}: there is no such file; did you mean prompts.csv?"
        )


def test_a_manifest_by_a_path_of_windows_is_told_with_its_fix(command: Command) -> None:
    answer = command("C:\\Users\\me\\p.csv", "model=tiny_t2v")

    assert answer.code == 2
    assert "under WSL the drive is a folder; write /mnt/c/Users/me/p.csv." in answer.err


def test_a_folder_names_the_manifests_in_it(command: Command) -> None:
    Path("in").mkdir()
    write("in/b.json", "[]")
    write("in/a.csv", "prompt\na\n")
    write("in/a.png", "")

    answer = command("manifest=in", "model=tiny_t2v")

    assert answer.err.strip() == (
        "manifest=in: a manifest is a file, and this is a folder; name a file in it: in/a.csv, "
        "in/b.json."
    )


def test_neither_a_pipe_nor_a_device_is_waited_for(command: Command) -> None:
    os.mkfifo("pipe.csv")
    os.symlink("/dev/zero", "zero.csv")
    os.symlink("pipe.csv", "link.txt")

    started = time.monotonic()
    for name in ("pipe.csv", "zero.csv", "link.txt", "/dev/zero", "/dev/tty", "/dev/urandom"):
        answer = command(f"manifest={name}", "model=tiny_t2v")
        assert answer.code == 2
        assert answer.err.startswith(f"manifest={name}: ")
    assert time.monotonic() - started < 20


def test_a_file_that_becomes_a_pipe_after_the_check_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hv15_batch.manifest import read as reading

    os.mkfifo("p.csv")
    monkeypatch.setattr(reading, "_check_file", lambda _: None)

    with pytest.raises(Refused, match="it cannot be read \\(no regular file\\)"):
        read_manifest(Path("p.csv"), Task.t2v)


def test_json_beyond_the_size_that_is_read_whole_is_refused_unread() -> None:
    with open("p.json", "wb") as file:
        file.truncate(64 * 1024**2 + 1)

    with pytest.raises(Refused) as caught:
        read_manifest(Path("p.json"), Task.t2v)

    assert str(caught.value) == (
        "manifest=p.json: a .json has at most 64 MiB, and this one 67,108,865 bytes; write it as "
        "JSON Lines (.jsonl), which has no such limit."
    )


def test_rows_and_columns_of_parquet_are_counted_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pq.write_table(pa.table({"prompt": ["a"] * 101}), "long.parquet")
    pq.write_table(pa.table({f"c{n}": ["a"] for n in range(1_001)}), "wide.parquet")
    from hv15_batch.manifest.formats import _parquet

    monkeypatch.setattr(_parquet, "MAX_ROWS", 100)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("read"))

    with pytest.raises(ManifestError, match="rows=101: a manifest has at most 100 rows; split it"):
        read_manifest(Path("long.parquet"), Task.t2v)
    with pytest.raises(ManifestError, match="a manifest has at most 1,000 columns, and this one"):
        read_manifest(Path("wide.parquet"), Task.t2v)
    monkeypatch.setattr(_parquet, "MAX_ROWS", manifest_rows.MAX_ROWS)
    monkeypatch.setattr(_parquet, "MAX_GROUP_BYTES", 10)
    with pytest.raises(ManifestError, match="a row group has at most"):
        read_manifest(Path("long.parquet"), Task.t2v)


def test_columns_of_parquet_without_a_meaning_are_not_unpacked() -> None:
    from hv15_batch.config.settings import OtherColumns
    from hv15_batch.manifest.columns import Reading

    pq.write_table(pa.table({"prompt": ["a"], "pixels": [b"\0" * 4096]}), "p.parquet")
    data = bytearray(Path("p.parquet").read_bytes())
    start = pq.ParquetFile("p.parquet").metadata.row_group(0).column(1).dictionary_page_offset
    data[start : start + 16] = b"\xff" * 16
    Path("p.parquet").write_bytes(bytes(data))

    manifest = read_manifest(Path("p.parquet"), Task.t2v, Reading(other=OtherColumns.ignore))

    assert [row.prompt for row in manifest.rows] == ["a"]
