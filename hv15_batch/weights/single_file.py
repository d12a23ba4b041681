"""A transformer in one safetensors file: its layout, and a check that it is complete.

Only the header is read here. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hv15_batch.errors import Refused
from hv15_batch.files import check_regular, open_regular, parse_json
from hv15_batch.units import GIB, MIB, format_name
from hv15_batch.weights.layouts import Layout, Part, Shape, layout_of, parts, prefix_of, shapes

WHOLE_TYPES = {"BF16": 2, "F16": 2, "F32": 4}
"""Types that are kept as they are, and their bytes."""
FP8_TYPES = ("F8_E4M3", "F8_E5M2")
_MAX_BYTES = 1024 * GIB
_MAX_HEADER_BYTES = 100 * MIB
"""As in the safetensors library."""
_SUPER_RESOLUTION_CHANNELS = 98
"""Input channels of the super-resolution transformer. Source: Tencent's configuration of it."""
_SCALES = ("scale_weight", "weight_scale")
_INPUT_SCALES = ("scale_input", "input_scale", "comfy_quant")
"""What stands beside a weight and is not needed to restore it."""
_MARKERS = ("scaled_fp8",)


@dataclass(frozen=True)
class Stored:
    """One tensor of a file."""

    dtype: str
    """As safetensors spells it."""
    shape: Shape
    begin: int
    """Byte of the file where its values start."""
    end: int


@dataclass(frozen=True)
class SingleFile:
    """A transformer in one file, complete and without unknown tensors."""

    path: Path
    layout: Layout
    config: dict[str, Any]
    """Arguments of diffusers' transformer, as far as the tensors' names and shapes give them."""
    parts: dict[str, Part]
    """Where each tensor of diffusers stands; sources are names without the file's prefix."""
    tensors: dict[str, Stored]
    """By name without the file's prefix."""
    scales: dict[str, Stored]
    """The scale of each 8-bit weight, by the weight's name."""

    @property
    def kind(self) -> str:
        """Return e.g. `Comfy-Org layout, scaled fp8`."""
        types = {tensor.dtype for tensor in self.tensors.values()}
        stored = "scaled fp8" if self.scales else " and ".join(sorted(types)).lower()
        return f"{self.layout.value} layout, {stored}"


def open_single_file(path: Path, typed: str) -> SingleFile:
    """Return what a file holds.

    Args:
        path: The file.
        typed: The file as the user named it, for messages.

    Raises:
        Refused: the file is not a regular safetensors file, not a HunyuanVideo-1.5 transformer, or
            one for super-resolution. Or tensors are missing, unknown or of another shape, or have
            8 bits and no scale; the message names the tensor.
    """
    found, metadata = read_header(path, typed)
    prefix = prefix_of(found)
    named = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    layout = layout_of(named)
    if layout is None:
        raise Refused(
            f"{typed}: not a HunyuanVideo-1.5 transformer: it has neither "
            "double_blocks.0.img_attn_q (Tencent), double_blocks.0.img_attn_qkv (Comfy-Org) nor "
            "transformer_blocks.0 (diffusers); name the file of the transformer."
        )
    scales = _take_scales(named, typed, metadata)
    config = _config_of(named, layout, typed)
    wanted = parts(config, layout)
    _check_names(named, wanted, typed)
    _check_types(named, scales, typed)
    _check_shapes(named, wanted, shapes(config), typed)
    return SingleFile(path, layout, config, wanted, named, scales)


