"""What training leaves behind: weights to use, weights to go on from, and a record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class Average:
    """A running average of parameters."""

    def __init__(self, parameters: list[nn.Parameter], decay: float = 0.99) -> None:
        self.parameters, self.decay, self.updates = parameters, decay, 0
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move a little towards the parameters."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.values, self.parameters, share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters and their averages."""
        for p, value in zip(self.parameters, self.values, strict=True):
            kept = p.detach().clone()
            p.copy_(value)
            value.copy_(kept)


def save_module(module: nn.Module, folder: Path, name: str, shards: int = 2) -> None:
    """Write float32 weights in several files of about the same size."""
    state = {k: v.detach().float().cpu().contiguous() for k, v in module.state_dict().items()}
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    for key in sorted(state, key=lambda k: -state[k].numel()):
        smallest = min(parts, key=lambda part: sum(v.numel() for v in part.values()))
        smallest[key] = state[key]
    for number, part in enumerate(parts):
        save_file(part, folder / f"{name}-f32-{number}.safetensors")


def load_module(module: nn.Module, folder: Path, name: str) -> None:
    """Read the float32 weights that `save_module` wrote, or else the averaged ones.

    Raises:
        FileNotFoundError: if there are none.
    """
    files = sorted(folder.glob(f"{name}-f32-*.safetensors")) or [folder / f"{name}.safetensors"]
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state.update({k: v.float() for k, v in load_file(file).items()})
    module.load_state_dict(state)


def save_average(module: nn.Module, average: Average, folder: Path, name: str) -> None:
    """Write the averaged weights as bfloat16."""
    average.swap()
    state = {k: v.detach().to(torch.bfloat16).cpu() for k, v in module.state_dict().items()}
    average.swap()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / f"{name}.safetensors")


def write_record(folder: Path, name: str, record: dict[str, Any]) -> None:
    """Write figures beside the weights."""
    text = json.dumps(record, indent=1) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """Return the figures beside the weights."""
    record: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return record
