"""What in a checkpoint could run code: pickles, foreign classes, kernels to be fetched.

A checkpoint is data. Weights are safetensors, classes those of diffusers and transformers, and
`trust_remote_code` is never given; what asks for more is refused. JSON is read, nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

LIBRARIES = ("diffusers", "transformers")
"""Whose classes are loaded."""
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_CLASS = re.compile(r"(?!Auto[A-Z])[A-Za-z_]\w*")
"""Auto classes would let the checkpoint name the code; AutoencoderKL is none."""
_SHARD = re.compile(r"[\w.-]+\.safetensors")
_IMPLEMENTATIONS = re.compile(r"_?(attn|experts)_implementation(_internal)?")


def class_fault(name: str, entry: Any) -> str | None:
    """Return why a component of model_index.json is not loaded, or None.

    Args:
        name: The component, which is also the name of its folder.
        entry: [library, class].
    """
    if not name.isidentifier():
        return f"model_index.json: {name!r} is no name of a component"
    library, class_name = (*entry, None, None)[:2]
    if library not in LIBRARIES:
        return f"{name} is of {library!r}; only {' and '.join(LIBRARIES)} are loaded"
    if not _CLASS.fullmatch(str(class_name or "")):
        return f"{name} is of class {class_name!r}; a class must be named, and no Auto class"
    return None


def kernel_fault(folder: Path, name: str) -> str | None:
    """Return which kernel a component's config.json would have fetched from the hub, or None."""
    config = None
    with suppress(OSError, ValueError):  # missing or broken: said where it is loaded
        config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
    for key, value in _entries(config):
        if _IMPLEMENTATIONS.fullmatch(key) and "/" in json.dumps(value):
            return (
                f"{name}/config.json: {key}={value!r} names code to be fetched from the hub; "
                "delete that line"
            )
    return None


def shards_fault(name: str, index: str, shards: list[Any]) -> str | None:
    """Return what in a safetensors index is no safetensors file beside it, or None."""
    foreign = [shard for shard in shards if not _SHARD.fullmatch(str(shard))]
    if not foreign:
        return None
    return f"{name}/{index} names {foreign[0]!r}, which is no safetensors file beside it"


def pickle_hint(folder: Path) -> str:
    """Return what to add where safetensors are missing and pickled weights are there."""
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix in PICKLED_SUFFIXES)
    if not pickles:
        return ""
    return (
        f"; {pickles[0]} is a pickle, which can run code when it is loaded, and never is: "
        "save the model again as safetensors"
    )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of a JSON value with what it holds, however deep."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _entries(item)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item)
