"""The models that the transformer's training trains together, and their prompts as tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import nn

from training.image import build_image_encoder
from training.text import (
    MAX_GLYPHS,
    MAX_TOKENS,
    Tokens,
    build_glyph_encoder,
    build_text_encoder,
    encode_glyphs,
    encode_prompts,
    run_layer,
)
from training.transformer_forward import (
    Image,
    Text,
    build_transformer,
    rope_of,
    run_block,
    velocity,
)
from training.world import (
    COLORS,
    FRAMES,
    MAX_LETTERS,
    MOTIONS,
    PLACES,
    SHAPES,
    SIZES,
    Scenes,
)

LATENT_SIZE = ((FRAMES - 1) // 4 + 1, 8, 12)
"""Frames, height and width of a clip's latents."""
SHIFT = 2.5
"""Of the noise levels, in training and sampling."""


@dataclass
class Prompts:
    """Tokens of prompts.

    Attributes:
        ids: int64 [B, 104].
        mask: bool [B, 104], which of them count.
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


NAMES = (COLORS, COLORS, SHAPES, SHAPES, SIZES, SIZES, MOTIONS, PLACES, (False, True))
"""What the probe reads from a prompt, in the order of `targets`."""
FIRST_LETTER = 6
"""Token at which a word begins: the pipelines write `Text "WORD". `."""


def targets(scenes: Scenes) -> torch.Tensor:
    """Return what prompts of scenes say, as indices: int64 [B, 9]."""
    pairs = [scenes.color, scenes.shape, scenes.size]
    single = [scenes.motion, scenes.place, scenes.two.long()]
    return torch.cat([*pairs, *(v[:, None] for v in single)], dim=1)


class Probe(nn.Module):
    """Reads what a prompt says from its last token, and a letter's place from the letter.

    It helps the encoders at the beginning and is no part of a checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Linear(128, sum(len(names) for names in NAMES))
        self.letters = nn.Linear(64, MAX_LETTERS)

    def loss(self, text: Text, said: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Return how wrong it reads.

        Args:
            text: of the encoders.
            said: int64 [B, 9], of `targets`.
            kept: bool [B], whose prompts count.
        """
        last = text.mask.sum(1) - 1
        states = text.states[torch.arange(len(last), device=last.device), last].float()
        logits = self.words(F.layer_norm(states, states.shape[1:]))
        parts = logits.split([len(names) for names in NAMES], dim=1)
        pairs = zip(parts, said.unbind(1), strict=True)
        each = torch.stack([F.cross_entropy(p, t, reduction="none") for p, t in pairs])
        each[1] *= said[:, 8]  # of a second object, only where there is one
        each[3] *= said[:, 8]
        each[5] *= said[:, 8]
        words = (each.mean(0) * kept).mean()
        stop = FIRST_LETTER + MAX_LETTERS
        glyphs = F.layer_norm(text.glyphs[:, FIRST_LETTER:stop].float(), (64,))
        # The quotation mark, the full stop and the end follow a word.
        there = text.glyph_mask[:, FIRST_LETTER + 4 : stop + 4].float()
        index = torch.arange(MAX_LETTERS, device=there.device).expand(len(there), -1)
        read = self.letters(glyphs).flatten(0, 1)
        wrong = F.cross_entropy(read, index.flatten(), reduction="none")
        return words + (wrong.view_as(there) * there).mean()


class Models(nn.Module):
    """Text encoder, glyph encoder, image encoder and transformer, untrained."""

    def __init__(self) -> None:
        """Build them with seeded weights."""
        super().__init__()
        torch.manual_seed(0)
        self.text_encoder = build_text_encoder()
        self.text_encoder_2 = build_glyph_encoder()
        self.transformer = build_transformer()
        self.probe = Probe()
        self.image_encoder = build_image_encoder()
        self.run_block, self.run_layer = run_block, run_layer

    def compile_parts(self) -> None:
        """Compile the repeated parts."""
        self.run_block = torch.compile(run_block, dynamic=False)
        self.run_layer = torch.compile(run_layer, dynamic=False)

    def encode(self, prompts: Prompts, prefix: torch.Tensor) -> Text:
        """Return what the encoders say of prompts.

        Args:
            prompts: of the clips.
            prefix: int64 [P], tokens before every prompt.
        """
        states = encode_prompts(self.text_encoder, prefix, prompts.ids, self.run_layer)
        glyphs = encode_glyphs(self.text_encoder_2, prompts.glyph_ids, prompts.glyph_mask)
        return Text(states, prompts.mask, glyphs, prompts.glyph_mask)

    def predict(
        self, latents: torch.Tensor, sigma: torch.Tensor, text: Text, image: Image | None = None
    ) -> torch.Tensor:
        """Return the velocity, noise minus latents, [B, 32, t, h, w].

        Args:
            latents: [B, 32, t, h, w], noisy.
            sigma: [B], their share of noise.
            text: of `encode`.
            image: the first frames, None for text-to-video.
        """
        rope = rope_of(self.transformer, tuple(latents.shape[2:]), latents.device)
        return velocity(self.transformer, latents, sigma, text, image, rope, self.run_block)


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
    image: Image | None = None,
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
        image: the first frames, None for text-to-video.
        seed: of the noise.
    """
    device, number = prefix.device, len(prompts.ids)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 32, *LATENT_SIZE, generator=generator).to(device)
    sigmas = shifted(torch.linspace(1, 0, steps + 1, device=device))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        text = models.encode(prompts, prefix)
        nothing = models.encode(empty.repeated(number), prefix)
        for i in range(steps):
            sigma = sigmas[i].expand(number)
            v = models.predict(x, sigma, text, image).float()
            if guidance != 1:
                other = models.predict(x, sigma, nothing, image).float()
                v = other + guidance * (v - other)
            x = x + (sigmas[i + 1] - sigmas[i]) * v
    return x
