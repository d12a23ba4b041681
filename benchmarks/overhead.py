"""What the program adds to rendering: planning, resuming, and the parent's part of each clip.

    .venv/bin/python benchmarks/overhead.py            # prints the table of BENCHMARKS.md

Each measurement is a process of its own, over a folder that is deleted afterwards: 10,000 rows
validated and planned, and their dry run; a resume with everything done, over sparse files of the
size that real clips have; 500 clips through the parent and a real child process whose renderer does
nothing. Wall time and CPU time (user and system, children included) are both shown: on a busy
machine only the second can be compared.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import multiprocessing
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config, SamplingConfig
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Event, ExecutorSpec, Job
from hv15_batch.manifest.clips import make_clips
from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.variant import Dtype, ModelConfig, SamplingDefaults, Weights
from hv15_batch.planning.tables import write_plan
from hv15_batch.record import ClipRecord, asked_record
from hv15_batch.run import session
from hv15_batch.run.prepare import plan_against_log, prepare
from hv15_batch.rundir.log import SEGMENT_ROWS
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.schema import arrow_schema
from hv15_batch.units import GIB, MIB
from hv15_batch.weights.checkpoint import resolve_checkpoint, tiny_root

ROWS = 10_000
CLIPS = 500
CLIP_BYTES = 6 * MIB
"""A clip of 480x848x121 at CRF 17."""
PROMPT_CHARACTERS = 300
_FILLER = "The camera follows it slowly, rain falls, lights are mirrored in the wet road. " * 4
LATENTS_BYTES = 3 * MIB


@dataclass(frozen=True)
class Figure:
    """One row of the table."""

    what: str
    wall_seconds: float
    cpu_seconds: float
    target: str


# -- what is measured -------------------------------------------------------------------------


def plan_rows(folder: Path, count: int) -> Figure:
    """Validate and plan rows as a run does: read, check, resolve, hash, write plan.csv."""
    config = many_rows(folder, count)

    def work() -> None:
        prepared = prepare(config, (), None)
        planned = plan_against_log(prepared)
        prepared.run_dir.create()
        write_plan(planned.clips, prepared.run_dir.plan, None)

    what = f"{count:,} rows validated and planned, plan.csv written"
    return replace(_timed(work), what=what, target="3 s")


def dry_run(folder: Path, count: int) -> Figure:
    """Make the same a dry run: its tokens are counted too, once the tokenizer is there."""
    config = many_rows(folder, count)
    ensure_tiny(config)
    figure = _timed(lambda: session.run(replace(config, dry_run=True), (), None, quiet))
    what = f"dry run of {count:,} rows, {PROMPT_CHARACTERS} characters of each as tokens"
    return replace(figure, what=what, target="")


def ensure_tiny(config: Config) -> None:
    """Write the tiny checkpoint, in a process of its own: it needs torch."""
    words = [
        sys.executable,
        "-m",
        "hv15_batch.engine.load.tiny",
        config.model.name,
        str(tiny_root()),
    ]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def resume_done(folder: Path, count: int) -> Figure:
    """Resume a run directory in which every clip is done."""
    config = many_rows(folder, count)
    _write_done(config, folder / "out")
    figure = _timed(lambda: _expect_done(config))
    what = f"resume of {count:,} clips, all done; tables and page written anew"
    return replace(figure, what=what, target="5 s")


def resume_decided(folder: Path, count: int) -> Figure:
    """Resume it in a process of its own, until it is known that nothing is left to do."""
    config = many_rows(folder, count)
    _write_done(config, folder / "out")
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_decide, args=(config, tell))

    def work() -> None:
        process.start()
        process.join()

    figure = _timed(work)
    assert process.exitcode == 0
    gib = told.recv() * 1024 / GIB
    what = f"resume of {count:,} clips, all done: until that is known; {gib:.2f} GiB of RAM"
    return replace(figure, what=what, target="")


def _decide(config: Config, tell: Connection) -> None:
    """Resume, and tell the most KiB of RAM; `ru_maxrss` would count the parent's too."""
    session._nothing_to_do = lambda *_: 0
    assert session.run(config, (), None, quiet) == 0
    status = Path("/proc/self/status").read_text(encoding="ascii")
    tell.send(int(status.partition("VmHWM:")[2].split()[0]))


def resume_again(folder: Path, count: int) -> Figure:
    """Resume it once more: tables and page are up to date."""
    config = many_rows(folder, count)
    _write_done(config, folder / "out")
    _expect_done(config)
    figure = _timed(lambda: _expect_done(config))
    return replace(figure, what="the same once more; they are up to date", target="5 s")


def _expect_done(config: Config) -> None:
    said: list[str] = []
    assert session.run(config, (), None, said.append) == 0
    assert said[1].startswith("Nothing to do"), said


def render_nothing(folder: Path, count: int) -> Figure:
    """Run clips through parent and child with a renderer that does nothing."""
    config = many_rows(folder, count)
    few = replace(config, run_dir=str(folder / "few"), limit=1)
    start = _timed(lambda: session.run(few, (), None, quiet, executor))
    figure = _timed(lambda: session.run(config, (), None, quiet, executor))
    return Figure(
        f"parent, child and log per clip, over {count} clips of a renderer that does nothing",
        (figure.wall_seconds - start.wall_seconds) / (count - 1),
        (figure.cpu_seconds - start.cpu_seconds) / (count - 1),
        "25 ms",
    )


MEASUREMENTS: dict[str, tuple[Callable[[Path, int], Figure], int]] = {
    "plan": (plan_rows, ROWS),
    "dry_run": (dry_run, ROWS),
    "resume": (resume_done, ROWS),
    "decide": (resume_decided, ROWS),
    "resume_again": (resume_again, ROWS),
    "clips": (render_nothing, CLIPS),
}


