"""The live page in a real browser: clips appear, ratings are saved, runs pause."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.browser import Opened, browsing, faults, needs_chromium, wait
from fakes.pages import MEASURED, make_run, make_status, moving_clip, record
from fakes.served import Client, serving
from PIL import Image

from hv15_batch.rundir.chosen.picks import picks_folder
from hv15_batch.rundir.chosen.previews import remove_preview, write_preview
from hv15_batch.rundir.chosen.ratings import Rating, format_ratings, ratings_file, read_ratings
from hv15_batch.rundir.log import RunLog, read_records
from hv15_batch.rundir.paths import RunDir
from hv15_batch.view import _changes

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = needs_chromium


def sha(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def clip(name: str, row: int, **changes: Any) -> Any:
    known = {"settings_sha256": sha(name), "file_sha256": sha(f"file {name}"), "num_frames": 48}
    return record(name, row, fps=24.0, **{**known, **MEASURED, **changes})


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    planned = [clip("fox", 0), clip("sea", 1, tags='{"tag_shot": "020"}'), clip("sky", 2)]
    status = {"state": "rendering", "hostname": "another", "total": 3, "done": 2}
    folder = make_run(tmp_path / "run", planned[:2], planned, status=status, is_playable=True)
    (folder / "clips" / "sky.mp4").write_bytes(moving_clip()[0])
    return RunDir(folder)


@pytest.fixture
def client(run_dir: RunDir) -> Iterator[Client]:
    with serving(run_dir.path, is_let_in=False) as server:
        yield server


@pytest.fixture
def opened(driver: Any, client: Client, tmp_path: Path) -> Iterator[Opened]:
    with browsing(driver, client.view.gate.address, tmp_path / "profile") as browser:
        wait(browser.page, "document.querySelector('.run-counts')")
        yield browser
        assert (browser.complaints, browser.foreign()) == ([], [])


def press(opened: Opened, name: str, key: str) -> None:
    opened.page.focus(f"#clip-{name} .play")
    opened.page.keyboard.press(key)


def test_a_clip_appears_while_another_plays(
    opened: Opened, run_dir: RunDir, client: Client
) -> None:
    assert opened.page.url == f"http://{client.host}/"
    opened.page.get_by_role("button", name="Play clip fox").click()
    wait(opened.page, "document.querySelector('#clip-fox video.controls, #clip-fox video')")
    opened.page.evaluate("window.playing = document.querySelector('#clip-fox video')")

    RunLog(run_dir.log, "20261124T230000-0001-bbbb").append(clip("sky", 2))
    opened.page.wait_for_selector("#clip-sky .play")

    assert opened.page.evaluate("playing === document.querySelector('#clip-fox video')")
    wait(opened.page, "document.querySelector('h1').textContent.startsWith('3 of 3')")
    assert opened.page.title().startswith("3 of 3")


@pytest.mark.exhaustive
def test_a_clip_is_on_the_page_within_two_seconds(opened: Opened, run_dir: RunDir) -> None:
    RunLog(run_dir.log, "20261124T230000-0001-bbbb").append(clip("sky", 2))
    written = time.monotonic()
    opened.page.wait_for_selector("#clip-sky .play")

    assert time.monotonic() - written < 2


@pytest.mark.exhaustive
def test_clips_of_a_running_tiny_run_are_on_the_open_page_within_two_seconds(
    driver: Any, tmp_path: Path
) -> None:
    """Run, server and browser as a user has them; the time is that of the log's row."""
    manifest = "prompt\n" + "".join(f"a cat and {n} dogs\n" for n in range(8))
    (tmp_path / "p.csv").write_text(manifest, encoding="utf-8")
    run_dir = RunDir(tmp_path / "outputs" / "p")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    words = ["-m", "hv15_batch", "p.csv", "model=tiny_t2v"]
    run = subprocess.Popen(
        [sys.executable, *words], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        until(run_dir.status.is_file)
        with (
            serving(run_dir.path, is_let_in=False) as client,
            browsing(driver, client.view.gate.address, tmp_path / "profile") as opened,
        ):
            wait(opened.page, "document.querySelectorAll('.card').length == 8")
            written: dict[str, float] = {}
            shown: dict[str, float] = {}
            early = set(playable(opened))
            end = time.monotonic() + 300
            while len(shown) < 8 - len(early):
                assert time.monotonic() < end
                for row in read_records(run_dir.log, ["clip_id"]).to_pylist():
                    written.setdefault(row["clip_id"], time.monotonic())
                for name in set(playable(opened)) - early:
                    shown.setdefault(name, time.monotonic())
                opened.page.wait_for_timeout(20)
            assert (opened.complaints, opened.foreign()) == ([], [])
    finally:
        run.terminate()
        run.wait()
    assert len(shown) >= 4
    assert max(shown[name] - written.get(name, shown[name]) for name in shown) < 2


def playable(opened: Opened) -> list[str]:
    script = "cards => cards.map(card => card.id.replace('clip-', ''))"
    names: list[str] = opened.page.eval_on_selector_all(".card:has(.play)", script)
    return names


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_film_appears_and_goes_on_playing(driver: Any, tmp_path: Path) -> None:
    clips = [clip("fox", 0), clip("sea", 1)]
    folder = make_run(
        tmp_path / "run", clips[:1], clips, is_playable=True, films={"fox": "one", "sea": "two"}
    )
    with (
        serving(folder, is_let_in=False) as client,
        browsing(driver, client.view.gate.address, tmp_path / "profile") as opened,
    ):
        assert opened.page.locator(".film video").count() == 0
        (folder / "films").mkdir()
        (folder / "films" / "one.mp4").write_bytes(moving_clip()[0])
        video = opened.page.get_by_label("Film one", exact=True)
        video.wait_for()
        video.evaluate("film => { window.playing = film; film.loop = true; return film.play(); }")
        wait(opened.page, "playing.currentTime > 0.1")

        (folder / "clips" / "sea.mp4").write_bytes(moving_clip()[0])
        RunLog(folder / "log", "20261124T230000-0001-bbbb").append(clips[1])
        wait(opened.page, "document.querySelector('h1').textContent.startsWith('2 of 2')")

        assert opened.page.evaluate("playing.isConnected && !playing.paused")
        assert (opened.complaints, opened.foreign()) == ([], [])


def test_a_rating_is_saved_and_shown_on_another_page(
    opened: Opened,
    run_dir: RunDir,
    driver: Any,
    client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with browsing(driver, client.view.gate.address, tmp_path / "other") as other:
        press(opened, "fox", "4")
        wait(other.page, "document.querySelector('#clip-fox .stars').textContent == '★★★★☆'")
        assert read_ratings(run_dir)[sha("fox")].rating == "4"
        assert other.complaints == []
    real = _changes.change_ratings

    def slow(*arguments: Any) -> None:
        time.sleep(0.3)
        real(*arguments)

    monkeypatch.setattr(_changes, "change_ratings", slow)
    for key in ("1", "x", "3", "0", "5", "2"):  # quickly: the last one counts
        press(opened, "fox", key)
    opened.page.reload()  # at once: what is not sent yet arrives all the same
    wait(opened.page, "document.querySelector('#clip-fox .stars').textContent == '★★☆☆☆'")
    assert read_ratings(run_dir)[sha("fox")].rating == "2"


def test_a_rating_that_is_not_saved_is_said_and_taken_back(opened: Opened, run_dir: RunDir) -> None:
    ratings_file(run_dir).write_text("my notes\n", encoding="utf-8")
    press(opened, "fox", "4")

    wait(opened.page, "document.querySelector('#toast').textContent.startsWith('Not saved: ')")
    assert opened.page.text_content("#clip-fox .stars") == "☆☆☆☆☆"
    opened.complaints.clear()  # the browser notes the refusal itself


def test_the_run_is_paused_and_shows_how_it_stands(opened: Opened, run_dir: RunDir) -> None:
    assert opened.page.text_content(".run-counts") == "2 of 3 done"
    opened.page.get_by_role("button", name="Pause run").click()
    opened.page.get_by_role("button", name="Unpause run").wait_for()
    assert run_dir.pause.exists()
    opened.page.get_by_role("button", name="Unpause run").click()
    opened.page.get_by_role("button", name="Pause run").wait_for()
    assert not run_dir.pause.exists()

    running = make_status(
        state="rendering", hostname="another", total=3, done=2, clip_id="sky", stage="denoise",
        step=7, steps=50, temperature_celsius=64.0, vram_used_bytes=2**33, vram_total_bytes=2**34,
    )  # fmt: skip
    run_dir.status.write_text(json.dumps(running), encoding="utf-8")
    wait(opened.page, "document.querySelector('.run-lines').textContent.includes('step 7 of 50')")
    assert "64 °C" in opened.page.text_content(".run-lines")


def test_picks_are_copied_and_ratings_loaded(
    opened: Opened, run_dir: RunDir, tmp_path: Path
) -> None:
    late = Rating(sha("sea"), sha("file sea"), "sea", "7", "5", "2999-01-01T00:00:00+00:00")
    saved = tmp_path / "ratings.csv"
    saved.write_text(format_ratings({"": late}), encoding="utf-8")
    with opened.page.expect_file_chooser() as chooser:
        opened.page.click("#load-ratings")
    chooser.value.set_files(saved)
    wait(opened.page, "document.querySelector('#clip-sea .stars').textContent == '★★★★★'")

    opened.page.click("#copy-picks")
    wait(opened.page, "document.querySelector('#toast').textContent.includes('1 clip in')")
    assert [path.name for path in picks_folder(run_dir).iterdir()] == ["020_v7.mp4"]
    with opened.page.expect_download():
        opened.page.click("#download")


def test_a_plot_is_saved_under_the_rules_of_the_served_page(opened: Opened) -> None:
    for kind in ("SVG", "PNG", "CSV"):
        with opened.page.expect_download() as event:
            opened.page.get_by_role("button", name=f"Save Seconds per stage as {kind}").click()
        assert event.value.suggested_filename == f"seconds-per-stage.{kind.lower()}"


def test_a_server_that_has_ended_is_said(driver: Any, run_dir: RunDir, tmp_path: Path) -> None:
    with serving(run_dir.path, is_let_in=False) as client:
        browser = browsing(driver, client.view.gate.address, tmp_path / "profile")
        opened = browser.__enter__()
        wait(opened.page, "document.querySelector('.run-counts')")
    try:
        wait(opened.page, "document.documentElement.classList.contains('lost')")
    finally:
        browser.__exit__(None, None, None)


def test_several_runs_stand_side_by_side(driver: Any, tmp_path: Path) -> None:
    for name in ("resident", "stream"):
        clips = [clip("fox", 0, offload=name), clip("sea", 1, offload=name)]
        make_run(tmp_path / "p.sweep" / name, clips, clips, status={}, is_playable=True)
    runs = sorted((tmp_path / "p.sweep").iterdir())
    with (
        serving(*runs, is_let_in=False) as client,
        browsing(driver, client.view.gate.address, tmp_path / "profile") as opened,
    ):
        wait(opened.page, "document.querySelectorAll('.run-box').length == 2")
        rows = opened.page.eval_on_selector_all(
            "#gallery .row",
            "r => r.map(e => [...e.querySelectorAll('.chip.run')].map(c => c.textContent))",
        )
        assert rows == [["resident", "stream"]] * 2
        press(opened, "1-fox", "5")
        wait(opened.page, "document.querySelector('#clip-1-fox .stars').textContent == '★★★★★'")
        assert opened.page.text_content("#clip-fox .stars") == "☆☆☆☆☆"
        opened.page.focus("#clip-fox .play")
        for key in ("Enter", "b"):
            opened.page.keyboard.press(key)
        assert opened.page.locator(".pane figcaption").all_text_contents() == [
            "left: resident, fox, seed 7", "right: stream, fox, seed 7",
        ]  # fmt: skip
        opened.page.keyboard.press("Escape")
        wait(opened.page, "true")
        assert faults(opened.page) == []
        assert (opened.complaints, opened.foreign()) == ([], [])
    assert read_ratings(RunDir(runs[1]))[sha("fox")].rating == "5"
    assert not ratings_file(RunDir(runs[0])).exists()


@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "dark"), pytest.param(2560, "light", marks=pytest.mark.exhaustive)]
)
def test_the_live_page_shuts_nobody_out(
    driver: Any, client: Client, tmp_path: Path, width: int, scheme: str
) -> None:
    address = client.view.gate.address
    with browsing(driver, address, tmp_path / "p", width=width, scheme=scheme) as opened:
        wait(opened.page, "document.querySelector('.run-counts')")
        for figure in opened.page.query_selector_all("figure"):
            figure.scroll_into_view_if_needed()
        wait(opened.page, "document.querySelector('.plot[data-drawn] svg.main-svg')")

        assert faults(opened.page) == []
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert (opened.complaints, opened.foreign()) == ([], [])


