"""Choosing clips on the page from the disk: the large view, ratings as a file, sizes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.browser import Opened, browsing, faults, needs_chromium, wait
from fakes.pages import MEASURED, failed, make_run, record

from hv15_batch.report.command import main
from hv15_batch.rundir.chosen.ratings import (
    COLUMNS,
    Rating,
    format_ratings,
    parse_ratings,
    ratings_file,
)
from hv15_batch.rundir.paths import RunDir

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = needs_chromium

VIDEO = "document.querySelector('.pane video')"


def sha(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def clip(name: str, row: int, **changes: Any) -> Any:
    known = {"settings_sha256": sha(name), "file_sha256": sha(f"file {name}"), "num_frames": 48}
    return record(name, row, fps=24.0, **{**known, **MEASURED, **changes})


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a row, two more rows, a failure between them; three clips are rated."""
    clips = [
        clip("fox_s0", 0, row_id="fox", prompt="A fox", seed=0),
        clip("fox_s1", 0, row_id="fox", prompt="A fox", seed=1),
        failed("bad", row_index=1),
        clip("sign", 2),
        clip("sea", 3),
    ]
    folder = make_run(tmp_path_factory.mktemp("page") / "run", clips, clips, is_playable=True)
    at = "2026-11-25T07:00:00+00:00"
    ratings = [
        Rating(sha("fox_s0"), sha("file fox_s0"), "fox", "0", "4", at),
        Rating(sha("sign"), sha("an earlier file"), "sign", "7", "5", at),
        Rating(sha("gone"), sha("file gone"), 'gone, "row"', "3", "2", at),
    ]
    text = format_ratings({rating.settings_sha256: rating for rating in ratings})
    ratings_file(RunDir(folder)).write_text(text, encoding="utf-8")
    main([str(folder)])
    return folder


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture
def opened(driver: Any, run_dir: Path, tmp_path: Path) -> Iterator[Opened]:
    with browsing(driver, run_dir / "index.html", tmp_path / "profile") as browser:
        yield browser
        assert (browser.complaints, browser.foreign()) == ([], [])


def press(opened: Opened, *keys: str) -> None:
    for key in keys:
        opened.page.keyboard.press(key)


def title(opened: Opened) -> str:
    text: str = opened.page.text_content("#large-title")
    return text


def enlarge(opened: Opened, name: str) -> None:
    opened.page.focus(f"#clip-{name} .play")
    press(opened, "Enter")
    opened.page.wait_for_selector("[role=dialog][open]")


def valuetext(opened: Opened, place: str) -> str:
    text: str = opened.page.get_attribute(f"{place} .stars", "aria-valuetext")
    return text


def test_the_page_starts_from_the_ratings_known_when_it_was_built(opened: Opened) -> None:
    assert valuetext(opened, "#clip-fox_s0") == "4 of 5"
    assert valuetext(opened, "#clip-sign") == "5 of 5, of an earlier file"
    assert opened.page.text_content("#clip-sign .outdated") == "outdated"
    opened.page.select_option("#filter-rating", "outdated")
    assert opened.cards() == ["sign"]


