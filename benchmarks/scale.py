"""What one queue over many workers costs the parent, with renderers that only sleep.

    python benchmarks/scale.py                        # 1,000 clips, 8 workers: three minutes
    python benchmarks/scale.py --clips 200 --workers 4
    python benchmarks/scale.py --ray                  # the same over actors of a Ray cluster

Each clip sleeps its scaled predicted time in 50 steps, and sends what a real one sends. Printed are
the parent's CPU time and memory, the wall time beside the least that is possible, and at how many
workers the parent would be the limit. Workers and parent share this machine's cores, so only CPU
time can be compared between machines.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import pandas as pd

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config, DispatchConfig, DispatchKind, SamplingConfig
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Event, ExecutorSpec, Job, Stepped
from hv15_batch.dispatch.seats import Cluster
from hv15_batch.model.variant import Dtype, ModelConfig, SamplingDefaults, Weights
from hv15_batch.record import ClipRecord, asked_record
from hv15_batch.run import session
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing, sha256_of_file
from hv15_batch.units import MIB

FRAMES = (61, 93, 121)
STEPS = 50
REAL_SECONDS = 100.0
"""Of a clip of the longest size on a card, to which the sleep is scaled."""


class SleepingRenderer:
    """Sleeps for a clip's predicted time, and writes a few bytes."""

    def __init__(self, spec: ExecutorSpec, seconds: float) -> None:
        """Sleep `seconds` for the longest clip."""
        self._spec, self._seconds = spec, seconds
        self._run_dir = RunDir(spec.run_dir)

    def encode(self, clips: Sequence[Clip], emit: Callable[[Event], None]) -> None:
        """Encode nothing."""

    def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
        """Sleep step by step; return what writes the file."""
        clip, began = job.clip, datetime.now(timezone.utc)
        steps, frames = clip.settings.num_inference_steps, clip.settings.num_frames
        each = self._seconds * frames / FRAMES[-1] / steps
        for step in range(steps):
            time.sleep(each)
            emit(Stepped(clip.clip_id, "denoise", step + 1, steps))
        emit(Stepped(clip.clip_id, "decode", steps, steps))
        return partial(self._finish, job, began, each)

    def _finish(self, job: Job, began: datetime, each: float) -> ClipRecord:
        clip = job.clip
        path = self._run_dir.clips / f"{clip.clip_id}.mp4"
        with publishing(path) as temporary:
            temporary.write_bytes(clip.settings_sha256.encode())
            size, sha256 = temporary.stat().st_size, sha256_of_file(temporary)
        steps = clip.settings.num_inference_steps
        return asked_record(
            clip,
            run_id=self._spec.run_id,
            worker_id=self._spec.worker_id,
            hostname=self._spec.hostname,
            system_sha256=self._spec.system_sha256,
            attempt=job.attempt,
            denoise_attempt=job.attempt,
            status="ok",
            file=self._run_dir.relative(path),
            file_bytes=size,
            file_sha256=sha256,
            dtype=clip.settings.dtype,
            denoise_seconds=each * steps,
            step_seconds=[each] * steps,
            decode_seconds=0.0,
            total_seconds=each * steps,
            is_cold=False,
            started_at=began,
            finished_at=datetime.now(timezone.utc),
        )


def make_executor(spec: ExecutorSpec, seconds: float) -> LocalExecutor:
    """Return a child process that sleeps."""
    return LocalExecutor(spec, partial(SleepingRenderer, seconds=seconds))


def open_cluster(
    address: str | None, uses_card: bool | None, most: int, seconds: float
) -> AbstractContextManager[Cluster]:
    """Return a cluster whose actors' child processes sleep."""
    import scale  # not `__main__`, which those processes do not have

    from hv15_batch.dispatch.ray import cluster_at

    renderer = partial(scale.SleepingRenderer, seconds=seconds)
    return cluster_at(address, uses_card, most, renderer)


def start_ray(workers: int) -> None:
    """Start a cluster of this machine alone that believes to have so many CPUs."""
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray

    ray.init(
        "local",
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=128 * MIB,
    )


def make_config(folder: Path, clips: int, workers: int, is_ray: bool) -> Config:
    """Return settings of a manifest of mixed lengths."""
    rng = random.Random(0)
    rows = [f"r{n},a clip of number {n},{rng.choice(FRAMES)}" for n in range(clips)]
    manifest = folder / "prompts.csv"
    manifest.write_text("\n".join(["id,prompt,num_frames", *rows]) + "\n", encoding="utf-8")
    model = ModelConfig(
        name="tiny_t2v",
        weights=Weights.tiny,
        dtype=Dtype.float32,
        target_size=128,
        default_sampling=SamplingDefaults(num_inference_steps=STEPS),
    )
    return Config(
        manifest=str(manifest),
        run_dir=str(folder / "out"),
        model=model,
        sampling=SamplingConfig(seeds=0),
        dispatch=DispatchConfig(
            kind=DispatchKind.ray if is_ray else DispatchKind.local, workers=workers
        ),
    )


def cpu_seconds() -> float:
    """Return this process's CPU time, without its children's."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Render twice, one clip a worker and then all of them, and print what the clips cost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.8, help="of the longest clip's sleep")
    parser.add_argument("--ray", action="store_true", help="over actors of a Ray cluster")
    arguments = parser.parse_args()
    make = partial(make_executor, seconds=arguments.seconds)
    opened = partial(open_cluster, seconds=arguments.seconds)
    if arguments.ray:
        start_ray(arguments.workers)
    with tempfile.TemporaryDirectory(prefix="hv15_batch-scale-") as name:
        config = make_config(Path(name), arguments.clips, arguments.workers, arguments.ray)
        few = replace(config, run_dir=str(Path(name) / "few"), limit=arguments.workers)
        costs = []
        for each in (few, config):
            cpu, wall = cpu_seconds(), time.perf_counter()
            assert session.run(each, (), None, print, make, open_cluster=opened) == 0
            costs.append((cpu_seconds() - cpu, time.perf_counter() - wall))
        log = pd.read_parquet(Path(name) / "out" / "log")
    count = arguments.clips - arguments.workers
    cpu = (costs[1][0] - costs[0][0]) / count
    busy = log["denoise_seconds"].sum() / arguments.workers
    starts = log.groupby("worker_id")["started_at"].min()
    wall = (log["finished_at"].max() - starts.min()).total_seconds()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    print(
        f"{len(log)} clips over {log['worker_id'].nunique()} workers, each clip once: "
        f"{log['clip_id'].is_unique and (log['status'] == 'ok').all()}"
    )
    print(f"parent: {cpu * 1000:.1f} ms of CPU time a clip, {peak:.0f} MiB at most")
    print(
        f"rendering took {wall:.1f} s, of which the sleep alone is {busy:.1f} s "
        f"({wall / busy - 1:+.1%})"
    )
    print(
        f"at {REAL_SECONDS:.0f} s a clip one core of the parent is enough for "
        f"{REAL_SECONDS / cpu:,.0f} workers; 64 workers take {64 * cpu / REAL_SECONDS:.2%} of it"
    )


if __name__ == "__main__":
    main()
