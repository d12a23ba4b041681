"""Trains the VAE of the demo models on the made-up world.

    python -m training.train_vae OUT
    python -m training.train_vae OUT --resume OLD

Several cards: `torchrun --nproc-per-node 2 -m training.train_vae ...`. First on single frames, then
on pieces of clips, last on whole clips.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo15
from torch import nn
from torch.nn import functional

from training import vae_forward
from training.drawing import render
from training.graphs import record
from training.pixels import canvas
from training.sitting import Sitting, parser
from training.vae_gate import gate, measure, passes, write_strip
from training.world import FRAMES, HEIGHT, WIDTH, Scenes, even_places, sample_scenes

CHANNELS = (8, 16, 32, 64, 64)
CLIP_NORM = 0.5
NOISE = 0.06
"""Deviation of the noise that the decoder learns to bear, latents having one of about 1."""


@dataclass(frozen=True)
class Stage:
    """One kind of training piece.

    Attributes:
        until: share of the plan at which it ends.
        batch: pieces a step and card.
        frames: of a piece.
        size: height and width of a piece, pixels.
    """

    until: float
    batch: int
    frames: int
    size: tuple[int, int]


STAGES = (
    Stage(0.05, 384, 1, (96, 96)),
    Stage(0.55, 40, 9, (96, 96)),
    Stage(1.01, 8, FRAMES, (HEIGHT, WIDTH)),
)
SMALL_STAGES = (
    Stage(0.3, 4, 1, (64, 64)),
    Stage(0.7, 2, 5, (64, 64)),
    Stage(1.01, 1, 9, (64, 96)),
)


def build_vae(channels: tuple[int, ...] = CHANNELS) -> AutoencoderKLHunyuanVideo15:
    """Return an untrained VAE of the real class, with seeded weights.

    Args:
        channels: of the five levels, from the pixels to the latents. The class works only where
            its shortcuts divide evenly: (16, 32, 48, 48, 64) fails.
    """
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo15(
        block_out_channels=channels, layers_per_block=1, scaling_factor=1.0
    )
    with torch.no_grad():  # a posterior without spread: a sample is the mean
        conv = vae.encoder.conv_out.conv
        conv.weight[conv.out_channels // 2 :] = 0
        conv.bias[conv.out_channels // 2 :] = -20
    return vae


class Pieces:
    """Random pieces of random clips, drawn from the same tensors again and again."""

    def __init__(self, stage: Stage, generator: torch.Generator, device: torch.device) -> None:
        """Choose the first pieces.

        Args:
            stage: the kind of pieces.
            generator: of the CPU.
            device: to draw on.
        """
        self.stage, self.generator, self.device = stage, generator, device
        self.places = even_places(stage.batch)
        scenes, first = self._sample()
        self.scenes, self.first = scenes.to(device), tuple(f.to(device) for f in first)

    def _sample(self) -> tuple[Scenes, list[torch.Tensor]]:
        stage = self.stage
        scenes = sample_scenes(stage.batch, self.generator, 0.6, 0.15, self.places)
        ranges = (
            (FRAMES - stage.frames + 1, 1),
            ((HEIGHT - stage.size[0]) // 16 + 1, 16),
            ((WIDTH - stage.size[1]) // 16 + 1, 16),
        )
        size = (stage.batch,)
        return scenes, [
            torch.randint(high, size, generator=self.generator) * step for high, step in ranges
        ]

    def renew(self) -> None:
        """Choose other pieces."""
        scenes, first = self._sample()
        self.scenes.copy_(scenes)
        for mine, other in zip(self.first, first, strict=True):
            mine.copy_(other, non_blocking=True)

    @torch.no_grad()
    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pieces [B, 3, T, H, W] in -1..1 and weights of pixels [B, 1, T, H, W]."""
        stage = self.stage
        frame, row, column = self.first
        pixels = canvas(stage.batch, self.device, stage.frames, stage.size, (frame, row, column))
        video, cover, sign = render(self.scenes, pixels, self.places)
        wide = functional.max_pool3d(cover, (1, 5, 5), 1, (0, 2, 2))
        narrow = -functional.max_pool3d(-cover, (1, 5, 5), 1, (0, 2, 2))
        return video, 1 + cover + 3 * (wide - narrow) + 4 * sign


