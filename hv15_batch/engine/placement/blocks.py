"""Keep a transformer's blocks in host memory or on disk and copy each to the card just in time.

Two slots on the card, each as large as a block: while one block computes, the next one's weights
arrive in the other slot on a stream of their own. A block's parameters always lie in the same slot,
so their addresses never change, and compiled code stays valid.

Why not diffusers' group offloading: it holds pinned and unpinned weights side by side while it is
set up (up to twice 15.5 GiB of RAM), and its pinned allocations are rounded up to powers of two.
Here each block is packed into one exactly sized buffer, which is pinned where it lies.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

_ALIGNMENT = 256
"""Bytes; what CUDA's own allocations are aligned to, which vectorised kernels rely on."""
_SLOTS = 2
_STAGING_BUFFERS = 3
"""Of `DiskSource`: one being copied to the card, one ready, one being read."""


@dataclass(frozen=True)
class _Field:
    """Where one parameter lies within a packed block."""

    name: str
    shape: torch.Size
    dtype: torch.dtype
    offset: int

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        size = math.prod(self.shape) * self.dtype.itemsize
        return flat[self.offset : self.offset + size].view(self.dtype).view(self.shape)


class RamSource:
    """All blocks packed in pinned host memory."""

    def __init__(self, block_bytes: int, count: int) -> None:
        self._block_bytes = block_bytes
        self._maps: list[mmap.mmap] = []
        self._blocks: list[torch.Tensor] = []
        self._count = count

    def add(self, fill: Callable[[torch.Tensor], None]) -> None:
        """Take another block; `fill` writes it into the buffer it is given."""
        pages, flat = _pinned_buffer(self._block_bytes)
        fill(flat)
        self._maps.append(pages)
        self._blocks.append(flat)

    def take(self, index: int) -> torch.Tensor:
        """Return a packed block."""
        return self._blocks[index]

    def copied(self, index: int, event: torch.cuda.Event) -> None:
        """Nothing to recycle."""

    def close(self) -> None:
        """Unpin and free."""
        for flat in self._blocks:
            _unpin(flat)
        self._blocks.clear()
        self._maps.clear()


