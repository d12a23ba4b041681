"""Writes a transformer from one file in diffusers' layout, tensor by tensor.

Tensors of 16 and 32 bits are copied without arithmetic: renamed, split in three, or with swapped
halves. Scaled fp8 becomes bfloat16. Only a few rows are held in memory at a time. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from hv15_batch.units import MIB
from hv15_batch.weights.layouts import Part, shapes
from hv15_batch.weights.single_file import WHOLE_TYPES, SingleFile, Stored

_PIECE_BYTES = 32 * MIB
"""Bytes of a file that are read at once."""
_ALIGNMENT = 8

Bytes = npt.NDArray[np.uint8]


def diffusers_bytes(file: SingleFile) -> int:
    """Return how many bytes the values take in diffusers' layout."""
    return sum(
        _width(_type_of(file, name)) * int(np.prod(shape, dtype=np.int64))
        for name, shape in shapes(file.config).items()
    )


def write_diffusers(file: SingleFile, target: IO[bytes]) -> None:
    """Write every tensor in diffusers' layout as one safetensors file.

    Args:
        file: A whole one, as `open_single_file` returns it.
        target: Open for writing.

    Raises:
        OSError: the file cannot be read, or the target not be written.
    """
    target_shapes = shapes(file.config)
    # Wide types first, so that each begins at a multiple of its size.
    order = sorted(file.parts, key=lambda name: (-_width(_type_of(file, name)), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        dtype, shape = _type_of(file, name), target_shapes[name]
        num_bytes = _width(dtype) * int(np.prod(shape, dtype=np.int64))
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + num_bytes],
        }
        offset += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    target.write(len(text).to_bytes(8, "little") + text)
    values: Bytes = np.memmap(file.path, np.uint8, "r")
    for name in order:
        for piece in _pieces(file, values, file.parts[name]):
            target.write(piece)


def _type_of(file: SingleFile, name: str) -> str:
    source = file.parts[name].source
    return "BF16" if source in file.scales else file.tensors[source].dtype


def _width(dtype: str) -> int:
    return WHOLE_TYPES[dtype]


def _pieces(file: SingleFile, values: Bytes, part: Part) -> Iterator[bytes]:
    """Yield the bytes of one tensor of diffusers, in order."""
    stored = file.tensors[part.source]
    num_rows = stored.shape[0] if stored.shape else 1
    row_bytes = (stored.end - stored.begin) // max(num_rows, 1)
    at_once = max(1, _PIECE_BYTES // max(row_bytes, 1))
    scale = None
    if part.source in file.scales:
        scale = _read_scale(values, file.scales[part.source])
    for first, last in _row_ranges(num_rows, part):
        for begin in range(first, last, at_once):
            end = min(begin + at_once, last)
            raw = values[stored.begin + begin * row_bytes : stored.begin + end * row_bytes]
            if scale is None:
                yield raw.tobytes()
            else:
                rows = scale if scale.shape[0] == 1 else scale[begin:end]
                restored = restore(raw.reshape(end - begin, -1), stored.dtype, rows)
                yield to_bfloat16(restored).tobytes()


def _row_ranges(num_rows: int, part: Part) -> list[tuple[int, int]]:
    if part.third is not None:
        third = num_rows // 3
        return [(part.third * third, (part.third + 1) * third)]
    if part.swaps_halves:
        return [(num_rows // 2, num_rows), (0, num_rows // 2)]
    return [(0, num_rows)]


def _read_scale(values: Bytes, stored: Stored) -> npt.NDArray[np.float32]:
    """Return a scale as (rows or 1, blocks or 1, 1)."""
    flat = values[stored.begin : stored.end].view(np.float32)
    if len(stored.shape) < 2:
        return flat.reshape(1, 1, 1)
    return flat.reshape(stored.shape[0], -1, 1)


def restore(raw: Bytes, dtype: str, scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return values in 8 bits times their scale.

    Args:
        raw: (rows, columns), the values as they are stored.
        dtype: `F8_E4M3` or `F8_E5M2`.
        scale: (rows or 1, blocks or 1, 1); a block is an equal share of a row.
    """
    values = _FP8[dtype][raw]
    blocks = values.reshape(values.shape[0], scale.shape[1], -1)
    return (blocks * scale).reshape(values.shape)


def _e4m3() -> npt.NDArray[np.float32]:
    """Return the 256 values of float8_e4m3fn: 4 bits of exponent with bias 7, 3 of mantissa.

    No infinity; all bits set is NaN. Source: Micikevicius et al. 2022, arXiv 2209.05433, table 1.
    """
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(
        exponent == 0,
        np.ldexp(mantissa / 8.0, -6),
        np.ldexp(1 + mantissa / 8.0, exponent - 7),
    )
    value[(code & 127) == 127] = np.nan
    return np.where(code < 128, value, -value).astype(np.float32)


_FP8 = {
    "F8_E4M3": _e4m3(),
    # The upper half of float16.
    "F8_E5M2": (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32),
}


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return float32 values rounded to the nearest bfloat16, ties to even, as their bits."""
    bits = values.view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + 0x7FFF).astype(np.uint32)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
