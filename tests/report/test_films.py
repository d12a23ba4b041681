"""Films on pages: what is built, what is missing, and what a browser plays."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

import pytest
from fakes.pages import build, failed, make_run, record

from hv15_batch.planning.tables import is_up_to_date, write_clips_table
from hv15_batch.report.command import main
from hv15_batch.report.render import write_page
from hv15_batch.rundir.paths import RunDir


def films_of(page: str) -> list[tuple[str, str, str]]:
    """Return name, addresses of a player and what is written below, of each film of a page."""
    found = re.findall(r'<figure class="film">(.*?)</figure>', page, re.DOTALL)
    return [
        (
            html.unescape("".join(re.findall(r"<h3>(.*?)</h3>", each))),
            "".join(re.findall(r'<video[^>]* src="([^"]*)"', each)),
            " ".join(re.sub(r"<[^>]+>", "", each.partition("<figcaption>")[2]).split()),
        )
        for each in found
    ]


def run_with(folder: Path, *built: str, suffix: str = ".mp4", **films: str) -> Path:
    clips = [record(n, i, file=f"clips/{n}{suffix}") for i, n in enumerate(films) if n != "bad"]
    clips += [failed("bad", row_index=9)] if "bad" in films else []
    make_run(folder, clips, clips, films=films)
    (folder / "films").mkdir()
    for name in built:
        (folder / "films" / name).write_bytes(b"film")
    return folder


def test_a_page_shows_the_films_of_its_manifest_and_their_state(tmp_path: Path) -> None:
    folder = run_with(
        tmp_path / "run", "story.mp4", "old.mp4", "unknown.mp4",
        a="story other", b="story", c="story", bad="old other",
    )  # fmt: skip

    page, _ = build(folder)

    assert films_of(page) == [
        ("story", "films/story.mp4", "3 clips · file"),
        ("other", "", "1 of 2 clips done, not built yet"),
        ("old", "films/old.mp4", "0 of 1 clip done; the file has earlier clips · file"),
    ]
    assert 'poster="thumbs/a.jpg"' in page
    assert '<a href="#films">Films</a>' in page


def test_a_page_without_films_says_nothing_of_them(tmp_path: Path) -> None:
    make_run(tmp_path, [record("a")], [record("a")])
    assert 'id="films"' not in build(tmp_path)[0]


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
def test_a_film_that_browsers_do_not_play_is_a_link(tmp_path: Path, suffix: str) -> None:
    """An older film of another codec is not taken for it."""
    folder = run_with(tmp_path, "story.mp4", f"story{suffix}", suffix=suffix, a="story", b="story")

    page, _ = build(folder)

    assert films_of(page) == [("story", "", "2 clips · file; browsers do not play it")]
    assert f'href="films/story{suffix}"' in page


def test_films_of_several_runs_are_named_by_their_run(tmp_path: Path) -> None:
    for name in ("one 1", "two"):
        run_with(tmp_path / "all" / name, "story.mp4", a="story")
    main([str(tmp_path / "all")])

    page = (tmp_path / "all" / "comparison.html").read_text(encoding="utf-8")

    assert films_of(page) == [
        ("one 1: story", "one%201/films/story.mp4", "1 clip · file"),
        ("two: story", "two/films/story.mp4", "1 clip · file"),
    ]


@pytest.mark.parametrize("name", ["../../key", "/etc/passwd", "..", "<script>", "a/b", ".hidden"])
def test_a_plan_that_names_a_film_elsewhere_shows_no_file(tmp_path: Path, name: str) -> None:
    folder = run_with(tmp_path / "run", ".hidden.mp4", a=name)
    (tmp_path / "key.mp4").write_bytes(b"secret")

    page, _ = build(folder)

    assert films_of(page) == [(name, "", "1 clip, not built yet")]


def test_a_page_is_older_than_a_film_that_was_built_after_it(tmp_path: Path) -> None:
    folder = run_with(tmp_path / "run", a="story")
    run_dir = RunDir(folder)
    write_clips_table(run_dir)
    write_page(folder)
    assert is_up_to_date(run_dir)

    (folder / "films" / "story.mp4").write_bytes(b"film")
    later = run_dir.page.stat().st_mtime_ns + 1_000_000
    os.utime(folder / "films", ns=(later, later))

    assert not is_up_to_date(run_dir)
