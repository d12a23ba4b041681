"""run.log: what stays of it after a power loss, and where it is not written."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from hv15_batch.rundir import text_log as module
from hv15_batch.rundir.text_log import text_log

logger = logging.getLogger("hv15_batch.test")


class Syncs:
    """Remembers how much of a file was there at each sync of it, and which folders were synced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.folders: list[Path] = []
        sync = os.fsync

        def syncing(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_dir():
                self.folders.append(path)
            else:
                self.sizes.append(path.stat().st_size)
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", syncing)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "runs" / "one" / "run.log"
    path.parent.mkdir(parents=True)
    return path


def test_name_first_line_errors_and_end_are_on_the_disk_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs = Syncs(monkeypatch)
    with text_log(path, is_alone=False):
        assert syncs.folders == [path.parent]
        logger.info("first")
        assert syncs.sizes == [path.stat().st_size]
        logger.info("second")
        assert len(syncs.sizes) == 1
        logger.warning("third")
        assert syncs.sizes[1:] == [path.stat().st_size]
        logger.info("last")

    assert syncs.sizes[-1] == path.stat().st_size
    assert [line.split(": ")[-1] for line in path.read_text().splitlines()] == [
        "first", "second", "third", "last",
    ]  # fmt: skip


def test_other_lines_are_on_the_disk_after_some_seconds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    syncs = Syncs(monkeypatch)
    with text_log(path, is_alone=False):
        for number in range(3):
            logger.info("line %d", number)
            assert len(syncs.sizes) == number + 1


def test_a_link_in_its_place_is_not_written_through(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path.symlink_to(victim)
    told: list[str] = []

    with text_log(path, is_alone=False, tell=told.append):
        logger.info("here")

    assert victim.read_text() == "mine"
    assert told == ["run.log lacks lines (Too many levels of symbolic links)"]


def test_a_deleted_folder_is_made_again_and_that_of_a_moved_run_is_not(path: Path) -> None:
    shutil.rmtree(path.parents[1])
    with text_log(path, is_alone=False):
        logger.info("here")
    assert "here" in path.read_text()

    shutil.rmtree(path.parents[2])
    with text_log(path, is_alone=False):
        logger.info("there")
    assert not path.parents[2].exists()
