"""`hv15-batch prefetch model=...`: fetches and verifies weights before a run needs them.

And the attention kernel, if one of the hub is typed.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from hv15_batch.config.options import config_of, with_models
from hv15_batch.config.settings import Config
from hv15_batch.manifest.clips import read_rows
from hv15_batch.manifest.weights import models_of_rows
from hv15_batch.model.attention import hub_of
from hv15_batch.model.variant import ModelConfig
from hv15_batch.units import format_gib
from hv15_batch.weights.checkpoint import Checkpoint, CheckpointKind
from hv15_batch.weights.fetch import fetch
from hv15_batch.weights.hub import Hub
from hv15_batch.weights.kernels.fetched import fetch_kernel
from hv15_batch.weights.transformer import make_transformer


def prefetch(
    config: Config,
    say: Callable[[str], None],
    *,
    hub: Hub | None = None,
    hub_cache: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Fetch and verify the weights of `config.model`, and return the exit code 0.

    With a manifest, those of every model that its rows use.

    Args:
        config: Settings; only `manifest`, how it is read, `model` and `runtime.attention_backend`
            matter.
        say: Prints a line for the user.
        hub: Replaces the hub; None for the real one.
        hub_cache: Cache of huggingface_hub; None for its own.
        environ: Environment, for HF_HUB_OFFLINE.

    Raises:
        Refused: Like `weights.fetch.fetch`, and `weights.kernels.fetched.fetch_kernel`.
    """
    backend = config.runtime.attention_backend
    if hub_of(backend) is not None:  # the smaller part, and the one that may be refused
        fetch_kernel(backend, say=say, environ=environ)
    for model in _models(config):
        checkpoint = fetch(model, say=say, hub=hub, hub_cache=hub_cache, environ=environ)
        _finish(model, checkpoint, say)
    return 0


def _models(config: Config) -> list[ModelConfig]:
    """Return the models to fetch: those of a manifest's rows, or without one that of the command.

    Raises:
        Refused: There is no such manifest, or a row has a fault.
    """
    if config.manifest is None:
        return [config.model]
    rows = read_rows(Path(os.path.expanduser(config.manifest)), config).rows
    config = with_models(config, (row.model for row in rows))
    return [config_of(config, name).model for name in models_of_rows(rows, config)]


def _finish(model: ModelConfig, checkpoint: Checkpoint, say: Callable[[str], None]) -> None:
    """Convert a transformer in one file, and say what is there."""
    name = f"model={model.name}"
    own = checkpoint.transformer
    if own is not None:
        make_transformer(own, model, say)
        say(f"transformer {own.path} ({own.kind}), SHA-256 {own.sha256}, converted: {own.folder}")
    if checkpoint.kind in (CheckpointKind.tiny, CheckpointKind.demo):
        rest = "nothing to download" if own is None else "nothing else to download"
        say(f"{name} is built on this machine in seconds: {rest}.")
    elif checkpoint.kind is CheckpointKind.random:
        say(f"{name} model.weights=random is built on the device: nothing to download.")
    else:
        say(f"{_size(checkpoint)} in {checkpoint.folder}, revision {checkpoint.revision}")
        say(f"Runs with {name} need no network from now on.")


def _size(checkpoint: Checkpoint) -> str:
    assert checkpoint.folder is not None
    files = [path for path in checkpoint.folder.rglob("*") if path.is_file()]
    return f"{len(files)} files, {format_gib(sum(path.stat().st_size for path in files))} GiB"


if __name__ == "__main__":  # `python -m hv15_batch.prefetch` is `hv15-batch prefetch`
    sys.argv[1:1] = ["prefetch"]
    runpy.run_module("hv15_batch", run_name="__main__")
