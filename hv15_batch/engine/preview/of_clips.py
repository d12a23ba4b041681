"""Which clips of a worker are shown while they denoise, and by which model's colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from hv15_batch.config.shard import parse_shard
from hv15_batch.dispatch.protocol import Emit, ExecutorSpec, Job, Note
from hv15_batch.engine._switch import ModelInUse
from hv15_batch.engine.preview.preview import Previews
from hv15_batch.model.variant import Weights
from hv15_batch.rundir.paths import RunDir
from hv15_batch.weights.shared import VAE_PARTS, parts_sha256


class ClipPreviews:
    """Shows each clip that is worth it; see `Previews`.

    A repetition of a benchmark is not shown, because it measures. Of random weights there is
    nothing to see.
    """

    def __init__(self, spec: ExecutorSpec) -> None:
        """Take the run directory and the worker's number."""
        self._emit: Emit | None = None
        run_dir = RunDir(spec.run_dir, parse_shard(spec.config.shard))
        self._previews = Previews(run_dir, spec.worker, self._tell)
        self._is_on = spec.config.preview
        self._vae_sha256s: dict[str, str] = {}

    def _tell(self, text: str) -> None:
        if self._emit is not None:
            self._emit(Note(text))

    def _shows(self, job: Job, model: ModelInUse) -> bool:
        is_noise = model.config.model.weights in (Weights.random, Weights.tiny)
        return self._is_on and job.repeat is None and not is_noise

    @contextmanager
    def showing(self, job: Job, model: ModelInUse, emit: Emit) -> Iterator[None]:
        """Show a clip while the block runs."""
        self._emit = emit
        model.ladder.watch = None
        if not self._shows(job, model):
            yield
            return
        model.ladder.watch = self._previews.watch(self._key(model))
        try:
            yield
        finally:
            model.ladder.watch = None
            self._previews.end()

    def decoded(
        self, job: Job, model: ModelInUse, latents: torch.Tensor, frames: torch.Tensor
    ) -> None:
        """Learn from the first clip of a VAE, where that is needed; see `Previews.decoded`."""
        if self._shows(job, model):
            self._previews.decoded(self._key(model), model.ladder.vae, latents, frames)

    def _key(self, model: ModelInUse) -> Callable[[], str]:
        """Return what gives the content hash of a model's VAE, asked of the disk once."""

        def key() -> str:
            name = model.config.model.name
            if name not in self._vae_sha256s:
                found = parts_sha256(model.config.model, model.checkpoint, VAE_PARTS)
                self._vae_sha256s[name] = found
            return self._vae_sha256s[name]

        return key
