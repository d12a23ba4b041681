"""The loaded models of a worker: VAE and denoising pipeline, each once, and their device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from hv15_batch.clip import ClipLora
from hv15_batch.config.checks import typed_compile
from hv15_batch.config.settings import Config
from hv15_batch.engine.denoise.attention import (
    apply_attention,
    attention_backend_of,
    is_mask_free,
)
from hv15_batch.engine.denoise.compilation import is_compiled
from hv15_batch.engine.denoise.low_rank import LoraSet
from hv15_batch.engine.denoise.pipeline import Denoiser, load_denoiser, load_vae
from hv15_batch.engine.placement.placement import Placement
from hv15_batch.machine.machine import read_ram
from hv15_batch.model.attention import NATIVE
from hv15_batch.model.linears import transformer_bytes
from hv15_batch.units import GIB
from hv15_batch.weights.checkpoint import Checkpoint


class LoadedModels:
    """Loads VAE and denoising pipeline when they are first needed, and keeps them.

    A clip with saved latents needs no transformer, so nothing is loaded before that.
    """

    def __init__(
        self, config: Config, checkpoint: Checkpoint, placement: Placement, vae: Any = None
    ) -> None:
        """Load nothing yet.

        Args:
            config: decides model, type, attention and compilation.
            checkpoint: its files are read, or its random weights made.
            placement: takes charge of what is loaded.
            vae: that of a model before, where it is the same; None loads it.
        """
        self.placement = placement
        self._config = config
        self._checkpoint = checkpoint
        self._vae = vae
        if vae is not None:
            placement.hold_vae(vae)
        self._denoiser: Denoiser | None = None
        self._loras: LoraSet | None = None
        self.attention = config.runtime.attention_backend
        """The kernel of all clips: a name, or `auto`, which then means one of torch's."""
        self._attention = self.attention  # as applied last
        self._load_seconds: float | None = None

    @property
    def are_complete(self) -> bool:
        """Whether both are loaded."""
        return self._vae is not None and self._denoiser is not None

    def missing(self, for_denoising: bool) -> str:
        """Return in words what is loaded when it is needed next."""
        parts = ["the VAE"] if self._vae is None else []
        if for_denoising and self._denoiser is None:
            parts.insert(0, "the transformer")
        return " and ".join(parts) or "nothing"

    def vae(self) -> Any:
        """Return the VAE."""
        if self._vae is None:
            with self._loading():
                self._vae = load_vae(self._config, self._checkpoint, self.placement.loading_device)
                self.placement.hold_vae(self._vae)
        return self._vae

    def load(self) -> None:
        """Load both, where that was not done before; LoRAs come with a clip.

        Raises:
            Refused: the checkpoint does not fit the model, or the attention cannot run here.
        """
        self._loaded()

    def denoiser(
        self, on_torch_attention: bool = False, loras: Sequence[ClipLora] = ()
    ) -> Denoiser:
        """Return the pipeline with these LoRAs and no others.

        Args:
            on_torch_attention: Torch's own attention, whatever was asked for.
            loras: Of the clip.

        Raises:
            Refused: the checkpoint does not fit the model, or the attention cannot run here.
            ValueError, OSError: a LoRA is not what it was, or cannot be read.
        """
        denoiser, runtime = self._loaded(), self._config.runtime
        attention = NATIVE if on_torch_attention else self.attention
        if attention != self._attention:
            transformer = denoiser.transformer
            apply_attention(transformer, attention, runtime.mask_free, self.placement.device)
            self._attention = attention
        assert self._loras is not None
        self._loras.set(loras)
        return denoiser

    def _loaded(self) -> Denoiser:
        if self._denoiser is None:
            vae = self.vae()
            self._attention = self._config.runtime.attention_backend
            with self._loading():
                self._denoiser = load_denoiser(
                    self._config,
                    self._checkpoint,
                    vae=vae,
                    loading_device=self.placement.loading_device,
                )
                self.placement.hold_transformer(self._denoiser.transformer)
            self._loras = LoraSet(self._denoiser.transformer, self.placement.device)
        return self._denoiser

    def step_down(self) -> bool:
        """Change to the next smaller profile; the transformer is loaded again when it is needed.

        Returns:
            False where there is no smaller profile.
        """
        self._denoiser = self._loras = None
        _, available = read_ram()
        needed = transformer_bytes(self._config.runtime.linear) + GIB
        return self.placement.step_down(available > needed)

    def drop_compilation(self) -> None:
        """Load the transformer again when it is needed next, without compiling it."""
        runtime = replace(self._config.runtime, compile=False)
        self._config = replace(self._config, runtime=runtime)
        self._denoiser = self._loras = None
        self.placement.drop_transformer()

    def release(self, keeps_vae: bool) -> Any:
        """Let go of everything; return the VAE if it is kept for another model, else None."""
        vae, self._vae = self._vae if keeps_vae else None, None
        self._denoiser = self._loras = None
        self.placement.release(keeps_vae)
        if typed_compile(self._config):
            torch.compiler.reset()  # compiled code holds on to the weights
        return vae

    def take_load_seconds(self) -> float | None:
        """Return what loading took since the last call; None where nothing was loaded."""
        seconds, self._load_seconds = self._load_seconds, None
        return seconds

    def in_effect(self) -> dict[str, Any]:
        """Return the log's columns on what denoises, read back from the live pipeline."""
        assert self._denoiser is not None
        assert self._loras is not None
        transformer = self._denoiser.transformer
        return {
            "dtype": str(transformer.dtype).removeprefix("torch."),
            "attention_backend": attention_backend_of(transformer),
            "mask_free": is_mask_free(transformer),
            "compiled": is_compiled(transformer),
            "offload": self.placement.describe(),
            "lora_keys_matched": self._loras.num_matched,
            "lora_keys_unmatched": self._loras.num_unmatched,
        }

    @contextmanager
    def _loading(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._load_seconds = (self._load_seconds or 0.0) + time.perf_counter() - begin
