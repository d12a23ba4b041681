"""The page of `compare` in a real browser, from the disk: two clips of a pair play as one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.browser import Opened, browsing, faults, needs_chromium, wait
from fakes.pages import MEASURED, make_run, record

from hv15_batch.compare.command import main
from hv15_batch.config.settings import Config, VideoCodec, VideoConfig
from hv15_batch.media.video import read_frames, write_video
from hv15_batch.model.variant import ModelConfig

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = needs_chromium

SCRIPT = "<script>alert(1)</script>"
LONG = ('A sign reads "OPEN", it’s «late»; \'x\' 夜の街「開」 قطة "تمشي" ' * 200)[:10_000]
BIG_SEED = 2**63 - 1
FFV1 = VideoConfig(codec=VideoCodec.ffv1)
SHAPE = {"height": 90, "width": 160, "num_frames": 48, "fps": 24.0}
"""Of the clips that `page_runs` makes."""


def make_runs(folder: Path, clips: list[dict[str, Any]]) -> list[Path]:
    """Write two runs of the same clips; those of B are another render, noise upon A's."""
    for name, seconds in (("one", 400.0), ("another", 300.0)):
        values = {**MEASURED, **SHAPE, "total_seconds": seconds, "offload": name}
        records = [record(f"clip{n}", n, **{**values, **c}) for n, c in enumerate(clips)]
        config = Config(model=ModelConfig(name="480p_t2v"))
        make_run(folder / name, records, config=config, is_playable=True)
    noise = np.random.default_rng(0).integers(0, 5, (48, 90, 160, 3), dtype=np.uint8)
    for path in (folder / "another" / "clips").iterdir():
        frames = np.stack(list(read_frames(path))) // 2 + noise
        write_video(frames, path, fps=24.0, video=VideoConfig(), comment=None)
    return [folder / "one", folder / "another"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every kind of pair."""
    folder = tmp_path_factory.mktemp("page") / "my runs #1 100%"
    clips = [
        {"row_id": "fox", "prompt": "A red fox", "seed": 0},
        {"row_id": "fox", "prompt": "A red fox", "seed": BIG_SEED},
        {"row_id": "sign", "prompt": LONG, "latents_sha256": "ab" * 32},
        {"row_id": "hack", "prompt": SCRIPT},
        {"row_id": "gone", "prompt": "Its file is gone"},
        {"row_id": "exact", "prompt": "Lossless", "file": "clips/clip5.mkv"},
    ]
    one, another = make_runs(folder, clips)
    (another / "clips" / "clip4.mp4").unlink()
    frames = np.stack(list(read_frames(one / "clips" / "clip0.mp4")))
    for run in (one, another):
        write_video(frames, run / "clips" / "clip5.mkv", fps=24.0, video=FFV1, comment=None)
    main([str(one), str(another)], say=lambda line: None)
    return another / "compare" / "one" / "compare.html"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture
def opened(driver: Any, page: Path, tmp_path: Path) -> Iterator[Opened]:
    """The page, and afterwards the proof that it neither complained nor left the disk."""
    with browsing(driver, page, tmp_path / "profile") as browser:
        yield browser
        assert browser.complaints == []
        assert browser.foreign() == []


def times(opened: Opened, number: int) -> list[float]:
    """Return where the players of a pair are."""
    found: list[float] = opened.page.eval_on_selector_all(
        f"#pair-{number} video", "videos => videos.map(v => v.currentTime)"
    )
    return found


def wait_until_playing(opened: Opened, number: int, seconds: float = 0.3) -> None:
    videos = f"[...document.querySelectorAll('#pair-{number} video')]"
    wait(opened.page, f"{videos}.every(v => !v.paused && v.currentTime > {seconds})")


def playing_pairs(opened: Opened) -> list[str]:
    """Return the pairs in which anything moves."""
    found: list[str] = opened.page.eval_on_selector_all(
        ".pair", "ps => ps.filter(p => [...p.querySelectorAll('video')].some(v => !v.paused))"
        ".map(p => p.id)",
    )  # fmt: skip
    return found


def test_both_clips_of_every_pair_are_there_and_play_together(opened: Opened) -> None:
    counts = opened.page.eval_on_selector_all(
        ".pair", "pairs => pairs.map(p => p.querySelectorAll('video').length)"
    )
    assert counts == [2, 2, 2, 2, 1, 2]

    for number, name in enumerate(("fox, seed 0", f"fox, seed {BIG_SEED}", "sign, seed 7"), 1):
        opened.page.get_by_role("button", name=f"Play both {name}", exact=True).click()
        wait_until_playing(opened, number)
        a, b = times(opened, number)
        assert abs(a - b) < 0.1
        assert playing_pairs(opened) == [f"pair-{number}"]  # the one before has stopped

    opened.page.get_by_role("button", name="Pause both sign, seed 7").click()
    wait(opened.page, "[...document.querySelectorAll('video')].every(v => v.paused)")
    a, b = times(opened, 3)
    assert abs(a - b) < 1e-3  # what stands still is one moment
    assert opened.page.text_content("#pair-3 .play-both") == "Play both sign, seed 7"


def test_the_two_are_other_renders_and_each_shows_its_own_picture(opened: Opened) -> None:
    sources = opened.page.eval_on_selector_all(
        "#pair-1 video", "videos => videos.map(v => v.getAttribute('src'))"
    )
    assert sources == ["../../../one/clips/clip0.mp4", "../../clips/clip0.mp4"]
    opened.page.click("#pair-1 .play-both")
    wait_until_playing(opened, 1)
    sizes = opened.page.eval_on_selector_all(
        "#pair-1 video", "videos => videos.map(v => [v.videoWidth, v.videoHeight, v.duration])"
    )
    assert sizes == [[160, 90, 2.0], [160, 90, 2.0]]


def test_after_the_end_both_begin_again_together(opened: Opened) -> None:
    opened.page.click("#pair-1 .play-both")
    wait_until_playing(opened, 1, 1.5)

    wait(opened.page, "document.querySelector('#pair-1 video').currentTime < 1")
    wait_until_playing(opened, 1, 0.2)
    a, b = times(opened, 1)
    assert abs(a - b) < 0.1
    assert opened.page.text_content("#pair-1 .play-both") == "Pause both fox, seed 0"


def test_arrows_go_by_one_frame_in_both_also_before_anything_was_loaded(opened: Opened) -> None:
    opened.page.focus("#pair-1")
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("ArrowRight")
    ready = "[...document.querySelectorAll('#pair-1 video')].every(v => v.readyState > 1)"
    wait(opened.page, ready)

    assert times(opened, 1) == pytest.approx([2.5 / 24] * 2, abs=1e-3)
    assert opened.page.text_content("#pair-1 .at") == "frame 3 of 48"

    opened.page.get_by_role("button", name="Previous frame of fox, seed 0", exact=True).click()
    assert opened.page.text_content("#pair-1 .at") == "frame 2 of 48"
    for _ in range(3):
        opened.page.keyboard.press("ArrowLeft")
    assert opened.page.text_content("#pair-1 .at") == "frame 1 of 48"
    assert playing_pairs(opened) == []


def test_space_plays_the_pair_in_view_and_j_goes_to_the_next(opened: Opened) -> None:
    opened.page.evaluate("document.querySelector('#pair-4').scrollIntoView({block: 'start'})")
    opened.page.keyboard.press(" ")
    wait_until_playing(opened, 4)
    assert playing_pairs(opened) == ["pair-4"]

    opened.page.keyboard.press("k")
    opened.page.keyboard.press(" ")
    wait_until_playing(opened, 3)
    assert playing_pairs(opened) == ["pair-3"]

    opened.page.keyboard.press("j")
    assert opened.page.evaluate("document.activeElement.id") == "pair-4"
    assert playing_pairs(opened) == []


def test_a_name_in_the_table_leads_to_its_pair(opened: Opened) -> None:
    opened.page.get_by_role("link", name="hack, seed 7").click()
    opened.page.wait_for_timeout(100)
    opened.page.keyboard.press(" ")

    wait_until_playing(opened, 4)


def test_keys_that_scroll_a_table_move_no_clip(opened: Opened) -> None:
    opened.page.evaluate(
        "document.querySelector('#pair-1').scrollIntoView();"
        "document.querySelector('section:has(#pairs-title) .scroll').focus({preventScroll: true})"
    )
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press(" ")

    assert opened.page.text_content("#pair-1 .at") == "frame 1 of 48"
    assert playing_pairs(opened) == []


def test_a_clip_whose_other_is_gone_plays_alone(opened: Opened) -> None:
    assert opened.page.text_content("#pair-5 .none") == "no file that can be shown"
    opened.page.get_by_role("button", name="Play gone, seed 7").click()

    wait_until_playing(opened, 5)
    opened.page.get_by_role("button", name="Pause gone, seed 7").click()


def test_lossless_files_are_played_from_previews(opened: Opened, page: Path) -> None:
    names = sorted(path.name for path in (page.parent / "previews").iterdir())
    assert names == ["clip5_a.mp4", "clip5_b.mp4"]
    opened.page.get_by_role("button", name="Play both exact, seed 7").click()

    wait_until_playing(opened, 6)


def test_a_file_that_is_taken_away_later_is_said_on_the_page(
    driver: Any, page: Path, tmp_path: Path
) -> None:
    clip = page.parent.parent.parent / "clips" / "clip3.mp4"
    away = clip.rename(clip.with_suffix(".away"))
    try:
        with browsing(driver, page, tmp_path / "profile") as opened:
            opened.page.click("#pair-4 .play-both")
            wait(opened.page, "document.querySelectorAll('#pair-4 .frame.broken').length == 1")
            wait(opened.page, "document.querySelector('#pair-4 video').currentTime > 0.3")
            assert all("ERR_FILE_NOT_FOUND" in line for line in opened.complaints)
    finally:
        away.rename(clip)


def test_figures_stand_in_tables_with_their_reasons(opened: Opened) -> None:
    costs = opened.page.locator(".costs tbody tr").all_inner_texts()
    assert costs[0].split("\t") == [
        *("Seconds per clip", "1.34 times as fast"),
        *("397.9 s", "397.9 to 397.9", "n = 6 warm clips"),
        *("297.9 s", "297.9 to 297.9", "n = 6 warm clips"),
    ]
    rows = [text.split("\t") for text in opened.page.locator(".pairs tbody tr").all_inner_texts()]
    assert [row[0] for row in rows] == [
        *("1: fox, seed 0", f"2: fox, seed {BIG_SEED}", "3: sign, seed 7", "4: hack, seed 7"),
        *("5: gone, seed 7", "6: exact, seed 7"),
    ]
    assert [row[1] for row in rows] == ["–", "–", "infinite (identical)", "–", "–", "–"]
    assert all(5 < float(row[2].removesuffix(" dB")) < 40 for row in rows[:4])
    assert rows[5][2:5] == ["infinite (identical)", "1.0000", "infinite (identical)"]
    assert rows[4][2:] == [*["–"] * 3, "the file of B is gone"]
    assert opened.page.locator(".settings tbody tr").all_inner_texts() == ["offload\tone\tanother"]


def test_hostile_and_long_prompts_are_text(opened: Opened) -> None:
    assert opened.page.text_content("#pair-4 .prompt").strip() == SCRIPT
    opened.page.locator("#pair-3").get_by_text("10,000 characters").click()
    full = opened.page.locator("#pair-3 .full")
    assert full.text_content() == LONG
    assert full.get_attribute("dir") == "auto"
    assert full.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nobody_is_shut_out(
    driver: Any, page: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    with browsing(driver, page, tmp_path / "p", width=width, scheme=scheme) as opened:
        opened.page.evaluate(
            "document.querySelectorAll('details').forEach(d => { d.open = true; })"
        )
        opened.page.click("#pair-1 .play-both")
        wait_until_playing(opened, 1)

        assert faults(opened.page) == []
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        tops = opened.page.eval_on_selector_all(
            "#pair-1 video", "videos => videos.map(v => v.getBoundingClientRect().top)"
        )
        assert (tops[0] == tops[1]) == (width == 1280)  # side by side where there is room
        assert (opened.complaints, opened.foreign()) == ([], [])


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.exhaustive)])
def test_on_paper_no_table_is_cut_and_colours_are_light(
    driver: Any, page: Path, tmp_path: Path, scheme: str
) -> None:
    with browsing(driver, page, tmp_path / "paper", scheme=scheme) as opened:
        shown = opened.page
        shown.evaluate("dispatchEvent(new Event('beforeprint'))")
        shown.emulate_media(media="print")
        shown.set_viewport_size({"width": 700, "height": 1000})  # A4 without its margins
        right = "all => all.map(table => table.getBoundingClientRect().right)"
        assert max(shown.eval_on_selector_all("table", right)) <= 700
        assert shown.locator("main details:not([open])").count() == 0
        colour = "getComputedStyle(document.documentElement).getPropertyValue('--text').trim()"
        assert shown.evaluate(colour) == "#1a1f26"
        shown.evaluate("dispatchEvent(new Event('afterprint'))")
        assert not shown.evaluate("document.documentElement.classList.contains('printing')")
        assert opened.complaints == []