def save(opened: Opened, to: Path) -> dict[str, Rating]:
    with opened.page.expect_download() as event:
        opened.page.click("#save-ratings")
    assert event.value.suggested_filename == "ratings.csv"
    event.value.save_as(to / "ratings.csv")
    with (to / "ratings.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == list(COLUMNS)
    return parse_ratings((to / "ratings.csv").read_text(encoding="utf-8"), "ratings.csv")


def test_changes_stay_in_the_browser_and_are_saved_with_the_others(
    opened: Opened, run_dir: Path, tmp_path: Path
) -> None:
    before = (run_dir / "ratings.csv").read_bytes()
    opened.page.focus("#clip-fox_s0 .play")
    press(opened, "0", "ArrowRight", "x")  # clears a known one, rejects another
    opened.page.reload()
    assert valuetext(opened, "#clip-fox_s0") == "not rated"

    saved = save(opened, tmp_path)

    values = {rating.row_id: rating.rating for rating in saved.values()}
    assert values == {"fox": "x", "sign": "5", 'gone, "row"': "2"}
    assert saved[sha("fox_s1")].file_sha256 == sha("file fox_s1")
    assert saved[sha("sign")].file_sha256 == sha("an earlier file")  # not looked at again
    assert (run_dir / "ratings.csv").read_bytes() == before


def test_a_rating_of_this_file_is_no_longer_outdated(opened: Opened, tmp_path: Path) -> None:
    opened.page.focus("#clip-sign .play")
    press(opened, "5")
    assert valuetext(opened, "#clip-sign") == "5 of 5"
    assert save(opened, tmp_path)[sha("sign")].file_sha256 == sha("file sign")


def test_the_newer_of_file_and_browser_counts(
    driver: Any, run_dir: Path, tmp_path: Path, opened: Opened
) -> None:
    opened.page.focus("#clip-sea .play")
    press(opened, "2")
    before = ratings_file(RunDir(run_dir)).read_text(encoding="utf-8")
    try:
        late = Rating(sha("sea"), sha("file sea"), "sea", "7", "5", "2999-01-01T00:00:00+00:00")
        ratings_file(RunDir(run_dir)).write_text(format_ratings({"": late}), encoding="utf-8")
        main([str(run_dir)])
        opened.page.reload()
        assert valuetext(opened, "#clip-sea") == "5 of 5"
    finally:
        ratings_file(RunDir(run_dir)).write_text(before, encoding="utf-8")
        main([str(run_dir)])


def test_the_large_view_is_driven_by_keys(opened: Opened) -> None:
    enlarge(opened, "fox_s0")
    assert title(opened) == "fox, seed 0"
    wait(opened.page, f"{VIDEO}.currentTime > 0.1")
    press(opened, "Space")
    assert opened.page.evaluate(f"{VIDEO}.paused")

    press(opened, "ArrowRight")
    assert title(opened) == "fox, seed 1"
    press(opened, "ArrowRight")  # past the one that failed
    assert title(opened) == "sign, seed 7"
    press(opened, "ArrowLeft", "ArrowUp")
    assert title(opened) == "fox, seed 0"
    press(opened, "ArrowUp", "ArrowDown", "ArrowDown")
    assert title(opened) == "fox, seed 1"
    for key, said in (("2", "2 of 5"), ("x", "rejected"), ("0", "not rated"), ("5", "5 of 5")):
        press(opened, key)
        assert valuetext(opened, ".large") == said
    press(opened, "Escape")
    assert not opened.page.is_visible("[role=dialog]")
    focused = "document.activeElement.getAttribute('aria-label')"
    wait(opened.page, f"{focused} == 'Play clip fox_s1'")
    assert valuetext(opened, "#clip-fox_s1") == "5 of 5"
    assert opened.page.locator("video").count() == 0


def test_frames_are_stepped_one_by_one(opened: Opened) -> None:
    enlarge(opened, "sea")
    press(opened, "Space")
    wait(opened.page, f"{VIDEO}.paused && {VIDEO}.readyState >= 2")
    opened.page.evaluate(f"{VIDEO}.currentTime = 0")
    wait(opened.page, "document.querySelector('.at').textContent == 'frame 1 of 48'")
    for keys, frame in (("...", 4), (",", 3), (",,,,", 1)):
        press(opened, *keys)
        wait(opened.page, f"document.querySelector('.at').textContent == 'frame {frame} of 48'")


def test_a_double_click_enlarges(opened: Opened) -> None:
    opened.page.dblclick("#clip-sea .play")
    opened.page.wait_for_selector("[role=dialog][open]")
    assert title(opened) == "sea, seed 7"
    assert opened.page.locator("#gallery video").count() == 0


def test_two_clips_side_by_side_have_one_clock(opened: Opened) -> None:
    enlarge(opened, "fox_s0")
    press(opened, "b")
    captions = opened.page.locator(".pane figcaption")
    assert captions.all_text_contents() == ["left: fox, seed 0", "right: fox, seed 1"]
    times = "[...document.querySelectorAll('.pane video')].map(v => v.currentTime)"
    wait(opened.page, f"Math.min(...{times}) > 0.2")
    a, b = opened.page.evaluate(times)
    assert abs(a - b) < 0.1
    press(opened, "Space")
    wait(opened.page, "[...document.querySelectorAll('.pane video')].every(v => v.paused)")
    press(opened, ".", ".")
    wait(opened.page, f"(t => t[0] === t[1])({times})")

    press(opened, "ArrowRight", "4")  # only the right one changes and is rated
    assert captions.all_text_contents() == ["left: fox, seed 0", "right: sign, seed 7"]
    press(opened, "ArrowLeft", "ArrowLeft")  # never the same clip twice
    assert captions.all_text_contents() == ["left: fox, seed 0", "right: fox, seed 1"]
    press(opened, "b")
    assert opened.page.locator(".pane").count() == 1
    press(opened, "Escape")
    assert valuetext(opened, "#clip-sign") == "4 of 5"


def test_the_size_is_remembered(opened: Opened) -> None:
    width = "document.querySelector('#clip-sea .frame').getBoundingClientRect().width"
    usual = opened.page.evaluate(width)
    opened.page.fill("#size", "600")
    assert opened.page.evaluate(width) == pytest.approx(600, abs=4) != usual
    opened.page.reload()
    assert opened.page.evaluate(width) == pytest.approx(600, abs=4)
    assert opened.page.input_value("#size") == "600"


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("width", [390, pytest.param(2560, marks=pytest.mark.exhaustive)])
def test_the_large_view_shuts_nobody_out(
    driver: Any, run_dir: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    page = run_dir / "index.html"
    with browsing(driver, page, tmp_path / "p", width=width, scheme=scheme) as opened:
        enlarge(opened, "fox_s0")
        press(opened, "4", "b", "x")
        wait(opened.page, f"{VIDEO}.readyState >= 2")

        assert faults(opened.page) == []
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        box = opened.page.locator(".large-foot").bounding_box()
        assert box["y"] + box["height"] <= 901
        assert (opened.complaints, opened.foreign()) == ([], [])


def test_a_file_that_is_no_ratings_is_said_and_the_page_built(tmp_path: Path) -> None:
    clips = [clip("a", 0)]
    folder = make_run(tmp_path / "run", clips, clips)
    ratings_file(RunDir(folder)).write_text(
        ",".join(COLUMNS) + f"\n{sha('a')},,a,7,9,2026-11-25T07:00:00+00:00\n", encoding="utf-8"
    )
    assert main([str(folder)]) == 0

    html = RunDir(folder).page.read_text(encoding="utf-8")
    assert "ratings.csv:2: rating=9: must be 1, 2, 3, 4, 5 or x" in html


def test_a_comparison_shows_the_clips_of_its_runs_side_by_side(driver: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        clips = [clip("fox", 0, model=name), clip("sea", 1, model=name)]
        make_run(tmp_path / "runs" / name, clips, clips, is_playable=True)
    main([str(tmp_path / "runs" / name) for name in ("one", "two")])

    page = tmp_path / "runs" / "comparison.html"
    with browsing(driver, page, tmp_path / "p") as opened:
        rows = opened.page.eval_on_selector_all(
            "#gallery .row", "r => r.map(e => [...e.querySelectorAll('.card')].map(c => c.id))"
        )
        assert rows == [["clip-fox", "clip-1-fox"], ["clip-sea", "clip-1-sea"]]
        opened.page.get_by_role("button", name="Play all clips of fox").click()
        playing = "[...document.querySelectorAll('video')].filter(v => v.currentTime > 0.1)"
        wait(opened.page, f"{playing}.length == 2")
        opened.page.focus("#clip-1-sea .play")
        press(opened, "4")
        with opened.page.expect_download() as event:
            opened.page.click("#save-ratings")
        assert event.value.suggested_filename in ("ratings.one.csv", "ratings.two.csv")
        assert faults(opened.page) == []
        assert (opened.complaints, opened.foreign()) == ([], [])


def test_arrows_after_a_click_on_the_stars_go_to_the_next_clip(opened: Opened) -> None:
    box = opened.page.locator("#clip-sign .stars").bounding_box()
    opened.page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    assert valuetext(opened, "#clip-sign") == "3 of 5"
    press(opened, "ArrowRight", "2")
    assert valuetext(opened, "#clip-sign") == "3 of 5"
    assert valuetext(opened, "#clip-sea") == "2 of 5"


def test_a_link_to_a_failure_resets_the_filters_alone(opened: Opened) -> None:
    page = opened.page
    page.fill("#size", "600")
    page.select_option("#least", "2")
    page.select_option("#sort", "rating")
    page.select_option("#filter-rating", "5")
    page.fill("#filter-text", "sign")
    page.check("#hide-rejected")
    page.evaluate("document.querySelector('[data-clip]').click()")
    assert "bad" in opened.cards()
    fields = ("size", "least", "sort", "filter-rating", "filter-text")
    assert [page.input_value(f"#{name}") for name in fields] == ["600", "2", "rating", "any", ""]
    assert not page.is_checked("#hide-rejected")


def test_ratings_of_the_browser_follow_the_run_not_its_place(driver: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        clips = [clip("fox", 0), clip("sea", 1)]
        make_run(tmp_path / "runs" / name, clips, clips, is_playable=True)
    main([str(tmp_path / "runs" / name) for name in ("one", "two")])
    page = tmp_path / "runs" / "comparison.html"
    with browsing(driver, page, tmp_path / "p") as opened:
        opened.page.focus("#clip-1-fox .play")
        press(opened, "4")
        main([str(tmp_path / "runs" / name) for name in ("two", "one")])
        opened.page.reload()
        assert valuetext(opened, "#clip-fox") == "4 of 5"
        assert valuetext(opened, "#clip-1-fox") == "not rated"
