"""Reads a LoRA's file: which modules of the transformer it changes, and whether each fits.

Only the header is read here. Torch-free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hv15_batch.errors import Refused
from hv15_batch.files import parse_json
from hv15_batch.units import format_name, format_value
from hv15_batch.weights._lora_names import Target, find_targets, split_key, target_table
from hv15_batch.weights.layouts import Shape, shapes
from hv15_batch.weights.single_file import WHOLE_TYPES, Stored, read_header

_DIFFUSERS_METADATA = "lora_adapter_metadata"
"""Where diffusers stores the adapter's settings, as JSON with names like `transformer.r`."""
_OTHER_KINDS = {
    ".dora_scale": "a DoRA",
    ".lora_magnitude_vector": "a DoRA",
    ".hada_w1_a": "a LoHa",
    ".lokr_w1": "a LoKr",
    ".oft_blocks": "an OFT",
}
"""Endings of tensor names that only adapters of other kinds have."""
_MAX_SHOWN = 3


@dataclass(frozen=True)
class LoraPair:
    """Two tensors of a file whose product is added to one module's weight."""

    target: Target
    down: str
    """Name of a tensor (rank, inputs)."""
    up: str
    """Name of a tensor (outputs of the file's module, rank)."""
    alpha: str | float | None
    """Name of a scalar tensor or its value; the product is scaled by alpha / rank. None: by 1."""


@dataclass(frozen=True)
class LoraFile:
    """What a file changes; every pair fits its module."""

    path: Path
    pairs: tuple[LoraPair, ...]
    num_matched: int
    """Tensors of the file that are used."""
    unmatched: tuple[str, ...]
    """Names of the others."""
    num_bytes: int
    """Bytes of all pairs in 16 bits; a matrix that several modules share counts for each."""

    @property
    def lacks_alpha(self) -> bool:
        """Whether the file lacks a pair's alpha; its rank is then used instead."""
        return any(pair.alpha is None for pair in self.pairs)


def open_lora(path: Path, typed: str, config: Mapping[str, Any]) -> LoraFile:
    """Return which modules of a transformer a LoRA's file changes.

    Args:
        path: The file.
        typed: The file as the user named it, for messages.
        config: Of the transformer, as in `transformer/config.json`.

    Raises:
        Refused: the file is no complete safetensors file, or an adapter of another kind or model.
            Or half of a pair is missing, or a module is changed twice; the message names the
            tensor.
    """
    if path.suffix != ".safetensors":
        raise Refused(f"{typed}: a LoRA is a .safetensors file; name one.")
    tensors, metadata = read_header(path, typed)
    for name in tensors:
        kind = next((k for ending, k in _OTHER_KINDS.items() if name.endswith(ending)), None)
        if kind is not None:
            raise Refused(
                f"{typed}: {format_name(name)} is of {kind} adapter, and only LoRA is supported; "
                "name a LoRA."
            )
    table, target_shapes = target_table(config), shapes(config)
    modules: dict[str, dict[str, str]] = {}
    targets: dict[str, tuple[Target, ...]] = {}
    unmatched = []
    for name in tensors:
        split = split_key(name)
        found = find_targets(split[0], table) if split else ()
        if split is None or not found:
            unmatched.append(name)
            continue
        other = modules.setdefault(split[0], {}).setdefault(split[1], name)
        if other != name:
            raise _twice(other, name, typed)
        targets[split[0]] = found
    if not modules:
        some = ", ".join(map(format_name, sorted(tensors)[:_MAX_SHOWN])) or "none"
        raise Refused(
            f"{typed}: none of its {len(tensors)} tensors belongs to a LoRA of HunyuanVideo-1.5 "
            f"(its names: {some}); name a LoRA that was made for this model."
        )
    alpha = _alpha_of_file(metadata, typed)
    pairs, num_bytes = [], 0
    filled: dict[str, dict[int | None, str]] = {}
    for module, names in modules.items():
        if lacking := {"down", "up"} - names.keys():
            raise Refused(
                f"{typed}: {format_name(module)} lacks its {min(lacking)} matrix; fetch the file "
                "again."
            )
        down, up = tensors[names["down"]], tensors[names["up"]]
        for target in targets[module]:
            wanted = target_shapes[f"{target.module}.weight"]
            _check_pair(names, down, up, target, wanted, typed)
            _fill(filled.setdefault(target.module, {}), target.third, names["down"], typed)
            num_bytes += 2 * (math.prod(down.shape) + wanted[0] * down.shape[0])
            pairs.append(LoraPair(target, names["down"], names["up"], names.get("alpha", alpha)))
        if "alpha" in names:
            _check_type(names["alpha"], tensors[names["alpha"]], typed)
            if math.prod(tensors[names["alpha"]].shape) != 1:
                raise Refused(
                    f"{typed}: {format_name(names['alpha'])} is no single number; fetch it again."
                )
    return LoraFile(path, tuple(pairs), len(tensors) - len(unmatched), tuple(unmatched), num_bytes)


