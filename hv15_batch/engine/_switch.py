"""The model that a worker renders with: one at a time, its VAE handed on where it is the same."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import Any

import torch

from hv15_batch.config.checks import effective_dtype
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.protocol import ExecutorSpec, ModelSpec
from hv15_batch.engine._ladder import Ladder
from hv15_batch.engine._models import LoadedModels
from hv15_batch.engine._write import ClipWriter
from hv15_batch.engine.device import execution_device
from hv15_batch.engine.load.tiny import ensure_checkpoint
from hv15_batch.engine.placement.placement import Placement
from hv15_batch.machine.machine import usable_cpus
from hv15_batch.model.variant import Weights
from hv15_batch.rundir.paths import RunDir
from hv15_batch.weights.checkpoint import Checkpoint, cache_root, tiny_root
from hv15_batch.weights.shared import IMAGE_PARTS, TEXT_PARTS, VAE_PARTS, group_by_parts


@dataclass(frozen=True)
class ModelInUse:
    """A model that a worker renders with."""

    config: Config
    checkpoint: Checkpoint
    device: torch.device
    placement: Placement
    models: LoadedModels
    ladder: Ladder
    writer: ClipWriter


class ModelSwitch:
    """Changes from one model of a run to the next. Nothing is loaded before it is needed."""

    def __init__(self, spec: ExecutorSpec) -> None:
        """Begin with no model.

        Small models are written here, where that was not done before.
        """
        self._spec = spec
        self.models = {name: _with_files(model) for name, model in spec.models.items()}
        self._in_use: ModelInUse | None = None
        self._attention: dict[str, str] = {}
        self._same_vae = self._alike(VAE_PARTS)
        self.same_texts = self._alike(TEXT_PARTS)
        """For each model the first one with the same text encoders."""
        self.same_images = self._alike(IMAGE_PARTS)
        """The same of image encoder and VAE."""

    def use(self, name: str) -> ModelInUse:
        """Return a model, in place of the one before, whose transformer is released."""
        if self._in_use is not None:
            if self._in_use.config.model.name == name:
                return self._in_use
            vae = self._release(self._in_use, name)
        else:
            vae = None
        model = self.models[name]
        config, spec = model.config, self._spec
        weights = config.model.weights
        # By default torch uses all cores of the machine, of which a container may have few. Small
        # tensors gain nothing from threads, and lose much where others use the cores.
        device = execution_device(config)
        sharing = spec.num_workers if device.type == "cpu" else 1
        threads = 1 if weights is Weights.tiny else max(usable_cpus() // sharing, 1)
        torch.set_num_threads(threads)
        placement = Placement(model.offload, device, cache_root() / "blocks")
        models = LoadedModels(config, model.checkpoint, placement, vae)
        models.attention = self._attention.get(name, models.attention)
        self._in_use = ModelInUse(
            config=config,
            checkpoint=model.checkpoint,
            device=device,
            placement=placement,
            models=models,
            ladder=Ladder(models, spec.budget_bytes, config.retry.ladder, spec.compile_is_auto),
            writer=ClipWriter(config, RunDir(spec.run_dir), model.checkpoint.repo),
        )
        return self._in_use

    def set_attention(self, name: str, backend: str) -> None:
        """Set the attention kernel of all clips of a model."""
        self._attention[name] = backend
        if self._in_use is not None and self._in_use.config.model.name == name:
            self._in_use.models.attention = backend

    def _release(self, before: ModelInUse, name: str) -> Any:
        """Let a model go; return its VAE if the model `name` has the same one, else None."""
        self._in_use = None
        before_name = before.config.model.name
        kind = before.placement.kind
        self.models[before_name] = replace(self.models[before_name], offload=kind)
        config = self.models[name].config
        is_same = (
            self._same_vae[before_name] == self._same_vae[name]
            and effective_dtype(before.config) is effective_dtype(config)
            and before.device == execution_device(config)
        )
        vae = before.models.release(keeps_vae=is_same)
        del before
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return vae

    def _alike(self, parts: tuple[str, ...]) -> dict[str, str]:
        """Return for each model the first one with the same components."""
        if len(self.models) == 1:
            return {name: name for name in self.models}
        return group_by_parts(((m.config.model, m.checkpoint) for m in self.models.values()), parts)


def _with_files(model: ModelSpec) -> ModelSpec:
    """Return a model with its checkpoint's folder; that of a small model is written."""
    if not model.config.model.weights.is_small:
        return model
    folder = ensure_checkpoint(model.config.model, tiny_root())
    return replace(model, checkpoint=replace(model.checkpoint, folder=folder))
