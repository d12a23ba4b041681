from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakes.object_store import Server, lend, serving


@pytest.fixture(scope="module")
def s3_server() -> Iterator[Server]:
    """One S3 server for a module."""
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server with one empty bucket, and its address in the environment."""
    return lend(s3_server, monkeypatch)
