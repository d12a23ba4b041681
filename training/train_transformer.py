"""Trains text encoder, glyph encoder and transformer of the demo models.

    python -m training.train_transformer OUT
    python -m training.train_transformer OUT --resume OLD

Flow matching on the VAE's latents of the made-up world: first on first frames, then on clips, last
also from first frame to clip, for which a batch is text-to-video or image-to-video as a whole. A
few of the encoded clips are renewed all the time. Several cards as in `train_vae`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Picture
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from hv15_batch.model.architectures import DEMO_FOLDER
from training import vae_forward
from training.drawing import render
from training.export import load_packaged
from training.graphs import record
from training.image import encode_images
from training.lettering import read_letters
from training.models import LATENT_SIZE, Models, sample, shifted, tokenize
from training.pixels import canvas
from training.pool import Pool
from training.prompts import plain_caption
from training.sitting import Sitting, parser
from training.text import Tokens, count_weights
from training.train_vae import build_vae
from training.transformer_forward import Image
from training.world import (
    FRAMES,
    MAX_LETTERS,
    PLACES,
    SIGN_COLUMN,
    SIGN_ROW,
    even_places,
    sample_kept,
    sample_scenes,
)

CLIP_NORM = 1.0


@dataclass(frozen=True)
class Stage:
    """One kind of step.

    Attributes:
        batch: clips a step and card.
        frames: latent frames of a clip.
        from_image: whether the first frame is given.
        probe: weight of the probe's loss.
    """

    batch: int
    frames: int
    from_image: bool = False
    probe: float = 0.0


STAGES = (
    Stage(384, 1, probe=0.1),
    Stage(128, LATENT_SIZE[0], probe=0.02),
    Stage(128, LATENT_SIZE[0], from_image=True),
)
SMALL_STAGES = (
    Stage(4, 1, probe=0.1),
    Stage(2, LATENT_SIZE[0], probe=0.02),
    Stage(2, LATENT_SIZE[0], from_image=True),
)


class TransformerSitting(Sitting):
    """One sitting of the encoders and the transformer."""

    name = "transformer"

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Take the arguments of `main`."""
        self.models = Models()
        if arguments.packaged:
            load_packaged(self.models)
        self.stages = SMALL_STAGES if arguments.small else STAGES
        super().__init__(arguments, self.models, is_matrix)
        self.vae = build_vae().to(self.device).eval().requires_grad_(False)
        state = load_file(arguments.vae / "vae.safetensors")
        self.vae.load_state_dict({k: v.float() for k, v in state.items()})
        self.tokens = Tokens()
        self.prefix = torch.tensor(self.tokens.prefix, device=self.device)
        self.empty = tokenize(self.tokens, [""], [""], self.device)
        self.recent = torch.zeros(3, 3, device=self.device)

    def prepare(self) -> None:
        """Encode clips and record the steps."""
        m, begun, arguments = self.models, self.now(), self.arguments
        parts = (m.text_encoder, m.text_encoder_2, m.image_encoder, m.transformer)
        self.say(
            f"weights of the encoders and the transformer: {[count_weights(x) for x in parts]} MB"
        )
        seed = 1000 * self.steps + self.rank + 5 + arguments.seed
        torch.manual_seed(seed)
        clips = arguments.clips
        self.pool = Pool(
            clips, self.vae, m.image_encoder, self.tokens, seed, self.device, self.dtype
        )
        file = arguments.state and arguments.state.with_suffix(f".pool{self.rank}")
        self.pool.fill(file)
        spread = self.pool.latents.float().std(dim=(0, 2, 3, 4))
        self.say(
            f"{clips} clips encoded in {self.now() - begun:.0f} s; deviations "
            f"{spread.min():.2f}..{spread.max():.2f}, {self.pool.latents.float().std():.4f} in all"
        )
        if arguments.compile:
            m.compile_parts()
        begun = self.now()
        self.recorded = [self._record(stage) for stage in self.stages]
        self.optimizer.gradient.zero_()
        self.optimizer.rate.zero_()
        self.change = record(partial(self.optimizer.step, CLIP_NORM), self.device)
        self.say(f"recorded in {self.now() - begun:.0f} s")
        for stage, (run, _) in zip(self.stages, self.recorded, strict=True):
            run()
            begun = self.now()
            for _ in range(4):
                run()
            self.say(f"{stage}: forward and backward {(self.now() - begun) / 4:.4f} s")
        self.optimizer.gradient.zero_()

    def _record(self, stage: Stage) -> tuple[Any, torch.Tensor]:
        """Return what runs one forward and backward, and the losses that it leaves."""
        figure = torch.zeros(3, device=self.device)
        is_cuda = self.device.type == "cuda"

        def run() -> None:
            batch = self.pool.draw(stage.batch, stage.frames, self.empty)
            noise = torch.randn_like(batch.latents)
            sigma = shifted(torch.sigmoid(1.1 * torch.randn(stage.batch, device=self.device)))
            at = sigma.view(-1, 1, 1, 1, 1)
            noisy = (1 - at) * batch.latents + at * noise
            with torch.autocast(self.device.type, self.dtype, enabled=is_cuda):
                text = self.models.encode(batch.prompts, self.prefix)
                image = batch.image if stage.from_image else None
                v = self.models.predict(noisy, sigma, text, image)
            squared = (v.float() - (noise - batch.latents)).square()
            loss = (batch.weights * squared).mean() / batch.weights.mean()
            read = torch.zeros((), device=self.device)
            if stage.probe:
                read = self.models.probe.loss(text, batch.said, batch.kept)
            (loss + stage.probe * read).backward()
            figure.copy_(torch.stack([loss, squared.mean(), read]).detach())

        return record(run, self.device), figure

    def stage(self) -> int:
        """Return which kind of step comes now, the same on every card."""
        share = self.seconds / self.arguments.total
        if share < self.arguments.frames_until:
            return 0
        return 2 if share > self.arguments.images_from and self.steps % 3 == 0 else 1

    def step(self) -> None:
        """Do one step, and renew some clips now and then."""
        at = self.stage()
        run, figure = self.recorded[at]
        run()
        self.share_gradient()
        self.optimizer.rate.fill_(self.rate())
        self.change()
        self.recent[at].lerp_(figure, 0.02)
        if self.steps % self.arguments.renew == 0:
            self.pool.renew()

    def figures(self) -> str:
        """Return the last steps' loss, the same unweighted, the probe's, of each kind."""
        rows = [" ".join(f"{v:.4f}" for v in row) for row in self.recent.tolist()]
        return " | ".join(rows)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Render prompts that were never trained on, write sheets of them, and read them."""
        number, steps = (2, 2) if self.arguments.small else (64, 16)
        scenes = sample_kept(number, torch.Generator().manual_seed(12345))
        texts = [plain_caption(scenes, i) for i in range(number)]
        words = [scenes.word(i) for i in range(number)]
        prompts = tokenize(self.tokens, texts, words, self.device)
        first, _, _ = render(scenes, canvas(number, self.device, frames=1))
        latents = vae_forward.encode(self.vae, first, self.dtype)
        image = Image(latents, encode_images(self.models.image_encoder, first[:, :, 0]))
        out: Path = self.arguments.out
        shown = slice(None, None, max(1, number // 32))
        (out / "samples.txt").write_text("\n".join(texts[shown]) + "\n", encoding="utf-8")
        figures = {}
        for name, given in (("t2v", None), ("i2v", image)):
            if (
                given is not None
                and self.seconds < self.arguments.images_from * self.arguments.total
            ):
                continue
            with torch.compiler.set_stance("force_eager"):
                drawn = sample(
                    self.models, prompts, self.empty, self.prefix, self.dtype, steps, 4.0, given
                )
            clips = [vae_forward.decode(self.vae, z, self.dtype) for z in drawn.split(8)]
            video = torch.cat(clips).clamp(-1, 1)
            _write_sheet(video[shown], out / f"samples_{name}.jpg")
            read = read_letters(video[:, :, FRAMES // 2], SIGN_ROW, SIGN_COLUMN, MAX_LETTERS)
            letters = scenes.letters.to(self.device)
            right, there = read == letters, letters > 0
            place = read_places(video) == scenes.place.to(self.device)
            figures[f"{name}_places"] = place.float().mean().item()
            figures[f"{name}_letters"] = right[there].float().mean().item()
            whole = (right | ~there).all(1)[there.any(1)]
            figures[f"{name}_words"] = whole.float().mean().item()
            if given is not None:
                error = (video[:, :, 0] - first[:, :, 0]).square().mean(dim=(1, 2, 3)) / 4
                figures["i2v_first_psnr"] = (-10 * torch.log10(error)).mean().item()
        return {k: round(v, 4) for k, v in figures.items()}


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return whether Muon takes a parameter: the matrices of attention and feed-forward layers."""
    inside = (".attn.", ".ff", "self_attn", ".mlp.", "SelfAttention", "DenseReluDense")
    return parameter.ndim == 2 and any(k in name for k in inside) and "relative" not in name