def test_keys_go_on_after_a_rating_by_mouse_in_the_large_view(
    opened: Opened, run_dir: RunDir
) -> None:
    press(opened, "fox", "Enter")
    opened.page.evaluate("window.block = document.querySelector('.large .rating')")
    opened.page.click(".large .reject")
    wait(opened.page, "!block.isConnected")  # renewed by what the server told
    assert opened.page.evaluate("document.activeElement.className") == "reject"
    opened.page.evaluate("document.activeElement.blur()")
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.text_content("#large-title") == "sea, seed 7"
    assert read_ratings(run_dir)[sha("fox")].rating == "x"


def test_a_rating_moves_no_list_and_no_focus(opened: Opened, run_dir: RunDir) -> None:
    page = opened.page
    card = "document.activeElement.closest('.card')?.id"
    page.select_option("#sort", "rating")
    before = opened.cards()
    page.evaluate("window.old = document.querySelector('#clip-sea')")
    press(opened, "sea", "5")
    wait(page, "!old.isConnected")  # renewed by what the server told
    assert (opened.cards(), page.evaluate(card)) == (before, "clip-sea")

    RunLog(run_dir.log, "20261124T230000-0001-bbbb").append(clip("sky", 2))
    page.wait_for_selector("#clip-sky .play")
    page.select_option("#sort", "manifest")
    page.select_option("#filter-rating", "unrated")
    assert opened.cards() == ["fox", "sky"]
    press(opened, "fox", "Enter")
    page.keyboard.press("4")
    wait(page, "hv15.clips.shown.every(clip => hv15.clips.all.includes(clip))")
    wait(page, "hv15.clips.all[0].rating && hv15.clips.all[0].rating.value == '4'")
    assert page.text_content(".large-head .quiet") == "1 of 2"
    page.keyboard.press("ArrowRight")
    assert page.text_content("#large-title") == "sky, seed 7"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    wait(page, f"{card} == 'clip-sky'")  # the successor of what was rated
    assert opened.cards() == ["sky"]

    ratings_file(run_dir).unlink()  # by somebody else: the list is made again
    wait(page, "document.querySelectorAll('#gallery .card').length == 3")
    assert page.evaluate(card) == "clip-sky"


