"""The whole file: its name and hash, files that are no manifest, and time."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes.manifests import (
    write,
    write_csv,
)

from hv15_batch.config.files import MANIFEST_SUFFIXES
from hv15_batch.errors import Refused
from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.variant import Task

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def test_a_manifest_knows_its_path_name_and_hash() -> None:
    Path("sub").mkdir()
    content = b"\xef\xbb\xbfprompt\nA cat\n"
    path = write("sub/p.CSV", content)

    manifest = read_manifest(path, Task.t2v)

    assert manifest.path == Path.cwd() / "sub/p.CSV"
    assert manifest.name == "sub/p.CSV"
    assert manifest.sha256 == hashlib.sha256(content).hexdigest()


def test_a_missing_manifest_is_refused_and_the_nearest_name_given() -> None:
    write("prompts.csv", "prompt\na\n")
    Path("folder.csv").mkdir()

    for path, message in {
        "promts.csv": "there is no such file; did you mean prompts.csv?",
        "zzz.csv": "there is no such file; correct the path.",
        "none/zzz.csv": "there is no such file; correct the path.",
        "prompts.csv/x.csv": "there is no such file; correct the path.",
        "folder.csv": "a manifest is a file, and this is a folder; name a file.",
        ".": "a manifest is a file, and this is a folder; name a file in it: folder.csv, "
        "prompts.csv.",
        "/dev/zero": "a manifest is a regular file; this is not one; name one.",
    }.items():
        with pytest.raises(Refused) as caught:
            read_manifest(Path(path), Task.t2v)
        assert str(caught.value) == f"manifest={path}: {message}"


def test_a_file_of_another_kind_or_size_is_refused() -> None:
    write("p.xlsx", b"PK")
    write("p.dat", b"prompt")
    with open("huge.csv", "wb") as file:
        file.truncate(1024**3 + 1)

    for name, message in {
        "p.xlsx": f"a manifest ends in {', '.join(MANIFEST_SUFFIXES)}; save this spreadsheet as "
        '"CSV UTF-8" (File, Save As) and name that.',
        "p.dat": f"a manifest ends in {', '.join(MANIFEST_SUFFIXES)}; rename it if it is one of "
        "these.",
        "huge.csv": "a manifest has at most 1 GiB, and this one 1,073,741,825 bytes; split it.",
    }.items():
        with pytest.raises(Refused) as caught:
            read_manifest(Path(name), Task.t2v)
        assert str(caught.value) == f"manifest={name}: {message}"


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
        "import sys; from pathlib import Path; from hv15_batch.model.variant import Task\n"
        "from hv15_batch.manifest.read import read_manifest\n"
        "read_manifest(Path('p.csv'), Task.t2v)\n"
        "print([n for n in ('torch', 'pandas', 'pyarrow', 'PIL', 'numpy') if n in sys.modules])"
    )

    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root}
    )

    assert done.stdout == "[]\n", done.stderr
