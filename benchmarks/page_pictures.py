r"""Pictures of pages for docs/: what a browser shows of the page of a run or of a comparison.

    hv15-batch manifests/demo.csv model=demo_t2v
    python benchmarks/page_pictures.py outputs/demo/index.html docs/page.webp --size 1200x1084

    python benchmarks/quality.py OUT --cpu
    hv15-batch compare OUT/float32 OUT/bfloat16 --out OUT/compare
    python benchmarks/page_pictures.py OUT/compare/compare.html docs/compare.webp --moment 0.8 \
        --section players-title --size 1000x1056

    python benchmarks/example_report.py OUT
    python benchmarks/page_pictures.py OUT/runs/480p_t2v-resident/index.html docs/report.png \
        --size 1200x1840
    python benchmarks/page_pictures.py OUT/runs/comparison.html docs/report_comparison.png \
        --size 1320x1300

Needs the development packages (playwright) and Debian's Chromium, as the tests do.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from page import FLAGS
from PIL import Image
from playwright.sync_api import Page, sync_playwright

SCROLL = """async () => {
    for (let y = 0; y < document.body.scrollHeight; y += 300) {
        scrollTo(0, y);
        await new Promise(done => setTimeout(done, 150));
    }
    scrollTo(0, 0);
}"""
"""Plots and clips are made when they come into view."""
SEEK = """seconds => Promise.all([...document.querySelectorAll('video')].map(clip =>
    new Promise(done => {
        clip.addEventListener('seeked', done, {once: true});
        clip.addEventListener('error', done, {once: true});
        clip.preload = 'auto';
        clip.currentTime = seconds;
        setTimeout(done, 5000);
    })))"""
SETTLE_MILLISECONDS = 1500


def picture_of(page: Page, file: Path, section: str, moment: float | None) -> Image.Image:
    """Return what the window shows of a page of the disk.

    Args:
        page: a tab.
        file: the page.
        section: id of the element at the top of the picture; empty for the top of the page.
        moment: seconds into every clip; None leaves the clips as the page shows them.
    """
    page.goto(file.absolute().as_uri())
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    page.evaluate(SCROLL)
    if moment is not None:
        page.evaluate(SEEK, moment)
    if section:
        page.evaluate("id => document.getElementById(id).scrollIntoView()", section)
    page.wait_for_timeout(SETTLE_MILLISECONDS)
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def main() -> None:
    """Write the picture that is asked for."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("page", type=Path, help="index.html, comparison.html or compare.html")
    arguments.add_argument("file", type=Path, help="the picture, .png or .webp")
    arguments.add_argument("--size", default="1200x1300", help="pixels, default 1200x1300")
    arguments.add_argument("--section", default="", help="id of what is at the top")
    arguments.add_argument("--moment", type=float, help="seconds into every clip")
    chosen = arguments.parse_args()
    width, height = map(int, chosen.size.split("x"))
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile,
            executable_path="/usr/bin/chromium",
            args=FLAGS,
            viewport={"width": width, "height": height},
        )
        picture = picture_of(context.new_page(), chosen.page, chosen.section, chosen.moment)
        context.close()
    if chosen.file.suffix == ".png":
        picture = picture.quantize(256, dither=Image.Dither.NONE)  # a page has few colours
        picture.save(chosen.file, optimize=True)
    else:
        picture.save(chosen.file, quality=85, method=6)
    print(f"{chosen.file}: {chosen.file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
