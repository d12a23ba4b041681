"""Linear modules whose weights are kept in 8 bits; `model.linears` says which ones.

Torch's own operators are enough, so nothing further is installed. A weight has a scale for each
output row, and is quantised when it is loaded, one tensor after the other. An input has a scale for
each token, taken while it is computed. Integers are rounded to the nearest, fp8 is e4m3.

Scales are parameters, since streamed blocks move parameters only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hv15_batch.config.checks import effective_dtype
from hv15_batch.config.settings import Config
from hv15_batch.engine.device import execution_device
from hv15_batch.errors import Refused
from hv15_batch.model.linears import COMPUTED, STORED, linear_fault
from hv15_batch.model.variant import Linear

_DTYPES = {Linear.fp8: torch.float8_e4m3fn, Linear.int8: torch.int8}
_LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
_ROWS = 4096
"""Tokens at once, where nothing is compiled: what is held in 32 bits meanwhile stays small."""
_COLUMNS = 2048
"""Output channels at once in compiled code, for the same reason; their number is fixed."""
_MIN_INT8_ROWS = 17
"""Fewer are not multiplied on a card (torch 2.11, `_int_mm`)."""


class EightBitLinear(nn.Linear):
    """A linear module whose weight is kept in 8 bits."""

    weight_scale: nn.Parameter
    """float32 [outputs, 1]"""

    def hold(self, weight: torch.Tensor, dtype: torch.dtype, device: Any) -> None:
        """Take a weight, quantised where it is.

        Args:
            weight: [outputs, inputs] in 16 or 32 bits.
            dtype: float8_e4m3fn or int8.
            device: Where it is kept.
        """
        values, scale = in_eight_bits(weight, dtype)
        self.weight = nn.Parameter(values.to(device), requires_grad=False)
        self.weight_scale = nn.Parameter(scale.to(device), requires_grad=False)


class ComputedLinear(EightBitLinear):
    """Multiplies 8-bit numbers: its input is quantised token by token."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input @ weight^T + bias` in the type of the input [..., inputs]."""
        rows = input.reshape(-1, input.shape[-1])
        if torch.compiler.is_compiling():
            output = self._product(rows, _COLUMNS)
        else:
            output = rows.new_empty(rows.shape[0], self.out_features)
            for begin in range(0, rows.shape[0], _ROWS):
                part = slice(begin, begin + _ROWS)
                output[part] = self._product(rows[part], self.out_features)
        return output.view(*input.shape[:-1], -1)

    def _product(self, rows: torch.Tensor, columns: int) -> torch.Tensor:
        values, scale = in_eight_bits(rows, self.weight.dtype)
        if self.weight.dtype is torch.int8:
            parts = zip(self.weight.split(columns), self.weight_scale.split(columns), strict=True)
            product = torch.cat(
                [
                    (_integer_product(values, weight) * scale * weight_scale.t()).to(rows.dtype)
                    for weight, weight_scale in parts
                ],
                dim=1,
            )
            return product if self.bias is None else product + self.bias
        if rows.device.type == "cpu":  # not every version of torch has the operator there
            product = F.linear(values.float(), self.weight.float()) * scale * self.weight_scale.t()
            product = product.to(rows.dtype)
            return product if self.bias is None else product + self.bias
        scaled: torch.Tensor = torch._scaled_mm(
            values,
            self.weight.t(),
            scale_a=scale,
            scale_b=self.weight_scale.t(),
            bias=self.bias,
            out_dtype=rows.dtype,
            use_fast_accum=True,
        )
        return scaled


class StoredLinear(EightBitLinear):
    """Keeps its weight in 8 bits and multiplies in the type of its input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return `input @ weight^T + bias`."""
        weight = (self.weight.float() * self.weight_scale).to(input.dtype)
        return F.linear(input, weight, self.bias)


def check_linears(config: Config) -> None:
    """Check that the card computes what `runtime.linear` asks for.

    Raises:
        Refused: it does not; the message says what to use.
    """
    device = execution_device(config)
    runs_on_cpu = device.type == "cpu"
    fault = linear_fault(
        config.runtime.linear,
        effective_dtype(config),
        runs_on_cpu=runs_on_cpu,
        capability=None if runs_on_cpu else torch.cuda.get_device_capability(device),
        on="the CPU" if runs_on_cpu else torch.cuda.get_device_name(device),
    )
    if fault:
        raise Refused(fault)


@dataclass(frozen=True)
class EightBits:
    """How a transformer is loaded with weights in 8 bits."""

    linear: Linear
    """`fp8` or `int8`."""
    quantise_on: torch.device
    """Where weights are quantised: a card is much faster, with the same result."""
    computed: Sequence[str] = COMPUTED
    """Linear modules of a block that compute in 8 bits."""
    stored: Sequence[str] = STORED
    """Those that are only kept in 8 bits."""

    @classmethod
    def of(cls, config: Config) -> EightBits | None:
        """Return what `runtime.linear` asks for; None where nothing is quantised."""
        linear = config.runtime.linear
        return None if linear is Linear.bf16 else cls(linear, execution_device(config))

    def change(self, transformer: Any) -> None:
        """Make linear modules of the blocks ready to take weights in 8 bits.

        Only their class changes: names, order and biases stay. Weights are not there yet.
        """
        for block in transformer.transformer_blocks:
            for name in self.computed:
                block.get_submodule(name).__class__ = ComputedLinear
            for name in self.stored:
                block.get_submodule(name).__class__ = StoredLinear

    def take(self, module: nn.Module, name: str, values: torch.Tensor, device: Any) -> bool:
        """Give a module a weight, if it is one that is kept in 8 bits.

        Args:
            module: Of a transformer that was changed.
            name: Of its parameter.
            values: [outputs, inputs] in 16 or 32 bits.
            device: Where it is kept.

        Returns:
            False for any other parameter, which the caller has to set.
        """
        if name != "weight" or not isinstance(module, EightBitLinear):
            return False
        module.hold(values.to(self.quantise_on), _DTYPES[self.linear], device)
        return True


def in_eight_bits(rows: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows in 8 bits, the largest value of each at the end of the range, and the scales.

    Args:
        rows: [N, K]; a row with a value that is not finite gets a scale that is none either.
        dtype: float8_e4m3fn or int8.

    Returns:
        Values [N, K], and scales float32 [N, 1] that give the rows back when multiplied.
    """
    rows = rows.float()
    largest = rows.abs().amax(1, keepdim=True)
    scale = (largest / _LARGEST[dtype]).clamp(min=torch.finfo(torch.float32).tiny)
    values = rows / scale
    return (values.round() if dtype is torch.int8 else values).to(dtype), scale


def _integer_product(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return int8 [N, K] @ int8 [M, K]^T in int32 [N, M]."""
    count = values.shape[0]
    if values.device.type == "cuda" and count < _MIN_INT8_ROWS:
        return torch._int_mm(F.pad(values, (0, 0, 0, _MIN_INT8_ROWS - count)), weight.t())[:count]
    return torch._int_mm(values, weight.t())