class DiskSource:
    """All blocks packed in an unnamed file; a thread reads ahead into pinned buffers."""

    def __init__(self, block_bytes: int, count: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # Without a name: the kernel frees it when this process ends, however it ends.
        self._file = tempfile.TemporaryFile(dir=folder)
        self._block_bytes = block_bytes
        self._count = count
        self._staging = [_pinned_buffer(block_bytes) for _ in range(_STAGING_BUFFERS)]
        self._in_use: dict[int, torch.cuda.Event] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-blocks")
        self._ahead: tuple[int, Future[int]] | None = None
        self._next_buffer = 0
        self._taken = 0

    def add(self, fill: Callable[[torch.Tensor], None]) -> None:
        """Append another block to the file."""
        flat = self._staging[0][1]
        fill(flat)
        self._file.write(flat.numpy().data)

    def take(self, index: int) -> torch.Tensor:
        """Return a packed block, reading the one that follows it ahead."""
        self._file.flush()
        if self._ahead is None or self._ahead[0] != index:
            if self._ahead is not None:
                self._ahead[1].result()  # a wrong guess: its buffer is the next to be used again
            self._read_ahead(index)
        assert self._ahead is not None
        self._taken = self._ahead[1].result()
        self._read_ahead((index + 1) % self._count)
        return self._staging[self._taken][1]

    def copied(self, index: int, event: torch.cuda.Event) -> None:
        """Remember when the buffer that was just taken is free again."""
        self._in_use[self._taken] = event

    def close(self) -> None:
        """Stop reading and free everything."""
        self._reader.shutdown(cancel_futures=True)
        for _, flat in self._staging:
            _unpin(flat)
        self._staging.clear()
        self._file.close()

    def _read_ahead(self, index: int) -> None:
        buffer = self._next_buffer
        self._next_buffer = (buffer + 1) % _STAGING_BUFFERS
        busy = self._in_use.pop(buffer, None)
        self._ahead = index, self._reader.submit(self._read, index, buffer, busy)

    def _read(self, index: int, buffer: int, busy: torch.cuda.Event | None) -> int:
        if busy is not None:
            busy.synchronize()
        view = self._staging[buffer][1].numpy().data
        position = index * self._block_bytes
        done = 0
        while done < len(view):
            count = os.preadv(self._file.fileno(), [view[done:]], position + done)
            if count == 0:
                raise OSError(f"the block file ends at byte {position + done}")
            done += count
        return buffer


class BlockStream:
    """Streams the blocks of one transformer through two slots on the card."""

    def __init__(
        self, blocks: nn.ModuleList, device: torch.device, disk_folder: Path | None = None
    ) -> None:
        """Pack the blocks away, one after the other, and take over their `forward`.

        Args:
            blocks: on the CPU, all of one structure and without buffers; mutated.
            device: a CUDA device.
            disk_folder: where an unnamed file keeps the blocks; None keeps them in pinned RAM.

        Raises:
            ValueError: the blocks differ in structure.
        """
        self._blocks = list(blocks)
        self._device = device
        self._fields, self.block_bytes = _layout(self._blocks[0])
        self._source: RamSource | DiskSource
        if disk_folder is None:
            self._source = RamSource(self.block_bytes, len(self._blocks))
        else:
            self._source = DiskSource(self.block_bytes, len(self._blocks), disk_folder)
        for block in self._blocks:
            self._pack(block)
        # On the CPU the same passes through the slots, one copy after the other: for tests.
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._slots: list[torch.Tensor] = []
        self._arrived: list[torch.cuda.Event | None] = [None] * _SLOTS
        for index, block in enumerate(self._blocks):
            block.forward = self._streamed(index, block.forward)

    def open(self) -> None:
        """Allocate the slots and begin to fill them; needed before a forward."""
        if self._slots:
            return
        for _ in range(_SLOTS):
            self._slots.append(
                torch.empty(self.block_bytes, dtype=torch.uint8, device=self._device)
            )
        for index, block in enumerate(self._blocks):
            _point(block, self._fields, self._slots[index % _SLOTS])
        for index in range(min(_SLOTS, len(self._blocks))):
            self._copy(index)

    def close(self) -> None:
        """Give the slots' memory back; the blocks stay packed away."""
        if not self._slots:
            return
        if self._copies is not None:
            self._copies.synchronize()
        empty = torch.empty(0, dtype=torch.uint8, device=self._device)
        for block in self._blocks:
            for parameter in block.parameters():
                parameter.data = empty.view(parameter.dtype)
        self._slots.clear()
        if self._copies is not None:
            torch.cuda.empty_cache()

    def free(self) -> None:
        """Close, and free the packed blocks too."""
        self.close()
        self._source.close()

    def _pack(self, block: nn.Module) -> None:
        parameters = dict(block.named_parameters())
        if {f.name for f in self._fields} != set(parameters):
            raise ValueError("the blocks of the transformer differ in structure")

        def fill(flat: torch.Tensor) -> None:
            for item in self._fields:
                item.view(flat).copy_(parameters[item.name].data)

        self._source.add(fill)
        for parameter in parameters.values():
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    def _streamed(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        slot = index % _SLOTS
        following = index + _SLOTS if index + _SLOTS < len(self._blocks) else slot

        @functools.wraps(forward, updated=())
        def streamed(*args: Any, **kwargs: Any) -> Any:
            arrived = self._arrived[slot]
            if arrived is not None:
                torch.cuda.current_stream(self._device).wait_event(arrived)
            output = forward(*args, **kwargs)
            if following != index:
                self._copy(following)
            return output

        return streamed

    def _copy(self, index: int) -> None:
        """Begin to copy a block into its slot, once the work handed out so far is done with it."""
        slot = index % _SLOTS
        packed = self._source.take(index)
        if self._copies is None:
            self._slots[slot].copy_(packed)
            return
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            self._slots[slot].copy_(packed, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._copies)
        self._arrived[slot] = event
        self._source.copied(index, event)


def _layout(block: nn.Module) -> tuple[list[_Field], int]:
    fields, offset = [], 0
    for name, parameter in block.named_parameters():
        fields.append(_Field(name, parameter.shape, parameter.dtype, offset))
        size = parameter.numel() * parameter.element_size()
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT
    return fields, offset


def _point(block: nn.Module, fields: list[_Field], flat: torch.Tensor) -> None:
    parameters = dict(block.named_parameters())
    for item in fields:
        parameters[item.name].data = item.view(flat)


def _pinned_buffer(size: int) -> tuple[mmap.mmap, torch.Tensor]:
    """Return whole pages of host memory, pinned in place: no rounding to a power of two."""
    pages = mmap.mmap(-1, size)
    flat = torch.frombuffer(pages, dtype=torch.uint8)
    if torch.cuda.is_available():
        torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(flat.data_ptr(), size, 0))
    return pages, flat


def _unpin(flat: torch.Tensor) -> None:
    if torch.cuda.is_available():
        torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(flat.data_ptr()))
