"""The official script, which a stand-in stands for, with a run directory on object storage."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fakes.official import official_project
from fakes.stored import Stored

from hv15_batch.errors import EXIT_OK, EXIT_SOME_FAILED
from hv15_batch.rundir.remote.client import Client

MODES = pytest.mark.parametrize(
    "load_once", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["torchrun", "once"]
)


@MODES
def test_its_clips_are_uploaded_and_nothing_else_of_it_is(
    stored: Stored, tmp_path: Path, load_once: bool
) -> None:
    project = official_project(tmp_path / "official", "id,prompt", "cat,a cat", "dog,[moved]")
    official = {"load_once": load_once}

    assert project.render(run_dir=stored.url, official=official) == EXIT_SOME_FAILED

    cat, dog = sorted(stored.rows(), key=lambda row: str(row["row_id"]))
    assert (cat["status"], dog["status"], dog["file"]) == ("ok", "failed", None)
    assert re.fullmatch(r"clips/cat.+\.[0-9a-f]{16}\.mp4", cat["file"])
    item = Client(stored.url).head(cat["file"])
    assert item is not None
    assert (item.size, item.sha256) == (cat["file_bytes"], cat["file_sha256"])
    assert stored.names("clips/") == [cat["file"]]
    assert not stored.names(r".*\.script\.")
    assert not list(stored.mirror.clips.iterdir())

    stored.on_another_machine()
    project.write("id,prompt", "cat,a cat", "dog,a good dog")
    assert project.render(run_dir=stored.url, official=official) == EXIT_OK
    assert len(project.rows()) == 3
    assert len(stored.names("clips/")) == 2
