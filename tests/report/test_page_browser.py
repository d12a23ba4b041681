"""The page in a real browser, from the disk: it plays, filters, rates, and asks no network."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
from fakes.browser import Opened, browsing, faults, needs_chromium, wait
from fakes.pages import MEASURED, failed, make_run, record
from fakes.samples import sampled
from PIL import Image

from hv15_batch.config.settings import Config
from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.variant import ModelConfig, Task
from hv15_batch.record import ClipRecord
from hv15_batch.report.command import main

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = needs_chromium

QUOTED = 'A sign reads "OPEN", it’s «late»; \'x\' 夜の街「開」 قطة "تمشي" '
LONG = (QUOTED * 200)[:10_000]
SCRIPT = "<script>alert(1)</script>"
BIG_SEED = 2**63 - 1
LOOKS = tuple(product((1280, 360, 390, 2560), ("light", "dark")))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every kind of clip, its page built."""
    tags = '{"tag_scene": "city"}'
    clips = [
        record("fox_s0", row_id="fox", prompt="A red fox", seed=0, **MEASURED),
        record("fox_s1", row_id="fox", prompt="A red fox", seed=BIG_SEED, **MEASURED),
        record("sign", 1, prompt=LONG, tags=tags, num_inference_steps=30, **MEASURED),
        record("hack", 2, prompt=SCRIPT, tags=tags, **MEASURED),
        failed("bad", row_index=3, message=f"cannot {SCRIPT}"),
        record("dark", 4, status="suspect", quality_flag="black", **MEASURED),
    ]
    for number, clip in enumerate(clips):
        seconds = None if clip.total_seconds is None else 400.0 - number
        clips[number] = replace(clip, total_seconds=seconds, guidance_scale=6.0, flow_shift=5.0)
    config = Config(manifest="/home/me/p.csv", model=ModelConfig(name="480p_t2v"))
    config.report.price_per_kwh = 0.3
    folder = tmp_path_factory.mktemp("page") / "a run #1 100%"
    planned = [*clips, record("later", 5, prompt="Not yet")]
    status = {"state": "stopped", "message": "disk full: 0.4 GiB free"}
    make_run(folder, clips, planned, config=config, status=status, is_playable=True)
    main([str(folder)])
    return folder


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture
def opened(driver: Any, run_dir: Path, tmp_path: Path) -> Iterator[Opened]:
    """The page, and afterwards the proof that it neither complained nor left the disk."""
    with browsing(driver, run_dir / "index.html", tmp_path / "profile") as browser:
        yield browser
        assert browser.complaints == []
        assert browser.foreign() == []


def test_clips_are_shown_in_the_order_of_the_manifest(opened: Opened) -> None:
    assert opened.cards() == ["fox_s0", "fox_s1", "sign", "hack", "bad", "dark", "later"]
    assert opened.page.text_content("#count") == "7 clips"
    heads = opened.page.eval_on_selector_all("#gallery .row", "r => r.map(e => e.children.length)")
    assert len(heads) == 6  # the two seeds of one row stand side by side
    assert f"seed {BIG_SEED}" in opened.page.text_content("#clip-fox_s1")


def test_tiles_have_the_shape_of_their_clips_and_are_level_in_a_row(
    driver: Any, tmp_path: Path
) -> None:
    sizes = {"wide": (480, 848), "photo": (128, 192), "square": (640, 640), "tower": (832, 208)}
    clips = [
        record(name, row, height=height, width=width, **MEASURED)
        for row, (name, (height, width)) in enumerate(sizes.items())
    ]
    clips += [  # a row of two sizes, and a clip of no known size
        record("mixed_s0", 4, row_id="mixed", height=480, width=848, **MEASURED),
        record("mixed_s1", 4, row_id="mixed", height=480, width=640, **MEASURED),
        record("unknown", 5, height=None, width=None, **MEASURED),
    ]
    folder = tmp_path / "run"
    make_run(folder, clips, clips, is_playable=True)
    main([str(folder)])

    with browsing(driver, folder / "index.html", tmp_path / "profile") as browser:
        shapes = {
            name: browser.page.evaluate(
                "id => { const box = document.querySelector(`#clip-${id} .frame`)"
                ".getBoundingClientRect(); return box.width / box.height; }",
                name,
            )
            for name in browser.cards()
        }
        assert browser.complaints == []

    expected = {
        "wide": 848 / 480, "photo": 192 / 128, "square": 1.0, "tower": 9 / 16,
        "mixed_s0": 640 / 480, "mixed_s1": 640 / 480, "unknown": 16 / 9,
    }  # fmt: skip
    assert shapes == pytest.approx(expected, rel=0.01)


