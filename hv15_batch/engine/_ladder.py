"""Denoising and decoding on the device, and what is tried next when memory runs out.

Decoding: smaller tiles, then alone on the card. Denoising: the next smaller profile, which is
kept for the rest of the run.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from hv15_batch.clip import Clip
from hv15_batch.dispatch.protocol import Event, Note, Stepped
from hv15_batch.engine._measure import StageMeter
from hv15_batch.engine._models import LoadedModels
from hv15_batch.engine._quality import QualityMeter
from hv15_batch.engine.decode.decode import decode_frames
from hv15_batch.engine.denoise.pipeline import Denoised, Watch, denoise
from hv15_batch.engine.encode.cache import Conditioning
from hv15_batch.model.tiles import NoPlanError, TilePlan, plan_tiles
from hv15_batch.record import DENOISE

Emit = Callable[[Event], None]

_SHARES = (1.0, 0.6, 1.0)
"""Shares of the free memory for the tries at decoding; the last try has the card alone."""


@dataclass(frozen=True)
class Decoded:
    """What decoding a clip gives."""

    frames: torch.Tensor
    """uint8 [F, H, W, 3] on the CPU."""
    quality: QualityMeter
    """Has seen all frames."""
    plan: TilePlan
    device: str
    tries: int
    """More than one: the seconds are those of several."""


class Ladder:
    """Denoises and decodes, and falls back to less memory where that does not fit."""

    def __init__(
        self,
        models: LoadedModels,
        budget_bytes: int | None,
        is_climbed: bool,
        may_run_plain: bool = False,
    ) -> None:
        """Load nothing yet.

        Args:
            models: what denoises and decodes.
            budget_bytes: what torch may take of the card; None without a limit.
            is_climbed: False lets the first shortage fail its clip (`retry.ladder`).
            may_run_plain: Where compilation fails, denoise without it.
        """
        self._models = models
        self._placement = models.placement
        self._device = models.placement.device
        self._budget_bytes = budget_bytes
        self._is_climbed = is_climbed
        self._may_run_plain = may_run_plain
        self.watch: Watch | None = None
        """Sees the steps of the next clip."""

    def denoise(
        self,
        clip: Clip,
        conditioning: Conditioning,
        meter: StageMeter,
        emit: Emit,
        on_torch_attention: bool = False,
    ) -> Denoised:
        """Denoise a clip; when memory runs out, once more with the next smaller profile.

        Where compilation fails and was not typed, the rest of the run goes without it.

        Raises:
            torch.OutOfMemoryError: there is none, or it does not fit either.
            TorchDynamoException: the transformer cannot be compiled.
            Refused: see `LoadedModels.denoiser`.
        """
        try:
            return self._denoise_in_memory(clip, conditioning, meter, emit, on_torch_attention)
        except TorchDynamoException as error:
            if not self._may_run_plain:
                raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        self._may_run_plain = False
        self._models.drop_compilation()
        _release_memory()
        emit(Note(f"the transformer cannot be compiled here: continuing without ({reason[:200]})"))
        return self._denoise_in_memory(clip, conditioning, meter, emit, on_torch_attention)

    def _denoise_in_memory(
        self,
        clip: Clip,
        conditioning: Conditioning,
        meter: StageMeter,
        emit: Emit,
        on_torch_attention: bool,
    ) -> Denoised:
        try:
            return self._denoise(clip, conditioning, meter, emit, on_torch_attention)
        except torch.OutOfMemoryError as error:
            shortage = str(error)
        # Outside of `except`, because the error's stack frames hold the transformer.
        if not self._is_climbed or not self._step_down(emit):
            raise torch.OutOfMemoryError(shortage)
        return self._denoise(clip, conditioning, meter, emit, on_torch_attention)

    def decode(self, clip: Clip, latents: torch.Tensor, emit: Emit) -> Decoded:
        """Return the frames; when memory runs out, try smaller tiles, then the card alone.

        Raises:
            torch.OutOfMemoryError, NoPlanError: it does not fit alone on the card either.
            FloatingPointError: a decoded value is not finite.
        """
        vae = self._models.vae()
        shares = _SHARES if self._is_climbed else _SHARES[:1]
        for rung, share in enumerate(shares, 1):
            if 1 < rung == len(shares):
                self._leave_transformer(emit)
            try:
                with self._placement.decoding():
                    plan = self._tile_plan(clip, share)
                    quality = QualityMeter()
                    frames = decode_frames(vae, latents, plan, quality.add)
            except (torch.OutOfMemoryError, NoPlanError) as error:
                if rung == len(shares):
                    raise
                emit(
                    Note(
                        f"out of memory while decoding, trying with less memory: {str(error)[:200]}"
                    )
                )
            else:
                return Decoded(frames, quality, plan, str(vae.device), rung)
            _release_memory()
        raise AssertionError("the last rung returns or raises")

    @contextmanager
    def vae(self) -> Iterator[Any]:
        """Yield the VAE where it runs."""
        with self._placement.decoding():
            yield self._models.vae()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # the peaks of the next clip are its own

    def _denoise(
        self,
        clip: Clip,
        conditioning: Conditioning,
        meter: StageMeter,
        emit: Emit,
        on_torch_attention: bool,
    ) -> Denoised:
        pipe = self._models.denoiser(on_torch_attention, clip.loras)

        def on_step(step: int, total: int) -> None:
            emit(Stepped(clip.clip_id, DENOISE, step, total))

        with meter.stage(DENOISE), self._placement.denoising():
            return denoise(pipe, clip, conditioning, on_step, self.watch)

    def _step_down(self, emit: Emit) -> bool:
        """Change to the next smaller profile for the rest of the run."""
        if not self._models.step_down():
            return False
        _release_memory()
        name = self._placement.kind.name
        text = f"out of memory while denoising: continuing with offload={name}"
        emit(Note(text, self._placement.kind))
        return True

    def _leave_transformer(self, emit: Emit) -> None:
        """Give the transformer's memory on the card back, for the rest of the run."""
        before = self._placement.kind
        self._placement.leave_transformer()
        if self._placement.kind is not before:
            text = (
                f"decoding alone on the card: continuing with offload={self._placement.kind.name}"
            )
            emit(Note(text, self._placement.kind))

    def _tile_plan(self, clip: Clip, share: float) -> TilePlan:
        """Return the fastest plan within this share of what is free."""
        settings = clip.settings
        size = (settings.height // 16, settings.width // 16, (settings.num_frames - 1) // 4 + 1)
        budget = self._decode_budget_bytes()
        if budget is not None:
            itemsize = self._models.vae().dtype.itemsize  # plans count in 16-bit values
            budget = int(budget * share) * 2 // itemsize
        return plan_tiles(*size, budget, self._device.type)

    def _decode_budget_bytes(self) -> int | None:
        """Return what decoding may take in all, the VAE's weights included."""
        if self._device.type != "cuda":
            return None
        allocated = torch.cuda.memory_allocated(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        usable = free + torch.cuda.memory_reserved(self._device)
        if self._budget_bytes is not None:
            usable = min(usable, self._budget_bytes)
        parameters = self._models.vae().parameters()
        vae_bytes: int = sum(p.numel() * p.element_size() for p in parameters)
        return int(usable - (allocated - vae_bytes))


def _release_memory() -> None:
    """Free what an error left behind, so that the next try has all of it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
