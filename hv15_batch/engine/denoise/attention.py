"""Attention of the transformer blocks: the mask-free processor and the choice of the backend.

Only `transformer_blocks` are touched: the token refiner has a processor of another class, which
diffusers' own `set_attn_processor` would replace.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15AttnProcessor2_0

from hv15_batch.config.checks import typed_compile
from hv15_batch.config.settings import Config
from hv15_batch.engine.denoise.attention_check import KernelOff, check_kernel, judge_kernel
from hv15_batch.engine.denoise.attention_kernels import (
    Heads,
    is_packaged,
    names,
    packaged_attention,
    probe,
)
from hv15_batch.engine.device import torch_dtype
from hv15_batch.engine.load.components import read_json
from hv15_batch.errors import Refused
from hv15_batch.model.architectures import read_architecture
from hv15_batch.model.attention import (
    AUTO,
    COMFY_INT8,
    NATIVE,
    auto_kernels,
    is_fetched,
    package_fault,
    package_of,
)
from hv15_batch.weights.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

NUM_TEXT_TOKENS = 61
"""Of a prompt of usual length. Odd on purpose: no tile size divides the tokens of a clip then."""


class MaskFreeAttnProcessor:
    """Joint attention over video and text tokens of one clip, none of them padding.

    With a batch of one and the text cut to its valid length every token attends to every other,
    so no mask is built. The processor of plain diffusers builds a dense boolean [S, S] one in each
    block, which also keeps SDPA off its fused kernels (diffusers 0.42.1,
    transformer_hunyuan_video15.py).
    """

    _attention_backend: AttentionBackendName | str | None = None
    """A name that diffusers does not know stands as text."""
    _packaged: str | None = None
    """The same name, if the kernel comes from outside torch."""
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

        query = torch.cat([query, text_query], dim=1)
        key = torch.cat([key, text_key], dim=1)
        value = torch.cat([value, text_value], dim=1)
        if self._packaged is not None:
            joint = packaged_attention(query, key, value, self._packaged)
        else:
            joint = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        video, text = joint.flatten(2, 3).to(query.dtype).split(lengths, dim=1)
        return attn.to_out[1](attn.to_out[0](video)), attn.to_add_out(text)


def _heads(projected: torch.Tensor, heads: int, norm: Any = None) -> torch.Tensor:
    """Return [1, S, D] as [1, S, heads, D / heads], each head normalised."""
    split: torch.Tensor = projected.unflatten(2, (heads, -1))
    if norm is not None:
        split = norm(split)
    return split


def check_backend(
    config: Config,
    checkpoint: Checkpoint,
    num_video_tokens: int,
    device: torch.device,
    tell: Callable[[str], None] = lambda _: None,
) -> str:
    """Return the backend that will be in effect, having run it on one block's real shapes.

    To be called once at the start, before texts are encoded. Only here does `auto` take a kernel
    from outside torch: FlashAttention 3 on Hopper, if its package is installed and its result is
    right.

    Args:
        config: names backend, mask and type.
        checkpoint: says how many heads there are.
        num_video_tokens: of the longest clip.
        device: where the transformer will run.
        tell: told why `auto` passes a kernel over.

    Raises:
        Refused: the backend that was typed cannot run here, or its result is not that of torch.
    """
    heads, runtime = read_heads(config, checkpoint), config.runtime
    num_tokens = num_video_tokens + NUM_TEXT_TOKENS
    if runtime.attention_backend.lower() == AUTO:
        for name in _auto_candidates(heads, runtime.mask_free, device)[:-1]:
            if package_fault(name) is not None:
                continue
            fault = probe(name, heads, runtime.mask_free, device)
            if fault is None:
                try:
                    logger.info("%s: %s", name, judge_kernel(name, heads, num_tokens, device))
                    return name
                except KernelOff as off:
                    fault = str(off)
            text = f"runtime.attention_backend=auto passes over {name}: {fault}"
            logger.warning("%s", text)
            tell(text)
    backend = resolve_backend(runtime.attention_backend, heads, runtime.mask_free, device)
    compiles = typed_compile(config) is True
    if found := check_kernel(backend, heads, num_tokens, device, compiles=compiles):
        logger.info("%s: %s", backend, found)
    return backend


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
        processor._attention_backend = (
            chosen if chosen == COMFY_INT8 else AttentionBackendName(chosen)
        )
        if mask_free and is_packaged(chosen):
            processor._packaged = chosen
        block.attn.set_processor(processor)
    return attention_backend_of(transformer)


def heads_of(transformer: Any) -> Heads:
    """Return the heads of a loaded transformer."""
    config = transformer.config
    return Heads(config.num_attention_heads, config.attention_head_dim, transformer.dtype)


def resolve_backend(backend: str, heads: Heads, mask_free: bool, device: torch.device) -> str:
    """Return the backend that runs here; needs no transformer, so it can be asked at the start.

    `auto` means a kernel of torch: the last of `auto_kernels` on CUDA with a 16-bit type and no
    mask, else `native`. Every backend is run once on a few tokens before it is accepted; where that
    fails for `auto`, `native` is taken.

    Args:
        backend: `auto` or one of `attention_kernels.names`.
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
    if name not in names():
        allowed = ", ".join([AUTO, *sorted(names())])
        raise Refused(f"runtime.attention_backend={name}: no such backend; allowed are {allowed}.")
    if fault := probe(name, heads, mask_free, device):
        raise Refused(_refusal(name, fault, heads, mask_free, device))
    return name


def attention_backend_of(transformer: Any) -> str:
    """Return the backend of the transformer blocks, read back from their processors."""
    backends = {block.attn.processor._attention_backend for block in transformer.transformer_blocks}
    assert len(backends) == 1, backends
    (backend,) = backends
    if backend is None:
        return NATIVE
    return backend.value if isinstance(backend, AttentionBackendName) else str(backend)


def is_mask_free(transformer: Any) -> bool:
    """Whether every transformer block runs without a mask, read back from their processors."""
    return all(
        isinstance(block.attn.processor, MaskFreeAttnProcessor)
        for block in transformer.transformer_blocks
    )


def _auto_candidates(heads: Heads, mask_free: bool, device: torch.device) -> tuple[str, ...]:
    """Return what `auto` may take, the best first; the last is torch's own."""
    sixteen_bit = heads.dtype in (torch.bfloat16, torch.float16)
    if device.type == "cuda" and mask_free and sixteen_bit:
        return auto_kernels(torch.cuda.get_device_capability(device))
    return (NATIVE,)


def _auto_backend(heads: Heads, mask_free: bool, device: torch.device) -> str:
    name = _auto_candidates(heads, mask_free, device)[-1]
    if fault := probe(name, heads, mask_free, device):
        logger.warning("attention backend %s does not run here (%s); using native", name, fault)
        return NATIVE
    return name


def _refusal(name: str, fault: str, heads: Heads, mask_free: bool, device: torch.device) -> str:
    usable = [
        other
        for other in names()
        # A kernel is not fetched only to be listed.
        if not is_fetched(other) and probe(other, heads, mask_free, device) is None
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