@torch.no_grad()
def read_places(video: torch.Tensor) -> torch.Tensor:
    """Return the place whose typical picture is nearest to the first frame: int64 [B].

    Args:
        video: [B, 3, T, 128, 192] in -1..1.
    """
    number, each = len(PLACES), 16
    generator = torch.Generator().manual_seed(3)
    scenes = sample_scenes(number * each, generator, 0.0, 0.0, even_places(number * each))
    known, _, _ = render(scenes, canvas(len(scenes), video.device, frames=1))
    cells = functional.avg_pool2d(known[:, :, 0], 16).view(number, each, -1).median(1).values
    seen = functional.avg_pool2d(video[:, :, 0], 16).flatten(1)
    # Cells hidden by the object or the sign are far from every place: they are cut off.
    return (seen[:, None] - cells[None]).abs().clamp(max=0.3).mean(-1).argmin(1)


def _write_sheet(video: torch.Tensor, file: Path) -> None:
    """Write four moments of each clip, two clips in a row."""
    moments = video[:, :, [0, FRAMES // 3, 2 * FRAMES // 3, FRAMES - 1]]
    strips = [torch.cat(list(clip.unbind(1)), dim=2) for clip in moments]
    rows = [torch.cat(strips[i : i + 2], dim=2) for i in range(0, len(strips) - 1, 2)]
    sheet = ((torch.cat(rows, dim=1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    Picture.fromarray(sheet.cpu().numpy()).save(file, quality=88)


def main() -> None:
    """Read the arguments and train."""
    arguments = parser(__doc__, rate=1.5e-3, seconds=1400, total=1400)
    arguments.add_argument("--vae", type=Path, default=DEMO_FOLDER, help="folder of the VAE")
    arguments.add_argument("--clips", type=int, default=9216, help="encoded on each card")
    arguments.add_argument("--renew", type=int, default=20, help="steps per 16 new clips")
    arguments.add_argument("--seed", type=int, default=0, help="added to that of the scenes")
    packaged = "begin with the weights of the package"
    arguments.add_argument("--packaged", action="store_true", help=packaged)
    arguments.add_argument("--compile", action="store_true", help="compile the blocks first")
    arguments.add_argument("--frames-until", type=float, default=0.17, help="share of the plan")
    arguments.add_argument("--images-from", type=float, default=0.6, help="share of the plan")
    chosen = arguments.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    TransformerSitting(chosen).train()


if __name__ == "__main__":
    main()
