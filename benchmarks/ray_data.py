"""The same clips through Ray Data and through actors of Ray Core: what a failing process costs.

    python benchmarks/ray_data.py

24 clips of 1 to 8 seconds, of which they sleep a tenth, over 4 workers. A certain clip kills its
process: never, once, or each time. Core's loop gives a clip up after two attempts. Data gets one
row a block and one block in flight, the finest that it can do. Printed are the seconds, how often
that clip was begun, and how long after its end a clip's result reached the driver.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import ray

CLIPS = 24
WORKERS = 4
KILLER = 10
ATTEMPTS = 2
LIMIT_SECONDS = 60


def lengths() -> list[float]:
    """Return the seconds of each clip."""
    rng = random.Random(0)
    return [rng.choice((0.1, 0.2, 0.8)) for _ in range(CLIPS)]


class Sleeper:
    """Sleeps for a clip, and notes that it began."""

    def __init__(self, folder: str, kills: int) -> None:
        """Take the folder of the notes, and how often the process is killed."""
        self._folder, self._kills = Path(folder), kills

    def render(self, number: int, seconds: float) -> float:
        """Render a clip; return when it ended."""
        with (self._folder / f"{number}.txt").open("a+") as file:
            file.write("began\n")
            file.seek(0)
            began = len(file.readlines())
        if number == KILLER and began <= self._kills:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
        return time.time()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Render a batch of one row, for Data."""
        ended = [self.render(int(batch["number"][0]), float(batch["seconds"][0]))]
        return {"number": batch["number"], "ended": ended}


def with_core(folder: str, kills: int) -> list[float]:
    """Render with actors, the longest clip first; return how late each result came."""
    kind = ray.remote(Sleeper).options(max_task_retries=0)
    actors = [kind.remote(folder, kills) for _ in range(WORKERS)]
    left = sorted(enumerate(lengths()), key=lambda clip: clip[1])
    free, running, late, lost = list(actors), {}, [], Counter[int]()
    while left or running:
        while free and left:
            actor, clip = free.pop(), left.pop()
            running[actor.render.remote(*clip)] = actor, clip
        (ready,), _ = ray.wait(list(running))
        actor, clip = running.pop(ready)
        free.append(actor)
        try:
            late.append(time.time() - ray.get(ready))
        except ray.exceptions.RayActorError:
            free[-1] = kind.remote(folder, kills)
            actors.append(free[-1])
            lost[clip[0]] += 1
            left += [clip] if lost[clip[0]] < ATTEMPTS else []
    for actor in actors:
        ray.kill(actor)
    return late


def with_data(folder: str, kills: int) -> list[float]:
    """Render with `map_batches`; return how late each result came."""
    rows = [{"number": n, "seconds": s} for n, s in enumerate(lengths())]
    clips = ray.data.from_items(rows, override_num_blocks=CLIPS).map_batches(
        Sleeper,
        fn_constructor_args=(folder, kills),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=WORKERS, max_tasks_in_flight_per_actor=1),
    )
    rows = clips.iter_batches(batch_size=1, prefetch_batches=0)
    return [time.time() - float(row["ended"][0]) for row in rows]


def main() -> None:
    """Run each with and without a kill, and print the table."""
    signal.signal(signal.SIGALRM, stop)
    ray.init(
        "local",
        num_cpus=WORKERS + 2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    least = max(sum(lengths()) / WORKERS, max(lengths()))
    print(f"ray {ray.__version__}; the sleep alone takes {least:.1f} s")
    for name, render in (("Core", with_core), ("Data", with_data)):
        for kills, words in ((0, "no kill"), (1, "one kill"), (10**6, "a kill each time")):
            with tempfile.TemporaryDirectory(prefix="hv15_batch-ray-") as folder:
                begin = time.perf_counter()
                signal.alarm(LIMIT_SECONDS)
                try:
                    late = render(folder, kills)
                    ended = f"{len(late)} of {CLIPS} clips, results {max(late):.2f} s late at most"
                except TimeoutError:
                    ended = "not ended"
                except Exception as error:
                    ended = f"ended by {type(error).__name__}: {str(error).splitlines()[0][:90]}"
                signal.alarm(0)
                seconds = time.perf_counter() - begin
                begun = len((Path(folder) / f"{KILLER}.txt").read_text().splitlines())
            print(f"{name}, {words}: {seconds:.1f} s, {ended}; that clip begun {begun} times")


def stop(*_: object) -> None:
    """End what takes too long."""
    raise TimeoutError


if __name__ == "__main__":
    main()
