"""The tiny models: small instances of the real classes, written once as ordinary checkpoints.

Their clips are noise on purpose. Run as `python -m hv15_batch.tiny NAME ROOT` it prints a folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline

from hv15_batch.architectures import (
    MODULES,
    checkpoint_folder,
    component_names,
    definition_sha256,
    read_architecture,
)
from hv15_batch.config import Distillation, Dtype, ModelConfig, Task, Weights
from hv15_batch.random_weights import (
    build_component,
    build_feature_extractor,
    build_guider,
    build_scheduler,
    tokenizers,
)

CONTENTS = "checkpoint.json"
"""File in a checkpoint that lists the others with their sizes; written last."""


def ensure_checkpoint(model: ModelConfig, root: Path) -> Path:
    """Return the folder of a tiny model's checkpoint, writing it where it is not there yet.

    Two processes may call this at once: one writes, the other waits. The folder appears under
    its name only when it is whole; one that lost files is written again.

    Args:
        model: a tiny model.
        root: folder that holds the tiny checkpoints; made where missing.

    Raises:
        ValueError: if the model has other weights.
    """
    if model.weights is not Weights.tiny:
        raise ValueError(
            f"model={model.name} has {model.weights.name} weights; only tiny ones are written here"
        )
    folder = checkpoint_folder(model, root)
    if is_complete(folder):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f".{folder.name}.lock"):
        if not is_complete(folder):
            # Only the holder of the lock writes, so what is there was left by a killed process.
            temporary = root / f".{folder.name}.partial"
            for leftover in (temporary, folder):
                if leftover.exists():
                    shutil.rmtree(leftover)
            write_checkpoint(model, temporary)
            temporary.rename(folder)
    return folder


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint is there with every file at its size."""
    try:
        sizes = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False


def write_checkpoint(model: ModelConfig, folder: Path) -> None:
    """Write a tiny model in diffusers layout, as float32, for the stock pipelines to load."""
    architecture = read_architecture("tiny")
    tokenizer, tokenizer_2 = tokenizers()
    components = {
        name: build_component(name, model, torch.float32, "cpu", architecture=architecture)
        for name in component_names(model.task)
        if name in MODULES
    }
    components |= {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "scheduler": build_scheduler(model, architecture),
        "guider": build_guider(model, architecture),
    }
    if model.task is Task.i2v:
        components["feature_extractor"] = build_feature_extractor(model, architecture)
        pipeline = HunyuanVideo15ImageToVideoPipeline(**components)
    else:
        pipeline = HunyuanVideo15Pipeline(**components)
    pipeline.save_pretrained(folder)
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / CONTENTS).write_text(json.dumps(sizes, indent=1), encoding="utf-8")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # Released by the kernel when the process dies; the file itself stays.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
