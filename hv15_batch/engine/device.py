"""The device that renders: its choice, its memory limit and its faults."""

from __future__ import annotations

import threading

import torch

from hv15_batch.config.checks import effective_dtype
from hv15_batch.config.settings import Config
from hv15_batch.model.variant import Weights


def quieten_libraries() -> None:
    """Send notices of the libraries to run.log, and their progress bars nowhere.

    Call it before they are imported: some print at import.
    """
    import diffusers.utils.logging
    import transformers.utils.logging
    from tqdm import tqdm

    # tqdm's own lock is shared between processes: a killed worker would leave its semaphore behind.
    tqdm.set_lock(threading.RLock())
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.disable_default_handler()
        library.enable_propagation()


def torch_dtype(config: Config) -> torch.dtype:
    """Return the type of every component's parameters."""
    dtype = getattr(torch, effective_dtype(config).value)
    assert isinstance(dtype, torch.dtype)
    return dtype


def limit_device_memory(device: torch.device, limit_bytes: int) -> None:
    """Let torch's allocator take no more than this of the card, as a smaller card would."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), device)


def device_fault(device: torch.device, error_type: str, message: str) -> str | None:
    """Return why every later call on the device fails after an error, or None where it works.

    An illegal memory access, a device-side assert, a launch failure, an ECC error or a card that
    fell off the bus leaves the process's CUDA context broken: synchronising raises it again. On
    the CPU there is nothing to ask, so the message counts.
    """
    if device.type != "cuda":
        return f"{error_type}: {message}" if "CUDA error" in message else None
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return None


def execution_device(config: Config) -> torch.device:
    """Return where the maths runs: the first CUDA device, or the CPU.

    The tiny models run on the CPU everywhere, so that they give the same clips on every machine.
    The demo models run on a card where there is one.
    """
    if config.model.weights is Weights.tiny or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())
