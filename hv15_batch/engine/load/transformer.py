"""Read a transformer from its safetensors tensor by tensor, quantised on the way.

Never holds more of it in 16 bits than one tensor: the files are mapped, and the kernel drops pages
that were read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from hv15_batch.engine.load.linears import EightBits
from hv15_batch.engine.load.random_weights import ParametersOnMeta
from hv15_batch.weights.configs import MAX_INDEX_BYTES, read_object
from hv15_batch.weights.files import WEIGHTS


def read_transformer(
    folder: Path, cls: Any, dtype: torch.dtype, device: torch.device, eight_bits: EightBits
) -> Any:
    """Return a transformer on `device`, in evaluation mode, without gradients.

    Args:
        folder: its config.json and its safetensors, checked (`weights.files`).
        cls: its class.
        dtype: of the parameters that are not kept in 8 bits.
        device: where all parameters are kept.
        eight_bits: which are quantised, and where.

    Raises:
        ValueError: the files lack a parameter, or have it in another shape.
    """
    with ParametersOnMeta():
        transformer = cls.from_config(cls.load_config(folder, local_files_only=True))
    eight_bits.change(transformer)
    places = dict(_places(transformer))
    for file in _files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # no mapping
                if name not in places:
                    continue  # diffusers leaves it out too
                module, own = places.pop(name)
                values = tensors.get_tensor(name)
                shape = getattr(module, own).shape
                if values.shape != shape:
                    raise ValueError(
                        f"{name} has shape {list(values.shape)} where {list(shape)} is expected"
                    )
                if not eight_bits.take(module, own, values, device):
                    kept = nn.Parameter(values.to(device, dtype), requires_grad=False)
                    setattr(module, own, kept)
    if places:
        which = ", ".join(sorted(places)[:3])
        raise ValueError(f"the safetensors lack parameters of this network: {which}")
    for module in transformer.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))
    return transformer.eval().requires_grad_(False)


def _files(folder: Path) -> list[Path]:
    """Return the safetensors of a transformer, each once."""
    whole = folder / f"{WEIGHTS['transformer']}.safetensors"
    index = whole.with_name(f"{whole.name}.index.json")
    if not index.is_file():
        return [whole]
    names = read_object(index, MAX_INDEX_BYTES)["weight_map"].values()
    return [folder / name for name in sorted(set(names))]


def _places(transformer: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """Yield the name of each parameter, its module, and its name there."""
    for prefix, module in transformer.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            yield f"{prefix}.{name}" if prefix else name, (module, name)
