"""Whether an attention kernel computes attention: compared with torch's own first.

Needs no transformer, so that a kernel which is off is refused before a text is encoded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from hv15_batch.errors import Refused

MAX_RELATIVE_ERROR = 0.08
"""Norm of the difference over the norm, of one head in one chunk of rows. An emulation of
SageAttention (INT8 scores, FP8 weights and values) stays under 0.042 in all of them; ten keys that
are lost give 0.4 in their chunk, one row 0.125, a scale that is 3 % off 0.1."""
CHUNK = 64
"""Rows: as many as the smallest tile of the kernels, so that a tile that is lost is all of one."""


@dataclass(frozen=True)
class Heads:
    """What of a transformer decides which attention kernels run."""

    count: int
    dim: int
    """Channels of one head."""
    dtype: torch.dtype


def check_kernel(name: str, heads: Heads, num_tokens: int, device: torch.device) -> None:
    """Compare a backend that is not torch's own with torch's, head by head and chunk by chunk.

    Takes some 20 KiB of device memory per token: 1 GiB for 480x848x121.

    Args:
        name: backend; one of torch's SDPA (`native` in its name) is not checked.
        heads: of the transformer.
        num_tokens: video and text tokens of a clip.
        device: where it runs.

    Raises:
        Refused: it fails on so many tokens, or the relative error of a head in a chunk is
            larger than a quantised kernel's may be.
    """
    if "native" in name:
        return
    where = f"runtime.attention_backend={name}"
    query, key, value = _aimed_inputs(heads, num_tokens, device)
    reference = dispatch_attention_fn(query, key, value, backend=AttentionBackendName.NATIVE)
    try:
        found = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name))
    except Exception as error:  # third-party kernels raise anything
        raise Refused(
            f"{where}: fails on {num_tokens} tokens ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}); use auto."
        ) from error
    if found.shape != reference.shape:
        raise Refused(
            f"{where}: returns shape {tuple(found.shape)} where torch returns "
            f"{tuple(reference.shape)}; use auto."
        )
    errors = relative_errors(found, reference)
    worst = int(errors.nan_to_num(math.inf).argmax())
    off = float(errors.flatten()[worst])
    if not off <= MAX_RELATIVE_ERROR:
        chunk, head = divmod(worst, heads.count)
        last = min((chunk + 1) * CHUNK, num_tokens) - 1
        raise Refused(
            f"{where}: its result differs from torch's by {off:.1%} in tokens {chunk * CHUNK} to "
            f"{last} of {num_tokens}, head {head} ({MAX_RELATIVE_ERROR:.0%} is allowed); use auto."
        )


def relative_errors(found: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return the norm of the difference over that of the reference [chunks, heads].

    Args:
        found: [1, S, heads, channels].
        reference: the same; the last chunk of its rows may be short.
    """
    each = []
    for head in range(reference.shape[2]):  # one by one: in float32 they are twice as large
        expected = reference[0, :, head].float()
        off = found[0, :, head].float() - expected
        each.append(_chunk_norms(off) / _chunk_norms(expected))
    return torch.stack(each, dim=1)


def _chunk_norms(rows: torch.Tensor) -> torch.Tensor:
    chunks = F.pad(rows, (0, 0, 0, -rows.shape[0] % CHUNK)).unflatten(0, (-1, CHUNK))
    norms: torch.Tensor = torch.linalg.vector_norm(chunks, dim=(1, 2))
    return norms


def _aimed_inputs(
    heads: Heads, num_tokens: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return query, key and value [1, S, heads, channels], the same ones each time.

    Between random tokens attention is nearly uniform: of 49,350 keys the last 60 could be left out
    and the result would change by 3 %. So each chunk of queries is aimed at the same chunk of keys:
    both are shifted along a direction of their own, as far as gives these keys about as much weight
    as all others together. A key or row that is lost then shows in its chunk.
    """
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, num_tokens, heads.count, heads.dim)
    query, key, value = (
        torch.randn(shape, generator=generator, device=device, dtype=heads.dtype) for _ in range(3)
    )
    chunks = -(-num_tokens // CHUNK)
    signs = torch.randint(0, 2, (chunks, 1, heads.dim), generator=generator, device=device) * 2 - 1
    # Shifting both by `size` along the signs adds size^2 * dim / sqrt(dim) to the scaled score.
    size = math.sqrt(math.log(max(num_tokens / CHUNK, 1.0)) / math.sqrt(heads.dim))
    shift = (size * signs).to(heads.dtype).repeat_interleave(CHUNK, dim=0)[:num_tokens]
    return query + shift, key + shift, value
