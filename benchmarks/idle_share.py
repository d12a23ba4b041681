"""Share of the wall time in which the card computes nothing, over warm clips in a row.

    python benchmarks/idle_share.py OUT 121:4:1 [CASE ...] [-- runtime.compile=true ...]

A case is frames:steps:guidance or height:width:frames:steps:guidance, with random weights. One clip
warms up, one clip of each further case is rendered, then six of the first case are traced. The
worker runs as in any run, but with CUPTI's trace of kernels around the six: from the
beginning of the first one's denoising to the end of the last one's decode. Few steps make the
figure worse, not better: what comes between clips is spread over less work.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from batch import print_log, write_manifest

from hv15_batch.clip import Clip
from hv15_batch.config.compose import Job as Command
from hv15_batch.config.compose import run_jobs
from hv15_batch.dispatch._child import make_renderer
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Event, ExecutorSpec, Job
from hv15_batch.record import ClipRecord
from hv15_batch.run import session

CLIPS = 6


class TracedRenderer:
    """The real renderer, with a trace from the first clip after the warm-up to the last one."""

    def __init__(self, spec: ExecutorSpec) -> None:
        self._inner = make_renderer(spec)
        self._file = spec.run_dir.parent / "idle.json"
        self._profiler: Any = None
        self._begin = self._end = 0.0
        self._turns: list[float] = []
        self._left = 0
        """Clips that are still to be rendered."""

    def encode(self, clips: Sequence[Clip], emit: Callable[[Event], None]) -> None:
        """See `dispatch.protocol.Renderer.encode`; this is all that will be denoised."""
        self._left = len(clips)
        self._inner.encode(clips, emit)

    def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
        """See `dispatch.protocol.Renderer.render`."""
        import torch

        self._left -= 1
        if self._left < CLIPS and self._profiler is None:
            activities = [torch.profiler.ProfilerActivity.CUDA]
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
            self._begin = time.perf_counter()
        elif self._profiler is not None:
            self._turns.append(time.perf_counter() - self._end)
        finish = self._inner.render(job, emit)
        if self._left == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            wall = time.perf_counter() - self._begin
            self._profiler.stop()
            found = {**shares(self._profiler, wall), "turns": self._turns}
            self._file.write_text(json.dumps(found))
        self._end = time.perf_counter()
        return finish


def shares(profiler: Any, wall: float) -> dict[str, Any]:
    """Return wall seconds, those in which a kernel ran and in which anything ran, and the gaps."""
    from torch.autograd import DeviceType

    events = [
        (e.start_ns(), e.start_ns() + e.duration_ns(), e.name())
        for e in profiler.profiler.kineto_results.events()
        if e.device_type() == DeviceType.CUDA
    ]
    kernels = [e for e in events if not e[2].startswith(("Memcpy", "Memset"))]
    gaps = gaps_between(kernels)
    return {
        "wall_seconds": wall,
        "kernel_seconds": (max(e[1] for e in kernels) - min(e[0] for e in kernels)) / 1e9
        - sum(gap for gap, *_ in gaps),
        "busy_seconds": (max(e[1] for e in events) - min(e[0] for e in events)) / 1e9
        - sum(gap for gap, *_ in gaps_between(events)),
        "kernels": len(kernels),
        "gaps": gaps,
    }


def gaps_between(events: list[tuple[int, int, str]]) -> list[tuple[float, float, str, str]]:
    """Return (seconds, seconds since the first event, what ended, what began), longest first."""
    gaps = []
    ordered = sorted(events)
    (begin, end, last), *rest = ordered
    for start, stop, name in rest:
        if start > end:
            gaps.append(((start - end) / 1e9, (end - begin) / 1e9, last[:50], name[:50]))
        if stop > end:
            end, last = stop, name
    return sorted(gaps, reverse=True)


def print_gaps(found: dict[str, Any]) -> None:
    """Say how long the gaps are by their length, and where the long ones are."""
    for low, high in ((0, 2e-5), (2e-5, 1e-3), (1e-3, 1e9)):
        some = [gap for gap, *_ in found["gaps"] if low <= gap < high]
        print(f"{len(some)} gaps of {low:g} to {high:g} s: {sum(some):.3f} s")
    for gap, at, before, after in found["gaps"][: 5 * CLIPS]:
        print(f"  {gap * 1e3:7.1f} ms at {at:7.2f} s, after {before} before {after}")
    turns = ", ".join(f"{turn * 1e3:.1f}" for turn in found["turns"])
    print(f"from the end of one rendering to the begin of the next: {turns} ms")


def main() -> int:
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    out, case, *further = arguments[:cut]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder / "cases.csv", further + [case] * CLIPS)
    words = [str(folder / "cases.csv"), "order=rows", f"run_dir={folder / 'run'}"]
    words += arguments[cut + 1 :]
    if not any(word.startswith("model=") for word in words):
        words += ["model=480p_t2v", "model.weights=random"]

    def run(command: Command) -> int:
        say = partial(print, flush=True)
        return session.run(command.config, (), None, say, traced_executor)

    code = run_jobs(words, run)
    found = json.loads((folder / "idle.json").read_text())
    wall = found["wall_seconds"]
    print(
        f"{CLIPS} warm clips of {case} in {wall:.2f} s, {found['kernels']} kernels: "
        f"none ran for {wall - found['kernel_seconds']:.3f} s "
        f"({1 - found['kernel_seconds'] / wall:.2%}), "
        f"neither kernel nor copy for {wall - found['busy_seconds']:.3f} s"
    )
    print_gaps(found)
    print_log(folder / "run", [])
    return code


def traced_executor(spec: ExecutorSpec) -> LocalExecutor:
    return LocalExecutor(spec, TracedRenderer)


if __name__ == "__main__":
    sys.exit(main())
