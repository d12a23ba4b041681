"""Whether an attention kernel computes attention: compared with torch's own first.

Needs no transformer, so that a kernel which is off is refused before a text is encoded. It runs at
the full length of a clip, on inputs that show what a kernel loses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from hv15_batch.engine.denoise.attention_kernels import Heads, attend, is_packaged
from hv15_batch.errors import Refused
from hv15_batch.model.attention import KERNELS, NATIVE

MAX_RELATIVE_ERRORS = {16: 0.01, 8: 0.15, 4: 0.35}
"""By the bits of the numbers that a kernel multiplies: norm of the difference over the norm, of one
head in `ROWS` rows, the worst ones of all inputs.

Faults, emulated at 6,000 tokens: a scale that is 3 % off gives 0.11, one lost key 0.20, one lost
row 0.31, ten lost keys 0.38, a scale that is 10 % off 0.40, a lost tile of keys 1.0. Kernels that
compute what they should, emulated up to 25,500 tokens: bfloat16 0.0033; INT8 scores 0.034 to 0.046;
FP8 scores 0.11, if keys are smoothed and rotated; FP4 (SageAttention 3) 0.27. So 1 % is three times
bfloat16 and a twentieth of a lost key. 15 % lets a careful 8-bit kernel pass and finds a lost key.
35 % finds ten lost keys; FP4 itself hides less than that."""
CHUNK = 64
"""Rows that look at the same keys: as many as the smallest tile of the kernels."""
ROWS = 16
"""Rows that are judged together. In fewer rows a lost one weighs more, and rounding hardly does."""
INPUTS = ("normal", "outlier", "aimed")
"""Kinds of query, key and value; see `make_inputs`."""


@dataclass(frozen=True)
class Worst:
    """Where a kernel is furthest from torch, on one kind of inputs."""

    inputs: str
    error: float
    """Relative; not a number if the result is none."""
    first: int
    last: int
    """Tokens."""
    head: int


class KernelOff(Exception):
    """A kernel must not be used; the message is half a sentence with the figure."""


def check_kernel(
    name: str, heads: Heads, num_tokens: int, device: torch.device, *, compiles: bool = False
) -> str | None:
    """Compare a typed backend that is not torch's own with torch's.

    Args:
        name: backend; one of torch's SDPA (`native` in its name) is not checked.
        heads: of the transformer.
        num_tokens: video and text tokens of a clip.
        device: where it runs.
        compiles: whether the run compiles its blocks, see `judge_kernel`.

    Returns:
        What was found, in words; None of a backend that is not checked.

    Raises:
        Refused: see `judge_kernel`.
    """
    if "native" in name:
        return None
    try:
        return judge_kernel(name, heads, num_tokens, device, compiles=compiles)
    except KernelOff as fault:
        raise Refused(f"runtime.attention_backend={name}: {fault}; use auto.") from fault


def judge_kernel(
    name: str, heads: Heads, num_tokens: int, device: torch.device, *, compiles: bool = False
) -> str:
    """Compare a kernel with torch's, on all inputs, head by head and `ROWS` by `ROWS`.

    Takes some 30 KiB of device memory per token: 1.4 GiB for 480x848x121. Where the run compiles, a
    kernel that the compiler looks into is compiled here too: `flex` is another kernel then, and
    without it holds all scores at once.

    Returns:
        The errors and the limit, in words.

    Raises:
        KernelOff: it fails on so many tokens, writes into its inputs, or is further from torch
            than one of its bits may be.
    """
    bits = KERNELS[name].bits if name in KERNELS else 16
    limit = MAX_RELATIVE_ERRORS[bits]
    found = list(worst_errors(name, heads, num_tokens, device, compiles=compiles))
    worst = max(found, key=lambda it: math.inf if math.isnan(it.error) else it.error)
    if not worst.error <= limit:
        raise KernelOff(
            f"its result differs from torch's by {worst.error:.1%} in tokens {worst.first} to "
            f"{worst.last} of {num_tokens}, head {worst.head}, on {worst.inputs} inputs "
            f"({limit:.0%} is allowed in {bits} bits)"
        )
    errors = ", ".join(f"{it.error:.2%} on {it.inputs} inputs" for it in found)
    return (
        f"differs from torch's by at most {errors} over {num_tokens} tokens ({limit:.0%} is "
        f"allowed in {bits} bits)"
    )


def worst_errors(
    name: str, heads: Heads, num_tokens: int, device: torch.device, *, compiles: bool = False
) -> Iterator[Worst]:
    """Yield where a kernel is furthest from torch, for each kind of inputs.

    Raises:
        KernelOff: it fails, writes into its inputs, or returns another shape.
    """
    run: Callable[..., torch.Tensor] = partial(attend, name)
    if compiles and not is_packaged(name):
        run = torch.compile(run, fullgraph=True)
    for kind in INPUTS:
        inputs = make_inputs(kind, heads, num_tokens, device)
        with torch.no_grad():
            reference = attend(NATIVE, *inputs)
            sums = [_checksum(tokens) for tokens in inputs]
            try:
                found = run(*inputs)
                changed = [_checksum(tokens) for tokens in inputs] != sums
            except Exception as error:  # third-party kernels raise anything
                raise KernelOff(
                    f"fails on {num_tokens} tokens ({type(error).__name__}: "
                    f"{' '.join(str(error).split())[:300]})"
                ) from error
        if changed:
            raise KernelOff("writes into its inputs, which a compiled block may use again")
        if found.shape != reference.shape:
            raise KernelOff(
                f"returns shape {tuple(found.shape)} where torch returns {tuple(reference.shape)}"
            )
        errors = relative_errors(found, reference)
        place = int(errors.nan_to_num(math.inf).argmax())
        part, head = divmod(place, heads.count)
        last = min((part + 1) * ROWS, num_tokens) - 1
        yield Worst(kind, float(errors.flatten()[place]), part * ROWS, last, head)


def relative_errors(found: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the norm of the difference over that of the reference [parts, heads].

    Args:
        found: [1, S, heads, channels].
        reference: the same; the last part of its rows may be short.
    """
    each = []
    for head in range(reference.shape[2]):  # one by one: in float32 they are twice as large
        expected = reference[0, :, head].float()
        off = found[0, :, head].float() - expected
        each.append(_norms(off) / _norms(expected))
    return torch.stack(each, dim=1)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    parts = F.pad(rows, (0, 0, 0, -rows.shape[0] % ROWS)).unflatten(0, (-1, ROWS))
    norms: torch.Tensor = torch.linalg.vector_norm(parts, dim=(1, 2))
    return norms


