"""Maps the names of modules in a LoRA's file to the modules of diffusers' transformer.

Files separate the parts of a name by full stops or by underscores, put the names of programs before
them, and use the names of diffusers, Tencent or ComfyUI. So names are compared without separators:
every full stop becomes an underscore. Torch-free.

Sources: the files of diffusers and PEFT, Tencent's train.py, musubi-tuner, ComfyUI and
diffusion-pipe; ComfyUI names the modules as its own class does (`img_attn.qkv`, `img_mlp.0`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hv15_batch.weights.layouts import Layout, parts, shapes

PREFIXES = (
    *("lora_unet_", "base_model_model_", "model_diffusion_model_", "diffusion_model_"),
    *("transformer_", "model_"),
)
"""What programs put before the name of a module."""
ENDINGS = {
    ".lora_A.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_down.weight": "down",
    ".lora.down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.default.weight": "up",
    ".lora_up.weight": "up",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}
"""Endings of tensor names, and the part of an adapter that each marks."""
_LOOKED_UP = {"cond_type_embed.weight"}
"""A lookup table: no input is multiplied by it."""
# ComfyUI's: Tencent's, where they differ by more than separators.
_ALIASES = (
    ("_mlp_0", "_mlp_fc1"),
    ("_mlp_2", "_mlp_fc2"),
    ("_mod_lin", "_mod_linear"),
    ("c_embedder_in_layer", "c_embedder_linear_1"),
    ("c_embedder_out_layer", "c_embedder_linear_2"),
    ("_in_layer", "_mlp_0"),
    ("_out_layer", "_mlp_2"),
)


@dataclass(frozen=True)
class Target:
    """The module of diffusers' transformer that a module of the file changes, whole or in part."""

    module: str
    third: int | None = None
    """Index of one of three equal parts of the file's outputs; None means all of them."""
    swaps_halves: bool = False
    """(shift, scale) in the file is (scale, shift) in diffusers."""


def target_table(config: Mapping[str, Any]) -> dict[str, tuple[Target, ...]]:
    """Return the targets of each module that multiplies by a matrix.

    Keys are the modules' names in all layouts, with underscores for full stops.

    Args:
        config: Of the transformer, as in `transformer/config.json`.
    """
    matrices = {name for name, shape in shapes(config).items() if len(shape) > 1} - _LOOKED_UP
    table: dict[str, list[Target]] = {}
    for layout in Layout:
        for name, part in parts(config, layout).items():
            if name in matrices and not (layout is Layout.comfy and part.third is None):
                target = Target(_module(name), part.third, part.swaps_halves)
                table.setdefault(_folded(_module(part.source)), []).append(target)
    return {name: tuple(dict.fromkeys(targets)) for name, targets in table.items()}


def split_key(key: str) -> tuple[str, str] | None:
    """Return the module and the part (`down`, `up`, `alpha`) of a tensor's name, or None."""
    for ending, part in ENDINGS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return None


def find_targets(module: str, table: Mapping[str, tuple[Target, ...]]) -> tuple[Target, ...]:
    """Return the targets of a file's module; empty where this transformer has no such module."""
    for name in _spellings(_folded(module)):
        if name in table:
            return table[name]
    return ()


def _spellings(name: str) -> Iterator[str]:
    yield name
    for alias, own in _ALIASES:
        if name.endswith(alias):
            yield name.removesuffix(alias) + own
    for prefix in PREFIXES:
        if name.startswith(prefix):
            yield from _spellings(name.removeprefix(prefix))


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _folded(module: str) -> str:
    return module.replace(".", "_")
