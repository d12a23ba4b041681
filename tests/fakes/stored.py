"""A project whose run directory is on object storage."""

from __future__ import annotations

import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fakes.engine import InProcessExecutor
from fakes.object_store import BUCKET, Server, lend
from fakes.runs import Project
from fakes.uploading import UploadingExecutor
from hv15_batch.run import _results
from hv15_batch.rundir.log import read_records
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.remote import client as clients
from hv15_batch.rundir.remote import held
from hv15_batch.rundir.remote.address import mirror_folder
from hv15_batch.rundir.remote.client import Patience
from hv15_batch.rundir.store import place

QUICK = Patience(request_seconds=6.0, retries=1, retry_seconds=6.0)


class Stored(Project):
    """A project whose run directory is on object storage."""

    server: Server

    @property
    def name_there(self) -> str:
        return self.folder.name

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/{self.name_there}"

    @property
    def mirror(self) -> RunDir:
        return RunDir(mirror_folder(self.url))

    def go(self, **changes: Any) -> int:
        """Run with a torch-free worker that uploads, and without a page."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_results, "write_page", lambda _: None)
            return self.run(UploadingExecutor, run_dir=self.url, **changes)

    def render(self, **changes: Any) -> int:
        """Run with the real renderer of the tiny model."""
        return self.run(InProcessExecutor, run_dir=self.url, **changes)

    def denoised(self) -> list[str]:
        """Return and forget which rows the torch-free worker has denoised."""
        path = self.mirror.path.parent / "journal.txt"
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        path.unlink()
        return [clip.partition("_")[0] for what, clip in lines if what == "denoise"]

    def rows(self) -> list[dict[str, Any]]:
        """Return the log as the store has it."""
        return list(read_records(RunDir(place(self.url)).log).to_pylist())

    def on_another_machine(self) -> None:
        """Forget what this machine knows."""
        shutil.rmtree(self.mirror.path)
        for obj in self.server.bucket().values():  # so the lease has expired
            if obj.name.endswith("lock.json"):
                obj.last_modified -= timedelta(seconds=100)

    def names(self, pattern: str = "") -> list[str]:
        return [n for n in self.server.names(self.name_there) if re.match(pattern, n)]


def stored_project(server: Server, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Stored:
    """Return a project of two rows and an empty bucket; nobody waits long for the server."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(clients, "USUAL", QUICK)
    monkeypatch.setattr(held, "_END", QUICK)
    monkeypatch.setattr(held, "SHORT", QUICK)
    monkeypatch.setattr(held, "ROW", QUICK)
    monkeypatch.setattr(held, "ROW_SECONDS", 0.1)
    project = Stored(folder)
    project.server = lend(server, monkeypatch)
    project.write("prompt,id", "a cat,cat", "a dog,dog")
    return project
