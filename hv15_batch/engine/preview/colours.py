"""A linear map from latents to colours: least squares, and what it gives.

The colour of a place is that of its own latents and of the eight around it, each with a weight, and
a constant: 32 x 9 + 1 numbers for each of red, green and blue. The neighbours are worth 3 dB on the
demo VAE, because what a decoder draws at a place depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

LATENT_CHANNELS = 32
SIDE = 3
"""Places of the latents' grid, in both directions, that decide a colour."""
NUM_TERMS = LATENT_CHANNELS * SIDE * SIDE + 1
"""Weights of a colour; the last is the constant."""
RIDGE = 0.01
"""Of ridge regression, in units of the samples: latents have a variance of about 1."""
_MIDDLE = 0.5
"""What no latents stand for: a colour between black and white."""
_FREE = 1e-6
"""Ridge of the constant: it may be anything."""


@dataclass(frozen=True)
class ColourMap:
    """Turns latents into colours."""

    weights: torch.Tensor
    """float32 [NUM_TERMS, 3] on the CPU."""

    def colours(self, latents: torch.Tensor) -> torch.Tensor:
        """Return RGB [h, w, 3] of 0 to 1 for latents [32, h, w], on their device."""
        terms = _terms(latents[:, None].float())
        colours = terms @ self.weights.to(latents.device) + _MIDDLE
        return colours.clamp(0, 1).view(*latents.shape[1:], 3)


def fit(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> ColourMap:
    """Return the map that fits best in the sense of least squares.

    Args:
        pairs: Latents [32, T, h, w] and the colours [T, h, w, 3], 0 to 1, that they stand for.

    Raises:
        ValueError: there are none, or a value is not finite.
    """
    total = torch.zeros(NUM_TERMS, NUM_TERMS, dtype=torch.float64)
    moments = torch.zeros(NUM_TERMS, 3, dtype=torch.float64)
    num_samples = 0
    for latents, colours in pairs:
        terms = _terms(latents.float().cpu()).double()
        total += terms.T @ terms
        moments += terms.T @ (colours.double().cpu().reshape(-1, 3) - _MIDDLE)
        num_samples += len(terms)
    if num_samples == 0:
        raise ValueError("no latents to fit colours to")
    ridge = torch.full((NUM_TERMS,), RIDGE * num_samples, dtype=torch.float64)
    ridge[-1] = _FREE
    weights = torch.linalg.solve(total + torch.diag(ridge), moments).float().contiguous()
    if not torch.isfinite(weights).all():
        raise ValueError("the colours of these latents are not finite")
    return ColourMap(weights)


def scaled_frames(frames: torch.Tensor, first: int, count: int) -> torch.Tensor:
    """Return a clip's frames on the grid of its latents: means over 16 x 16 pixels and 4 frames.

    The first frame stands alone, as in the VAE.

    Args:
        frames: uint8 [F, H, W, 3], all of the clip.
        first: Latent frame to begin with.
        count: How many latent frames.

    Returns:
        float32 [count, H / 16, W / 16, 3], 0 to 1.
    """
    means = []
    for number in range(first, first + count):  # not all at once: floats are four times as large
        of_latent = frames[max(4 * number - 3, 0) : 4 * number + 1].permute(0, 3, 1, 2).float()
        means.append(F.avg_pool2d(of_latent, 16).mean(0).permute(1, 2, 0) / 255)
    return torch.stack(means)


def psnr(colours: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio of colours of 0 to 1, in dB."""
    error = (colours.float() - wanted.float()).square().mean().clamp_min(1e-12)
    return float(-10 * torch.log10(error))


def _terms(latents: torch.Tensor) -> torch.Tensor:
    """Return for each place of latents [32, T, h, w] its neighbours' and a one: [T h w, terms]."""
    channels, num_frames = latents.shape[:2]
    padded = F.pad(latents.transpose(0, 1), (SIDE // 2,) * 4, mode="replicate")
    around = F.unfold(padded, SIDE).transpose(1, 2).reshape(-1, channels * SIDE * SIDE)
    assert len(around) == num_frames * latents.shape[2] * latents.shape[3]
    return torch.cat([around, around.new_ones(len(around), 1)], dim=1)
