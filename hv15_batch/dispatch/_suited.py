"""What a run's settings mean on another machine of a cluster: folders, weights, first frames."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from hv15_batch.clip import Clip, ClipLora
from hv15_batch.dispatch.protocol import ExecutorSpec, ModelSpec
from hv15_batch.dispatch.seats import Order
from hv15_batch.errors import Refused, StoreError
from hv15_batch.rundir.remote.shared import Inputs, join
from hv15_batch.units import Say
from hv15_batch.weights.checkpoint import Checkpoint, CheckpointKind, cache_root
from hv15_batch.weights.fetch import fetch
from hv15_batch.weights.files import file_sha256s
from hv15_batch.weights.transformer import make_transformers

_LOCK = "fetch.lock"


def suited(order: Order, say: Say) -> ExecutorSpec:
    """Return the settings as they hold on this machine; missing weights are fetched.

    Raises:
        Refused: Weights or LoRA files are not the driver's; the message names the path.
    """
    spec = order.spec
    run_dir = join(order.place)
    _check_loras(order.loras, say)
    for model in spec.models.values():
        _check_paths(model)
    cache_root().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_root() / _LOCK):  # the others of this machine wait, and find it done
        first, *further = (_with_weights(model, say) for model in spec.models.values())
    return replace(
        spec,
        run_dir=run_dir.path,
        checkpoint=first.checkpoint,
        further=tuple(further),
        shares_inputs=run_dir.url is not None,
    )


def _check_paths(model: ModelSpec) -> None:
    """Check that the weights which lie in folders of the user's are here, before any fetch.

    Raises:
        Refused: Some are missing; the message names their path.
    """
    option = model.config.model
    is_there = {}
    if model.checkpoint.kind is CheckpointKind.local and option.repo is not None:
        is_there[f"repo={option.repo}"] = Path(option.repo).is_dir()
    if option.transformer_file is not None:
        file = option.transformer_file
        is_there[f"transformer_file={file}"] = Path(file).exists()
    for typed, is_here in is_there.items():
        if not is_here:
            raise Refused(
                f"model.{typed}: is not on this machine; copy it there, or name a place that all "
                "machines see."
            )


def _with_weights(model: ModelSpec, say: Say) -> ModelSpec:
    """Return a model with the weights of this machine.

    Raises:
        Refused: They are missing, or not the driver's.
    """
    option, wanted = model.config.model, model.checkpoint
    if wanted.kind is CheckpointKind.hub:
        option = replace(option, revision=wanted.revision)
    found = fetch(option, say=say)
    for what, own, theirs in (
        ("content", found.revision, wanted.revision),
        ("transformer's content", found.transformer_sha256, wanted.transformer_sha256),
    ):
        if own != theirs:
            raise Refused(
                f"model={option.name}: the {what} of {_place(found)} is {own} here and {theirs} "
                "on the driver's machine; copy the same files to all machines, or name a folder "
                "that all of them see."
            )
    make_transformers([(option, found.transformer)], say)
    return replace(model, checkpoint=replace(found, repo=wanted.repo))  # as rows of the driver


def _place(found: Checkpoint) -> str:
    return str(found.folder or found.repo)


def _check_loras(loras: Iterable[ClipLora], say: Say) -> None:
    """Check that the files of all LoRAs are the driver's.

    Raises:
        Refused: One is missing or has other bytes.
    """
    wanted = {Path(lora.path): lora.sha256 for lora in loras}
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise Refused(
            f"loras: {missing[0]} is not on this machine; copy it there, or name a folder that "
            "all machines see."
        )
    found = file_sha256s(list(wanted), cache_root() / "file_sha256.json", say)
    for path, sha256 in wanted.items():
        if found[path] != sha256:
            raise Refused(
                f"loras: the SHA-256 of {path} is {found[path]} here and {sha256} on the driver's "
                "machine; copy the same file to both."
            )


def with_first_frame(clip: Clip, inputs: Inputs) -> Clip:
    """Return a clip with its first frame in a file of this machine.

    If the store does not give it, the path is left to the renderer, whose error names it.
    """
    sha256 = clip.settings.image_sha256
    if sha256 is None:
        return clip
    with suppress(OSError, StoreError):
        return replace(clip, image_path=str(inputs.fetch(sha256)))
    return clip
