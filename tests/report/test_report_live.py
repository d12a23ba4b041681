"""The page while a run goes on: there from the start, brought up to date, never in the way."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from fakes.pages import RUN_ID, make_run, record
from fakes.runs import FakeExecutor, Project

from hv15_batch.dispatch.protocol import Event, ExecutorSpec
from hv15_batch.report.live import live_page
from hv15_batch.rundir.log import RunLog

PATIENCE_SECONDS = 20


def wait_for(page: Path, words: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not (page.is_file() and words in page.read_text(encoding="utf-8")):
        assert time.monotonic() < end, f"{page} never said {words!r}"
        time.sleep(0.02)


def test_the_page_is_there_at_once_and_follows_the_log(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [], [record("a")])
    (run_dir / "clips" / "a.mp4").write_bytes(b"clip")

    with live_page(run_dir, interval_seconds=0.05):
        wait_for(run_dir / "index.html", "<h1>0 of 1")
        RunLog(run_dir / "log", RUN_ID).append(record("a"))
        wait_for(run_dir / "index.html", "<h1>1 of 1")


def test_it_is_written_once_within_the_interval(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [], [record("a")])

    with live_page(run_dir):
        wait_for(run_dir / "index.html", "<h1>0 of 1")
        RunLog(run_dir / "log", RUN_ID).append(record("a"))
        time.sleep(0.5)

    assert "<h1>0 of 1" in (run_dir / "index.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = make_run(tmp_path, [], [record("a")])
    (run_dir / "assets").write_text("in the way", encoding="utf-8")
    (run_dir / "index.html").mkdir()

    with caplog.at_level(logging.WARNING), live_page(run_dir):
        pass

    assert caplog.text.count("the page is not up to date") == 1


def test_the_page_is_there_while_the_first_clip_renders(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("prompt", "a cat")
    seen: list[str] = []

    class Watching(FakeExecutor):
        def poll(self, timeout_seconds: float) -> Event | None:
            if not seen:
                wait_for(project.run_dir.page, "<h1>")
                seen.append(project.run_dir.page.read_text(encoding="utf-8"))
            return super().poll(timeout_seconds)

    def watching(spec: ExecutorSpec) -> Watching:
        return Watching(spec)

    assert project.run(watching) == 0

    assert "<h1>0 of 1, encoding" in seen[0]
    assert "<h1>1 of 1, done" in project.run_dir.page.read_text(encoding="utf-8")