def read_header(path: Path, typed: str) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the tensors of a safetensors file, and its metadata.

    Raises:
        Refused: no regular file, or not a whole safetensors file.
    """
    try:
        check_regular(path, _MAX_BYTES)
        if path.suffix == ".gguf":
            raise Refused(
                f"{typed}: GGUF is not supported; name the bf16, fp16 or scaled fp8 .safetensors "
                "file of the same model."
            )
        with safe_open(path, framework="np"):  # the library checks that it is whole
            pass
        with open_regular(path, _MAX_BYTES) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise Refused(f"{typed}: its header claims {length} bytes; fetch the file again.")
            header = parse_json(file.read(length))
    except SafetensorError as error:
        raise Refused(
            f"{typed}: cut short or not safetensors ({format_name(str(error))}); fetch the file "
            "again."
        ) from error
    except OSError as error:
        raise Refused(f"{typed}: cannot be read ({error.strerror}); name a file.") from error
    metadata = header.pop("__metadata__", None) or {}
    tensors = {
        name: Stored(
            entry["dtype"],
            tuple(entry["shape"]),
            *(8 + length + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
    }
    return tensors, metadata


def _take_scales(
    named: dict[str, Stored], typed: str, metadata: Mapping[str, str]
) -> dict[str, Stored]:
    """Take scales and markers of 8-bit forms out of the tensors; return scales by weight."""
    scales = {}
    for name in list(named):
        module, _, leaf = name.rpartition(".")
        if leaf in _SCALES:
            scales[f"{module}.weight"] = named.pop(name)
        elif leaf in _INPUT_SCALES or name in _MARKERS:
            named.pop(name)
    for name, scale in scales.items():
        if scale.dtype != "F32":
            raise Refused(
                f"{typed}: the scale of {format_name(name)} is {scale.dtype}; only F32 is known."
            )
    formats = re.findall(r'"format": *"([^"]*)"', metadata.get("_quantization_metadata", ""))
    if unknown := sorted({name for name in formats if not name.startswith("float8_e")}):
        raise Refused(
            f"{typed}: quantised as {format_name(unknown[0])}, which is not supported; name the "
            "bf16, fp16 or scaled fp8 file of the same model."
        )
    return scales


def _config_of(named: Mapping[str, Stored], layout: Layout, typed: str) -> dict[str, Any]:
    """Return the configuration that the tensors tell.

    Raises:
        Refused: a tensor that decides is missing, or the model is of another kind.
    """

    def shape(diffusers: str, original: str) -> Shape:
        name = diffusers if layout is Layout.diffusers else original
        if name not in named:
            raise Refused(f"{typed}: the tensor {name} is missing; fetch the file again.")
        return named[name].shape

    block = "transformer_blocks.0" if layout is Layout.diffusers else "double_blocks.0"
    patch = shape("x_embedder.proj.weight", "img_in.proj.weight")
    norm = shape(f"{block}.attn.norm_q.weight", f"{block}.img_attn_q_norm.weight")
    inner = shape(f"{block}.ff.net.0.proj.weight", f"{block}.img_mlp.fc1.weight")
    out = shape("proj_out.weight", "final_layer.linear.weight")
    text = shape("context_embedder.proj_in.weight", "txt_in.input_embedder.weight")
    glyph = shape("context_embedder_2.norm.weight", "byt5_in.layernorm.weight")
    image = shape("image_embedder.norm_in.weight", "vision_in.proj.0.weight")
    if len(patch) != 5 or len(inner) != 2 or len(text) != 2 or not norm or not norm[0]:
        raise Refused(f"{typed}: not the shapes of a HunyuanVideo-1.5 transformer.")
    if patch[1] == _SUPER_RESOLUTION_CHANNELS:
        raise Refused(
            f"{typed}: a super-resolution transformer ({patch[1]} input channels), which is not "
            "supported; name a text-to-video or image-to-video one."
        )
    width = patch[0]
    refiner = r"(?:context_embedder\.token_refiner\.refiner|txt_in\.individual_token_refiner\.)"
    return {
        "in_channels": patch[1],
        "out_channels": out[0] // (patch[2] * patch[3] * patch[4]),
        "num_attention_heads": width // norm[0],
        "attention_head_dim": norm[0],
        "num_layers": _count(named, r"(?:transformer|double)_blocks"),
        "num_refiner_layers": _count(named, refiner + r"_?blocks"),
        "mlp_ratio": inner[0] / width,
        "patch_size": patch[3],
        "patch_size_t": patch[2],
        "text_embed_dim": text[1],
        "text_embed_2_dim": glyph[0],
        "image_embed_dim": image[0],
        "use_meanflow": any(
            name.startswith(("time_r_in.", "time_embed.timestep_embedder_r.")) for name in named
        ),
    }


def _count(named: Mapping[str, Stored], blocks: str) -> int:
    found = (re.match(rf"{blocks}\.(\d{{1,4}})\.", name) for name in named)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _check_names(named: Mapping[str, Stored], wanted: Mapping[str, Part], typed: str) -> None:
    sources = {part.source for part in wanted.values()}
    for name in sorted(sources - set(named)):
        raise Refused(
            f"{typed}: the tensor {name} is missing ({_some(sources - set(named))}); fetch the "
            "file again."
        )
    for name in sorted(set(named) - sources):
        raise Refused(
            f"{typed}: the tensor {format_name(name)} does not belong to a HunyuanVideo-1.5 "
            f"transformer ({_some(set(named) - sources)}); a file with unknown "
            "tensors is not used."
        )


def _some(names: set[str]) -> str:
    return f"{len(names)} in all"


def _check_types(named: Mapping[str, Stored], scales: Mapping[str, Stored], typed: str) -> None:
    for name, tensor in named.items():
        if tensor.dtype in FP8_TYPES:
            if name not in scales:
                raise Refused(
                    f"{typed}: {name} is {tensor.dtype} without a scale, which would give noise; "
                    "name a scaled fp8, bf16 or fp16 file."
                )
        elif tensor.dtype not in WHOLE_TYPES:
            raise Refused(
                f"{typed}: {name} is {tensor.dtype}; known are {', '.join(WHOLE_TYPES)} and "
                f"{' and '.join(FP8_TYPES)} with a scale."
            )
        elif name in scales:
            raise Refused(
                f"{typed}: {name} has a scale but is {tensor.dtype}, a form "
                "that is not supported; name a bf16, fp16 or scaled fp8 file."
            )
    for name in sorted(set(scales) - set(named)):
        raise Refused(
            f"{typed}: {format_name(name)} is missing, but its scale is there; fetch the file "
            "again."
        )
    for name, scale in scales.items():
        if not _fits(scale.shape, named[name].shape):
            raise Refused(
                f"{typed}: the scale of {name} has the shape {list(scale.shape)}; known are one "
                "value, one for each row, and [rows, blocks, 1]."
            )


def _fits(scale: Shape, weight: Shape) -> bool:
    """Whether a scale is one value, one a row, or one a block of a row."""
    if scale in ((), (1,)):
        return True
    if len(weight) != 2 or not scale or scale[0] != weight[0] or scale[-1] != 1:
        return False
    return len(scale) == 2 or (len(scale) == 3 and scale[1] > 0 and weight[1] % scale[1] == 0)


def _check_shapes(
    named: Mapping[str, Stored],
    wanted: Mapping[str, Part],
    target_shapes: Mapping[str, Shape],
    typed: str,
) -> None:
    for target, part in wanted.items():
        shape = target_shapes[target]
        if part.third is not None:
            shape = (3 * shape[0], *shape[1:])
        found = named[part.source].shape
        if found != shape:
            raise Refused(
                f"{typed}: the tensor {part.source} has the shape {list(found)} and must have "
                f"{list(shape)}; name the file of a HunyuanVideo-1.5 transformer."
            )
