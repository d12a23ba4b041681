"""The models that the transformer's training trains together, and their prompts as tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import nn

from training.text import (
    MAX_GLYPHS,
    MAX_TOKENS,
    Tokens,
    build_glyph_encoder,
    build_text_encoder,
    encode_glyphs,
    encode_prompts,
)
from training.transformer_forward import build_transformer, velocity
from training.world import FRAMES

LATENT_SIZE = ((FRAMES - 1) // 4 + 1, 8, 12)
"""Frames, height and width of a clip's latents."""
SHIFT = 2.5
"""Of the noise levels, in training and sampling."""


@dataclass
class Prompts:
    """Tokens of prompts.

    Attributes:
        ids: int64 [B, 144].
        mask: bool [B, 144], which of them count.
        glyph_ids: int64 [B, 24], of the text on the sign.
        glyph_mask: bool [B, 24].
    """

    ids: torch.Tensor
    mask: torch.Tensor
    glyph_ids: torch.Tensor
    glyph_mask: torch.Tensor

    def repeated(self, number: int) -> Prompts:
        """Return one prompt several times."""
        return Prompts(*(getattr(self, f.name).expand(number, -1) for f in fields(self)))


class Models(nn.Module):
    """Text encoder, glyph encoder and transformer, untrained."""

    def __init__(self) -> None:
        """Build them with seeded weights."""
        super().__init__()
        torch.manual_seed(0)
        self.text_encoder = build_text_encoder()
        self.text_encoder_2 = build_glyph_encoder()
        self.transformer = build_transformer()
        self.transformer.image_embedder.requires_grad_(False)  # text-to-video has no image

    def predict(
        self, latents: torch.Tensor, sigma: torch.Tensor, prompts: Prompts, prefix: torch.Tensor
    ) -> torch.Tensor:
        """Return the velocity, noise minus latents, [B, 32, t, h, w].

        Args:
            latents: [B, 32, t, h, w], noisy.
            sigma: [B], their share of noise.
            prompts: of the clips.
            prefix: int64 [P], tokens before every prompt.
        """
        text = encode_prompts(self.text_encoder, prefix, prompts.ids)
        glyphs = encode_glyphs(self.text_encoder_2, prompts.glyph_ids, prompts.glyph_mask)
        return velocity(
            self.transformer, latents, sigma, text, prompts.mask, glyphs, prompts.glyph_mask
        )


def padded(ids: list[int], length: int) -> list[int]:
    """Return tokens with zeros up to a length."""
    return ids + [0] * (length - len(ids))


def tokenize(tokens: Tokens, texts: list[str], words: list[str], device: torch.device) -> Prompts:
    """Return prompts and the words in them as tokens.

    Raises:
        ValueError: if a prompt is too long.
    """
    rows = []
    for text in texts:
        ids = tokens.prompt(text)
        if ids is None:
            raise ValueError(f"prompt {text!r}: longer than {MAX_TOKENS} tokens")
        rows.append(ids)
    glyphs = [tokens.glyphs(word) for word in words]

    def tensors(some: list[list[int]], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        counts = torch.tensor([[len(row)] for row in some])
        ids = torch.tensor([padded(row, length) for row in some])
        return ids.to(device), (torch.arange(length) < counts).to(device)

    return Prompts(*tensors(rows, MAX_TOKENS), *tensors(glyphs, MAX_GLYPHS))


def shifted(sigma: torch.Tensor, shift: float = SHIFT) -> torch.Tensor:
    """Return noise levels moved towards 1, as the scheduler does."""
    return shift * sigma / (1 + (shift - 1) * sigma)


@torch.no_grad()
def sample(
    models: Models,
    prompts: Prompts,
    empty: Prompts,
    prefix: torch.Tensor,
    dtype: torch.dtype,
    steps: int,
    guidance: float,
    seed: int = 0,
) -> torch.Tensor:
    """Return latents of prompts by Euler steps, [B, 32, 7, 8, 12].

    Args:
        models: trained.
        prompts: of the clips.
        empty: one empty prompt.
        prefix: tokens before every prompt.
        dtype: of the matrix products.
        steps: of the sampler.
        guidance: 1 for none.
        seed: of the noise.
    """
    device, number = prefix.device, len(prompts.ids)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 32, *LATENT_SIZE, generator=generator).to(device)
    nothing = empty.repeated(number)
    sigmas = shifted(torch.linspace(1, 0, steps + 1, device=device))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for i in range(steps):
            sigma = sigmas[i].expand(number)
            v = models.predict(x, sigma, prompts, prefix).float()
            if guidance != 1:
                other = models.predict(x, sigma, nothing, prefix).float()
                v = other + guidance * (v - other)
            x = x + (sigmas[i + 1] - sigmas[i]) * v
    return x
