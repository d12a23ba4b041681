"""Rewritten prompts and files of words of a run directory on object storage."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.chat_server import chat_server
from fakes.object_store import serving
from fakes.stored import stored_project

from hv15_batch.config.rewriting import RewriteConfig


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
