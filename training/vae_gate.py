"""Measures whether the VAE is good enough for anything to be trained on its latents.

    python -m training.vae_gate hv15_batch/model/demo

The gate: 30 dB on whole clips, and letters read by template in 98 % of reconstructions.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo15
from PIL import Image
from safetensors.torch import load_file

from training.drawing import render
from training.lettering import read_letters
from training.pixels import canvas
from training.world import (
    FRAMES,
    MAX_LETTERS,
    SIGN_COLUMN,
    SIGN_ROW,
    even_places,
    sample_scenes,
)

GATE_PSNR, GATE_LETTERS = 30.0, 0.98


@torch.no_grad()
def measure(
    reconstruct: Callable[[torch.Tensor], torch.Tensor],
    number: int,
    device: torch.device,
    batch: int,
    seed: int = 999,
) -> dict[str, float]:
    """Measure whole clips of scenes drawn with a seed of their own.

    Args:
        reconstruct: takes clips [B, 3, T, H, W] and gives them back encoded and decoded.
        number: of clips.
        device: to draw on.
        batch: clips at a time.
        seed: of the scenes.

    Returns:
        `psnr` (mean over clips, dB), `psnr_worst`, `letters` and `words` (share read right, in the
        first, middle and last frame of clips with a sign).
    """
    generator = torch.Generator().manual_seed(seed)
    psnr: list[float] = []
    letters_right: list[bool] = []
    words_right: list[bool] = []
    for start in range(0, number, batch):
        places = even_places(8)[start % 8 : start % 8 + batch]
        scenes = sample_scenes(len(places), generator, 0.75, 0.1, places)
        video, _, _ = render(scenes, canvas(len(scenes), device))
        output = reconstruct(video).clamp(-1, 1)
        error = (output - video).square().mean(dim=(1, 2, 3, 4)) / 4
        psnr += (-10 * torch.log10(error)).tolist()
        written = scenes.letters.to(device)
        for frame in (0, FRAMES // 2, FRAMES - 1):
            read = read_letters(output[:, :, frame], SIGN_ROW, SIGN_COLUMN, MAX_LETTERS)
            right, there = read == written, written > 0
            letters_right += right[there].tolist()
            words_right += (right | ~there).all(1)[there.any(1)].tolist()
    return {
        "psnr": sum(psnr) / len(psnr),
        "psnr_worst": min(psnr),
        "letters": sum(letters_right) / max(1, len(letters_right)),
        "words": sum(words_right) / max(1, len(words_right)),
    }


def gate(
    vae: AutoencoderKLHunyuanVideo15, file: Path, device: torch.device, number: int
) -> dict[str, float]:
    """Measure saved weights through diffusers' own float32 pass, one clip at a time."""
    vae.load_state_dict({k: v.float() for k, v in load_file(file).items()})

    def reconstruct(video: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = vae.decode(vae.encode(video).latent_dist.mode()).sample
        return output

    return measure(reconstruct, number, device, batch=1)


def passes(figures: dict[str, float]) -> bool:
    """Return whether figures of `measure` pass the gate."""
    return figures["psnr"] >= GATE_PSNR and figures["letters"] >= GATE_LETTERS


@torch.no_grad()
def write_strip(
    vae: AutoencoderKLHunyuanVideo15, file: Path, picture: Path, device: torch.device
) -> None:
    """Write three moments of a clip in each place, and beside them their reconstruction."""
    vae.load_state_dict({k: v.float() for k, v in load_file(file).items()})
    generator = torch.Generator().manual_seed(77)
    scenes = sample_scenes(8, generator, 0.75, 0.1, even_places(8))
    rows = []
    for i in range(8):
        scene = scenes[i : i + 1]
        video, _, _ = render(scene, canvas(1, device))
        output = vae.decode(vae.encode(video).latent_dist.mode()).sample.clamp(-1, 1)
        both = torch.cat([v[0, :, [1, FRAMES // 2, FRAMES - 1]] for v in (video, output)], dim=1)
        rows.append(torch.cat(list(both.unbind(1)), dim=2))
    sheet = ((torch.cat(rows, dim=1) + 1) * 127.5).round().byte().permute(1, 2, 0)
    Image.fromarray(sheet.cpu().numpy()).save(picture)


def main() -> None:
    """Measure the VAE in a folder, exit 1 if it misses the gate."""
    from training.train_vae import build_vae

    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--clips", type=int, default=48)
    arguments.add_argument("--picture", type=Path, help="where a strip of clips goes")
    chosen = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae, file = build_vae().to(device).eval(), chosen.folder / "vae.safetensors"
    figures = gate(vae, file, device, chosen.clips)
    print(figures, "passed" if passes(figures) else "missed")
    if chosen.picture:
        write_strip(vae, file, chosen.picture, device)
    if not passes(figures):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