def test_hostile_and_long_prompts_are_text(opened: Opened) -> None:
    rows = opened.page.locator("#gallery .row")

    assert rows.nth(2).locator(".prompt .body").text_content() == SCRIPT
    assert opened.page.locator("#problems .text").first.text_content() == (
        f"RuntimeError: cannot {SCRIPT}"
    )
    long = rows.nth(1)
    long.get_by_role("button", name="all 10,000 characters").click()
    assert long.locator(".prompt .body").text_content() == LONG
    assert long.locator(".prompt .body").get_attribute("dir") == "auto"


def test_a_row_shows_every_text_of_its_prompt_and_what_was_written(
    driver: Any, tmp_path: Path
) -> None:
    now = record("now", row_id="fox", prompt="A red fox.", prompt_original="a fox")
    before = replace(now, clip_id="before", prompt="A fox trots.", settings_sha256="sha-before")
    folder = make_run(tmp_path / "run", [before, now], [now])
    main([str(folder)])
    with browsing(driver, folder / "index.html", tmp_path / "profile") as browser:
        texts = browser.page.locator(".row .prompt")
        assert texts.all_inner_texts() == ["A red fox.", "A fox trots.", "rewritten from: a fox"]


def test_filters_by_text_status_and_tag(opened: Opened) -> None:
    opened.page.fill("#filter-text", "red FOX 9223")
    wait(opened.page, "document.querySelector('#count').textContent == '1 of 7 clips'")
    assert opened.cards() == ["fox_s1"]

    opened.page.fill("#filter-text", "")
    opened.page.select_option("#filter-status", "failed")
    wait(opened.page, "document.querySelectorAll('.card').length == 1")
    assert opened.cards() == ["bad"]

    opened.page.select_option("#filter-status", "")
    opened.page.select_option("#filter-tag", label="scene: city")
    assert opened.cards() == ["sign", "hack"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("scene: city", ["sign", "hack"]),
        ("scene", ["sign", "hack"]),
        ("steps 30", ["sign"]),
        ("seed 7", ["sign", "hack", "bad", "dark", "later"]),
        ("seed 9", []),
        ("later seed ", ["later"]),  # on the way to its number
        (f"fox seed {BIG_SEED}", ["fox_s1"]),
    ],
)
def test_the_filter_finds_what_is_written_under_a_clip(
    opened: Opened, text: str, shown: list[str]
) -> None:
    opened.page.fill("#filter-text", text)
    wait(opened.page, f"document.querySelector('#count').textContent == '{len(shown)} of 7 clips'")
    assert opened.cards() == shown


@pytest.mark.parametrize(
    ("order", "first", "last"),
    [
        ("slowest", "fox_s0", "later"),
        ("fastest", "dark", "later"),
        ("finished", "dark", "later"),
        ("seed", "fox_s0", "fox_s1"),
        ("problem", "bad", "later"),
    ],
)
def test_sorts(opened: Opened, order: str, first: str, last: str) -> None:
    opened.page.select_option("#sort", order)

    cards = opened.cards()
    assert (cards[0], cards[-1], len(cards)) == (first, last, 7)


def test_a_click_plays_a_clip_and_escape_stops_it(opened: Opened) -> None:
    assert opened.page.locator("video").count() == 0
    opened.page.get_by_role("button", name="Play clip fox_s0").click()

    wait(opened.page, "document.querySelector('#clip-fox_s0 video').currentTime > 0.2")
    opened.page.keyboard.press("Escape")
    assert opened.page.locator("video").count() == 0
    focused = opened.page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "Play clip fox_s0"


