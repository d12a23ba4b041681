"""LoRA on a transformer: beside a module's own product stands that of two narrow matrices.

The weights stay as they are, so without an adapter a module computes what it did before, bit by
bit, and streamed blocks need not know of it. Only the class of a module changes: its parameters
keep their names and places. The narrow matrices stay on the device while their set is in effect.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn

from hv15_batch.clip import ClipLora
from hv15_batch.engine.load.linears import ComputedLinear, StoredLinear
from hv15_batch.errors import Refused
from hv15_batch.weights.checkpoint import cache_root
from hv15_batch.weights.files import file_sha256s
from hv15_batch.weights.lora import LoraFile, LoraPair, open_lora

_Pair = tuple[torch.Tensor, torch.Tensor]


class LowRankLinear(nn.Linear):
    """A linear module with two narrow matrices beside its own."""

    low_rank_down: torch.Tensor
    """[rank, inputs]"""
    low_rank_up: torch.Tensor
    """[rank, outputs], scaled."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input @ (weight + up^T @ down)^T + bias`, in two products."""
        output = super().forward(input)
        narrow = F.linear(input, self.low_rank_down)
        # In place: another tensor of this size would be the largest of a forward.
        output.view(-1, output.shape[-1]).addmm_(
            narrow.reshape(-1, narrow.shape[-1]), self.low_rank_up
        )
        return output


class LowRankComputedLinear(LowRankLinear, ComputedLinear):
    """The same where the module's own product is one of 8-bit numbers."""


class LowRankStoredLinear(LowRankLinear, StoredLinear):
    """The same where the module's own weight is kept in 8 bits."""


class LowRankConv3d(nn.Conv3d):
    """The same for a convolution whose kernel is as wide as its stride, without padding."""

    low_rank_down: torch.Tensor
    """[rank, inputs]: channels and the kernel's places in one."""
    low_rank_up: torch.Tensor
    """[rank, outputs], scaled."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution with the sum of both kernels."""
        rank = self.low_rank_down.shape[0]
        down = self.low_rank_down.view(rank, *self.weight.shape[1:])
        narrow = F.conv3d(input, down, None, self.stride)
        up = self.low_rank_up.t().reshape(self.out_channels, rank, 1, 1, 1)
        return F.conv3d(input, self.weight, self.bias, self.stride) + F.conv3d(narrow, up)


_WITH_LOW_RANK: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: LowRankLinear,
    ComputedLinear: LowRankComputedLinear,
    StoredLinear: LowRankStoredLinear,
    nn.Conv3d: LowRankConv3d,
}
_PLAIN = {changed: plain for plain, changed in _WITH_LOW_RANK.items()}


class LoraSet:
    """The adapters in effect on one transformer; each set is loaded once while it stays."""

    def __init__(self, transformer: Any, device: torch.device) -> None:
        """Begin without adapters.

        Args:
            transformer: its modules are changed.
            device: where they compute, whatever holds their weights.
        """
        self._transformer = transformer
        self._device = device
        self._loras: tuple[ClipLora, ...] = ()
        self._changed: list[nn.Module] = []
        self.num_matched: int | None = None
        """Tensors of the files that are in effect; None without a LoRA."""
        self.num_unmatched: int | None = None

    def set(self, loras: Sequence[ClipLora]) -> None:
        """Put exactly these adapters in effect.

        Raises:
            ValueError: a file is not what it was when the run was planned.
            OSError: a file cannot be read.
        """
        if tuple(loras) == self._loras:
            return
        self._clear()
        if not loras:
            return
        files = [(_opened(lora, dict(self._transformer.config)), lora.scale) for lora in loras]
        pairs: dict[str, list[_Pair]] = {}
        for file, scale in files:
            for module, pair in _read_pairs(file, scale):
                pairs.setdefault(module, []).append(pair)
        try:
            for name, found in pairs.items():
                module = self._transformer.get_submodule(name)
                self._change(module, *(torch.cat(part) for part in zip(*found, strict=True)))
        except BaseException:  # memory may run out half-way
            self._clear()
            raise
        self._loras = tuple(loras)
        self.num_matched = sum(file.num_matched for file, _ in files)
        self.num_unmatched = sum(len(file.unmatched) for file, _ in files)

    def _change(self, module: nn.Module, down: torch.Tensor, up: torch.Tensor) -> None:
        plain = type(module)
        if plain not in _WITH_LOW_RANK:
            raise ValueError(
                f"a LoRA changes a module of the class {plain.__name__}, which is not supported"
            )
        dtype = self._transformer.dtype
        module.low_rank_down = down.to(self._device, dtype)
        module.low_rank_up = up.to(self._device, dtype)
        module.__class__ = _WITH_LOW_RANK[plain]
        self._changed.append(module)

    def _clear(self) -> None:
        for module in self._changed:
            module.__class__ = _PLAIN[type(module)]
            del module.low_rank_down, module.low_rank_up
        self._changed.clear()
        self._loras, self.num_matched, self.num_unmatched = (), None, None


def _opened(lora: ClipLora, config: dict[str, Any]) -> LoraFile:
    """Return a file that still has the content that it was planned with.

    Raises:
        ValueError: it has another, or cannot be used.
        OSError: it cannot be read.
    """
    path = Path(lora.path)
    try:
        sha256 = file_sha256s([path], cache_root() / "file_sha256.json")[path]
    except OSError as error:
        cause = error.strerror or str(error)
        message = f"the LoRA {path} cannot be read ({cause}); put the file back, then run again"
        raise OSError(error.errno or errno.EIO, message) from error
    if sha256 != lora.sha256:
        raise ValueError(
            f"the LoRA {path} was changed since the run was planned (SHA-256 {sha256} instead of "
            f"{lora.sha256}); run again"
        )
    try:
        return open_lora(path, str(path), config)
    except Refused as error:  # of one clip, and not of the run
        raise ValueError(str(error)) from error


def _read_pairs(file: LoraFile, scale: float) -> list[tuple[str, _Pair]]:
    """Return (module, ([rank, inputs], [rank, outputs])) of a file, scaled, in float32."""
    with safe_open(file.path, framework="pt") as tensors:
        return [(pair.target.module, _read_pair(tensors, pair, scale)) for pair in file.pairs]


def _read_pair(tensors: Any, pair: LoraPair, scale: float) -> _Pair:
    down = tensors.get_tensor(pair.down).float().flatten(1)
    up = tensors.get_tensor(pair.up).float().flatten(1)
    if pair.target.third is not None:
        up = up.chunk(3)[pair.target.third]
    if pair.target.swaps_halves:
        up = torch.cat(up.chunk(2)[::-1])
    alpha = pair.alpha
    if isinstance(alpha, str):
        alpha = float(tensors.get_tensor(alpha))
    rank = down.shape[0]
    factor = scale if alpha is None else scale * alpha / rank
    return down, (up * factor).t()
