"""Calls one attention kernel by name: torch's own, those of diffusers, comfy-kitchen's.

Kernels from outside torch go through one operator. The compiler does not look into it, so that they
run in blocks that are compiled as full graphs, whatever they are written in.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import huggingface_hub.constants
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _check_attention_backend_requirements,
    _maybe_download_kernel_for_backend,
    dispatch_attention_fn,
)

from hv15_batch.errors import Refused
from hv15_batch.model.attention import COMFY_INT8, KERNELS, card_fault, hub_of, package_fault
from hv15_batch.weights.kernels.fetched import find_fetched, hub_fault

PROBE_TOKENS = 64


@dataclass(frozen=True)
class Heads:
    """What of a transformer decides which attention kernels run."""

    count: int
    dim: int
    """Channels of one head."""
    dtype: torch.dtype


def names() -> list[str]:
    """Return the names of all kernels that diffusers and this package know."""
    return [*(member.value for member in AttentionBackendName), COMFY_INT8]


def is_packaged(name: str) -> bool:
    """Whether a kernel comes from outside torch."""
    return name in KERNELS and KERNELS[name].package is not None


def attend(name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Return attention over query, key and value [1, S, heads, channels], without a mask."""
    if is_packaged(name):
        result: torch.Tensor = packaged_attention(query, key, value, name)
        return result
    return _dispatch(name, query, key, value)


@torch.library.custom_op("hv15_batch::attention", mutates_args=())
def packaged_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, name: str
) -> torch.Tensor:
    """Run a kernel from outside torch on [1, S, heads, channels]; its inputs stay as they are."""
    if KERNELS[name].may_write_keys:
        key = key.clone()
    if name == COMFY_INT8:
        result = _comfy_int8(query, key, value)
    else:
        result = _dispatch(name, query, key, value)
    return result.contiguous()


@packaged_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, name: str) -> torch.Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


def _dispatch(
    name: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    backend = AttentionBackendName(name)
    result: torch.Tensor = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=backend)
    return result


def _comfy_int8(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    from comfy_kitchen.sage_attention import int8_attention

    by_head = (tokens.transpose(1, 2) for tokens in (query, key, value))
    result: torch.Tensor = int8_attention(*by_head)
    return result.transpose(1, 2)


def load_kernel(name: str) -> None:
    """Make a kernel ready to be called; one of the hub is taken from this machine's disk.

    Raises:
        Refused: `prefetch` has not fetched it for this torch.
        Exception: whatever its package raises.
    """
    if name == COMFY_INT8:
        if fault := package_fault(name):
            raise RuntimeError(fault)
        from comfy_kitchen import sage_attention  # noqa: F401

        return
    backend = AttentionBackendName(name)
    _check_attention_backend_requirements(backend)
    if hub_of(name) is None:
        return
    config = attention_dispatch._HUB_KERNELS_REGISTRY[backend]
    if config.kernel_fn is None:
        if fault := hub_fault(name):
            raise Refused(fault)
        fetched = find_fetched(name)
        assert fetched is not None
        # By its commit: `kernels` finds a version in the cache only under a branch's name.
        config.revision, config.version = fetched.commit, None
    with _without_network():
        _maybe_download_kernel_for_backend(backend)


@contextmanager
def _without_network() -> Iterator[None]:
    """Let diffusers and `kernels` take what is on the disk, which was agreed to when fetched."""
    values: list[tuple[Any, str]] = [
        (huggingface_hub.constants, "HF_HUB_OFFLINE"),
        (attention_dispatch, "HF_HUB_OFFLINE"),
        (attention_dispatch, "DIFFUSERS_TRUST_REMOTE_KERNELS"),
    ]
    before = [(module, name, getattr(module, name)) for module, name in values]
    for module, name in values:
        setattr(module, name, True)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def probe(name: str, heads: Heads, mask_free: bool, device: torch.device) -> str | None:
    """Run a kernel once on a few tokens of these heads; return its error or None.

    A trial is more reliable than a list: what a kernel accepts depends on device, type, packages
    and mask. Only the card's compute capability is looked up, since some kernels crash on others.

    Raises:
        Refused: it is of the hub, and not fetched.
    """
    if device.type == "cuda":
        if fault := card_fault(name, torch.cuda.get_device_capability(device)):
            return fault
    if name == COMFY_INT8 and not mask_free:
        return "takes no mask"
    try:
        load_kernel(name)
        shape = (1, PROBE_TOKENS, heads.count, heads.dim)
        # Each its own: some kernels write into their keys.
        query, key, value = (torch.ones(shape, dtype=heads.dtype, device=device) for _ in range(3))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is in the error
            if mask_free:
                result = attend(name, query, key, value)
            else:  # as plain diffusers makes it
                shape_of_mask = (1, 1, PROBE_TOKENS, PROBE_TOKENS)
                mask = torch.ones(shape_of_mask, dtype=torch.bool, device=device)
                result = _dispatch(name, query, key, value, mask)
        # Attention over equal values gives these values back.
        is_right = bool((result.float() - 1).abs().max() <= 0.05)
    except Refused:
        raise
    except Exception as error:  # third-party kernels raise anything; the caller reports it
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None if is_right else "wrong result"
