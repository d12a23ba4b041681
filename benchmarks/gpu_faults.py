"""Real faults on a CUDA card: out of memory while decoding and denoising, and a killed worker.

    python benchmarks/gpu_faults.py OUT

Full-size random weights, small clips. The renderer is the real one in a real worker; around it a
`Hog` takes the card's memory as another program would, with cudaMalloc, at the worst moment: when
decoding has just been planned, or before denoising. Then thirty short clips in a row, whose host
and device memory is printed and drawn to OUT/memory.png.
"""

from __future__ import annotations

import ctypes
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
import psutil
import pynvml

from hv15_batch.clip import Clip
from hv15_batch.config.compose import Job as Command
from hv15_batch.config.compose import run_jobs
from hv15_batch.dispatch._child import make_renderer
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Event, ExecutorSpec, Job
from hv15_batch.record import ClipRecord
from hv15_batch.run import session
from hv15_batch.units import GIB

SHORT_CLIPS = 30
MODEL = ("model=480p_t2v", "model.weights=random", "order=rows")


class Hog:
    """Memory of the card that torch cannot have."""

    def __init__(self) -> None:
        self._cuda = ctypes.CDLL("libcudart.so.13")
        self._taken: list[ctypes.c_void_p] = []

    def leave(self, free_bytes: int) -> None:
        """Take what is free but for this much."""
        import torch

        torch.cuda.empty_cache()  # what torch has kept would still be its own
        free, _ = torch.cuda.mem_get_info()
        pointer = ctypes.c_void_p()
        size = ctypes.c_size_t(max(0, free - free_bytes))
        code = self._cuda.cudaMalloc(ctypes.byref(pointer), size)
        assert code == 0, code
        self._taken.append(pointer)

    def release(self) -> None:
        """Give everything back."""
        for pointer in self._taken:
            assert self._cuda.cudaFree(pointer) == 0
        self._taken.clear()


class FaultyRenderer:
    """The real renderer; what a row's id says happens to it once."""

    def __init__(self, spec: ExecutorSpec) -> None:
        self._inner = make_renderer(spec)
        self._killed = spec.run_dir.parent / "killed"

    def encode(self, clips: Sequence[Clip], emit: Callable[[Event], None]) -> None:
        """See `dispatch.protocol.Renderer.encode`."""
        self._inner.encode(clips, emit)

    def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
        """See `dispatch.protocol.Renderer.render`."""
        from hv15_batch.engine import _ladder as ladder

        real, hog = ladder.plan_tiles, Hog()

        def planned(*arguments: Any) -> Any:
            plan = real(*arguments)
            ladder.plan_tiles = real
            hog.leave(int(2.5 * GIB))
            return plan

        row = job.clip.row_id
        if row == "decode":
            ladder.plan_tiles = planned
        elif row == "denoise":
            hog.leave(int(0.3 * GIB))
        elif row == "kill" and not self._killed.exists():
            self._killed.touch()
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
        try:
            return self._inner.render(job, emit)
        finally:
            hog.release()


class Sampler:
    """Resident memory of the worker and used memory of the card, every half second."""

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        self._stop = threading.Event()
        self.rows: list[tuple[float, float, float]] = []
        self._begin = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            resident = [_resident(child) for child in psutil.Process().children(recursive=True)]
            used = pynvml.nvmlDeviceGetMemoryInfo(self._handle).used
            seconds = time.monotonic() - self._begin
            self.rows.append((seconds, max(resident, default=0) / GIB, used / GIB))

    def stop(self) -> pd.DataFrame:
        """Return what was sampled."""
        self._stop.set()
        self._thread.join()
        return pd.DataFrame(self.rows, columns=["seconds", "host_gib", "card_gib"])


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def write(path: Path, ids: Sequence[str], frames: int) -> Path:
    head = "id,seed,height,width,num_frames,num_inference_steps,guidance_scale,prompt"
    lines = [f"{name},{n},480,848,{frames},2,1,A cat." for n, name in enumerate(ids)]
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return path


def faulty_executor(spec: ExecutorSpec) -> LocalExecutor:
    return LocalExecutor(spec, FaultyRenderer)


def run(manifest: Path, run_dir: Path, make: Callable[[ExecutorSpec], Any]) -> int:
    def job(command: Command) -> int:
        return session.run(command.config, (), None, partial(print, flush=True), make)

    return run_jobs([str(manifest), f"run_dir={run_dir}", *MODEL], job)


def print_log(run_dir: Path) -> pd.DataFrame:
    log = pd.read_parquet(run_dir / "log").sort_values("finished_at")
    names = ["row_id", "attempt", "status", "error_type", "offload", "vae_tile_size", "worker_id"]
    names += ["is_cold", "num_alloc_retries", "denoise_seconds", "decode_seconds"]
    with pd.option_context("display.width", 250, "display.max_columns", 40):
        print(log[names].round(2).to_string(index=False), flush=True)
    return log


def main() -> int:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    ids = ("calm", "decode", "after_decode", "denoise", "after_denoise", "kill", "after_kill")
    code = run(write(out / "faults.csv", ids, 33), out / "faults", faulty_executor)
    print(f"faults: exit {code}")
    print_log(out / "faults")

    sampler = Sampler()
    short = [f"short_{n:02d}" for n in range(SHORT_CLIPS)]
    code = run(write(out / "short.csv", short, 17), out / "short", LocalExecutor)
    memory = sampler.stop()
    log = pd.read_parquet(out / "short" / "log").sort_values("finished_at")
    print(f"{SHORT_CLIPS} short clips: exit {code}, {dict(log['status'].value_counts())}")
    begin = memory["seconds"].iloc[-1] - (log["finished_at"].iloc[-1] - log["finished_at"].iloc[0]
                                          ).total_seconds()  # fmt: skip
    warm = memory[memory["seconds"] > begin]
    third = len(warm) // 3
    for name in ("host_gib", "card_gib"):
        first, last = warm[name].iloc[:third].median(), warm[name].iloc[-third:].median()
        print(f"{name}: median {first:.3f} in the first third, {last:.3f} in the last")
    memory.round(4).to_csv(out / "memory.csv", index=False)
    draw(memory, out / "memory.png")
    return code


def draw(memory: pd.DataFrame, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.plot(memory["seconds"], memory["card_gib"], label="card, NVML")
    axes.plot(memory["seconds"], memory["host_gib"], label="worker, resident")
    axes.set(xlabel="seconds", ylabel="GiB", title=f"{SHORT_CLIPS} clips of 480x848x17 in a row")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    sys.exit(main())