def test_hovering_plays_and_leaving_stops(opened: Opened) -> None:
    opened.page.hover("#clip-dark .play")

    wait(opened.page, "document.querySelector('#clip-dark video')?.currentTime > 0.2")
    opened.page.mouse.move(0, 0)
    wait(opened.page, "!document.querySelector('video')")


def test_all_clips_of_a_row_play_side_by_side(opened: Opened) -> None:
    opened.page.get_by_role("button", name="Play all clips of fox").click()

    playing = "[...document.querySelectorAll('video')].filter(v => v.currentTime > 0.1).length == 2"
    wait(opened.page, playing)


def rate(opened: Opened, name: str, key: str) -> None:
    """Press a key on a clip of the gallery."""
    opened.page.focus(f"#clip-{name} .play")
    opened.page.keyboard.press(key)


def rating_of(opened: Opened, name: str) -> str:
    text: str = opened.page.get_attribute(f"#clip-{name} .stars", "aria-valuetext")
    return text


def test_the_keyboard_goes_from_clip_to_clip_and_rates(opened: Opened) -> None:
    opened.page.focus("#clip-fox_s0 .play")
    opened.page.keyboard.press("ArrowRight")
    for key, said in (("3", "3 of 5"), ("x", "rejected"), ("5", "5 of 5"), ("0", "not rated")):
        opened.page.keyboard.press(key)
        assert rating_of(opened, "fox_s1") == said
    assert rating_of(opened, "fox_s0") == "not rated"


def test_the_mouse_rates_and_clears_and_rejects(opened: Opened) -> None:
    stars = opened.page.locator("#clip-fox_s0 .stars")
    width = stars.bounding_box()["width"]
    stars.click(position={"x": width * 0.5, "y": 8})
    assert rating_of(opened, "fox_s0") == "3 of 5"
    stars.click(position={"x": width * 0.5, "y": 8})
    assert rating_of(opened, "fox_s0") == "not rated"
    opened.page.get_by_role("button", name="Reject clip fox_s0").click()
    assert rating_of(opened, "fox_s0") == "rejected"
    stars.focus()
    opened.page.keyboard.press("ArrowRight")
    assert rating_of(opened, "fox_s0") == "1 of 5"


def download(opened: Opened, to: Path) -> Path:
    with opened.page.expect_download() as event:
        opened.page.click("#download")
    assert event.value.suggested_filename == "picks.csv"
    event.value.save_as(to / "picks.csv")
    return to / "picks.csv"


def test_picked_seeds_become_a_manifest_that_is_read(opened: Opened, tmp_path: Path) -> None:
    for name in ("fox_s1", "sign", "hack", "fox_s0"):
        rate(opened, name, "4")
    rate(opened, "dark", "3")  # good, but no pick

    picks = read_manifest(download(opened, tmp_path), Task.t2v)

    assert [row.id for row in picks.rows] == ["fox", "sign", "hack"]
    assert [row.prompt for row in picks.rows] == ["A red fox", LONG, SCRIPT]
    assert [sorted(row.seeds or ()) for row in picks.rows] == [[0, BIG_SEED], [7], [7]]
    assert [row.num_inference_steps for row in picks.rows] == [50, 30, 50]
    assert [row.tags for row in picks.rows] == [{}, *[{"tag_scene": "city"}] * 2]


def test_the_command_for_picks_renders_these_clips(
    driver: Any, run_dir: Path, tmp_path: Path
) -> None:
    config = Config(manifest="/home/me/p.csv", model=ModelConfig(name="480p_t2v"))
    config.video.crf = 35
    config.runtime.mask_free = False
    clip = record("a", **MEASURED)
    folder = make_run(tmp_path / "run", [clip], [clip], config=config, is_playable=True)
    main([str(folder)])

    with browsing(driver, folder / "index.html", tmp_path / "profile") as opened:
        rate(opened, "a", "5")
        download(opened, tmp_path)

        said = opened.page.text_content("#toast")
    assert said.startswith("Saved. Render it with: hv15-batch picks.csv model=480p_t2v ")
    assert said.endswith(" runtime.mask_free=false video.crf=35")


