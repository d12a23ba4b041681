"""The page of a thousand clips: how long it takes to build, and until a browser answers.

    python benchmarks/page.py --clips 1000

Opens the page from the disk in Debian's Chromium, as the tests do. Interactive is when the script
of the page has run to its end and a keystroke in the filter is answered; both are measured from the
start of the navigation. Needs the development packages (playwright) and chromium.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fakes.pages import MEASURED, make_run, record
from playwright.sync_api import Playwright, sync_playwright

from hv15_batch.report.live import live_page
from hv15_batch.report.render import write_page
from hv15_batch.units import MIB

FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SEEDS_PER_ROW = 4
POLL_SECONDS = 0.01


def make_thousand(folder: Path, clips: int) -> None:
    records = [
        record(
            f"row{n // SEEDS_PER_ROW:04d}_s{n % SEEDS_PER_ROW}",
            n // SEEDS_PER_ROW,
            row_id=f"row{n // SEEDS_PER_ROW:04d}",
            seed=n % SEEDS_PER_ROW,
            prompt=f"Scene {n // SEEDS_PER_ROW}: " + "a red fox crosses a snowy field. " * 12,
            tags='{"tag_scene": "outdoor"}',
            **MEASURED,
        )
        for n in range(clips)
    ]
    make_run(folder, records, records, is_playable=True)


def seconds_to_build(folder: Path, repeats: int) -> list[float]:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        write_page(folder)
        taken.append(time.perf_counter() - start)
    return taken


def longest_wait_while_building(folder: Path) -> float:
    """Return by how much a loop that polls is held up at most while the page is written beside."""
    longest = 0.0
    with live_page(folder, interval_seconds=3600):
        end = time.perf_counter() + 3
        while (before := time.perf_counter()) < end:
            time.sleep(POLL_SECONDS)
            longest = max(longest, time.perf_counter() - before - POLL_SECONDS)
    return longest


def seconds_to_interactive(driver: Playwright, page_file: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as profile:
        context = driver.chromium.launch_persistent_context(
            profile, executable_path="/usr/bin/chromium", args=FLAGS
        )
        page = context.new_page()
        page.goto(page_file.as_uri(), wait_until="commit")
        ready = _wait(page, "Number(document.documentElement.dataset.ready || 0)")
        answered = page.evaluate(
            """() => new Promise(done => {
                const input = document.querySelector('#filter-text');
                const seen = new MutationObserver(() => done(performance.now()));
                seen.observe(document.querySelector('#count'), {childList: true});
                input.value = 'row0042';
                input.dispatchEvent(new Event('input'));
            })"""
        )
        page.reload(wait_until="commit")
        complete = _wait(
            page,
            "document.querySelector('#gallery')?.getAttribute('aria-busy') === 'false'"
            " && performance.now()",
        )
        context.close()
    return {"script done": ready / 1000, "filter answered": answered / 1000,
            "all cards made": complete / 1000}  # fmt: skip


def _wait(page: Any, expression: str) -> float:
    while not (value := page.evaluate(expression)):
        time.sleep(0.01)
    return float(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as driver:
        folder = Path(name) / "run"
        make_thousand(folder, arguments.clips)
        rows = {"build the page": seconds_to_build(folder, arguments.repeats)}
        rows["longest wait of a polling loop"] = [longest_wait_while_building(folder)]
        for _ in range(arguments.repeats):
            measured = seconds_to_interactive(driver, folder / "index.html")
            for what, seconds in measured.items():
                rows.setdefault(what, []).append(seconds)
        size = (folder / "assets" / "data.js").stat().st_size
    print(f"{arguments.clips} clips, data.js {size / MIB:.2f} MiB")
    for what, taken in rows.items():
        median = statistics.median(taken)
        print(f"{what}: median {median:.3f} s, highest {max(taken):.3f} s, n={len(taken)}")


if __name__ == "__main__":
    main()
