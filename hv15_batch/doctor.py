"""`hv15-batch doctor` and plain `hv15-batch`: what this machine has and lacks, and what to type."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hv15_batch.errors import EXIT_OK, EXIT_REFUSED, Refused
from hv15_batch.machine.cards import find_card
from hv15_batch.machine.machine import (
    Machine,
    compiler,
    compiler_fault,
    free_disk_bytes,
    read_machine,
)
from hv15_batch.machine.system import system_facts
from hv15_batch.model.attention import KERNELS, auto_kernel, is_fetched, package_fault
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Weights
from hv15_batch.units import GIB, Say, format_gib
from hv15_batch.weights.checkpoint import resolve_checkpoint
from hv15_batch.weights.hub import hub_cache_folder

_TORCH_PAGE = "https://pytorch.org/get-started/locally/"
_SMALLEST_CARD_BYTES = 8 * GIB
"""`stream` at 480x848x121 took 7.4 GiB by NVML (BENCHMARKS.md, "What fits which card?")."""
_STREAM_RAM_BYTES = 25 * GIB
"""`stream` took 23.4 GiB of host memory (the same section)."""
_WEIGHTS_BYTES = 33 * 10**9 + GIB
"""A variant with its encoders and VAE is 33 GB; something must stay free."""


class Verdict(Enum):
    """The meaning of a finding for a full-size model."""

    ok = "ok"
    note = "note"
    """It renders, and something could be improved."""
    stops = "stops"
    """No full-size model renders until this is fixed."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    verdict: Verdict
    text: str
    advice: str = ""
    """What to do or type; empty if nothing is wrong."""


def main(argv: Sequence[str], say: Say = print) -> int:
    """Print the findings; return 0, or 2 if no full-size model can render here."""
    parser = argparse.ArgumentParser(
        prog="hv15-batch doctor",
        description="Check driver, PyTorch, attention kernels, memory, disk and weights; print "
        "what stops a full-size model from rendering, and what to type.",
        epilog="example: hv15-batch doctor",
    )
    parser.parse_args(argv)
    machine = read_machine()
    found = list(findings(machine, system_facts(machine)["software"]))
    for finding in found:
        say(f"{finding.verdict.name:6}{finding.text}")
        if finding.advice:
            say(f"      -> {finding.advice}")
    return EXIT_REFUSED if any(f.verdict is Verdict.stops for f in found) else EXIT_OK


def findings(machine: Machine, software: dict[str, Any]) -> Iterator[Finding]:
    """Yield the findings, in the order in which they would stop a run.

    Args:
        machine: The machine.
        software: The software in `machine.system.system_facts`.
    """
    yield from card_findings(machine)
    yield _torch(machine, software)
    yield from _kernels(machine)
    yield _compiler()
    yield ram_finding(machine)
    yield from disk_and_weights()


def card_findings(machine: Machine) -> Iterator[Finding]:
    """Yield a finding for each card, or one that there is none."""
    if not machine.gpus:
        yield Finding(
            Verdict.stops,
            "Card: none visible; the demo models run on the CPU, full-size ones can be planned",
            "`nvidia-smi` must list a card: install NVIDIA's driver (for WSL2 on Windows itself), "
            "and look at CUDA_VISIBLE_DEVICES",
        )
    for gpu in machine.gpus:
        text = (
            f"Card {gpu.index}: {gpu.name}, {format_gib(gpu.free_bytes)} of "
            f"{format_gib(gpu.total_bytes)} GiB free, driver {gpu.driver}"
        )
        if gpu.total_bytes < _SMALLEST_CARD_BYTES:
            advice = "480x848 with 121 frames needs 8 GiB; fewer frames may fit: see --dry-run"
            yield Finding(Verdict.note, text, advice)
        elif find_card(gpu.name) is None:
            advice = "its speed is unknown: times are predicted after a first run"
            yield Finding(Verdict.note, text, advice)
        else:
            yield Finding(Verdict.ok, text)


def _torch(machine: Machine, software: dict[str, Any]) -> Finding:
    version, cuda = machine.torch_version, software["torch_cuda_version"]
    driver = software["driver_cuda_version"]
    install = f"install the build for your driver, as {_TORCH_PAGE} names it"
    if version is None:
        return Finding(Verdict.stops, "PyTorch: not installed", install)
    if cuda is None:
        verdict = Verdict.stops if machine.gpus else Verdict.note
        return Finding(verdict, f"PyTorch {version}: built for the CPU only", install)
    text = f"PyTorch {version}: built for CUDA {cuda}"
    if driver is not None and int(driver.split(".")[0]) < int(cuda.split(".")[0]):
        advice = f"the driver runs CUDA {driver}: update the driver, or {install}"
        return Finding(Verdict.stops, text, advice)
    return Finding(Verdict.ok, text)


