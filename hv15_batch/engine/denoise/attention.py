"""Attention of the transformer blocks: the mask-free processor and the choice of the backend.

Only `transformer_blocks` are touched: the token refiner has a processor of another class, which
diffusers' own `set_attn_processor` would replace.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _check_attention_backend_requirements,
    _maybe_download_kernel_for_backend,
    dispatch_attention_fn,
)
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0

from hv15_batch.config.settings import Config
from hv15_batch.engine.denoise.attention_check import Heads, check_kernel
from hv15_batch.engine.device import torch_dtype
from hv15_batch.engine.load.components import read_json
from hv15_batch.errors import Refused
from hv15_batch.model.architectures import read_architecture
from hv15_batch.model.attention import (
    AUTO,
    NATIVE,
    auto_kernel,
    is_fetched,
    package_fault,
    package_of,
)
from hv15_batch.weights.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 64
NUM_TEXT_TOKENS = 61
"""Of a prompt of usual length. Odd on purpose: no tile size divides the tokens of a clip then."""


class MaskFreeAttnProcessor:
    """Joint attention over video and text tokens of one clip, none of them padding.

    With a batch of one and the text cut to its valid length every token attends to every other,
    so no mask is built. The processor of plain diffusers builds a dense boolean [S, S] one in each
    block, which also keeps SDPA off its fused kernels (diffusers 0.42.1,
    transformer_hunyuan_video15.py).
    """

    _attention_backend: AttentionBackendName | None = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the attention output of video [1, N, D] and text [1, L, D].

        `attention_mask` is all true by construction and is not read.
        """
        lengths = [hidden_states.shape[1], encoder_hidden_states.shape[1]]
        query = _heads(attn.to_q(hidden_states), attn.heads, attn.norm_q)
        key = _heads(attn.to_k(hidden_states), attn.heads, attn.norm_k)
        value = _heads(attn.to_v(hidden_states), attn.heads)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)

        text_query = _heads(attn.add_q_proj(encoder_hidden_states), attn.heads, attn.norm_added_q)
        text_key = _heads(attn.add_k_proj(encoder_hidden_states), attn.heads, attn.norm_added_k)
        text_value = _heads(attn.add_v_proj(encoder_hidden_states), attn.heads)

        joint = dispatch_attention_fn(
            torch.cat([query, text_query], dim=1),
            torch.cat([key, text_key], dim=1),
            torch.cat([value, text_value], dim=1),
            backend=self._attention_backend,
        )
        video, text = joint.flatten(2, 3).to(query.dtype).split(lengths, dim=1)
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


def _heads(projected: torch.Tensor, heads: int, norm: Any = None) -> torch.Tensor:
    """Return [1, S, D] as [1, S, heads, D / heads], each head normalised."""
    split: torch.Tensor = projected.unflatten(2, (heads, -1))
    if norm is not None:
        split = norm(split)
    return split


def check_backend(
    config: Config, checkpoint: Checkpoint, num_video_tokens: int, device: torch.device
) -> str:
    """Return the backend that will be in effect, having run it on one block's real shapes.

    To be called once at the start, before texts are encoded.

    Args:
        config: names backend, mask and type.
        checkpoint: says how many heads there are.
        num_video_tokens: of the first clip.
        device: where the transformer will run.

    Raises:
        Refused: the backend cannot run here, or its result is not that of torch.
    """
    heads = read_heads(config, checkpoint)
    runtime = config.runtime
    backend = resolve_backend(runtime.attention_backend, heads, runtime.mask_free, device)
    check_kernel(backend.value, heads, num_video_tokens + NUM_TEXT_TOKENS, device)
    return str(backend.value)


def read_heads(config: Config, checkpoint: Checkpoint) -> Heads:
    """Return the heads of a transformer that is not loaded yet.

    Raises:
        Refused: there is no transformer in the checkpoint.
    """
    if checkpoint.is_random:
        values = read_architecture("full")["transformer"]
    else:
        folder = checkpoint.files()
        values = read_json(folder / "transformer" / "config.json", str(folder))
    return Heads(values["num_attention_heads"], values["attention_head_dim"], torch_dtype(config))


def apply_attention(
    transformer: Any, backend: str, mask_free: bool, device: torch.device | None = None
) -> str:
    """Set the processors of `transformer.transformer_blocks`; return the backend in effect.

    Args:
        transformer: mutated.
        backend: `auto` or a name of diffusers' `AttentionBackendName`.
        mask_free: False keeps the processor of plain diffusers, which masks the padded text.
        device: where the transformer will run; None means where it is now.

    Raises:
        Refused: see `resolve_backend`.
    """
    device = torch.device(device or transformer.device)
    chosen = resolve_backend(backend, heads_of(transformer), mask_free, device)
    for block in transformer.transformer_blocks:
        processor = MaskFreeAttnProcessor() if mask_free else HunyuanVideo15AttnProcessor2_0()
        processor._attention_backend = chosen
        block.attn.set_processor(processor)
    return attention_backend_of(transformer)


