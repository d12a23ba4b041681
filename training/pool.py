"""Encoded clips with their prompts, kept on the card that trains on them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from training import vae_forward
from training.drawing import render
from training.graphs import record
from training.image import IMAGE_TOKENS, encode_images
from training.models import LATENT_SIZE, NAMES, Prompts, padded, targets
from training.pixels import canvas
from training.prompts import caption
from training.text import MAX_GLYPHS, MAX_TOKENS, Tokens
from training.transformer_forward import IMAGE_WIDTH, Image
from training.world import (
    MAX_LETTERS,
    SIGN_COLUMN,
    SIGN_ROW,
    Scenes,
    even_places,
    sample_scenes,
)

ENCODED = 16
"""Clips encoded at a time."""
VARIANTS = 4
"""Prompts of each clip."""
DROPPED = 0.1
"""Share of empty prompts."""


@dataclass
class Batch:
    """Random clips.

    Attributes:
        latents: [B, 32, t, h, w].
        weights: of their cells, [B, 1, t, h, w].
        prompts: some of them empty.
        kept: bool [B], which are not.
        said: int64 [B, 9], what the prompts say, of `targets`.
        image: first frames.
    """

    latents: torch.Tensor
    weights: torch.Tensor
    prompts: Prompts
    kept: torch.Tensor
    said: torch.Tensor
    image: Image


class Pool:
    """Latents of clips with their prompts. Batches are drawn without a look at the host."""

    def __init__(
        self,
        number: int,
        vae: nn.Module,
        image_encoder: nn.Module,
        tokens: Tokens,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Make room, and record the encoding.

        Args:
            number: of clips, a multiple of 16.
            vae: trained, on the device.
            image_encoder: likewise.
            tokens: of the prompts.
            seed: of scenes and prompts.
            device: where everything is.
            dtype: of the VAE's activations.
        """
        self.tokens, self.device = tokens, device
        self.generator = torch.Generator().manual_seed(seed)
        self.rng = random.Random(seed)
        self.places = even_places(ENCODED)
        self.latents = torch.zeros(number, 32, *LATENT_SIZE, dtype=torch.float16, device=device)
        self.weights = torch.zeros(number, 1, *LATENT_SIZE, dtype=torch.float16, device=device)
        self.ids = torch.zeros(number, VARIANTS, MAX_TOKENS, dtype=torch.int16, device=device)
        self.lengths = torch.zeros(number, VARIANTS, dtype=torch.int64, device=device)
        self.glyphs = torch.zeros(number, MAX_GLYPHS, dtype=torch.int16, device=device)
        self.glyph_lengths = torch.zeros(number, dtype=torch.int64, device=device)
        self.embeds = torch.zeros(number, IMAGE_TOKENS, IMAGE_WIDTH, device=device)
        self.said = torch.zeros(number, len(NAMES), dtype=torch.int64, device=device)
        self.at = 0
        self.scenes = self._sample().to(device)
        self.encoded = torch.zeros(ENCODED, 32, *LATENT_SIZE, device=device)
        self.cell_weights = torch.zeros(ENCODED, 1, *LATENT_SIZE, device=device)
        self.encoded_images = torch.zeros(ENCODED, IMAGE_TOKENS, IMAGE_WIDTH, device=device)

        @torch.no_grad()
        def encode() -> None:
            video, cover, _ = render(self.scenes, canvas(ENCODED, device), self.places)
            self.encoded.copy_(vae_forward.encode(vae, video, dtype))
            self.cell_weights.copy_(_cell_weights(self.scenes, cover))
            self.encoded_images.copy_(encode_images(image_encoder, video[:, :, 0]))

        self.encode = record(encode, device)

    def _sample(self) -> Scenes:
        return sample_scenes(ENCODED, self.generator, 0.6, 0.08, self.places)

    def fill(self, file: Path | None = None) -> None:
        """Encode a clip for every row, or take what a sitting before left in a file.

        Raises:
            RuntimeError: if the same clips were encoded again and again.
        """
        rows = (
            "latents", "weights", "ids", "lengths", "glyphs", "glyph_lengths", "embeds", "said",
        )  # fmt: skip
        if file is not None and file.exists():
            kept = torch.load(file, map_location=self.device, weights_only=True)
            for name in rows:
                getattr(self, name).copy_(kept[name])
            return
        for _ in range(len(self.latents) // ENCODED):
            self.renew()
        batches = self.latents.unflatten(0, (-1, ENCODED))
        if bool((batches[1:] == batches[:-1]).flatten(1).all(1).any()):
            raise RuntimeError("the same clips were encoded twice: the recorded step does not run")
        if file is not None:
            torch.save({name: getattr(self, name) for name in rows}, file)

    def renew(self) -> None:
        """Replace the oldest 16 clips."""
        scenes = self._sample()
        self.scenes.copy_(scenes)
        self.encode()
        rows, lengths, glyphs = [], [], []
        for i in range(ENCODED):
            for _ in range(VARIANTS):
                ids = None
                while ids is None:
                    ids = self.tokens.prompt(caption(scenes, i, self.rng))
                rows.append(padded(ids, MAX_TOKENS))
                lengths.append(len(ids))
            glyphs.append(self.tokens.glyphs(scenes.word(i)))
        new = slice(self.at, self.at + ENCODED)
        self.latents[new], self.weights[new] = self.encoded, self.cell_weights
        self.embeds[new], self.said[new] = self.encoded_images, targets(scenes).to(self.device)
        ids16 = torch.tensor(rows, dtype=torch.int16).view(ENCODED, VARIANTS, -1)
        self.ids[new] = ids16.to(self.device)
        self.lengths[new] = torch.tensor(lengths).view(ENCODED, VARIANTS).to(self.device)
        glyphs16 = torch.tensor([padded(g, MAX_GLYPHS) for g in glyphs], dtype=torch.int16)
        self.glyphs[new] = glyphs16.to(self.device)
        self.glyph_lengths[new] = torch.tensor([len(g) for g in glyphs]).to(self.device)
        self.at = (self.at + ENCODED) % len(self.latents)

    def draw(self, batch: int, frames: int, empty: Prompts) -> Batch:
        """Return random clips.

        Args:
            batch: number of clips.
            frames: latent frames of each.
            empty: the empty prompt, which a tenth of the clips gets.
        """
        device = self.device
        index = torch.randint(len(self.latents), (batch,), device=device)
        variant = torch.randint(VARIANTS, (batch,), device=device)
        dropped = torch.rand(batch, 1, device=device) < DROPPED
        ids = torch.where(dropped, empty.ids, self.ids[index, variant].long())
        length = self.lengths[index, variant][:, None]
        mask = torch.arange(MAX_TOKENS, device=device) < length
        mask = torch.where(dropped, empty.mask, mask)
        glyph_mask = torch.arange(MAX_GLYPHS, device=device) < self.glyph_lengths[index][:, None]
        prompts = Prompts(ids, mask, self.glyphs[index].long(), glyph_mask & ~dropped)
        latents = self.latents[index][:, :, :frames].float()
        weights = self.weights[index][:, :, :frames].float()
        image = Image(latents[:, :, :1], self.embeds[index])
        return Batch(latents, weights, prompts, ~dropped[:, 0], self.said[index], image)


def _cell_weights(scenes: Scenes, cover: torch.Tensor) -> torch.Tensor:
    """Return how much each cell counts: 1, objects 2, letters 4; [B, 1, t, 8, 12]."""
    cells = functional.max_pool3d(cover, (1, 16, 16))
    later = cells[:, :, 1:].unflatten(2, (-1, 4)).amax(3)
    weights = 1 + (torch.cat([cells[:, :, :1], later], dim=2) > 0.1).float()
    letters = (scenes.letters > 0)[:, None, None]
    columns = slice(SIGN_COLUMN, SIGN_COLUMN + MAX_LETTERS)
    now = weights[:, :, :, SIGN_ROW, columns]
    weights[:, :, :, SIGN_ROW, columns] = torch.where(letters, 4.0, now)
    return weights
