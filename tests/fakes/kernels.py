"""Attention kernels that are not there: their packages, and what they would compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from huggingface_hub import constants

from fakes.packages import install

Run = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

COMMIT = "5" * 40


def exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention over [1, S, heads, channels]."""
    by_head = (tokens.transpose(1, 2) for tokens in (query, key, value))
    return F.scaled_dot_product_attention(*by_head).transpose(1, 2)


def without_last_keys(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A kernel that loses ten keys."""
    return exact(query, key[:, :-10], value[:, :-10])


def writing_into_keys(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As SageAttention 1.0.6: the mean is taken off the keys where they lie."""
    key -= key.mean(dim=1, keepdim=True)
    return exact(query, key, value)


def register(patch: pytest.MonkeyPatch, name: str, run: Run) -> None:
    """Let a function take the place of a kernel of diffusers, its package included."""

    def registered(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return run(query, key, value)

    backend = AttentionBackendName(name)
    for flag in ("_CAN_USE_SAGE_ATTN", "_CAN_USE_FLASH_ATTN", "_CAN_USE_FLASH_ATTN_3"):
        patch.setattr(attention_dispatch, flag, True)
    patch.setitem(_AttentionBackendRegistry._backends, backend, registered)
    names = {"query", "key", "value"}
    patch.setitem(_AttentionBackendRegistry._supported_arg_names, backend, names)


def install_comfy_kitchen(patch: pytest.MonkeyPatch, run: Run = exact) -> None:
    """Install comfy-kitchen, whose kernel takes [B, heads, S, channels] like the real one."""

    def int8_attention(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None = None,
        attn_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert scale is None
        assert attn_mask is None
        assert all(tokens.stride(-1) == 1 for tokens in (q, k, v))  # as the real one demands
        result = run(*(tokens.transpose(1, 2) for tokens in (q, k, v)))
        return result.transpose(1, 2).contiguous()

    package, module = ModuleType("comfy_kitchen"), ModuleType("comfy_kitchen.sage_attention")
    module.int8_attention = int8_attention  # type: ignore[attr-defined]
    package.sage_attention = module  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "comfy_kitchen", package)
    patch.setitem(sys.modules, "comfy_kitchen.sage_attention", module)
    install(patch, comfy_kitchen="0.2.40")


class Hub:
    """Stands for the package `kernels` in this process: gives what is in the cache, or refuses."""

    def __init__(self, patch: pytest.MonkeyPatch, run: Run = exact) -> None:
        """Install it."""
        self.asked: list[dict[str, Any]] = []
        self._run = run
        module = ModuleType("kernels")
        module.get_kernel = self._get_kernel  # type: ignore[attr-defined]
        patch.setitem(sys.modules, "kernels", module)
        patch.setattr(attention_dispatch, "is_kernels_available", lambda: True)
        patch.setattr(attention_dispatch, "is_kernels_version", lambda *_: True)
        install(patch, kernels="0.17.2")
        for config in attention_dispatch._HUB_KERNELS_REGISTRY.values():
            for name, value in vars(config).items():
                patch.setattr(config, name, value)  # what is loaded is forgotten afterwards

    def _get_kernel(self, repo_id: str, **options: Any) -> SimpleNamespace:
        self.asked.append({"repo": repo_id, "offline": constants.HF_HUB_OFFLINE, **options})

        def sageattn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
            return self._run(q, k, v)

        return SimpleNamespace(__name__=repo_id, sageattn=sageattn)


_KERNELS = """
import os, pathlib
def install_kernel(repo_id, *, revision, trust_remote_code=False):
    print("Fetching files")
    if not trust_remote_code:
        raise ValueError(f"{repo_id} is not trusted")
    if os.environ.get("NO_BUILD"):
        raise FileNotFoundError("Cannot find a build variant\\nfor this system")
    folder = pathlib.Path(os.environ["HF_HOME"], repo_id.replace("/", "--"), "snapshots", "5" * 40)
    folder = folder / "build" / ("torch-cuda-" + revision)
    folder.mkdir(parents=True)
    (folder.parents[3] / "fetched").write_text(revision)
    return folder
"""


def fetching_environ(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process in which `kernels` fetches from nowhere."""
    package = folder / "packages" / "kernels"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(_KERNELS)
    trust = {"DIFFUSERS_TRUST_REMOTE_KERNELS": "true"}
    values = {"HF_HOME": str(folder / "cache"), "PYTHONPATH": str(package.parent), **trust, **more}
    return {**os.environ, **values}
