"""What `hv15-batch` without an argument says: this machine, the weights on it, how to go on."""

from __future__ import annotations

from pathlib import Path

from hv15_batch.errors import Refused
from hv15_batch.machine.machine import free_disk_bytes, read_machine
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import ModelConfig, Weights
from hv15_batch.units import Say, format_gib
from hv15_batch.weights.checkpoint import resolve_checkpoint
from hv15_batch.weights.hub import hub_cache_folder

DEMO = Path("manifests/demo.csv")


def print_overview(say: Say) -> None:
    """Print card, free VRAM, RAM, disk, which weights are present, and three commands."""
    machine = read_machine()
    for gpu in machine.gpus:
        say(
            f"Card {gpu.index}: {gpu.name}, {format_gib(gpu.free_bytes)} of "
            f"{format_gib(gpu.total_bytes)} GiB free, driver {gpu.driver}"
        )
    if not machine.gpus:
        say("Card: none visible; the demo models run on the CPU, real ones can be planned")
    say(
        f"RAM: {format_gib(machine.ram_available_bytes)} of "
        f"{format_gib(machine.ram_total_bytes)} GiB available"
    )
    cache = hub_cache_folder()
    say(
        f"Disk: {format_gib(free_disk_bytes(Path.cwd()))} GiB free here, "
        f"{format_gib(free_disk_bytes(cache))} GiB where weights go ({cache})"
    )
    real = [model for model in model_options().values() if model.weights is Weights.pretrained]
    present = [model.name for model in real if _is_present(model)]
    say(f"Weights on disk: {', '.join(present) or 'none'}")
    say("Next:")
    if DEMO.is_file():
        say(f"  hv15-batch {DEMO} model=demo_t2v    the first clips, on the CPU too")
    else:
        say("  echo 'A cat walks on the grass.' > prompts.txt && hv15-batch prompts.txt \\")
        say("      model=demo_t2v                              a first clip, on the CPU too")
    say("  hv15-batch prefetch model=480p_t2v_distilled    download the weights")
    say("  hv15-batch prompts.csv --dry-run                check a manifest of your own")


def _is_present(model: ModelConfig) -> bool:
    try:
        return resolve_checkpoint(model).folder is not None
    except Refused:  # what is there is of another kind: a run says so
        return False
