"""One manifest on several cards against one card, then with a killed worker and a lost card.

    python benchmarks/several_cards.py OUT --cards 2
    python benchmarks/several_cards.py OUT --cards 4 --clips 32
    python benchmarks/several_cards.py OUT --cards 8 --clips 64
    python benchmarks/several_cards.py OUT --cards 2 model=demo_t2v  # on the CPU: mechanics only

Equal short clips of full size with random weights: 480x848x33, 8 steps, no guidance. Clips an hour
come twice: with loads is the whole command, from its start to its end; without loads is from the
first clip that has its weights to the last clip's end, with one cold clip for each card.

Two runs with faults follow. In the first a clip kills its worker once. In the second a clip kills
its worker, and the worker that replaces it sees no card (`CUDA_VISIBLE_DEVICES` is empty). Both
must end with every clip once and the latents of the run on one card.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from hv15_batch.clip import Clip
from hv15_batch.config.compose import Job as Command
from hv15_batch.config.compose import run_jobs
from hv15_batch.dispatch._child import make_renderer
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Event, ExecutorSpec, Job
from hv15_batch.record import ClipRecord
from hv15_batch.run import session

MODEL = ("model=480p_t2v", "model.weights=random")
CLIP = {
    "height": 480,
    "width": 848,
    "num_frames": 33,
    "num_inference_steps": 8,
    "guidance_scale": 1,
}


class FaultyRenderer:
    """The real renderer; the first clip named `kill` or `hide` ends its worker after a second."""

    def __init__(self, spec: ExecutorSpec) -> None:
        self._card = str(spec.only_card)
        self._marks = spec.run_dir.parent
        if self._mark("hide").exists() and self._mark("hide").read_text() == self._card:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._inner = make_renderer(spec)

    def _mark(self, fault: str) -> Path:
        return self._marks / f"{fault}.card"

    def encode(self, clips: Sequence[Clip], emit: Callable[[Event], None]) -> None:
        """See `dispatch.protocol.Renderer.encode`."""
        self._inner.encode(clips, emit)

    def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
        """See `dispatch.protocol.Renderer.render`."""
        fault = job.clip.row_id.partition("_")[0]
        if fault in ("kill", "hide") and not self._mark(fault).exists():
            self._mark(fault).write_text(self._card)
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return self._inner.render(job, emit)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cards", type=int, default=2)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("words", nargs="*", help="instead of this model and size")
    arguments = parser.parse_intermixed_args()
    words = arguments.words or [*MODEL, *(f"override.{key}={n}" for key, n in CLIP.items())]
    count, cards = arguments.clips, arguments.cards
    plain = partial(timed_run, arguments.out, words, count)
    alone = plain("one", 1, LocalExecutor)
    together = plain("all", cards, LocalExecutor)
    for name in ("with_loads", "without_loads"):
        rate, base = together[name], alone[name]
        print(f"{name}: {base:.1f} clips/h on 1, {rate:.1f} on {cards}: {rate / base:.3f} times")
    wrong = compare(arguments.out, "all")
    for fault in ("kill", "hide"):
        plain(fault, cards, lambda spec: LocalExecutor(spec, FaultyRenderer))
        wrong += compare(arguments.out, fault)
    return 1 if wrong else 0


def timed_run(
    out: Path, words: list[str], count: int, name: str, workers: int, make: Callable[..., Any]
) -> dict[str, float]:
    """Render, print the log, and return clips an hour with and without loads."""
    folder = out / name
    folder.mkdir(parents=True)
    manifest = folder / "prompts.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "seed", "prompt"])
        # The fault is not the first clip of its worker, so the weights are loaded when it comes.
        ids = [f"{name if n == 2 * workers else 'clip'}_{n:03d}" for n in range(count)]
        rows.writerows([each, n, "A cat."] for n, each in enumerate(ids))

    def job(command: Command) -> int:
        return session.run(command.config, (), None, partial(print, flush=True), make)

    run_dir = folder / "run"
    begin = time.time()
    typed = [str(manifest), f"run_dir={run_dir}", f"dispatch.workers={workers}", *words]
    code = run_jobs(typed, job)
    seconds = time.time() - begin
    log = read_log(run_dir)
    columns = ["row_id", "attempt", "status", "error_type", "worker_id", "gpu_index", "is_cold"]
    columns += ["load_seconds", "denoise_seconds", "total_seconds"]
    with pd.option_context("display.width", 200, "display.max_columns", 20):
        print(log[columns].round(2).to_string(index=False), flush=True)
    ok = log[log["status"] == "ok"]
    loads = pd.to_timedelta(ok["load_seconds"].fillna(0), unit="s")
    span = (ok["finished_at"].max() - (ok["started_at"] + loads).min()).total_seconds()
    print(f"{name}: exit {code}, {len(ok)} clips ok, {len(log) - len(ok)} other attempts, "
          f"{seconds:.1f} s in all, {span:.1f} s without loads", flush=True)  # fmt: skip
    return {"with_loads": len(ok) * 3600 / seconds, "without_loads": len(ok) * 3600 / span}


def read_log(run_dir: Path) -> pd.DataFrame:
    return pd.read_parquet(run_dir / "log").sort_values("finished_at")


def compare(out: Path, name: str) -> int:
    """Print in how many clips the run differs from the one on one card, and return it."""
    first, second = (read_log(out / each / "run") for each in ("one", name))
    by_seed = [log[log["status"] == "ok"].set_index("seed")["latents_sha256"].sort_index()
               for log in (first, second)]  # fmt: skip
    missing = set(by_seed[0].index) ^ set(by_seed[1].index)
    twice = int(by_seed[1].index.duplicated().sum())
    other = 0 if missing or twice else int((by_seed[0] != by_seed[1]).sum())
    print(f"{name}: {len(missing)} clips missing, {twice} twice, {other} with other latents")
    return len(missing) + twice + other


if __name__ == "__main__":
    sys.exit(main())
