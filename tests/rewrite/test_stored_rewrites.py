"""Rewritten prompts and files of words of a run directory on object storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.chat_server import ChatServer, chat_server
from fakes.object_store import serving
from fakes.stored import Stored, stored_project

from hv15_batch.config.rewriting import RewriteConfig
from hv15_batch.errors import Refused
from hv15_batch.rundir.paths import REWRITES
from hv15_batch.rundir.remote.client import Client
from hv15_batch.rundir.remote.held import StoredRun
from hv15_batch.rundir.store import place


def edit(path: Path, text: str) -> None:
    path.write_text(path.read_text("utf-8").replace("Rewritten: a cat", text), encoding="utf-8")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with chat_server() as server:
        yield server


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stored]:
    with serving() as store:
        yield stored_project(store, monkeypatch, tmp_path)


def test_a_text_that_was_edited_here_is_rendered_and_put(
    stored: Stored, server: ChatServer
) -> None:
    rewrite = RewriteConfig(server.url, "small")
    assert stored.go(rewrite=rewrite) == 0
    here = stored.mirror.path / REWRITES
    edit(here, "A cat, as I want it.")
    place(stored.url)  # as `status` does
    assert stored.go(rewrite=rewrite) == 0
    assert len(server.prompts) == 2
    assert [r["prompt"] for r in stored.rows()].count("A cat, as I want it.") == 1
    there = Client(stored.url).get(REWRITES)
    assert there is not None
    assert there[0] == here.read_bytes()
    assert b"A cat, as I want it." in there[0]


def test_an_edited_text_is_kept_although_the_object_was_deleted(
    stored: Stored, server: ChatServer
) -> None:
    rewrite = RewriteConfig(server.url, "small")
    assert stored.go(rewrite=rewrite) == 0
    edit(stored.mirror.path / REWRITES, "A cat, as I want it.")
    Client(stored.url).delete([REWRITES])
    assert stored.go(rewrite=rewrite) == 0
    assert "A cat, as I want it." in [r["prompt"] for r in stored.rows()]
    assert REWRITES in stored.names()


def test_texts_that_were_edited_here_and_there_are_refused_and_both_are_named(
    stored: Stored, server: ChatServer
) -> None:
    rewrite = RewriteConfig(server.url, "small")
    assert stored.go(rewrite=rewrite) == 0
    here, client = stored.mirror.path / REWRITES, Client(stored.url)
    text = here.read_text("utf-8")
    edit(here, "As edited here.")
    mine = here.read_bytes()
    client.put(REWRITES, text.replace("Rewritten: a cat", "As edited there.").encode())
    with pytest.raises(Refused) as refused:
        stored.go(rewrite=rewrite)
    assert str(here) in str(refused.value)
    assert f"{stored.url}/{REWRITES}" in str(refused.value)
    assert here.read_bytes() == mine
    client.put(REWRITES, mine)  # the same edit in both is none of that
    assert stored.go(rewrite=rewrite) == 0
    assert "As edited here." in [r["prompt"] for r in stored.rows()]


def test_the_texts_are_put_before_anything_else_of_the_run(
    stored: Stored, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(StoredRun, "put_start", lambda _: seen.append(stored.names(REWRITES)))
    stored.go(rewrite=RewriteConfig(server.url, "small"))
    assert seen == [[REWRITES]]


def test_another_machine_finds_the_texts_and_asks_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with chat_server() as server, serving() as store:
        stored = stored_project(store, monkeypatch, tmp_path)
        (tmp_path / "words").mkdir()
        (tmp_path / "words" / "animals.txt").write_text("fox\nowl\n", encoding="utf-8")
        stored.write("id,prompt", "walk,a {@words/animals.txt}")
        rewrite = RewriteConfig(server.url, "small")

        assert stored.go(rewrite=rewrite, templates="all") == 0
        assert "rewrites.jsonl" in stored.names()
        assert len(stored.names(r"runs/[^/]+/words/animals\.txt")) == 1
        asked = sorted(server.prompts)
        assert asked == ["a fox", "a owl"]

        stored.on_another_machine()
        assert stored.go(rewrite=rewrite, templates="all") == 0
        assert sorted(server.prompts) == asked
        assert any("Nothing to do" in line for line in stored.said)
