"""The names of a transformer's tensors in three layouts, and their mapping.

Three layouts are known: that of diffusers, Tencent's original one, and Comfy-Org's, which is the
original one with query, key and value of the double blocks in one tensor. Torch-free.

Source: diffusers 0.42.1, `scripts/convert_hunyuan_video1_5_to_diffusers.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

Shape = tuple[int, ...]


SIZE_KEYS = (
    *("num_layers", "num_refiner_layers", "num_attention_heads", "attention_head_dim", "mlp_ratio"),
    *("in_channels", "out_channels", "patch_size", "patch_size_t"),
    *("text_embed_dim", "text_embed_2_dim", "image_embed_dim"),
)
"""Numbers of a transformer's configuration that `shapes` needs; all but `mlp_ratio` are whole."""


class Layout(Enum):
    """How a file names its tensors."""

    diffusers = "diffusers"
    original = "original (Tencent)"
    comfy = "Comfy-Org"


@dataclass(frozen=True)
class Part:
    """Where a tensor of diffusers stands in a file."""

    source: str
    """Name in the file."""
    third: int | None = None
    """Index of one of three equal parts along the first dimension; None means the whole tensor."""
    swaps_halves: bool = False
    """(shift, scale) in the file is (scale, shift) in diffusers."""


PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "model.")
"""Prefixes that tools put before every name."""
_QKV = ("to_q", "to_k", "to_v")
_ADDED_QKV = ("add_q_proj", "add_k_proj", "add_v_proj")
# Names in diffusers, and in the original. Each has a weight and a bias unless noted.
_EMBEDDERS = {
    "x_embedder.proj": "img_in.proj",
    "image_embedder.norm_in": "vision_in.proj.0",
    "image_embedder.linear_1": "vision_in.proj.1",
    "image_embedder.linear_2": "vision_in.proj.3",
    "image_embedder.norm_out": "vision_in.proj.4",
    "context_embedder.time_text_embed.timestep_embedder.linear_1": "txt_in.t_embedder.mlp.0",
    "context_embedder.time_text_embed.timestep_embedder.linear_2": "txt_in.t_embedder.mlp.2",
    "context_embedder.time_text_embed.text_embedder.linear_1": "txt_in.c_embedder.linear_1",
    "context_embedder.time_text_embed.text_embedder.linear_2": "txt_in.c_embedder.linear_2",
    "context_embedder.proj_in": "txt_in.input_embedder",
    "context_embedder_2.norm": "byt5_in.layernorm",
    "context_embedder_2.linear_1": "byt5_in.fc1",
    "context_embedder_2.linear_2": "byt5_in.fc2",
    "context_embedder_2.linear_3": "byt5_in.fc3",
    "time_embed.timestep_embedder.linear_1": "time_in.mlp.0",
    "time_embed.timestep_embedder.linear_2": "time_in.mlp.2",
    "proj_out": "final_layer.linear",
}
_MEANFLOW = {
    "time_embed.timestep_embedder_r.linear_1": "time_r_in.mlp.0",
    "time_embed.timestep_embedder_r.linear_2": "time_r_in.mlp.2",
}
_REFINER_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.to_out.0": "self_attn_proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    "norm_out.linear": "adaLN_modulation.1",
}
_DOUBLE_BLOCK = {
    "norm1.linear": "img_mod.linear",
    "norm1_context.linear": "txt_mod.linear",
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "ff.net.0.proj": "img_mlp.fc1",
    "ff.net.2": "img_mlp.fc2",
    "ff_context.net.0.proj": "txt_mlp.fc1",
    "ff_context.net.2": "txt_mlp.fc2",
}
_DOUBLE_BLOCK_NORMS = {  # weights only
    "attn.norm_q": "img_attn_q_norm",
    "attn.norm_k": "img_attn_k_norm",
    "attn.norm_added_q": "txt_attn_q_norm",
    "attn.norm_added_k": "txt_attn_k_norm",
}


def layout_of(names: Collection[str]) -> Layout | None:
    """Return the layout of a file with these tensors, prefixes removed; None for another model."""
    if any(name.startswith("transformer_blocks.0.attn.add_q_proj.") for name in names):
        return Layout.diffusers
    if any(name.startswith("double_blocks.0.img_attn_qkv.") for name in names):
        return Layout.comfy
    if any(name.startswith("double_blocks.0.img_attn_q.") for name in names):
        return Layout.original
    return None


def prefix_of(names: Collection[str]) -> str:
    """Return the one of `PREFIXES` before every name; empty where there is none."""
    return next((p for p in PREFIXES if all(name.startswith(p) for name in names)), "")


