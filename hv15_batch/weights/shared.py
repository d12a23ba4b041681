"""Which models have the same encoders or the same VAE, told by the content of their files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hv15_batch.model.architectures import COMPONENTS, component_arguments, read_architecture
from hv15_batch.model.variant import ModelConfig
from hv15_batch.weights.checkpoint import Checkpoint, cache_root
from hv15_batch.weights.configs import read_object
from hv15_batch.weights.files import file_sha256s

TEXT_PARTS = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
"""What decides the embedding of a text."""
IMAGE_PARTS = ("feature_extractor", "image_encoder", "vae")
"""What decides the embedding of a first frame."""
VAE_PARTS = ("vae",)

_CONTENT = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
"""Name of a file in the hub's cache: SHA-256 of its content, or for a small file Git's SHA-1."""


def group_by_parts(
    models: Iterable[tuple[ModelConfig, Checkpoint]],
    names: Iterable[str],
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, str]:
    """Return for each model the first one whose components are the same, by name.

    Args:
        models: Options and their weights, which are on this machine, or random.
        names: Of components, as in `model_index.json`.
        say: Told when files are hashed, which takes a while the first time.
    """
    wanted, first = tuple(names), dict[str, str]()
    found = {}
    for model, checkpoint in models:
        key = parts_sha256(model, checkpoint, wanted, say)
        found[model.name] = first.setdefault(key, model.name)
    return found


def parts_sha256(
    model: ModelConfig,
    checkpoint: Checkpoint,
    names: tuple[str, ...],
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """Return a hash of all that decides some components; the same for the same content."""
    if checkpoint.is_random:
        architecture = read_architecture("full")
        made = {n: component_arguments(n, model, architecture) for n in names if n in COMPONENTS}
        return _sha256({"random": made})
    folder = checkpoint.files()
    index = read_object(folder / "model_index.json")
    files = {
        str(path.relative_to(folder)): path
        for name in names
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }
    classes = {name: index.get(name) for name in names}
    return _sha256({"classes": classes, "files": _contents(files, say)})


def _contents(files: Mapping[str, Path], say: Callable[[str], None]) -> dict[str, str]:
    """Return what identifies the content of each file; the hub's files are not read."""
    found = {name: path.resolve().name for name, path in files.items() if path.is_symlink()}
    found = {name: content for name, content in found.items() if _CONTENT.fullmatch(content)}
    rest = [path for name, path in files.items() if name not in found]
    hashes = file_sha256s(rest, cache_root() / "file_sha256.json", say)
    return found | {name: hashes[path] for name, path in files.items() if path in hashes}


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