def _kernels(machine: Machine) -> Iterator[Finding]:
    packaged = [name for name, kernel in KERNELS.items() if kernel.package and not is_fetched(name)]
    there = [name for name in packaged if package_fault(name) is None]
    card = find_card(machine.gpu.name) if machine.gpu else None
    auto = f"; auto takes {auto_kernel(card.capability)}" if card else ""
    yield Finding(
        Verdict.ok,
        f"Attention kernels: torch's own{auto}; of packages {', '.join(there) or 'none'}",
    )


def _compiler() -> Finding:
    fault = compiler_fault()
    if fault is None:
        return Finding(Verdict.ok, f"Compiler for runtime.compile: {compiler()}")
    return Finding(Verdict.note, f"Compiler: {compiler() or 'none'}", f"runtime.compile: {fault}")


def ram_finding(machine: Machine) -> Finding:
    """Return the finding about RAM."""
    text = (
        f"RAM: {format_gib(machine.ram_available_bytes)} of "
        f"{format_gib(machine.ram_total_bytes)} GiB available"
    )
    if machine.ram_available_bytes < _STREAM_RAM_BYTES:
        advice = "offload=stream needs about 25 GiB; offload=stream_disk reads the blocks from disk"
        return Finding(Verdict.note, text, advice)
    return Finding(Verdict.ok, text)


def disk_and_weights() -> Iterator[Finding]:
    """Yield findings about the disk here, the disk for weights, and the weights on it."""
    cache = hub_cache_folder()
    present, faults = present_models()
    text = (
        f"Disk: {format_gib(free_disk_bytes(Path.cwd()))} GiB free here, "
        f"{format_gib(free_disk_bytes(cache))} GiB where weights go ({cache})"
    )
    if not present and free_disk_bytes(cache) < _WEIGHTS_BYTES:
        advice = "a model is 33 GB: set HF_HOME to a folder on a larger disk"
        yield Finding(Verdict.stops, text, advice)
    elif os.path.abspath(cache).startswith("/mnt/") and "microsoft" in os.uname().release.lower():
        advice = "WSL reads Windows' disks slowly: set HF_HOME to a folder of the Linux disk"
        yield Finding(Verdict.note, text, advice)
    else:
        yield Finding(Verdict.ok, text)
    weights = f"Weights on disk: {', '.join(present) or 'none'}"
    if present:
        yield Finding(Verdict.ok, weights)
    else:
        advice = "hv15-batch prefetch model=480p_t2v_distilled    or let the first run fetch them"
        yield Finding(Verdict.note, weights, advice)
    advice = "fetch them again with hv15-batch prefetch"
    for fault in faults:
        yield Finding(Verdict.note, f"Weights: {fault}", advice)


def present_models() -> tuple[list[str], list[str]]:
    """Return the full-size models with weights on the disk, and the faults of incomplete ones."""
    present, faults = [], []
    for model in model_options().values():
        if model.weights is not Weights.pretrained:
            continue
        try:
            if not resolve_checkpoint(model).is_missing:
                present.append(model.name)
        except Refused as refusal:
            faults.append(str(refusal))
    return present, faults


DEMO = Path("manifests/demo.csv")


def print_overview(say: Say) -> None:
    """Print card, free VRAM, RAM, disk, which weights are present, and what to type next."""
    machine = read_machine()
    for finding in (*card_findings(machine), ram_finding(machine), *disk_and_weights()):
        say(finding.text)
    say("Next:")
    if DEMO.is_file():
        say(f"  hv15-batch {DEMO} model=demo_t2v    the first clips, on the CPU too")
    else:
        say("  echo 'A cat walks on the grass.' > prompts.txt && hv15-batch prompts.txt \\")
        say("      model=demo_t2v                              a first clip, on the CPU too")
    say("  hv15-batch prefetch model=480p_t2v_distilled    download the weights")
    say("  hv15-batch prompts.csv --dry-run                check a manifest of your own")
    say("  hv15-batch doctor                               what is missing on this machine")


if __name__ == "__main__":  # `python -m hv15_batch.doctor` is `hv15-batch doctor`
    sys.argv[1:1] = ["doctor"]
    runpy.run_module("hv15_batch", run_name="__main__")
