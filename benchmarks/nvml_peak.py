"""Peak memory of the whole card while a block runs, sampled through NVML."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

from hv15_batch.units import GIB

_INTERVAL_SECONDS = 0.02


class Peak:
    """Filled when the block ends."""

    gib = 0.0


@contextmanager
def nvml_peak() -> Iterator[Peak]:
    """Yield a `Peak` that holds the card's largest used memory once the block has ended."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    peak, stop = Peak(), threading.Event()

    def sample() -> None:
        while not stop.wait(_INTERVAL_SECONDS):
            peak.gib = max(peak.gib, pynvml.nvmlDeviceGetMemoryInfo(handle).used / GIB)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()