def test_ratings_outlive_the_page_and_can_be_filtered_and_sorted(opened: Opened) -> None:
    for name, key in (("hack", "5"), ("fox_s1", "2"), ("dark", "x"), ("sign", "4")):
        rate(opened, name, key)
    opened.page.reload()

    opened.page.select_option("#sort", "rating")
    assert opened.cards()[:3] == ["hack", "sign", "fox_s1"]
    for choice, names in (
        ("2", ["hack", "sign", "fox_s1"]), ("5", ["hack"]), ("rejected", ["dark"]),
        ("unrated", ["fox_s0"]), ("picks", ["hack", "sign"]), ("outdated", []),
    ):  # fmt: skip
        opened.page.select_option("#filter-rating", choice)
        assert opened.cards() == names
    assert opened.page.text_content("#download") == "picks.csv (2)"
    opened.page.select_option("#least", "2")
    assert opened.page.text_content("#download") == "picks.csv (3)"


def test_rejected_clips_are_hidden_at_once_and_the_next_has_the_focus(opened: Opened) -> None:
    opened.page.check("#hide-rejected")
    rate(opened, "fox_s1", "x")

    assert opened.cards() == ["fox_s0", "sign", "hack", "bad", "dark", "later"]
    assert opened.page.text_content("#count") == "6 of 7 clips"
    focused = "document.activeElement.closest('.card').id"
    assert opened.page.evaluate(focused) == "clip-sign"
    opened.page.reload()
    assert "fox_s1" not in opened.cards()


def test_ratings_work_where_storage_is_blocked(driver: Any, run_dir: Path, tmp_path: Path) -> None:
    with browsing(driver, run_dir / "index.html", tmp_path / "profile") as opened:
        opened.page.add_init_script(
            "Object.defineProperty(window, 'localStorage', {get() { throw new Error('blocked'); }})"
        )
        opened.page.reload()
        rate(opened, "hack", "5")

        assert "hack" in download(opened, tmp_path).read_text(encoding="utf-8")
        assert opened.complaints == []


def test_the_command_of_a_clip_is_copied(opened: Opened) -> None:
    opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.page.get_by_role("button", name="Copy the command that makes clip fox_s1").click()

    opened.page.wait_for_selector("#toast.shown")
    copied = opened.page.evaluate("navigator.clipboard.readText()")
    assert f"override.seeds={BIG_SEED}" in copied


def test_a_reason_leads_to_its_clip(opened: Opened) -> None:
    opened.page.fill("#filter-text", "fox")
    # Filtered while the button is down, the page would move away from under the pointer.
    wait(opened.page, "document.querySelector('#count').textContent == '2 of 7 clips'")
    opened.page.click("#problems a[data-clip=bad]")

    opened.page.wait_for_selector("#clip-bad:focus")


@pytest.mark.exhaustive
def test_the_head_leads_by_keyboard_past_a_thousand_clips(driver: Any, tmp_path: Path) -> None:
    clips = [record(f"c{n:04d}", n, **MEASURED) for n in range(1000)]
    make_run(tmp_path / "run", clips, clips, is_playable=True)
    main([str(tmp_path / "run")])

    with browsing(driver, tmp_path / "run" / "index.html", tmp_path / "profile") as opened:
        for name, title in (("Settings", "#common-title"), ("Plots", "#plots-title")):
            opened.page.locator(".contents a", has_text=name).focus()
            opened.page.keyboard.press("Enter")
            top = f"document.querySelector('{title}').getBoundingClientRect().top"
            wait(opened.page, f"{top} >= 0 && {top} < innerHeight")
        assert opened.page.locator("#common details[open]").count() == 1
        opened.page.wait_for_timeout(500)  # nothing that is made later pushes it away
        assert opened.page.evaluate(f"{top} >= 0 && {top} < innerHeight")
        assert opened.complaints == []