class NoRenderer:
    """Answers every job at once."""

    def __init__(self, spec: ExecutorSpec) -> None:
        self._run_id = spec.run_id

    def encode(self, clips: Sequence[Clip], emit: Callable[[Event], None]) -> None:
        """Encode nothing."""

    def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
        """Return what gives a record of the usual size."""
        return lambda: done_record(job.clip, run_id=self._run_id, attempt=job.attempt)


def executor(spec: ExecutorSpec) -> LocalExecutor:
    return LocalExecutor(spec, NoRenderer)


# -- a project of that size -------------------------------------------------------------------


def many_rows(folder: Path, count: int) -> Config:
    manifest = folder / "prompts.csv"
    with manifest.open("w", encoding="utf-8") as file:
        file.write("id,prompt,negative_prompt,num_frames,tag_scene\n")
        for n in range(count):
            prompt = f'Scene {n}: a fox crosses a street, past a sign that says ""OPEN {n}"". '
            prompt = (prompt + _FILLER)[: PROMPT_CHARACTERS + 2]
            file.write(f'row{n},"{prompt}",blurry,121,street\n')
    model = ModelConfig(
        name="tiny_t2v",
        weights=Weights.tiny,
        dtype=Dtype.float32,
        target_size=128,
        default_sampling=SamplingDefaults(),
    )
    sampling = SamplingConfig(seeds=0)
    run_dir = str(folder / "out")
    return Config(manifest=str(manifest), run_dir=run_dir, model=model, sampling=sampling)


def _write_done(config: Config, path: Path) -> None:
    """Write the run directory of a manifest of which every clip is done, with sparse files."""
    run_dir = RunDir(path)
    first = replace(config, limit=1)
    assert session.run(first, (), None, quiet, executor) == 0
    for segment in run_dir.log.iterdir():
        segment.unlink()
    assert config.manifest is not None
    manifest = read_manifest(Path(config.manifest), config.model.task)
    clips = make_clips(manifest, config, resolve_checkpoint(config.model).revision)
    for n in range(0, len(clips), SEGMENT_ROWS):
        rows = [vars(done_record(c, run_id="r", attempt=1)) for c in clips[n : n + SEGMENT_ROWS]]
        segment = run_dir.log / f"20261122T000000-0000-abcd-{n // SEGMENT_ROWS:04d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema()), segment)
    for clip in clips:
        _write_sparse(run_dir.clips / f"{clip.clip_id}.mp4", CLIP_BYTES)
        _write_sparse(run_dir.latents_file(clip.denoise_sha256), LATENTS_BYTES)
        _write_sparse(run_dir.thumbs / f"{clip.clip_id}.jpg", 10_000)


def _write_sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def done_record(clip: Clip, **known: object) -> ClipRecord:
    now = datetime.now(timezone.utc)
    columns = {
        "status": "ok",
        "file": f"clips/{clip.clip_id}.mp4",
        "file_bytes": CLIP_BYTES,
        "file_sha256": clip.settings_sha256,
        "dtype": clip.settings.dtype,
        "denoise_seconds": 100.0,
        "step_seconds": [2.0] * clip.settings.num_inference_steps,
        "total_seconds": 110.0,
        "is_cold": False,
        "started_at": now - timedelta(seconds=110),
        "finished_at": now,
        "gpu_name": "NVIDIA GeForce RTX 4090",
        "system_sha256": "0" * 64,
    }
    return asked_record(clip, **known, **columns)


# -- the clock and the table ------------------------------------------------------------------


def _timed(work: Callable[[], object]) -> Figure:
    wall, cpu = time.perf_counter(), _cpu_seconds()
    work()
    return Figure("", time.perf_counter() - wall, _cpu_seconds() - cpu, "")


def _cpu_seconds() -> float:
    usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def quiet(_text: str) -> None:
    pass


def _measure(name: str, count: int | None, profile: bool) -> Figure:
    work, usual = MEASUREMENTS[name]
    with tempfile.TemporaryDirectory(prefix="hv15_batch-overhead-") as folder:
        if not profile:
            return work(Path(folder), count or usual)
        profiler = cProfile.Profile()
        figure = profiler.runcall(work, Path(folder), count or usual)
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("cumulative").print_stats(40)
        return figure


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def main() -> None:
    """Measure everything, or one thing in this process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=MEASUREMENTS)
    parser.add_argument("--count", type=int, help="rows or clips, instead of the usual number")
    parser.add_argument("--profile", action="store_true", help="functions by time, on stderr")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.only:
        figures = [_measure(arguments.only, arguments.count, arguments.profile)]
    else:
        figures = []
        for name in MEASUREMENTS:
            words = [sys.executable, __file__, "--only", name, "--json"]
            # What the measured runs print for a person is not wanted here.
            answer = subprocess.run(words, check=True, capture_output=True, text=True)
            figures.append(Figure(**json.loads(answer.stdout.splitlines()[-1])))
    if arguments.json:
        print(json.dumps(vars(figures[0])))
        return
    print(f"{os.cpu_count()} CPU cores, {datetime.now(timezone.utc):%Y-%m-%d}\n")
    print("| what | wall | CPU | target |\n|---|---|---|---|")
    for figure in figures:
        wall, cpu = map(_format_seconds, (figure.wall_seconds, figure.cpu_seconds))
        print(f"| {figure.what} | {wall} | {cpu} | {figure.target} |")


if __name__ == "__main__":
    main()
