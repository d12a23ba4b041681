"""The tiny and the demo models: small instances of the real classes, written once as checkpoints.

Clips of the tiny ones are noise on purpose. `python -m hv15_batch.engine.load.tiny NAME ROOT`
writes one and prints its folder.
"""

from __future__ import annotations

import errno
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from filelock import FileLock
from torch import nn
from transformers.utils import logging as transformers_logging

from hv15_batch.engine.load.demo import build_demo_component
from hv15_batch.engine.load.random_weights import (
    build_component,
    build_feature_extractor,
    build_guider,
    build_scheduler,
    tokenizers,
)
from hv15_batch.errors import NO_LOCKS
from hv15_batch.model.architectures import (
    MODULES,
    TINY_GAINS,
    checkpoint_folder,
    component_names,
    read_architecture,
    size_of,
)
from hv15_batch.model.options import small_model
from hv15_batch.model.variant import ModelConfig, Task, Weights
from hv15_batch.weights.configs import read_object
from hv15_batch.weights.files import has_sizes

_PARTIAL = "partial"
CONTENTS = "checkpoint.json"
"""File in a checkpoint that lists the others with their sizes; written last."""


def ensure_checkpoint(model: ModelConfig, root: Path) -> Path:
    """Return the folder of a small model's checkpoint, writing it where it is not there yet.

    Two processes may call this at once: one writes, the other waits. The folder appears under
    its name only when it is whole; one that lost files is written again.

    Args:
        model: a tiny or a demo model.
        root: folder that holds such checkpoints; made where missing.

    Raises:
        ValueError: if the model has other weights.
    """
    if not model.weights.is_small:
        raise ValueError(
            f"model={model.name} has {model.weights.name} weights; only tiny and demo ones are "
            "written here"
        )
    folder = checkpoint_folder(model, root)
    if is_complete(folder):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with _lock(root / f".{folder.name}.lock"):
        if not is_complete(folder):
            # Only the holder of the lock writes, so what is there was left by a killed process.
            for leftover in (*root.glob(f".{folder.name}.*partial"), folder):
                _remove(leftover)
            with tempfile.TemporaryDirectory(f".{_PARTIAL}", f".{folder.name}.", root) as temporary:
                written = Path(temporary) / folder.name
                write_checkpoint(model, written)
                written.rename(folder)
    return folder


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock; where the file system has none, go without: a rename lets one writer win."""
    lock = FileLock(path)  # the kernel releases that of a dead process
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _remove(leftover: Path) -> None:
    """Remove a folder with what is in it; of a link only the link."""
    if leftover.is_symlink():
        leftover.unlink()
    elif leftover.is_dir():
        shutil.rmtree(leftover)


def is_complete(folder: Path) -> bool:
    """Return whether a checkpoint is there with every file at its size."""
    try:
        return has_sizes(folder, read_object(folder / CONTENTS))
    except (OSError, ValueError):
        return False


def write_checkpoint(model: ModelConfig, folder: Path) -> None:
    """Write a small model in diffusers layout, as float32, for plain diffusers to load."""
    architecture = read_architecture(size_of(model.weights))
    tokenizer, tokenizer_2 = tokenizers()
    components: dict[str, Any] = {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "scheduler": build_scheduler(model, architecture),
        "guider": build_guider(model, architecture),
    }
    for name in component_names(model.task):
        if name in MODULES and model.weights is Weights.demo:
            components[name] = build_demo_component(name, model, architecture)
        elif name in MODULES:
            component = build_component(
                name, model, torch.float32, "cpu", architecture=architecture
            )
            _apply_gains(component, TINY_GAINS.get(name, {}))
            components[name] = component
    pipeline_class: type[DiffusionPipeline] = HunyuanVideo15Pipeline
    if model.task is Task.i2v:
        pipeline_class = HunyuanVideo15ImageToVideoPipeline
        components["feature_extractor"] = build_feature_extractor(model, architecture)
    with _without_progress_bars():
        pipeline_class(**components).save_pretrained(folder)
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / CONTENTS).write_text(json.dumps(sizes, indent=1), encoding="utf-8")


def _apply_gains(component: nn.Module, gains: dict[str, float]) -> None:
    for name, parameter in component.named_parameters():
        for ending, gain in gains.items():
            if name.endswith(ending):
                parameter.mul_(gain)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m hv15_batch.engine.load.tiny NAME ROOT")
    print(ensure_checkpoint(small_model(sys.argv[1]), Path(sys.argv[2])))
