"""Whether the card's energy counter and its integrated power agree, and what sampling costs.

    PYTHONPATH=. python benchmarks/telemetry.py [--quick]

Needs a CUDA card. The loads are matrix products that keep the card busy, the same in bursts, and a
card at rest; launching is a long row of tiny kernels, with and without an open window in turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from hv15_batch.engine._measure import make_sampler
from hv15_batch.engine._telemetry import CardSampler
from hv15_batch.units import GIB

DEVICE = torch.device("cuda", 0)
LAUNCHES = 20_000
IS_QUICK = "--quick" in sys.argv
TURNS, COST_SECONDS = (3, 4) if IS_QUICK else (7, 20)


def matmul(seconds: float, rest_seconds: float = 0.0) -> None:
    """Keep the card busy, with a rest after each quarter of a second where asked for."""
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        burst = time.perf_counter() + 0.25
        while time.perf_counter() < burst:
            a @ a
            torch.cuda.synchronize(DEVICE)
        time.sleep(rest_seconds)


LOADS: dict[str, Callable[[], None]] = {
    "busy 20 s": lambda: matmul(20),
    "bursts 20 s": lambda: matmul(20, 0.25),
    "busy 2 s": lambda: matmul(2),
    "at rest 10 s": lambda: time.sleep(10),
}
if IS_QUICK:
    LOADS = {"busy 5 s": lambda: matmul(5), "bursts 5 s": lambda: matmul(5, 0.25)}


def print_energy(sampler: CardSampler) -> None:
    print(
        "load            counter J  integrated J  ratio   mean W  SM MHz  throttled s  device GiB"
    )
    for name, work in LOADS.items():
        torch.cuda.synchronize(DEVICE)
        window = sampler.begin()
        work()
        torch.cuda.synchronize(DEVICE)
        sampler.end(window)
        columns = window.columns()
        counted, integrated = window.counted_energy.total, window.power.total
        ratio = integrated / counted if counted and integrated else None
        figures = (counted, integrated, ratio, columns["power_watts_mean"])
        cells = [_cell(value, digits) for value, digits in zip(figures, (1, 1, 4, 1), strict=True)]
        cells += [_cell(columns["sm_clock_mhz_mean"], 0), _cell(columns["throttle_seconds"], 2)]
        used = columns["peak_vram_device_bytes"]
        cells.append(_cell(None if used is None else used / GIB, 2))
        print(f"{name:14}", *(f"{cell:>11}" for cell in cells))


def print_cost(sampler: CardSampler) -> None:
    times = []
    for _ in range(200):
        begin = time.perf_counter()
        sampler.read()
        times.append(time.perf_counter() - begin)
    slow = statistics.quantiles(times, n=10)[-1]
    print(f"one sample: median {1e3 * statistics.median(times):.2f} ms, p90 {1e3 * slow:.2f} ms")
    assert sampler.thread.ident is not None
    clock = time.pthread_getcpuclockid(sampler.thread.ident)
    for name, work in (
        ("card at rest", lambda: time.sleep(COST_SECONDS)),
        ("card busy", lambda: matmul(COST_SECONDS)),
    ):
        window, begin, cpu = sampler.begin(), time.perf_counter(), time.clock_gettime(clock)
        work()
        share = (time.clock_gettime(clock) - cpu) / (time.perf_counter() - begin)
        sampler.end(window)
        print(f"the thread's share of a core, {name}: {share:.2%}")


def launch_seconds() -> float:
    """Return what it takes to hand over a row of kernels that are too small to wait for."""
    a = torch.zeros(16, device=DEVICE)
    torch.cuda.synchronize(DEVICE)
    begin = time.perf_counter()
    for _ in range(LAUNCHES):
        a.add_(1)
    torch.cuda.synchronize(DEVICE)
    return time.perf_counter() - begin


def print_delay(sampler: CardSampler) -> None:
    launch_seconds()
    without, watched = [], []
    for _ in range(TURNS):
        without.append(launch_seconds())
        window = sampler.begin()
        watched.append(launch_seconds())
        sampler.end(window)
    for name, values in (("without", without), ("with", watched)):
        each = [1e6 * value / LAUNCHES for value in values]
        median, low, high = statistics.median(each), min(each), max(each)
        print(f"us a launch, {name} sampling: {median:.3f} ({low:.3f} to {high:.3f}, n = {TURNS})")


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    found = make_sampler(DEVICE)
    assert found is not None, "NVML does not know this card"
    print(torch.cuda.get_device_name(DEVICE), "torch", torch.__version__)
    matmul(3)
    print_energy(found)
    print_cost(found)
    print_delay(found)