def _checksum(tokens: torch.Tensor) -> int:
    """Return a sum of the bits, which is the same for the same values."""
    # Eight bytes at a time: a sum in another type would first make a copy in it.
    return int(tokens.flatten().view(torch.int64).sum())


def make_inputs(
    kind: str, heads: Heads, num_tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return query, key and value [1, S, heads, channels], the same ones each time.

    `normal`: independent numbers, so that attention is nearly uniform and all keys count alike.

    `outlier`: as in trained models, some channels of the keys have an offset, which cancels in the
    softmax and ruins the range of a common scale; a few channels of queries and keys are large; the
    values are not centred.

    `aimed`: between random tokens a lost key hardly shows: of 49,350 keys the last 60 could be left
    out and the result would change by 3 %. So each chunk of queries is aimed at the same chunk of
    keys: both are shifted along a direction of their own, as far as gives these keys about as much
    weight as all others together.
    """
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, num_tokens, heads.count, heads.dim)
    query, key, value = (
        torch.randn(shape, generator=generator, device=device, dtype=heads.dtype) for _ in range(3)
    )

    def signs(*size: int) -> torch.Tensor:
        return torch.randint(0, 2, size, generator=generator, device=device) * 2 - 1

    if kind == "outlier":
        sign = signs(heads.count, heads.dim).to(heads.dtype)
        offsets, large = torch.zeros_like(sign), torch.ones_like(sign)
        offsets[:, : heads.dim // 20] = 8.0
        large[:, heads.dim // 16 : heads.dim // 16 + heads.dim // 32] = 8.0
        query, value = query * 2, value + 0.5 * sign
        return query, key * large * 0.7 + offsets * sign, value
    if kind == "aimed":
        chunks = -(-num_tokens // CHUNK)
        # Shifting both by `size` along the signs adds size^2 * dim / sqrt(dim) to the scaled score.
        size = math.sqrt(math.log(max(num_tokens / CHUNK, 1.0)) / math.sqrt(heads.dim))
        shift = (size * signs(chunks, 1, heads.dim)).to(heads.dtype)
        shift = shift.repeat_interleave(CHUNK, dim=0)[:num_tokens]
        return query + shift, key + shift, value
    return query, key, value
