"""The demo models: small, trained on a made-up world, written once as ordinary checkpoints.

The package holds their weights as bfloat16, without what is never read. Here the class's own shapes
are filled again: what is left out is zero, and changes nothing.
"""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import nn

from hv15_batch.engine.load.random_weights import build_without_memory
from hv15_batch.model.architectures import (
    DEMO_FOLDER,
    Architecture,
    component_arguments,
)
from hv15_batch.model.variant import ModelConfig

ROWS = ".rows"
"""Ends the name of the tensor that says which rows of an embedding are kept."""


def build_demo_component(name: str, model: ModelConfig, architecture: Architecture) -> nn.Module:
    """Return one component with the trained weights as float32, in evaluation mode.

    Args:
        name: as in `model_index.json`.
        model: decides the transformer's task.
        architecture: of the demo models.

    Raises:
        ValueError: if a weight fits nowhere.
    """
    module = build_without_memory(name, component_arguments(name, model, architecture))
    packed = load_file(DEMO_FOLDER / f"{name}.safetensors")
    left = {key for key in packed if not key.endswith(ROWS)}
    done: dict[nn.Parameter, nn.Parameter] = {}  # tied weights stay tied
    for prefix, owner in module.named_modules():
        for own, parameter in list(owner.named_parameters(recurse=False)):
            key = f"{prefix}.{own}" if prefix else own
            left.discard(key)
            if parameter not in done:
                values = _expanded(key, tuple(parameter.shape), packed)
                done[parameter] = nn.Parameter(values, requires_grad=False)
            setattr(owner, own, done[parameter])
    if left:
        raise ValueError(f"{name}: no parameter is called {', '.join(sorted(left))}")
    return module.eval()


def _expanded(key: str, shape: tuple[int, ...], packed: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return a parameter, what the package leaves out of it filled with zeros.

    A norm that is left out is that of a layer that is never read: its weights are 1.
    """
    kept = packed.get(key)
    if kept is None:
        return torch.ones(shape) if key.endswith("norm.weight") else torch.zeros(shape)
    rows = packed.get(key + ROWS)
    values = torch.zeros(shape)
    if rows is not None:
        values[rows.long()] = kept.float()
    else:
        values[tuple(slice(size) for size in kept.shape)] = kept.float()
    return values
