"""A transformer from one file that replaces the checkpoint's own; it is converted once.

Torch-free. The file is the user's own, or one of another repository. The encoders and the VAE stay
those of the model option.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from hv15_batch.errors import Refused
from hv15_batch.files import check_is_file, make_beside
from hv15_batch.machine.machine import existing_parent, free_disk_bytes
from hv15_batch.model.architectures import component_arguments, read_architecture, size_of
from hv15_batch.model.variant import STEP_DISTILLED_T2V, ModelConfig, Task
from hv15_batch.units import GIB, format_gib
from hv15_batch.weights.files import WEIGHTS, file_sha256s
from hv15_batch.weights.single_file import SingleFile, open_single_file
from hv15_batch.weights.write import diffusers_bytes, write_diffusers

_CLASS = "HunyuanVideo15Transformer3DModel"
_HASHES = "file_sha256.json"
_WEIGHTS_FILE = f"{WEIGHTS['transformer']}.safetensors"


@dataclass(frozen=True)
class OwnTransformer:
    """What `model.transformer_file` or `model.transformer_hub` names."""

    path: Path
    sha256: str
    """Of the file's bytes: part of a clip's identity."""
    kind: str
    """For people, for example `Comfy-Org layout, bf16`."""
    num_bytes: int
    """In diffusers' layout."""
    folder: Path
    """Where diffusers finds it, once it is made."""

    @property
    def is_made(self) -> bool:
        """Whether it was converted before."""
        return (self.folder / "config.json").is_file()


def find_transformer(
    path: Path, typed: str, model: ModelConfig, cache: Path, say: Callable[[str], None]
) -> OwnTransformer:
    """Return the transformer in a file, without converting it.

    Args:
        path: The file, absolute.
        typed: The file as the user knows it, for messages.
        model: The model option that it is to be used with.
        cache: This project's cache folder.
        say: Called with a line before the file is hashed; that takes a while the first time.

    Raises:
        Refused: the file holds no complete transformer, or one that does not fit the model option.
    """
    file = open_single_file(path, typed)
    _check_fits(file, model, typed)
    sha256 = file_sha256s([path], cache / _HASHES, say)[path]
    # The same file may be used under options of another size or task, which is in its settings.
    name = f"{sha256[:16]}-{model.task.name}-{model.target_size}"
    folder = cache / "transformers" / name
    return OwnTransformer(path, sha256, file.kind, diffusers_bytes(file), folder)


def _hashes_file(own: OwnTransformer) -> Path:
    return own.folder.parents[1] / _HASHES


def make_transformers(
    models: Iterable[tuple[ModelConfig, OwnTransformer | None]], say: Callable[[str], None]
) -> None:
    """Do `make_transformer` for each model that has such a file."""
    for model, own in models:
        if own is not None:
            make_transformer(own, model, say)


def make_transformer(own: OwnTransformer, model: ModelConfig, say: Callable[[str], None]) -> None:
    """Convert a file into its folder, unless that was done before; two processes may call this.

    Raises:
        Refused: the disk of the cache is too small, or the file was changed while it was read.
    """
    if own.is_made:
        return
    own.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(own.folder.parent / f".{own.folder.name}.lock"):
        if own.is_made:
            return
        free = free_disk_bytes(existing_parent(own.folder))
        if own.num_bytes + GIB > free:
            raise Refused(
                f"{own.folder.parent}: {format_gib(own.num_bytes)} GiB and 1 GiB to spare are "
                f"needed for the converted transformer, and {format_gib(free)} GiB are free; free "
                "some, or set XDG_CACHE_HOME to a folder on a larger disk."
            )
        say(f"converting {own.path.name} once: {format_gib(own.num_bytes)} GiB in {own.folder}")
        file = open_single_file(own.path, str(own.path))
        shutil.rmtree(own.folder, ignore_errors=True)
        own.folder.mkdir()
        temporary = make_beside(own.folder / _WEIGHTS_FILE)
        with temporary.open("wb") as target:
            write_diffusers(file, target)
            target.flush()
            os.fsync(target.fileno())
        check_is_file(temporary)
        temporary.rename(own.folder / _WEIGHTS_FILE)
        if file_sha256s([own.path], _hashes_file(own), say)[own.path] != own.sha256:
            raise Refused(f"{own.path}: was changed while it was read; run again.")
        # Last: a folder with a configuration is whole.
        config = make_beside(own.folder / "config.json")
        config.write_text(
            json.dumps({"_class_name": _CLASS, **transformer_arguments(model)}, indent=1)
        )
        config.rename(own.folder / "config.json")


def transformer_arguments(model: ModelConfig) -> dict[str, Any]:
    """Return the configuration that a model option's transformer has."""
    return component_arguments("transformer", model, read_architecture(size_of(model.weights)))


def _check_fits(file: SingleFile, model: ModelConfig, typed: str) -> None:
    """Check that a transformer is of the architecture of a model option.

    Raises:
        Refused: naming the first value that differs.
    """
    wanted: Mapping[str, Any] = transformer_arguments(model)
    if file.config["use_meanflow"] and model.task is Task.t2v:
        raise Refused(f"{typed}: step-distilled: {STEP_DISTILLED_T2V}.")
    if file.config["use_meanflow"] != model.recipe.meanflow:
        kind = "step-distilled" if file.config["use_meanflow"] else "not step-distilled"
        raise Refused(
            f"{typed}: {kind} (MeanFlow), and model={model.name} is made for the other kind; "
            "choose the model option made for it."
        )
    for name, found in file.config.items():
        if name in wanted and wanted[name] != found:
            raise Refused(
                f"{typed}: its {name} is {found}, and model={model.name} has {wanted[name]}; "
                "choose the model option made for it."
            )