def test_the_clip_that_denoises_is_shown_and_refreshed(opened: Opened, run_dir: RunDir) -> None:
    page = opened.page

    def denoise(step: int, colour: str) -> None:
        write_preview(
            run_dir, 0, lambda path: Image.new("RGB", (96, 64), colour).save(path, "JPEG")
        )
        working = {"state": "rendering", "hostname": "another", "total": 3, "done": 2}
        status = make_status(**working, clip_id="sky", stage="denoise", step=step, steps=50)
        run_dir.status.write_text(json.dumps(status), encoding="utf-8")

    denoise(5, "red")
    page.wait_for_selector(".preview img")
    assert page.text_content(".preview figcaption") == "sky, step 5 of 50"
    picture = "document.querySelector('.preview img')"
    wait(page, f"{picture}.complete && {picture}.naturalWidth == 96")
    first = page.evaluate(f"window.before = {picture}, before.src")
    denoise(10, "blue")
    wait(page, f"{picture}.src != '{first}' && {picture} === before")
    wait(page, "document.querySelector('.preview figcaption').textContent.includes('step 10')")
    remove_preview(run_dir, 0)
    wait(page, "document.querySelector('.run-previews').hidden")


def test_plots_and_tables_follow_and_what_was_opened_stays_open(
    opened: Opened, run_dir: RunDir
) -> None:
    page = opened.page
    seconds = "#plot-vram .plot[data-drawn]"
    page.evaluate("document.querySelector('#plot-vram').scrollIntoView()")
    page.wait_for_selector(seconds)
    page.evaluate("document.querySelector('#common details').open = true")
    page.evaluate("window.plot = document.querySelector('#plot-vram')")
    drawn = "document.querySelector('#plot-vram .plot').data[0].x.length"
    assert page.evaluate(drawn) == 2
    before = page.evaluate("window.scrollY")
    assert "2 of 3" in page.text_content("h1")

    RunLog(run_dir.log, "20261124T230000-0001-bbbb").append(clip("sky", 2, flow_shift=9.0))

    wait(page, f"{drawn} == 3")
    wait(page, "document.querySelector('h1').textContent.includes('3')")
    assert page.evaluate("document.querySelector('#plot-vram') === plot")
    assert page.evaluate("document.querySelector('#common details').open")
    assert abs(page.evaluate("window.scrollY") - before) < 400
    page.click(".contents a[href='#common']")
    assert page.evaluate("location.hash") == "#common"
