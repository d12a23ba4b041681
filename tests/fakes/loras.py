"""LoRA files of the tiny transformer in the forms that people have, written without the tables."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from hv15_batch.model.options import model_options
from hv15_batch.weights.layouts import shapes
from hv15_batch.weights.transformer import transformer_arguments

Tensors = dict[str, torch.Tensor]
Adapter = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module of diffusers to (down [rank, inputs], up [outputs, rank])."""

RANK, ALPHA = 3, 6.0
QKV = ("to_q", "to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
BLOCK, REFINER = "transformer_blocks.1", "context_embedder.token_refiner.refiner_blocks.0"
MODULES = (
    *(f"{BLOCK}.attn.{name}" for name in (*QKV, *ADDED, "to_out.0", "to_add_out")),
    *(f"{BLOCK}.{name}" for name in ("norm1.linear", "norm1_context.linear", "ff.net.0.proj")),
    *(f"{BLOCK}.{name}" for name in ("ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")),
    *(f"{REFINER}.attn.{name}" for name in QKV),
    *("norm_out.linear", "x_embedder.proj", "proj_out", "transformer_blocks.0.attn.to_q"),
    *("time_embed.timestep_embedder.linear_1", "context_embedder.proj_in"),
)
"""Of every kind: fused by others, with halves swapped, a convolution, embedders."""


def adapter(weights: Tensors, seed: int = 0, size: float = 0.02) -> Adapter:
    """Return random matrices for each of `MODULES`."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for module in MODULES:
        shape = weights[f"{module}.weight"].shape
        down = torch.randn(RANK, *shape[1:], generator=generator) * size
        up = torch.randn(shape[0], RANK, *([1] * (len(shape) - 2)), generator=generator)
        made[module] = (down, up)
    return made


def merged(weights: Tensors, made: Adapter, scale: float = 1.0) -> Tensors:
    """Return weights with the products added."""
    whole = dict(weights)
    for module, (down, up) in made.items():
        weight = weights[f"{module}.weight"]
        product = up.flatten(1).double() @ down.flatten(1).double()
        whole[f"{module}.weight"] = (weight.double() + scale * product.view_as(weight)).float()
    return whole


def diffusers(made: Adapter) -> Tensors:
    """As `save_lora_adapter` of diffusers writes it."""
    return _pairs({f"transformer.{name}": pair for name, pair in made.items()}, "lora_A", "lora_B")


def peft(made: Adapter) -> Tensors:
    """As Tencent's train.py writes it, by PEFT."""
    return _pairs(_tencent(made, fuses=False), "lora_A", "lora_B")


def musubi(made: Adapter) -> Tensors:
    return _kohya(_tencent(made, fuses=False), "lora_unet_{}", "_")


def musubi_comfy(made: Adapter) -> Tensors:
    """As musubi-tuner converts it for ComfyUI: three pairs as one, with the up matrix in blocks."""
    return _kohya(_tencent(made, fuses=True), "lora_unet_{}", "_")


def comfy(made: Adapter) -> Tensors:
    names = {
        "img_attn_qkv": "img_attn.qkv",
        "txt_attn_qkv": "txt_attn.qkv",
        "img_attn_proj": "img_attn.proj",
        "txt_attn_proj": "txt_attn.proj",
        "self_attn_qkv": "self_attn.qkv",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.2",
        "mod.linear": "mod.lin",
        "time_in.mlp.0": "time_in.in_layer",
    }
    renamed = {}
    for name, pair in _tencent(made, fuses=True).items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = pair
    return _kohya(renamed, "diffusion_model.{}", ".")


def diffusion_pipe(made: Adapter) -> Tensors:
    fused = _tencent(made, fuses=True)
    return _pairs({f"transformer.{name}": pair for name, pair in fused.items()}, "lora_A", "lora_B")


FORMS = (diffusers, peft, musubi, musubi_comfy, comfy, diffusion_pipe)


def saved_lora(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, path, metadata)
    return path


def lora_of(model: str) -> Tensors:
    """Return a LoRA of one module of a model's transformer."""
    name = "transformer_blocks.0.attn.to_q"
    outputs, inputs = shapes(transformer_arguments(model_options()[model]))[f"{name}.weight"]
    return {
        f"transformer.{name}.lora_A.weight": torch.zeros(1, inputs),
        f"transformer.{name}.lora_B.weight": torch.zeros(outputs, 1),
    }


def _pairs(made: Adapter, down: str, up: str) -> Tensors:
    return {
        f"{name}.{part}.weight": tensor
        for name, pair in made.items()
        for part, tensor in zip((down, up), pair, strict=True)
    }


def _kohya(made: Adapter, form: str, separator: str) -> Tensors:
    """With an alpha, so that the product counts alpha / rank times."""
    tensors = {}
    for name, (down, up) in made.items():
        key, rank = form.format(name.replace(".", separator)), down.shape[0]
        alpha = ALPHA * rank / RANK
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up * (rank / alpha)
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def _tencent(made: Adapter, fuses: bool) -> Adapter:
    """Under Tencent's names; the refiner's query, key and value are one module there."""
    d = dict(made)
    out: Adapter = {}
    block, refiner = "double_blocks.1", "txt_in.individual_token_refiner.blocks.0"
    out[f"{refiner}.self_attn_qkv"] = _fused([d.pop(f"{REFINER}.attn.{name}") for name in QKV])
    for side, names in (("img", QKV), ("txt", ADDED)):
        three = [d.pop(f"{BLOCK}.attn.{name}") for name in names]
        if fuses:
            out[f"{block}.{side}_attn_qkv"] = _fused(three)
        else:
            for letter, pair in zip("qkv", three, strict=True):
                out[f"{block}.{side}_attn_{letter}"] = pair
    one = d.pop("transformer_blocks.0.attn.to_q")
    if fuses:
        down, up = one
        nothing = (torch.zeros_like(down), torch.zeros_like(up))
        out["double_blocks.0.img_attn_qkv"] = _fused([one, nothing, nothing])
    else:
        out["double_blocks.0.img_attn_q"] = one
    down, up = d.pop("norm_out.linear")
    scale, shift = up.chunk(2)
    out["final_layer.adaLN_modulation.1"] = down, torch.cat([shift, scale])
    for old, new in (
        (f"{BLOCK}.attn.to_out.0", f"{block}.img_attn_proj"),
        (f"{BLOCK}.attn.to_add_out", f"{block}.txt_attn_proj"),
        (f"{BLOCK}.norm1.linear", f"{block}.img_mod.linear"),
        (f"{BLOCK}.norm1_context.linear", f"{block}.txt_mod.linear"),
        (f"{BLOCK}.ff.net.0.proj", f"{block}.img_mlp.fc1"),
        (f"{BLOCK}.ff.net.2", f"{block}.img_mlp.fc2"),
        (f"{BLOCK}.ff_context.net.0.proj", f"{block}.txt_mlp.fc1"),
        (f"{BLOCK}.ff_context.net.2", f"{block}.txt_mlp.fc2"),
        ("x_embedder.proj", "img_in.proj"),
        ("proj_out", "final_layer.linear"),
        ("time_embed.timestep_embedder.linear_1", "time_in.mlp.0"),
        ("context_embedder.proj_in", "txt_in.input_embedder"),
    ):
        out[new] = d.pop(old)
    assert not d
    return out


def _fused(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    downs, ups = zip(*pairs, strict=True)
    return torch.cat(downs), torch.block_diag(*ups)
