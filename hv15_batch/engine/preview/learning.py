"""Learns the colours of a VAE from one decoded clip, and keeps them for later runs.

One clip shows few colours. So a small piece of it is read by the VAE's own encoder in other colours
too: channels exchanged, negative, darker and brighter, mirrored. With these, a map from one demo
clip has 18 dB or more on every other one, and without them 8 dB on some.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hv15_batch.engine.preview.colours import NUM_TERMS, ColourMap, fit, psnr, scaled_frames
from hv15_batch.files import check_regular
from hv15_batch.rundir.publish import publishing
from hv15_batch.units import MIB

ENOUGH_DB = 18.0
"""A kept map that has less on a clip of now is learned again."""
_LATENT_FRAMES = 8
"""Of a clip, from its middle, that are compared with its frames."""
_PIECE_FRAMES, _PIECE_SIDE = 9, 192
"""Frames and pixels, at most, that are read in other colours."""
_PIECE_WEIGHT = 2
"""Each of the few places of a piece counts as so many of the clip."""
_MAX_BYTES = MIB
_TENSOR, _FORM = "weights", "hv15-preview-1"

Pair = tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def learn(vae: Any, latents: torch.Tensor, frames: torch.Tensor) -> ColourMap:
    """Return a map fitted to a clip and to pieces of it in other colours.

    Args:
        vae: On its device; its encoder reads the pieces.
        latents: [1, 32, T, h, w], scaled as the pipeline returns them.
        frames: uint8 [F, H, W, 3], decoded from them.

    Raises:
        ValueError: a value is not finite.
    """
    pairs = [middle_of(latents, frames)]
    for piece in _recoloured(frames):
        pixels = piece.permute(3, 0, 1, 2)[None].to(vae.device, vae.dtype) / 127.5 - 1
        read = vae.encode(pixels).latent_dist.mode()[0] * vae.config.scaling_factor
        pairs += [(read.cpu(), scaled_frames(piece, 0, read.shape[1]))] * _PIECE_WEIGHT
    return fit(pairs)


def fits(colours: ColourMap, latents: torch.Tensor, frames: torch.Tensor) -> bool:
    """Whether a map is good enough for a clip, see `learn`."""
    own, wanted = middle_of(latents, frames)
    found = torch.stack([colours.colours(own[:, number]) for number in range(own.shape[1])])
    return psnr(found, wanted) >= ENOUGH_DB


def middle_of(latents: torch.Tensor, frames: torch.Tensor) -> Pair:
    """Return the latents [32, T, h, w] of the middle of a clip, and their colours."""
    num_frames = latents.shape[2]
    count = min(num_frames, _LATENT_FRAMES)
    first = (num_frames - count + 1) // 2
    return latents[0, :, first : first + count].cpu(), scaled_frames(frames, first, count)


def _recoloured(frames: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a piece of a clip in other colours: uint8 [F, H, W, 3]."""
    count = (min(len(frames), _PIECE_FRAMES) - 1) // 4 * 4 + 1
    first = (len(frames) - count) // 2
    rows, columns = (_middle(size) for size in frames.shape[1:3])
    piece = frames[first : first + count, rows, columns].float() / 255
    changes: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda x: x,
        lambda x: (1 - x).flip(2),
        lambda x: (0.4 * x).flip(1),
        lambda x: 1 - 0.4 * x,
        lambda x: (1 - x).flip(1),
        lambda x: x.flip(2),
    ]
    for order, change in zip(itertools.permutations(range(3)), changes, strict=True):
        yield (change(piece[..., list(order)]) * 255).round().to(torch.uint8)


def _middle(size: int) -> slice:
    """Return the middle of so many pixels, in whole places of the latents' grid."""
    count = min(size, _PIECE_SIDE)
    first = (size - count) // 2 // 16 * 16
    return slice(first, first + count)


def read_colours(path: Path, vae_sha256: str) -> ColourMap | None:
    """Return a kept map; None where there is none, or it is damaged or of another VAE."""
    try:
        check_regular(path, _MAX_BYTES)
        with safe_open(path, framework="pt") as file:
            if file.metadata() != {"form": _FORM, "vae_sha256": vae_sha256}:
                return None
            weights = file.get_tensor(_TENSOR)
    except (OSError, SafetensorError, ValueError):
        return None
    is_whole = weights.dtype == torch.float32 and weights.shape == (NUM_TERMS, 3)
    return ColourMap(weights) if is_whole and bool(torch.isfinite(weights).all()) else None


def write_colours(path: Path, vae_sha256: str, colours: ColourMap) -> None:
    """Keep a map.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save(
        {_TENSOR: colours.weights.contiguous()}, {"form": _FORM, "vae_sha256": vae_sha256}
    )
    with publishing(path) as temporary:
        temporary.write_bytes(content)
