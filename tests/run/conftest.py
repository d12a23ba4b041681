from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from fakes.object_store import Server
    from fakes.stored import Stored


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One S3 server for a module."""
    from fakes.object_store import serving

    with serving() as running:
        yield running


@pytest.fixture
def stored(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stored:
    """A project of two rows whose run directory is on object storage."""
    from fakes.stored import stored_project

    return stored_project(server, monkeypatch, tmp_path)
