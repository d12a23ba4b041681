"""What `hv15-batch` without an argument says: this machine, the weights on it, how to go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from hv15_batch.checkpoint import hub_cache_folder, resolve_checkpoint
from hv15_batch.config import ConfigError, ModelConfig, Task, Weights
from hv15_batch.machine import free_disk_bytes, read_machine

_GIB = 2**30


def print_overview(say: Callable[[str], None]) -> None:
    """Print card, free VRAM, RAM, disk, which weights are present, and three commands."""
    machine = read_machine()
    for gpu in machine.gpus:
        say(
            f"Card {gpu.index}: {gpu.name}, {gpu.free_bytes / _GIB:.1f} of "
            f"{gpu.total_bytes / _GIB:.1f} GiB free, driver {gpu.driver}"
        )
    if not machine.gpus:
        say("Card: none visible; the tiny models run on the CPU, real ones can be planned")
    say(
        f"RAM: {machine.ram_available_bytes / _GIB:.1f} of "
        f"{machine.ram_total_bytes / _GIB:.1f} GiB available"
    )
    say(
        f"Disk: {free_disk_bytes(Path.cwd()) / _GIB:.1f} GiB free here, "
        f"{free_disk_bytes(hub_cache_folder()) / _GIB:.1f} GiB where weights go "
        f"({hub_cache_folder()})"
    )
    present = [name for name in model_options() if _is_present(name)]
    say(f"Weights on disk: {', '.join(present) or 'none'}")
    say("Go on with:")
    say("  hv15-batch manifests/demo.csv model=tiny_t2v      a first clip, noise on purpose")
    say("  hv15-batch prefetch model=480p_t2v_distilled      download the weights")
    say("  hv15-batch prompts.csv --dry-run                  check a manifest of your own")


def model_options() -> list[str]:
    """Return the names of the model options."""
    from hv15_batch.cli import conf_dir

    return sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))


def _is_present(name: str) -> bool:
    from hv15_batch.cli import conf_dir

    stored = yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    if stored.get("weights") == Weights.tiny.name:
        return False
    model = ModelConfig(
        name=name,
        repo=stored["repo"],
        revision=stored.get("revision"),
        task=Task[stored["task"]],
    )
    try:
        return resolve_checkpoint(model).folder is not None
    except ConfigError:
        return False