def _fill(thirds: dict[int | None, str], third: int | None, name: str, typed: str) -> None:
    """Note which tensor changes a module, or one of the three parts of its outputs.

    Raises:
        Refused: another one does already.
    """
    for filled, other in thirds.items():
        if filled == third or filled is None or third is None:
            raise _twice(other, name, typed)
    thirds[third] = name


def _twice(one: str, other: str, typed: str) -> Refused:
    return Refused(
        f"{typed}: {format_name(one)} and {format_name(other)} are for the same module, so it "
        "would be changed twice; name a file that holds the LoRA once."
    )


def _check_pair(
    names: Mapping[str, str],
    down: Stored,
    up: Stored,
    target: Target,
    wanted: Shape,
    typed: str,
) -> None:
    """Check that a pair fits its module.

    Raises:
        Refused: naming the tensor.
    """
    _check_type(names["down"], down, typed)
    _check_type(names["up"], up, typed)
    outputs = wanted[0] * (1 if target.third is None else 3)
    inputs = math.prod(wanted[1:])
    rank = down.shape[0] if down.shape else 0
    is_fit = (
        rank > 0
        and len(down.shape) > 1
        and math.prod(down.shape[1:]) == inputs
        and len(up.shape) > 1
        and (up.shape[0], math.prod(up.shape[1:])) == (outputs, rank)
    )
    if not is_fit:
        raise Refused(
            f"{typed}: {format_name(names['down'])} {list(down.shape)} and "
            f"{format_name(names['up'])} {list(up.shape)} do not fit {target.module} with "
            f"{outputs} outputs and {inputs} inputs; name a LoRA that was made for this model."
        )


def _check_type(name: str, stored: Stored, typed: str) -> None:
    if stored.dtype not in WHOLE_TYPES:
        raise Refused(
            f"{typed}: {format_name(name)} is {stored.dtype}; known are {', '.join(WHOLE_TYPES)}; "
            "name another file of this LoRA."
        )


def _alpha_of_file(metadata: Mapping[str, str], typed: str) -> float | None:
    """Return the alpha that diffusers stored for all modules; None where there is none.

    Raises:
        Refused: settings that change the product in a way that is not supported, that are no JSON,
            or whose alpha is no number.
    """
    try:
        stored = parse_json(metadata.get(_DIFFUSERS_METADATA, "{}"))
    except ValueError as error:
        raise Refused(
            f"{typed}: its settings ({_DIFFUSERS_METADATA}) are no JSON "
            f"({format_name(str(error))}); fetch the file again."
        ) from error
    plain = _of_transformer(stored if isinstance(stored, dict) else {}, typed)
    for name in _UNSUPPORTED:
        if plain.get(name):
            value = format_name(str(plain[name])[:40])
            raise Refused(
                f"{typed}: its settings have {name}={value}, which is not supported; name a plain "
                "LoRA."
            )
    alpha = plain.get("lora_alpha")
    if alpha is None:
        return None
    try:
        number = math.nan if isinstance(alpha, bool) else float(alpha)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Refused(
            f"{typed}: its settings have lora_alpha={format_value(alpha)}, which is no number that "
            "can be used; fetch the file again."
        )
    return number


_UNSUPPORTED = ("use_dora", "use_rslora", "alpha_pattern", "lora_bias")
"""Settings that change the product in another way than alpha."""
_OF_OTHERS = re.compile(r"(text_encoder|image_encoder|tokenizer|vae)(_[0-9]+)?(\..*)?")
"""Prefixes of other components' settings: nothing here changes those."""


def _of_transformer(settings: Mapping[str, Any], typed: str) -> dict[str, Any]:
    """Return the settings of the transformer's LoRA, without the prefix of their names.

    Raises:
        Refused: two prefixes have different values.
    """
    found: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for key, value in settings.items():
        prefix, _, name = key.rpartition(".")
        if _OF_OTHERS.fullmatch(prefix):
            continue
        other = keys.setdefault(name, key)
        if other != key and name in ("lora_alpha", *_UNSUPPORTED) and found[name] != value:
            raise Refused(
                f"{typed}: its settings have {format_name(other)} and {format_name(key)}, which "
                "differ; leave the one that is not the transformer's out."
            )
        found[name] = value
    return found


def shown_unmatched(unmatched: Iterable[str]) -> str:
    """Return the first names of tensors that are not used, and how many more there are."""
    names = sorted(unmatched)
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(map(format_name, names[:_MAX_SHOWN])) + more
