"""What the disk answers while a run goes on: folders that are gone, bad sectors, lost servers."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.engine import InProcessExecutor
from fakes.runs import FakeExecutor, Project
from fakes.samples import sampled

from hv15_batch.config.messages import refusal_of
from hv15_batch.config.settings import FileCheck
from hv15_batch.dispatch.protocol import Event, Job
from hv15_batch.engine.render import ClipRenderer
from hv15_batch.errors import ADVICE, NO_LOCKS, system_message
from hv15_batch.record import ClipRecord
from hv15_batch.rundir import log as run_log
from hv15_batch.rundir import store

ROWS = ("cat", "dog", "owl")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path)
    made.write("id,prompt", *(f"{name},a {name}" for name in ROWS))
    return made


def statuses(project: Project) -> dict[str, str]:
    return {record["row_id"]: record["status"] for record in project.records()}


# -- folders that are gone --------------------------------------------------------------------


@pytest.mark.parametrize(
    "part", sampled(["clips", "latents", "thumbs", "log", "embeddings", "assets"], 2)
)
def test_a_folder_that_is_deleted_while_a_run_goes_on_is_made_again(
    project: Project, part: str
) -> None:
    class Deletes(ClipRenderer):
        def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
            if job.clip.row_id == "dog":
                shutil.rmtree(project.run_dir.path / part, ignore_errors=True)
            return super().render(job, emit)

    assert project.run(lambda spec: FakeExecutor(spec, Deletes)) == 0

    assert statuses(project) == dict.fromkeys(ROWS, "ok")
    assert project.strays() == []
    assert project.run(InProcessExecutor) == 0  # what was in it is made once more
    assert {p.stem.split("_")[0] for p in project.run_dir.clips.iterdir()} == set(ROWS)


# -- bad sectors ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_clip_that_cannot_be_read_is_made_again_and_the_night_goes_on(
    project: Project, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert project.run() == 0
    project.did()
    read = store.sha256_of_file

    def reading(path: Path) -> str:
        if path.name.startswith("dog"):
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    monkeypatch.setattr(store, "sha256_of_file", reading)
    assert project.run(check_files=FileCheck.sha256) == 0

    assert [line.split("_")[0] for line in project.did()] == ["decode dog"]
    assert "cannot be read" not in " ".join(project.said)
    project.run(dry_run=True, check_files=FileCheck.sha256)
    (dog,) = [row for row in project.plan() if row["row_id"] == "dog"]
    assert dog["reason"] == f"its file cannot be read ({os.strerror(number)})"


@pytest.mark.parametrize("kind", ["link to nowhere", "pipe"])
def test_what_is_no_file_in_the_place_of_a_clip_is_made_again(project: Project, kind: str) -> None:
    assert project.run() == 0
    project.did()
    (dog,) = project.run_dir.clips.glob("dog*")
    dog.unlink()
    dog.symlink_to("nowhere") if kind == "link to nowhere" else os.mkfifo(dog)

    assert project.run(check_files=FileCheck.sha256) == 0

    assert [line.split("_")[0] for line in project.did()] == ["decode dog"]
    assert dog.is_file()
    assert not dog.is_symlink()


# -- what is said -----------------------------------------------------------------------------


SPACE = "free some disk"


@pytest.mark.parametrize("number", ADVICE, ids=errno.errorcode.get)
def test_an_error_of_the_system_comes_with_the_advice_that_fits_it(number: int) -> None:
    error = OSError(number, os.strerror(number), "/place/file")

    refusal = refusal_of(error)

    assert refusal is not None
    message, code = refusal
    assert message == f"/place/file: {system_message(error)}."
    assert code == ADVICE[number].exit_code
    assert (SPACE in message) == (number == errno.ENOSPC)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EIO, "smartctl"),
        (errno.ESTALE, "mount it again"),
        (errno.EACCES, "permissions"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
    ],
)
def test_a_log_that_cannot_be_written_says_why_and_what_helps(
    project: Project, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_log.pq, "write_table", refuse)

    assert project.run() == 4

    (line,) = [line for line in project.said if line.startswith("the log could not be written (")]
    assert os.strerror(number) in line
    assert words in line
    assert SPACE not in line
    assert "move it" not in line


def test_what_stands_for_no_locks_is_not_told_as_a_fault_of_the_disk() -> None:
    assert not set(NO_LOCKS) & set(ADVICE)
