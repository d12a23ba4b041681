"""Single-file transformers of other layouts, made from one in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


def original(diffusers: Tensors, fused: bool = False) -> Tensors:
    """The way back, written from Tencent's modules and not from the table under test."""
    d = dict(diffusers)
    out: Tensors = {}

    def move(old: str, new: str) -> None:
        for leaf in ("weight", "bias"):
            if f"{old}.{leaf}" in d:
                out[f"{new}.{leaf}"] = d.pop(f"{old}.{leaf}")

    def join(olds: list[str], new: str) -> None:
        for leaf in ("weight", "bias"):
            out[f"{new}.{leaf}"] = torch.cat([d.pop(f"{old}.{leaf}") for old in olds])

    for side, new in (("timestep_embedder", "time_in"), ("timestep_embedder_r", "time_r_in")):
        move(f"time_embed.{side}.linear_1", f"{new}.mlp.0")
        move(f"time_embed.{side}.linear_2", f"{new}.mlp.2")
    text = "context_embedder.time_text_embed"
    move(f"{text}.timestep_embedder.linear_1", "txt_in.t_embedder.mlp.0")
    move(f"{text}.timestep_embedder.linear_2", "txt_in.t_embedder.mlp.2")
    move(f"{text}.text_embedder.linear_1", "txt_in.c_embedder.linear_1")
    move(f"{text}.text_embedder.linear_2", "txt_in.c_embedder.linear_2")
    move("context_embedder.proj_in", "txt_in.input_embedder")
    move("context_embedder_2.norm", "byt5_in.layernorm")
    for n in "123":
        move(f"context_embedder_2.linear_{n}", f"byt5_in.fc{n}")
    for old, n in (("norm_in", 0), ("linear_1", 1), ("linear_2", 3), ("norm_out", 4)):
        move(f"image_embedder.{old}", f"vision_in.proj.{n}")
    move("x_embedder.proj", "img_in.proj")
    out["cond_type_embedding.weight"] = d.pop("cond_type_embed.weight")
    move("proj_out", "final_layer.linear")
    for leaf in ("weight", "bias"):
        scale, shift = d.pop(f"norm_out.linear.{leaf}").chunk(2)
        out[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
    for i in range(2):
        b = f"context_embedder.token_refiner.refiner_blocks.{i}"
        n = f"txt_in.individual_token_refiner.blocks.{i}"
        if f"{b}.norm1.weight" not in d:
            continue
        move(f"{b}.norm1", f"{n}.norm1")
        move(f"{b}.norm2", f"{n}.norm2")
        join([f"{b}.attn.to_{x}" for x in "qkv"], f"{n}.self_attn_qkv")
        move(f"{b}.attn.to_out.0", f"{n}.self_attn_proj")
        move(f"{b}.ff.net.0.proj", f"{n}.mlp.fc1")
        move(f"{b}.ff.net.2", f"{n}.mlp.fc2")
        move(f"{b}.norm_out.linear", f"{n}.adaLN_modulation.1")
    for i in range(60):
        b, n = f"transformer_blocks.{i}", f"double_blocks.{i}"
        if f"{b}.norm1.linear.weight" not in d:
            break
        move(f"{b}.norm1.linear", f"{n}.img_mod.linear")
        move(f"{b}.norm1_context.linear", f"{n}.txt_mod.linear")
        for side, names in (
            ("img", [f"{b}.attn.to_{x}" for x in "qkv"]),
            ("txt", [f"{b}.attn.add_{x}_proj" for x in "qkv"]),
        ):
            if fused:
                join(names, f"{n}.{side}_attn_qkv")
            else:
                for x, name in zip("qkv", names, strict=True):
                    move(name, f"{n}.{side}_attn_{x}")
        move(f"{b}.attn.to_out.0", f"{n}.img_attn_proj")
        move(f"{b}.attn.to_add_out", f"{n}.txt_attn_proj")
        for x in "qk":
            move(f"{b}.attn.norm_{x}", f"{n}.img_attn_{x}_norm")
            move(f"{b}.attn.norm_added_{x}", f"{n}.txt_attn_{x}_norm")
        move(f"{b}.ff.net.0.proj", f"{n}.img_mlp.fc1")
        move(f"{b}.ff.net.2", f"{n}.img_mlp.fc2")
        move(f"{b}.ff_context.net.0.proj", f"{n}.txt_mlp.fc1")
        move(f"{b}.ff_context.net.2", f"{n}.txt_mlp.fc2")
    assert not d
    return out


def saved(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, path, metadata)
    return path