def loss_of(
    vae: nn.Module, video: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the loss, the mean squared error and the latents' deviations [32].

    There is no KL term. One scaling factor serves all channels, so each is drawn to deviation 1.
    """
    latents = vae_forward.encode(vae, video, dtype)
    noisy = latents + NOISE * torch.randn_like(latents)
    difference = vae_forward.decode(vae, noisy, dtype) - video
    squared = difference.square()
    loss = (weight * (difference.abs() + 2 * squared)).mean()
    for d in (-1, -2, 2):
        if video.shape[d] > 1:
            loss = loss + difference.diff(dim=d).abs().mean()
    deviation = latents.std(dim=(0, 2, 3, 4))
    mean = latents.mean(dim=(0, 2, 3, 4))
    loss = loss + 0.02 * ((deviation - 1).square() + mean.square()).mean()
    return loss, squared.detach().mean(), deviation.detach()


class VaeSitting(Sitting):
    """One sitting of the VAE."""

    name = "vae"

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Take the arguments of `main`."""
        self.channels = tuple(int(c) for c in arguments.channels.split(","))
        self.stages = SMALL_STAGES if arguments.small else STAGES
        super().__init__(arguments, build_vae(self.channels), self._is_matrix)
        self.last: tuple[torch.Tensor, ...] = ()

    def _is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        ends = ("encoder.conv_in", "decoder.conv_out", "encoder.conv_out")
        return not self.arguments.adamw and parameter.ndim == 5 and not name.startswith(ends)

    def prepare(self) -> None:
        """Record every kind of step; print how long each takes."""
        generator = torch.Generator().manual_seed(1000 * self.steps + self.rank + 2)
        torch.manual_seed(self.steps + self.rank)
        self.pieces = [Pieces(stage, generator, self.device) for stage in self.stages]
        self.recorded = [self._record(pieces) for pieces in self.pieces]
        self.optimizer.gradient.zero_()
        self.optimizer.rate.zero_()
        self.change = record(partial(self.optimizer.step, CLIP_NORM), self.device)
        for pieces, (run, _) in zip(self.pieces, self.recorded, strict=True):
            begun = self.now()
            pieces.renew()
            run()
            self.say(f"{pieces.stage}: forward and backward {self.now() - begun:.4f} s")
        self.optimizer.gradient.zero_()

    def _record(self, pieces: Pieces) -> tuple[Any, tuple[torch.Tensor, ...]]:
        """Return what runs one forward and backward, and the figures that it leaves."""
        figures = tuple(torch.zeros(n, device=self.device) for n in (1, 1, 32))

        def run() -> None:
            loss, squared, deviation = loss_of(self.module, *pieces.draw(), self.dtype)
            loss.backward()
            for mine, new in zip(figures, (loss.detach(), squared, deviation), strict=True):
                mine.copy_(new)

        return record(run, self.device), figures

    def step(self) -> None:
        """Do one step on other pieces."""
        share = self.seconds / self.arguments.total
        at = next(i for i, stage in enumerate(self.stages) if share < stage.until)
        self.pieces[at].renew()
        run, self.last = self.recorded[at]
        run()
        self.share_gradient()
        self.optimizer.rate.fill_(self.rate())
        self.change()

    def figures(self) -> str:
        """Return how the last step went."""
        loss, squared, deviation = self.last
        psnr = -10 * math.log10(squared.item() / 4)
        low, high = deviation.min().item(), deviation.max().item()
        return f"loss {loss.item():.4f} psnr {psnr:.2f} deviations {low:.2f}..{high:.2f}"

    def measure(self) -> dict[str, float]:
        """Measure whole clips."""

        def reconstruct(video: torch.Tensor) -> torch.Tensor:
            latents = vae_forward.encode(self.module, video, self.dtype)
            return vae_forward.decode(self.module, latents, self.dtype)

        number, batch = (2, 1) if self.arguments.small else (48, 8)
        return measure(reconstruct, number, self.device, batch)

    def finish(self) -> None:
        """Draw reconstructions and measure the saved weights through diffusers' own pass."""
        out = self.arguments.out
        vae = build_vae(self.channels).to(self.device).eval()
        write_strip(vae, out / "vae.safetensors", out / "vae.png", self.device)
        figures = gate(vae, out / "vae.safetensors", self.device, self.arguments.gate)
        result = "passed" if passes(figures) else "missed"
        self.say(f"gate, through diffusers in float32: {figures}: {result}")


def main() -> None:
    """Read the arguments and train."""
    arguments = parser(__doc__, rate=1.5e-3, seconds=510, total=510)
    arguments.add_argument("--channels", default=",".join(map(str, CHANNELS)))
    arguments.add_argument("--adamw", action="store_true", help="without Muon")
    arguments.add_argument("--gate", type=int, default=48, help="clips of the last measurement")
    chosen = arguments.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    VaeSitting(chosen).train()


if __name__ == "__main__":
    main()