def measured_twice() -> list[ClipRecord]:
    """Return repetitions of two clips under two profiles, of which one is unsteady."""
    return [
        record(f"c{n}", n, offload=profile, repeat=repeat, file=None, **MEASURED,
               total_seconds=seconds * (1 + 0.2 * repeat * n))
        for profile, seconds in (("resident", 400.0), ("stream", 440.0))
        for repeat in (1, 2, 3)
        for n in (0, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(("width", "scheme"), sampled(LOOKS, 1, seed=0))
def test_a_benchmark_shows_tables_and_nobody_is_shut_out(
    driver: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    clips = measured_twice()
    config = Config(manifest="p.csv", model=ModelConfig(name="480p_t2v"))
    config.benchmark.repeat = 3
    make_run(tmp_path / "run", clips, clips[:2], config=config, status={})
    main([str(tmp_path / "run")])

    page = tmp_path / "run" / "index.html"
    with browsing(driver, page, tmp_path / "p", width=width, scheme=scheme) as opened:
        draw_all(opened.page)

        assert opened.page.locator("table.groups tbody tr").count() == 2
        assert opened.page.locator("table.benchmark tbody").count() == 2
        assert not opened.page.locator("#clips").is_visible()
        assert faults(opened.page) == []
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert (opened.complaints, opened.foreign()) == ([], [])


def test_figures_of_two_variants_fit_a_screen_and_bars_have_room(
    driver: Any, tmp_path: Path
) -> None:
    for number, name in enumerate(("480p_t2v", "480p_t2v_distilled")):
        for profile in ("resident", "stream"):
            clips = [
                record(f"c{n}", n, offload=profile, model=name, revision=str(number) * 64,
                       guidance_scale=6.0 - 5 * number, off_recipe=bool(number),
                       attention_backend="_native_cudnn", **MEASURED)
                for n in range(3)
            ]  # fmt: skip
            make_run(tmp_path / "p.sweep" / f"{name}-{profile}", clips, clips)
    main([str(tmp_path / "p.sweep")])

    page = tmp_path / "p.sweep" / "comparison.html"
    with browsing(driver, page, tmp_path / "p") as opened:
        draw_all(opened.page)

        table = "document.querySelector('.scroll')"
        assert opened.page.evaluate(f"{table}.scrollWidth <= {table}.clientWidth")
        shares = opened.page.eval_on_selector_all(
            ".plot",
            "p => p.map(e => e.querySelector('.nsewdrag').getBoundingClientRect().width"
            " / e.clientWidth)",
        )
        assert len(shares) == 4
        assert min(shares) > 2 / 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_each_plot_is_saved_as_svg_png_and_csv(driver: Any, tmp_path: Path, scheme: str) -> None:
    for name, seconds in (("resident", 100.0), ("stream", 150.0)):
        values = {**MEASURED, "encode_seconds": None, "total_seconds": seconds}
        clips = [record(f"c{n}", n, offload=name, **values) for n in range(3)]
        make_run(tmp_path / "p.sweep" / name, clips, clips)
    main([str(tmp_path / "p.sweep")])

    page = tmp_path / "p.sweep" / "comparison.html"
    with browsing(driver, page, tmp_path / "p", scheme=scheme) as opened:
        assert opened.page.locator(".downloads button").count() == 3 * 4
        found = {}
        for kind in ("SVG", "PNG", "CSV"):
            with opened.page.expect_download() as event:
                opened.page.get_by_role(
                    "button", name=f"Save Seconds against memory as {kind}"
                ).click()
            event.value.save_as(tmp_path / "file")
            found[event.value.suggested_filename] = (tmp_path / "file").read_bytes()
        assert (opened.complaints, opened.foreign()) == ([], [])

    svg, png, table = found.values()
    assert list(found) == [f"seconds-against-memory.{kind}" for kind in ("svg", "png", "csv")]
    assert svg.startswith(b"<svg ")
    assert b">Seconds against memory</text>" in svg
    assert b"resident (Pareto front)" in svg
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (1920, 840)
        assert len(image.getcolors(1 << 24)) > 20  # not an empty sheet
    assert table.decode().splitlines() == [
        'series,"peak VRAM reserved by torch, GiB",seconds a clip',
        "resident (Pareto front),13.400384521111846,100",
        "stream,13.400384521111846,150",
    ]


def draw_all(page: Any) -> None:
    """Bring every figure into view, and wait until what has values is drawn."""
    for figure in page.query_selector_all("figure"):
        figure.scroll_into_view_if_needed()
    wanted = "document.querySelectorAll('.plot').length"
    wait(page, f"document.querySelectorAll('.plot[data-drawn] svg.main-svg').length >= {wanted}")


def test_every_plot_is_drawn_when_it_comes_into_view(opened: Opened) -> None:
    assert opened.page.locator(".plot[data-drawn]").count() == 0
    draw_all(opened.page)

    marks = opened.page.eval_on_selector_all(
        ".plot",
        "p => p.map(e => [e.parentNode.id, e.querySelectorAll('.point, .lines path').length])",
    )
    assert [name for name, _ in marks] == [
        f"plot-{name}" for name in
        ("stages", "steps", "vram", "ram", "clocks", "temperature", "rate", "energy")
    ]  # fmt: skip
    assert [name for name, count in marks if count == 0] == []


def test_long_names_of_series_are_whole_on_a_phone(driver: Any, tmp_path: Path) -> None:
    clips = [
        record(f"c{n}", n, model=("480p_t2v", "480p_t2v_distilled")[n % 2], offload="stream",
               attention_backend=("_native_cudnn", "_flash_3_varlen_hub")[n % 2], **MEASURED)
        for n in range(8)
    ]  # fmt: skip
    folder = make_run(tmp_path / "run", clips, clips, is_playable=True)
    main([str(folder)])

    with browsing(driver, folder / "index.html", tmp_path / "profile", width=390) as opened:
        draw_all(opened.page)
        over = """all => all.filter(text => text.getBoundingClientRect().right
            > text.closest('.plot').getBoundingClientRect().right).map(text => text.textContent)"""
        assert opened.page.locator("#plot-steps .legendtext").count() == 4
        assert opened.page.eval_on_selector_all(".legendtext", over) == []
        assert opened.page.eval_on_selector("#plot-steps", ROOM) > 120
        assert opened.complaints == []


ROOM = "e => e.querySelector('.nsewdrag').getBoundingClientRect().height"


def test_a_legend_of_many_names_leaves_room_for_the_plot_on_a_phone(
    driver: Any, tmp_path: Path
) -> None:
    for number, name in enumerate(("480p_t2v", "480p_t2v_distilled", "720p_t2v", "720p_i2v")):
        for profile in ("resident", "stream"):
            values = {
                **MEASURED,
                "total_seconds": 100.0 + number,
                "peak_vram_reserved_bytes": 2**34,
            }
            clips = [record(f"c{n}", n, offload=profile, model=name, **values) for n in range(3)]
            make_run(tmp_path / "p.sweep" / f"{name}-{profile}", clips, clips)
    main([str(tmp_path / "p.sweep")])

    page = tmp_path / "p.sweep" / "comparison.html"
    with browsing(driver, page, tmp_path / "profile", width=390) as opened:
        draw_all(opened.page)
        first = opened.page.locator(".plots > figure").first
        assert first.locator(".legendtext").count() >= 8
        assert first.evaluate(ROOM) > 120
        assert first.locator(".scrollbar").evaluate("bar => bar.getBBox().height") == 0


def test_a_plot_without_values_is_left_out(driver: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "run", [record("a")], [record("a")], is_playable=True)
    main([str(tmp_path / "run")])

    with browsing(driver, tmp_path / "run" / "index.html", tmp_path / "profile") as opened:
        assert opened.page.locator("#plot-energy").count() == 0
        assert opened.page.locator("#plot-vram").count() == 1
        draw_all(opened.page)
        assert opened.complaints == []


@pytest.mark.parametrize(("width", "scheme"), sampled(LOOKS, 1, seed=2))
def test_nobody_is_shut_out(
    driver: Any, run_dir: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    page = run_dir / "index.html"
    with browsing(driver, page, tmp_path / "p", width=width, scheme=scheme) as opened:
        rate(opened, "hack", "5")
        rate(opened, "dark", "x")
        opened.page.get_by_role("button", name="Play clip fox_s0").click()
        opened.page.click("summary:has(#common-title)")
        draw_all(opened.page)

        assert faults(opened.page) == []
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert (opened.complaints, opened.foreign()) == ([], [])


@pytest.mark.parametrize(("width", "scheme"), sampled(LOOKS, 1, seed=5))
def test_the_comparison_is_drawn_and_nobody_is_shut_out(
    driver: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    for name in ("resident", "stream"):
        clips = [record(f"c{n}", n, offload=name, **MEASURED) for n in range(3)]
        make_run(tmp_path / "p.sweep" / name, clips, clips)
    main([str(tmp_path / "p.sweep")])

    page = tmp_path / "p.sweep" / "comparison.html"
    with browsing(driver, page, tmp_path / "p", width=width, scheme=scheme) as opened:
        draw_all(opened.page)

        assert opened.page.locator("tbody tr").count() == 2
        assert opened.page.locator(".plot").count() == 4
        assert faults(opened.page) == []
        assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert (opened.complaints, opened.foreign()) == ([], [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_published_figures_are_read_without_scrolling_sideways_on_a_phone(
    driver: Any, run_dir: Path, tmp_path: Path, scheme: str
) -> None:
    page = run_dir / "index.html"
    with browsing(driver, page, tmp_path / "p", width=360, scheme=scheme) as opened:
        opened.page.click("summary:has(#references-title)")
        figure = opened.page.locator(".references > tbody").first
        figure.locator(".why summary").click()

        scroll = "document.querySelector('#references .scroll')"
        assert opened.page.evaluate(f"{scroll}.scrollWidth <= {scroll}.clientWidth")
        cells = figure.locator("> tr").first.locator("> *")
        boxes = [cells.nth(n).bounding_box() for n in range(cells.count())]
        assert len(boxes) == 6
        for above, below in pairwise(boxes):
            assert below["y"] == pytest.approx(above["y"] + above["height"], abs=1)
        assert faults(opened.page) == []
        assert opened.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_on_paper_all_plots_are_drawn_and_no_table_is_cut(
    driver: Any, run_dir: Path, tmp_path: Path, kind: str, scheme: str
) -> None:
    page = run_dir / "index.html"
    if kind == "comparison":
        for number, name in enumerate(("480p_t2v", "480p_t2v_distilled", "720p_t2v")):
            clips = [
                record(f"c{n}", n, offload="stream", model=name, revision=str(number) * 64,
                       attention_backend="_native_cudnn", **MEASURED)
                for n in range(3)
            ]  # fmt: skip
            make_run(tmp_path / "p.sweep" / name, clips, clips)
        main([str(tmp_path / "p.sweep")])
        page = tmp_path / "p.sweep" / "comparison.html"
    with browsing(driver, page, tmp_path / "profile", scheme=scheme) as opened:
        shown = opened.page
        shown.evaluate("void (window.print = () => { window.asked = true; })")
        shown.keyboard.press("Control+p")
        wait(shown, "window.asked")
        plots = shown.locator(".plot").count()
        assert plots > 2
        drawn = "all => all.map(e => e.dataset.drawn || e.textContent)"
        assert shown.eval_on_selector_all(".plot", drawn) == ["true"] * plots
        shown.set_viewport_size({"width": 700, "height": 1000})  # A4 without its margins
        shown.emulate_media(media="print")
        cut = shown.eval_on_selector_all(
            "table, .plot svg",
            "all => all.filter(e => e.getBoundingClientRect().right > 701).map(e => e.outerHTML)",
        )
        assert cut == []
        background = "getComputedStyle(document.documentElement).getPropertyValue('--card').trim()"
        assert shown.evaluate(background) == "#ffffff"
        assert shown.evaluate("[...document.querySelectorAll('main details')].every(d => d.open)")
        (tmp_path / "page.pdf").write_bytes(shown.pdf(prefer_css_page_size=True))
        shown.emulate_media(media="screen")
        shown.evaluate("dispatchEvent(new Event('afterprint'))")
        assert not shown.evaluate("document.documentElement.classList.contains('printing')")
        assert (tmp_path / "page.pdf").stat().st_size > 20_000


PLOTS_AT_ONCE = """() => {
    dispatchEvent(new Event("beforeprint"));
    return new Promise(done => {  // what is drawn later is not on the paper
        const channel = new MessageChannel();
        channel.port1.onmessage = () => done(document.querySelectorAll(".plot .main-svg").length);
        channel.port2.postMessage(0);
    });
}"""


def test_a_page_that_is_printed_by_a_menu_has_plots_that_were_never_in_view(
    opened: Opened,
) -> None:
    assert opened.page.locator(".plot[data-drawn]").count() == 0
    assert opened.page.evaluate(PLOTS_AT_ONCE) >= opened.page.locator(".plot").count() == 8


def test_numbers_and_names_are_whole_on_paper_and_a_table_of_many_columns_is_not_cut(
    driver: Any, tmp_path: Path
) -> None:
    many = {
        "attention_backend": ("_native_cudnn", "_flash_3_varlen_hub"), "num_frames": (121, 61),
        "num_inference_steps": (50, 8), "height": (480, 720), "linear": ("fp8", "int8"),
        "model": ("480p_t2v_distilled", "480p_t2v"), "offload": ("resident", "stream"),
        "weights": ("pretrained", "random"), "gpu_name": ("NVIDIA GeForce RTX 4090", "NVIDIA H200"),
        "guidance_scale": (6.0, 1.0), "flow_shift": (5.0, 9.0), "compiled": (True, False),
    }  # fmt: skip
    for folder, columns in {"few": ("model", "offload"), "many": tuple(many)}.items():
        for n in (0, 1):
            values = {**MEASURED, "total_seconds": 1234.5, **{c: many[c][n] for c in columns}}
            clips = [record(f"c{k}", k, **values) for k in range(3)]
            make_run(tmp_path / folder / str(n), clips, clips)
        main([str(tmp_path / folder)])
    lines = """all => all.flatMap(cell => {
        const range = document.createRange();
        range.selectNodeContents(cell);
        const tops = new Set(Array.from(range.getClientRects(), box => Math.round(box.top)));
        return tops.size > 1 ? [cell.textContent] : [];
    })"""
    for folder in ("few", "many"):
        page = tmp_path / folder / "comparison.html"
        with browsing(driver, page, tmp_path / f"profile {folder}") as opened:
            opened.page.evaluate(PLOTS_AT_ONCE)
            opened.page.emulate_media(media="print")
            opened.page.set_viewport_size({"width": 700, "height": 1000})
            right = "t => t.map(e => e.getBoundingClientRect().right)"
            assert max(opened.page.eval_on_selector_all("table", right)) <= 700
            if folder == "few":
                cells = "td.number, td:first-child"
                assert opened.page.eval_on_selector_all(cells, lines) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize(("clips", "seconds"), [(1_000, 2.0), (10_000, 4.0)])
def test_a_page_of_many_clips_answers_soon(
    driver: Any, tmp_path: Path, clips: int, seconds: float
) -> None:
    found = [record(f"r{n // 4}_s{n % 4}", n // 4, row_id=f"r{n // 4}", seed=n % 4, **MEASURED)
             for n in range(clips)]  # fmt: skip
    make_run(tmp_path / "run", found, found, is_playable=True)
    main([str(tmp_path / "run")])
    taken = []
    for attempt in range(3):
        page, profile = tmp_path / "run" / "index.html", tmp_path / f"profile {attempt}"
        with browsing(driver, page, profile) as opened:
            wait(opened.page, "document.documentElement.dataset.ready")
            answered = opened.page.evaluate(
                """() => new Promise(done => {
                    const input = document.querySelector('#filter-text');
                    const seen = new MutationObserver(() => done(performance.now()));
                    seen.observe(document.querySelector('#count'), {childList: true});
                    input.value = 'r7 seed 3';
                    input.dispatchEvent(new Event('input'));
                })"""
            )
            assert opened.complaints == []
        # The browser's load event is waited for, so this is more than the page took.
        taken.append(answered / 1000)
    assert min(taken) < seconds
