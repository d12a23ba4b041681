"""Offload profiles: where transformer and VAE live in each phase of a clip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hv15_batch.config import Config, OffloadKind, Weights

RESIDENT_BYTES = 40 * 1024**3
"""Least card memory for `resident`: transformer 15.5 GiB + VAE 2.35 + 14 of activations of a
256-pixel tile decode at 121 frames (measured 2026-11-22), with room for 720p latents and others."""


def execution_device(config: Config) -> torch.device:
    """Return where the maths runs: the first CUDA device, or the CPU.

    The tiny models run on the CPU everywhere, so that they give the same clips on every machine.
    """
    if config.model.weights is Weights.tiny or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def resolve_offload(kind: OffloadKind, device: torch.device) -> OffloadKind:
    """Return the profile that `auto` means on this device; others are returned as they are."""
    if kind is not OffloadKind.auto:
        return kind
    if device.type == "cpu":
        return OffloadKind.resident
    total = torch.cuda.get_device_properties(device).total_memory
    return OffloadKind.resident if total >= RESIDENT_BYTES else OffloadKind.model


def loading_device(config: Config) -> torch.device:
    """Return where transformer and VAE are loaded to: straight to the card when they stay there."""
    device = execution_device(config)
    if resolve_offload(config.offload.kind, device) is OffloadKind.resident:
        return device
    return torch.device("cpu")


class Placement:
    """Brings transformer and VAE to the device when a phase needs them, and away when not.

    `resident`: both stay on the device. `model`: one of them at a time. On the CPU neither moves.
    A component is brought when its phase begins and stays until another one needs the room.
    """

    def __init__(self, kind: OffloadKind, device: torch.device) -> None:
        """Begin with no component; see `hold_transformer` and `hold_vae`."""
        self.kind = resolve_offload(kind, device)
        self.device = device
        self._transformer: _Movable | None = None
        self._vae: _Movable | None = None

    def hold_transformer(self, transformer: torch.nn.Module) -> None:
        """Take charge of the transformer."""
        self._transformer = _Movable(transformer, keep_host_copy=self.kind is OffloadKind.model)

    def hold_vae(self, vae: torch.nn.Module) -> None:
        """Take charge of the VAE."""
        self._vae = _Movable(vae, keep_host_copy=self.kind is OffloadKind.model)

    @contextmanager
    def denoising(self) -> Iterator[None]:
        """Within: the transformer is where it runs."""
        assert self._transformer is not None
        self._bring(self._transformer, away=self._vae)
        yield

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Within: the VAE is where it runs, for decoding and for encoding a first frame."""
        assert self._vae is not None
        self._bring(self._vae, away=self._transformer)
        yield

    def describe(self) -> str:
        """Return the name of the profile in effect."""
        return self.kind.value

    def _bring(self, needed: _Movable, away: _Movable | None) -> None:
        if self.device.type == "cpu":
            return
        if self.kind is OffloadKind.model and away is not None:
            away.move_to_host()
        needed.move_to(self.device)


class _Movable:
    """A component whose weights can leave the card without being copied back.

    Weights do not change while rendering, so the host copy stays valid: copying 15.5 GiB back takes
    12 s, dropping the card's copy none (pageable memory, H200, measured 2026-11-22).
    """

    def __init__(self, module: torch.nn.Module, keep_host_copy: bool) -> None:
        self._module = module
        self._host: list[torch.Tensor] | None = None
        if keep_host_copy:
            self._host = [tensor.data.cpu() for tensor in self._tensors()]

    def move_to(self, device: torch.device) -> None:
        if self._host is None:
            self._module.to(device)
            return
        for tensor, host in zip(self._tensors(), self._host, strict=True):
            if tensor.device != device:
                tensor.data = host.to(device)

    def move_to_host(self) -> None:
        assert self._host is not None
        tensors = self._tensors()
        if all(tensor.device.type == "cpu" for tensor in tensors):
            return
        for tensor, host in zip(tensors, self._host, strict=True):
            tensor.data = host
        torch.cuda.empty_cache()  # one large block for the next component instead of many small

    def _tensors(self) -> list[torch.Tensor]:
        return [*self._module.parameters(), *self._module.buffers()]
