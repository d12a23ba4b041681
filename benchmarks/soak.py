"""A soak: many tiny clips through the real program; memory, descriptors and threads must stay flat.

    python benchmarks/soak.py --clips 150 --figure docs/soak.png

Parent and worker are looked at twice a second while clips are rendered. Flat means: the median of
the last third is at most 5 % (memory) or 1 (descriptors, threads) above that of the third before.
Exit code 1 where something grows. Needs no card.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from PIL import Image, ImageDraw, ImageFont

from hv15_batch.rundir.log import read_rows
from hv15_batch.rundir.paths import RunDir
from hv15_batch.units import MIB

SECONDS = 0.5
MAX_GROWTH = {"resident MiB": 0.05, "descriptors": 1, "threads": 1}
"""A share of the median for memory, a number for what is counted."""
COLOURS = {"parent": "#1f5fa8", "worker": "#b4521e"}


@dataclass
class Samples:
    """What one process had, at the seconds since the program began."""

    seconds: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=lambda: {n: [] for n in MAX_GROWTH})

    def take(self, process: psutil.Process, now: float) -> None:
        """Add a sample; a process that has just ended adds none."""
        try:
            with process.oneshot():
                found = (
                    process.memory_info().rss / MIB,
                    process.num_fds(),
                    process.num_threads(),
                )
        except psutil.Error:
            return
        self.seconds.append(now)
        for values, value in zip(self.values.values(), found, strict=True):
            values.append(float(value))

    def third(self, name: str, number: int, begin: float, end: float) -> float:
        """Return the median of one third of the time from `begin` to `end`."""
        length = (end - begin) / 3
        low, high = begin + number * length, begin + (number + 1) * length
        pairs = zip(self.seconds, self.values[name], strict=True)
        return statistics.median(value for at, value in pairs if low <= at <= high)


def worker_of(program: psutil.Process) -> psutil.Process | None:
    """Return the largest child of the program: beside it is only multiprocessing's tracker."""
    try:
        children = program.children()
        return max(children, key=lambda child: child.memory_info().rss, default=None)
    except psutil.Error:
        return None


def watch(clips: int, folder: Path) -> tuple[dict[str, Samples], float, float, int]:
    """Render the clips; return samples, seconds of the first and the last clip, and exit code."""
    manifest, run_dir = folder / "soak.csv", RunDir(folder / "out")
    manifest.write_text("prompt\n" + "".join(f"scene {n}\n" for n in range(clips)))
    words = ("model=tiny_t2v", "override.num_frames=9", "override.num_inference_steps=4")
    command = [sys.executable, "-m", "hv15_batch", str(manifest), f"run_dir={run_dir.path}", *words]
    began = time.monotonic()
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    process = psutil.Process(program.pid)
    samples = {"parent": Samples(), "worker": Samples()}
    first = last = 0.0
    while program.poll() is None:
        now = time.monotonic() - began
        samples["parent"].take(process, now)
        worker = worker_of(process)
        if worker is not None:
            samples["worker"].take(worker, now)
        if any(run_dir.clips.glob("[!.]*.mp4")):
            first, last = first or now, now
        time.sleep(SECONDS)
    done = [r for r in read_rows(run_dir.log, ["status"]) if r["status"] == "ok"]
    if len(done) != clips:
        sys.exit(f"{len(done)} of {clips} clips are ok")
    return samples, first, last - 2 * SECONDS, program.returncode


def report(samples: dict[str, Samples], begin: float, end: float) -> bool:
    """Print a row for each process and quantity; return whether all of them are flat."""
    is_flat = True
    print("| process | what | first third | second | last |\n|---|---|---|---|---|")
    for who, found in samples.items():
        for name, allowed in MAX_GROWTH.items():
            thirds = [found.third(name, number, begin, end) for number in range(3)]
            limit = allowed * thirds[1] if allowed < 1 else allowed
            is_flat = is_flat and thirds[2] - thirds[1] <= limit
            print(f"| {who} | {name} | " + " | ".join(f"{value:.1f}" for value in thirds) + " |")
    return is_flat


def draw(samples: dict[str, Samples], path: Path) -> None:
    """Write a figure: a field for each quantity, a line for each process."""
    width, height, left, gap = 900, 200, 90, 40
    image = Image.new("RGB", (width, (height + gap) * len(MAX_GROWTH) + gap), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    longest = max(found.seconds[-1] for found in samples.values())
    for row, name in enumerate(MAX_GROWTH):
        top, most = gap + row * (height + gap), max(max(f.values[name]) for f in samples.values())
        bottom = top + height - gap
        pen.text((left, top - 20), f"{name} over {longest:.0f} s", "black", font)
        for share in (0.0, 0.5, 1.0):
            y = bottom - share * (bottom - top)
            pen.line([(left, y), (width - 20, y)], "#dddddd")
            pen.text((8, y - 8), f"{share * most:,.0f}", "black", font)
        for number, (who, found) in enumerate(samples.items()):
            pen.text((width - 180 + 80 * number, top - 20), who, COLOURS[who], font)
            points = [
                (left + at / longest * (width - 20 - left), bottom - value / most * (bottom - top))
                for at, value in zip(found.seconds, found.values[name], strict=True)
            ]
            pen.line(points, COLOURS[who], 2)
    image.save(path, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=150)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples, begin, end, code = watch(arguments.clips, Path(folder))
    print(f"{arguments.clips} clips from {begin:.0f} s to {end:.0f} s, exit code {code}")
    is_flat = report(samples, begin, end)
    if arguments.figure is not None:
        draw(samples, arguments.figure)
    print("flat" if is_flat else "NOT flat")
    return 0 if is_flat and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
