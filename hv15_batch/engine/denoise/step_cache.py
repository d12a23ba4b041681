"""Reuse of the transformer's last result in the steps that a static cache leaves out.

What is kept is the residual: the video tokens after all blocks less those before them. A step that
is left out adds it to its own tokens, and runs embedders and output projection as usual. The blocks
are not touched then, so a streamed transformer copies nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hv15_batch.model.step_cache import StepCache


class _Residual(nn.Module):
    """Stands for all blocks in a step that is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.value: torch.Tensor | None = None

    def forward(
        self, video: torch.Tensor, text: torch.Tensor, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens [1, N, width] with the residual added, and the text as it came."""
        assert self.value is not None, "a step was left out before one was computed"
        return video + self.value, text


class CachedBlocks:
    """The blocks of a transformer with a static cache; the two forwards of guidance are apart."""

    def __init__(self, transformer: Any, cache: StepCache) -> None:
        """Change nothing yet.

        Args:
            transformer: diffusers' `HunyuanVideo15Transformer3DModel`.
            cache: decides which steps are computed.
        """
        self._transformer = transformer
        self._cache = cache
        self._blocks = transformer.transformer_blocks
        self._residual = _Residual()
        self._instead = nn.ModuleList([self._residual])
        self._residuals: dict[str, torch.Tensor] = {}
        self._branch = ""
        self._video: torch.Tensor | None = None
        self.num_computed = 0
        """Steps so far that ran the blocks."""

    def begin_step(self, step: int) -> None:
        """Put the blocks, or what stands for them, into the transformer for a step from 0 on."""
        is_computed = self._cache.computes(step)
        self._transformer.transformer_blocks = self._blocks if is_computed else self._instead
        self.num_computed += is_computed
        self._choose()

    @contextmanager
    def branch(self, name: str) -> Iterator[None]:
        """Keep the residual of a forward apart: with guidance a step has two."""
        self._branch = name
        self._choose()
        yield

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Watch the blocks, and put everything back at the end."""
        before = self._transformer.cache_context
        self._transformer.cache_context = self.branch
        hooks = (
            self._blocks[0].register_forward_pre_hook(self._remember),
            self._blocks[-1].register_forward_hook(self._keep),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._transformer.transformer_blocks = self._blocks
            self._transformer.cache_context = before
            self._residuals.clear()
            self._residual.value = self._video = None

    def _choose(self) -> None:
        self._residual.value = self._residuals.get(self._branch)

    def _remember(self, _block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._video = inputs[0]

    def _keep(self, _block: nn.Module, _inputs: Any, outputs: tuple[torch.Tensor, ...]) -> None:
        assert self._video is not None
        self._residuals[self._branch] = outputs[0] - self._video
        self._video = None