def parts(config: Mapping[str, Any], layout: Layout) -> dict[str, Part]:
    """Return where each tensor of diffusers' transformer stands in a file of a layout.

    Args:
        config: The transformer's configuration, of which `num_layers`, `num_refiner_layers` and
            `use_meanflow` are read.
        layout: The layout of the file.
    """
    if layout is Layout.diffusers:
        return {name: Part(name) for name in parts(config, Layout.original)}
    found = {}
    for target, source in _modules(config):
        for leaf in ("weight", "bias"):
            found[f"{target}.{leaf}"] = Part(f"{source}.{leaf}")
    for leaf in ("weight", "bias"):
        source = f"final_layer.adaLN_modulation.1.{leaf}"
        found[f"norm_out.linear.{leaf}"] = Part(source, swaps_halves=True)
        for index in range(config["num_refiner_layers"]):
            target = f"context_embedder.token_refiner.refiner_blocks.{index}.attn"
            source = f"txt_in.individual_token_refiner.blocks.{index}.self_attn_qkv.{leaf}"
            for third, name in enumerate(_QKV):
                found[f"{target}.{name}.{leaf}"] = Part(source, third)
        for index in range(config["num_layers"]):
            target, source = f"transformer_blocks.{index}.attn", f"double_blocks.{index}"
            for stream, names in (("img", _QKV), ("txt", _ADDED_QKV)):
                for third, name in enumerate(names):
                    found[f"{target}.{name}.{leaf}"] = (
                        Part(f"{source}.{stream}_attn_qkv.{leaf}", third)
                        if layout is Layout.comfy
                        else Part(f"{source}.{stream}_attn_{'qkv'[third]}.{leaf}")
                    )
    for index in range(config["num_layers"]):
        for name, original in _DOUBLE_BLOCK_NORMS.items():
            target = f"transformer_blocks.{index}.{name}.weight"
            found[target] = Part(f"double_blocks.{index}.{original}.weight")
    found["cond_type_embed.weight"] = Part("cond_type_embedding.weight")
    return found


def _modules(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the modules with a weight and a bias of which only the name differs."""
    yield from _EMBEDDERS.items()
    if config.get("use_meanflow"):
        yield from _MEANFLOW.items()
    for index in range(config["num_refiner_layers"]):
        target = f"context_embedder.token_refiner.refiner_blocks.{index}"
        source = f"txt_in.individual_token_refiner.blocks.{index}"
        for name, original in _REFINER_BLOCK.items():
            yield f"{target}.{name}", f"{source}.{original}"
    for index in range(config["num_layers"]):
        for name, original in _DOUBLE_BLOCK.items():
            yield f"transformer_blocks.{index}.{name}", f"double_blocks.{index}.{original}"


def shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shape of each tensor of diffusers' `HunyuanVideo15Transformer3DModel`.

    Args:
        config: Its constructor's arguments, as in `transformer/config.json`, of which `SIZE_KEYS`
            and `use_meanflow` are read.
    """
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    width = heads * head
    inner, refiner_inner = int(width * config["mlp_ratio"]), _REFINER_RATIO * width
    image, text, glyph = (
        config["image_embed_dim"],
        config["text_embed_dim"],
        config["text_embed_2_dim"],
    )
    patch = (config["patch_size_t"], config["patch_size"], config["patch_size"])
    out = config["out_channels"] * patch[0] * patch[1] * patch[2]
    linear: dict[str, Shape] = {
        "x_embedder.proj": (width, config["in_channels"], *patch),
        "image_embedder.norm_in": (image,),
        "image_embedder.linear_1": (image, image),
        "image_embedder.linear_2": (width, image),
        "image_embedder.norm_out": (width,),
        "context_embedder.time_text_embed.timestep_embedder.linear_1": (width, _TIME_CHANNELS),
        "context_embedder.time_text_embed.text_embedder.linear_1": (width, text),
        "context_embedder.proj_in": (width, text),
        "context_embedder_2.norm": (glyph,),
        "context_embedder_2.linear_1": (_GLYPH_WIDTH, glyph),
        "context_embedder_2.linear_2": (_GLYPH_WIDTH, _GLYPH_WIDTH),
        "context_embedder_2.linear_3": (width, _GLYPH_WIDTH),
        "time_embed.timestep_embedder.linear_1": (width, _TIME_CHANNELS),
        "time_embed.timestep_embedder_r.linear_1": (width, _TIME_CHANNELS),
        "norm_out.linear": (2 * width, width),
        "proj_out": (out, width),
    }
    endings: dict[str, Shape] = {
        "norm1": (width,),
        "norm2": (width,),
        "norm1.linear": (6 * width, width),
        "norm1_context.linear": (6 * width, width),
        "norm_out.linear": (2 * width, width),
        "token_refiner.ff.net.0.proj": (refiner_inner, width),
        "token_refiner.ff.net.2": (width, refiner_inner),
        "net.0.proj": (inner, width),
        "net.2": (width, inner),
    }
    found = {}
    for name in parts(config, Layout.diffusers):
        module, _, leaf = name.rpartition(".")
        key = re.sub(r"refiner_blocks\.\d+\.", "", module)
        shape = linear.get(module) or next(
            (s for ending, s in endings.items() if key.endswith(f".{ending}")), (width, width)
        )
        if module == "cond_type_embed":
            shape = (3, width)
        elif module.rpartition(".")[2] in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            shape = (head,)
        found[name] = shape[:1] if leaf == "bias" else shape
    return found


_TIME_CHANNELS = 256
"""Sinusoidal channels of a time step. Source: diffusers' HunyuanVideo15TimeEmbedding."""
_REFINER_RATIO = 4
"""Feed-forward over width in the token refiner. Source: its class in diffusers 0.42.1."""
_GLYPH_WIDTH = 2048
"""Hidden width of diffusers' HunyuanVideo15ByT5TextProjection, whatever the transformer's is."""
