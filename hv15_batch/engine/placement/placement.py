"""Offload profiles: where transformer and VAE are kept in each phase of a clip."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hv15_batch.engine.placement.blocks import BlockStream
from hv15_batch.model.variant import OffloadKind
from hv15_batch.units import MIB

_PINNED_FROM_BYTES = MIB
"""Smaller tensors share pages with others and gain nothing from being pinned."""


class Placement:
    """Brings transformer and VAE to the device when a phase needs them, and away when not.

    `resident`: both stay on the device. `model`: one of them at a time. `stream`, `stream_disk`:
    the transformer's blocks pass through two slots while denoising (`blocks`), and the VAE is
    there while decoding. On the CPU nothing moves.
    """

    def __init__(self, kind: OffloadKind, device: torch.device, disk_folder: Path) -> None:
        """Begin with no component; see `hold_transformer` and `hold_vae`.

        Args:
            kind: The profile; not `auto`, which is decided before (`forecast.offload`).
            device: Where the maths runs.
            disk_folder: Where `stream_disk` keeps its unnamed file.
        """
        assert kind is not OffloadKind.auto
        self.kind: OffloadKind = kind
        self.device = device
        self._disk_folder = disk_folder
        self._transformer: _Movable | None = None
        self._vae: _Movable | None = None
        self._stream: BlockStream | None = None

    @property
    def loading_device(self) -> torch.device:
        """Where components are loaded to: straight to the device when they stay there."""
        if self.kind is OffloadKind.resident:
            return self.device
        return torch.device("cpu")

    def hold_transformer(self, transformer: Any) -> None:
        """Take charge of the transformer, its attention and compilation already applied."""
        if self.device.type != "cpu" and self._is_streamed:
            folder = self._disk_folder if self.kind is OffloadKind.stream_disk else None
            self._stream = BlockStream(transformer.transformer_blocks, self.device, folder)
            for name, module in transformer.named_children():
                if name != "transformer_blocks":
                    module.to(self.device)
            return
        self._transformer = _Movable(transformer, leaves=self.kind is OffloadKind.model)

    def hold_vae(self, vae: nn.Module) -> None:
        """Take charge of the VAE."""
        self._vae = _Movable(vae, leaves=self.kind is not OffloadKind.resident)

    @contextmanager
    def denoising(self) -> Iterator[None]:
        """Within: the transformer is where it runs."""
        if self.device.type != "cpu":
            if self._vae is not None:
                self._vae.leave()
            if self._stream is not None:
                self._stream.open()
            elif self._transformer is not None:
                self._transformer.move_to(self.device)
        yield

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Within: the VAE is where it runs, for decoding and for encoding a first frame."""
        if self.device.type != "cpu":
            if self._stream is not None:
                self._stream.close()
            elif self._transformer is not None:
                self._transformer.leave()
            assert self._vae is not None
            self._vae.move_to(self.device)
        yield

    def leave_transformer(self) -> None:
        """Give the transformer's memory on the card back; the next denoising brings it again.

        From then on the two take turns: `resident` becomes `model`, and is logged so.
        """
        if self._stream is not None:
            self._stream.close()
        elif self._transformer is not None:
            self.kind = OffloadKind.model
            self._transformer.leave(force=True)

    def drop_transformer(self) -> None:
        """Let go of the transformer; it must then be loaded and held again."""
        self._transformer = None
        if self._stream is not None:
            self._stream.free()
            self._stream = None

    def step_down(self, has_ram_for_blocks: bool) -> bool:
        """Change to the next smaller profile; the transformer must then be loaded and held again.

        Args:
            has_ram_for_blocks: Whether the transformer fits into host memory.

        Returns:
            False where there is no smaller profile.
        """
        smaller = OffloadKind.stream if has_ram_for_blocks else OffloadKind.stream_disk
        if self.kind is smaller or self.kind is OffloadKind.stream_disk:
            return False
        self.kind = smaller
        self.drop_transformer()
        if self._vae is not None:
            self.hold_vae(self._vae.module)
        return True

    def release(self, keeps_vae: bool) -> None:
        """Let go of both, so that those of another model take their place.

        Args:
            keeps_vae: Whether the VAE is held again by another placement.
        """
        if self._vae is not None and keeps_vae:
            self._vae.leave()
        elif self._vae is not None:
            self._vae.free()
        if self._stream is not None:
            self._stream.free()
        if self._transformer is not None:
            self._transformer.free()
        self._vae = self._transformer = self._stream = None

    def describe(self) -> str:
        """Return the name of the profile in effect."""
        return self.kind.name

    @property
    def _is_streamed(self) -> bool:
        return self.kind in (OffloadKind.stream, OffloadKind.stream_disk)


class _Movable:
    """A component whose weights can leave the card without being copied back.

    Weights do not change while rendering, so the host copy stays valid: copying 15.5 GiB back takes
    12 s, dropping the card's copy none (pageable memory, H200, measured 2026-11-22).
    """

    def __init__(self, module: nn.Module, leaves: bool) -> None:
        self.module = module
        self._host: list[torch.Tensor] | None = None
        self._pinned: list[torch.Tensor] = []
        self._stays_on: torch.device | None = None
        if leaves:
            self._keep_host_copy()

    def move_to(self, device: torch.device) -> None:
        """Bring the weights to the device, where they are not there already."""
        if self._host is None:
            if self._stays_on != device:  # asking all of its modules takes 40 ms
                self.module.to(device)
                self._stays_on = device
            return
        for tensor, host in zip(self._tensors(), self._host, strict=True):
            if tensor.device != device:
                tensor.data = host.to(device, non_blocking=True)

    def leave(self, force: bool = False) -> None:
        """Drop the card's copy; no-op for a component that stays, unless it is forced to go."""
        if self._host is None:
            if not force:
                return
            self._keep_host_copy()
            assert self._host is not None
        tensors = self._tensors()
        if all(tensor.device.type == "cpu" for tensor in tensors):
            return
        for tensor, host in zip(tensors, self._host, strict=True):
            tensor.data = host
        torch.cuda.empty_cache()  # one large block for the next component instead of many small

    def free(self) -> None:
        """Leave the card and unpin the host copy, whose pages stay in memory otherwise."""
        if self._host is None:
            return
        self.leave()
        for tensor in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(tensor.data_ptr())
        self._pinned.clear()

    def _keep_host_copy(self) -> None:
        self._host = [tensor.data.cpu() for tensor in self._tensors()]
        if torch.cuda.is_available():
            self._pinned = [tensor for tensor in self._host if _pin_in_place(tensor)]

    def _tensors(self) -> list[torch.Tensor]:
        return [*self.module.parameters(), *self.module.buffers()]


def _pin_in_place(tensor: torch.Tensor) -> bool:
    """Pin memory that exists: torch's own pinned allocations round up to powers of two.

    Returns:
        Whether it is pinned now, by this or by an earlier call.
    """
    size = tensor.numel() * tensor.element_size()
    if size < _PINNED_FROM_BYTES or not tensor.is_contiguous():
        return False
    if tensor.is_pinned():
        return True
    # A region that cannot be pinned (a file mapping) is copied at pageable speed instead.
    return int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), size, 0)) == 0
