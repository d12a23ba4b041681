"""Two optimisers behind one interface, over parameters whose gradients lie in one flat tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Optimizer:
    """AdamW, and Muon for the weights that are matrices where that is asked for.

    Muon orthogonalises the momentum of each matrix. Its step has the size of an AdamW step, so
    both take a rate of the same order.

    Source: Keller Jordan's Muon (2024); the scale 0.2 sqrt(max(rows, columns)) is Moonlight's.
    """

    def __init__(
        self,
        named: list[tuple[str, nn.Parameter]],
        is_matrix: Callable[[str, nn.Parameter], bool],
    ) -> None:
        """Take over the gradients of the parameters.

        Args:
            named: the parameters.
            is_matrix: which of them Muon takes.
        """
        self.parameters = [p for _, p in named]
        device = self.parameters[0].device
        self.gradient = torch.zeros(sum(p.numel() for p in self.parameters), device=device)
        start = 0
        for p in self.parameters:
            p.grad = self.gradient[start : start + p.numel()].view(p.shape)
            start += p.numel()
        matrices = [p for n, p in named if is_matrix(n, p)]
        rest = [p for n, p in named if not is_matrix(n, p)]
        is_cuda = device.type == "cuda"
        self.rate, self.norm = torch.zeros((), device=device), torch.zeros((), device=device)
        self.adamw = torch.optim.AdamW(
            rest, lr=self.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=is_cuda,
            capturable=is_cuda,
        )  # fmt: skip
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for p in matrices:
            self.groups.setdefault((p.shape[0], p[0].numel()), []).append(p)
        self.momentum = {
            shape: torch.zeros(len(group), *shape, device=device)
            for shape, group in self.groups.items()
        }

    def clip(self, limit: float) -> torch.Tensor:
        """Scale the gradient to a norm of at most `limit`; return its norm before."""
        norm = torch.linalg.vector_norm(self.gradient)
        self.gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, limit: float) -> None:
        """Clip the gradient, change the parameters at `self.rate` and clear the gradient.

        Leaves the gradient's norm before clipping in `self.norm`.
        """
        self.norm.copy_(self.clip(limit))
        self.adamw.step()
        for shape, group in self.groups.items():
            gradient = torch.stack([p.grad.view(shape) for p in group])
            momentum = self.momentum[shape].lerp_(gradient, 0.05)
            update = orthogonalize(torch.lerp(gradient, momentum, 0.95)).float()
            update = update * (self.rate * (-0.2 * max(shape) ** 0.5))
            torch._foreach_add_([p.view(shape) for p in group], list(update.unbind()))
        self.gradient.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        return {"adamw": self.adamw.state_dict(), "momentum": self.momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.adamw.load_state_dict(state["adamw"])
        for group in self.adamw.param_groups:
            group["lr"] = self.rate
        for shape, value in state["momentum"].items():
            self.momentum[shape].copy_(value)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Return matrices of the same singular vectors with singular values near 1: [N, R, C]."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x.float()).to(x.dtype)[:, None, None] + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if is_tall else x