def heads_of(transformer: Any) -> Heads:
    """Return the heads of a loaded transformer."""
    config = transformer.config
    return Heads(config.num_attention_heads, config.attention_head_dim, transformer.dtype)


def resolve_backend(
    backend: str, heads: Heads, mask_free: bool, device: torch.device
) -> AttentionBackendName:
    """Return the backend that runs here; needs no transformer, so it can be asked at the start.

    `auto` means: on the CPU `native`; on CUDA with a 16-bit type and no mask `_native_cudnn` from
    compute capability 9.0 on and `_native_flash` from 8.0 on; otherwise `native`. Every backend is
    run once on a few tokens before it is accepted; where that fails for `auto`, `native` is taken.

    Args:
        backend: `auto` or a name of diffusers' `AttentionBackendName`.
        heads: of the transformer.
        mask_free: False means that the processor of plain diffusers gives it a mask.
        device: where the transformer will run.

    Raises:
        Refused: unknown backend, its package is missing, or it cannot run here (on this
            device, with this type, or with a mask when `mask_free` is False).
    """
    name = backend.lower()
    if name == AUTO:
        return _auto_backend(heads, mask_free, device)
    chosen = _known_backend(name)
    if fault := _probe(chosen, heads, mask_free, device):
        raise Refused(_refusal(chosen.value, fault, heads, mask_free, device))
    return chosen


def attention_backend_of(transformer: Any) -> str:
    """Return the backend of the transformer blocks, read back from their processors."""
    backends = {block.attn.processor._attention_backend for block in transformer.transformer_blocks}
    assert len(backends) == 1, backends
    (backend,) = backends
    return NATIVE if backend is None else str(backend.value)


def is_mask_free(transformer: Any) -> bool:
    """Whether every transformer block runs without a mask, read back from their processors."""
    return all(
        isinstance(block.attn.processor, MaskFreeAttnProcessor)
        for block in transformer.transformer_blocks
    )


def _auto_backend(heads: Heads, mask_free: bool, device: torch.device) -> AttentionBackendName:
    name = NATIVE
    sixteen_bit = heads.dtype in (torch.bfloat16, torch.float16)
    if device.type == "cuda" and mask_free and sixteen_bit:
        name = auto_kernel(torch.cuda.get_device_capability(device))
    fault = _probe(AttentionBackendName(name), heads, mask_free, device)
    if fault:
        logger.warning("attention backend %s does not run here (%s); using native", name, fault)
        name = NATIVE
    return AttentionBackendName(name)


def _known_backend(name: str) -> AttentionBackendName:
    try:
        return AttentionBackendName(name)
    except ValueError:
        allowed = ", ".join([AUTO, *sorted(member.value for member in AttentionBackendName)])
        raise Refused(
            f"runtime.attention_backend={name}: no such backend; allowed are {allowed}."
        ) from None


def _probe(
    backend: AttentionBackendName, heads: Heads, mask_free: bool, device: torch.device
) -> str | None:
    """Run the backend once on a few tokens of these heads; return its error or None.

    A trial is more reliable than a list: what a backend accepts depends on device, type, packages
    and mask.
    """
    mask = None
    try:
        _check_attention_backend_requirements(backend)
        _maybe_download_kernel_for_backend(backend)
        shape = (1, _PROBE_TOKENS, heads.count, heads.dim)
        tokens = torch.ones(shape, dtype=heads.dtype, device=device)
        if not mask_free:  # as plain diffusers makes it
            mask = torch.ones((1, 1, _PROBE_TOKENS, _PROBE_TOKENS), dtype=torch.bool, device=device)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is in the error
            result = dispatch_attention_fn(tokens, tokens, tokens, attn_mask=mask, backend=backend)
    except Exception as error:  # third-party kernels raise anything; the caller reports it
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    # Attention over equal values gives these values back.
    return None if torch.allclose(result.float(), tokens.float(), atol=0.05) else "wrong result"


def _refusal(name: str, fault: str, heads: Heads, mask_free: bool, device: torch.device) -> str:
    usable = [
        member.value
        for member in AttentionBackendName
        # A kernel is not fetched only to be listed.
        if not is_fetched(member.value) and _probe(member, heads, mask_free, device) is None
    ]
    package, lack = package_of(name), package_fault(name)
    advice = "Use"
    if lack and package:
        fault = lack  # diffusers' message names versions that no registry has
        advice = f"Install it with `{package.install}`, or use"
    elif package:
        advice = f"Where it was built for another torch, `{package.install}` again, or use"
    where = f"on {device.type} in {str(heads.dtype).removeprefix('torch.')}"
    masked = "" if mask_free else " with a mask (runtime.mask_free=true drops it)"
    return (
        f"runtime.attention_backend={name} cannot run here, {where}{masked}: {fault.rstrip('.')}. "
        f"{advice} one of {', '.join([AUTO, *usable])}."
    )
