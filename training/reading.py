"""Reads by rules what a clip of the made-up world shows: place, letters, colour, shape, motion.

Nothing here is learned. Empty places are drawn with other scenery; what none of them explains and
has the hue of a colour may be the object. A disc and then the outlines of the shapes are laid over
it in every second frame, which gives a track. Lengths are pixels of a 128x192 frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F

from training.drawing import _distance
from training.lettering import ALPHABET, read_letters
from training.pixels import canvas
from training.places import draw_place
from training.world import (
    COLORS,
    FRAMES,
    MAX_LETTERS,
    PLACES,
    SHAPES,
    SIGN_COLUMN,
    SIGN_ROW,
    sample_scenes,
)

STEP, HALF = 2, 2
"""Every second frame is read, at half the size."""
RADII = (14.0, 18.0, 23.0, 29.0, 36.0, 44.0, 52.0)
FINE = tuple(13.0 * 1.09**i for i in range(17))
HUES = {"red": 0, "orange": 26, "yellow": 49, "green": 131, "blue": 224, "purple": 275, "pink": 335}
SYMMETRY = {"ball": 1, "cube": 4, "triangle": 3, "star": 5, "ring": 1, "heart": 1}
"""Parts of a turn after which an outline is the same, 1 for those that a turn does not change."""


@dataclass
class Reading:
    """What a clip shows, in the world's own names.

    Attributes:
        color: name.
        shape: name.
        motion: name.
        place: name.
        word: the letters on the sign, of as many cells as were asked for.
        track: x, y and radius in pixels of every second frame: [N, 3].
    """

    color: str
    shape: str
    motion: str
    place: str
    word: str
    track: torch.Tensor


def read_clip(video: torch.Tensor, letters: int) -> Reading:
    """Read a clip, on the device that it is on.

    Args:
        video: [3, 25, 128, 192] in -1..1.
        letters: how many to read from the sign.
    """
    with video.device:  # what is made here is made there
        return _read_clip(video, letters)


def _read_clip(video: torch.Tensor, letters: int) -> Reading:
    frames = (video.transpose(0, 1)[::STEP] + 1) / 2
    small = F.avg_pool2d(frames, HALF)
    place = _read_place(frames)
    visible = torch.ones(small.shape[-2:])
    if letters:  # what is behind the sign is not known
        stop = (SIGN_ROW + 1) * 16 // HALF + 3
        visible[:stop, : (SIGN_COLUMN + letters) * 16 // HALF + 3] = 0
    masks = _color_masks(small, _novelty(small, place)) * visible
    color, coarse = _find(masks)
    shape, track, turns = _fit(masks[:, color], visible, coarse)
    read = read_letters(video[None, :, FRAMES // 2], SIGN_ROW, SIGN_COLUMN, MAX_LETTERS)[0]
    return Reading(
        color=list(COLORS)[color],
        shape=list(SHAPES)[shape],
        motion=_motion(track, _change(small, track), turns),
        place=list(PLACES)[place],
        word="".join(ALPHABET[i - 1] for i in read[:letters].tolist()),
        track=track,
    )


@cache
def _bank(place: int, device: torch.device) -> torch.Tensor:
    """Return empty pictures of a place, drawn on the CPU: [N, 3, 64, 96] in 0..1."""
    number = 160
    with torch.device("cpu"):
        generator = torch.Generator().manual_seed(place)
        scenes = sample_scenes(number, generator, places=(place,) * number)
        moments = canvas(number, "cpu", frames=2)
        moments.t = moments.t * (FRAMES - 1)
        images = draw_place(scenes, moments, (place,) * number)
        small = F.avg_pool2d(images.transpose(1, 2).flatten(0, 1).clamp(0, 1), HALF)
    return small.to(device)


def _read_place(frames: torch.Tensor) -> int:
    """Return the place whose typical picture is nearest: cells, each the nearest of a few."""
    seen = F.avg_pool2d(frames, 16).median(0).values.flatten()
    far = []
    for place in range(len(PLACES)):
        known = F.avg_pool2d(_bank(place, frames.device), 16 // HALF).flatten(1)
        # Cells hidden by the object or the sign are far from every place: they are cut off.
        far.append((known - seen).abs().clamp(max=0.25).mean(1).min().item())
    return far.index(min(far))


def _novelty(small: torch.Tensor, place: int) -> torch.Tensor:
    """Return how far pixels are from every picture of the place: [N, 64, 96]."""
    bank = _bank(place, small.device)
    rows = []
    for frame in small:
        difference = (bank - frame).abs().mean(1, keepdim=True)
        rows.append(F.avg_pool2d(difference, 3, 1, 1, count_include_pad=False).min(0).values[0])
    return torch.stack(rows)


def _color_masks(small: torch.Tensor, novelty: torch.Tensor) -> torch.Tensor:
    """Return where each colour of the world may be an object: [N, 8, 64, 96] in 0..1."""
    high, low = small.max(1).values, small.min(1).values
    chroma = high - low
    red, green, blue = small.unbind(1)
    sector = torch.where(
        high == red,
        ((green - blue) / (chroma + 1e-6)) % 6,
        torch.where(
            high == green, (blue - red) / (chroma + 1e-6) + 2, (red - green) / (chroma + 1e-6) + 4
        ),
    )
    hue, saturation = sector * 60, chroma / (high + 1e-6)
    new = ((novelty - 0.035) / 0.05).clamp(0, 1)
    away = torch.stack([((hue - h + 180) % 360 - 180).abs() for h in HUES.values()])
    nearest = away.argmin(0)
    names = list(HUES)
    masks = []
    for name in COLORS:
        if name == "white":
            fits = ((0.20 - saturation) / 0.08).clamp(0, 1) * ((high - 0.38) / 0.1).clamp(0, 1)
        else:
            strong = ((saturation - (0.16 if name == "pink" else 0.24)) / 0.1).clamp(0, 1)
            fits = (nearest == names.index(name)) * strong * ((chroma - 0.08) / 0.08).clamp(0, 1)
        masks.append(fits * new)
    return torch.stack(masks, 1)


@cache
def _discs(device: torch.device) -> torch.Tensor:
    """Return a disc less the ring around it for each radius: [R, 1, 65, 65]."""
    at = torch.arange(-32, 33, device=device) * float(HALF)
    y, x = torch.meshgrid(at, at, indexing="ij")
    far = (x * x + y * y).sqrt()
    kernels = []
    for radius in RADII:
        inside, around = (
            (far < 0.9 * radius).float(),
            ((far > 1.1 * radius) & (far < 1.6 * radius)).float(),
        )
        kernels.append(inside / inside.sum() - around / around.sum().clamp(min=1))
    return torch.stack(kernels)[:, None]


def _find(masks: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Return the colour of the object, and its x, y and radius in each frame, roughly: [N, 3]."""
    number, colors, height, width = masks.shape
    flat = masks.reshape(-1, 1, height, width)
    size = (height + 64, width + 64)
    spectrum = torch.fft.rfft2(flat, s=size)
    kernels = torch.fft.rfft2(_discs(masks.device).flip(-1, -2), s=size)[:, 0]
    scores = torch.fft.irfft2(spectrum * kernels, s=size)[..., 32:-32, 32:-32]
    # A large disc that is filled as well as a small one is the better answer.
    scores = scores * torch.tensor([r**0.5 for r in RADII]).view(1, -1, 1, 1)
    best, index = scores.flatten(1).max(1)
    color = int(best.view(number, colors).mean(0).argmax())
    index = index.view(number, colors)[:, color]
    radius = torch.tensor(RADII)[index // (height * width)]
    at = index % (height * width)
    x, y = (at % width + 0.5) * HALF, (torch.div(at, width, rounding_mode="floor") + 0.5) * HALF
    return color, torch.stack([x.float(), y.float(), radius], dim=1)


@cache
def _outlines(shape: int, turns: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return filled outlines: [radii x turns, 81, 81], in the middle of the picture."""
    at = torch.arange(-40, 41, device=device) * float(HALF)
    y, x = torch.meshgrid(-at, at, indexing="ij")
    every = []
    for radius in FINE:
        for turn in turns:
            cos, sin = math.cos(turn), math.sin(turn)
            px, py = (cos * x - sin * y) / radius, (sin * x + cos * y) / radius
            grid = (px[None, None, None], py[None, None, None])
            distance = _distance(torch.tensor([shape], device=device), *grid)[0, 0, 0]
            every.append((0.5 - distance * radius / HALF).clamp(0, 1))
    return torch.stack(every)


def _fit(
    mask: torch.Tensor, visible: torch.Tensor, coarse: torch.Tensor
) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Return the shape, its track [N, 3] and its turn in each frame, radians [N].

    The score is the overlap of a mask with a filled outline, both over either, where it is visible:
    within the picture and not behind the sign.
    """
    results = []
    crops, middles = _crops(mask, coarse)
    seen, _ = _crops(visible.expand_as(mask), coarse)
    for number, name in enumerate(SHAPES):
        parts = SYMMETRY[name]
        count = {1: 1, 3: 8, 4: 6, 5: 5}[parts] if name != "heart" else 16
        full = 2 * math.pi / parts
        turns = tuple(full * i / count for i in range(count))
        results.append(
            _fit_shape(crops, seen, middles, _outlines(number, turns, mask.device), turns)
        )
    scores = torch.stack([score for score, _, _ in results])
    shape = int(scores.sum(1).argmax())
    return shape, results[shape][1], results[shape][2]


def _crops(mask: torch.Tensor, coarse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return 81x81 pieces of the masks around the rough places, and where their middles lie."""
    padded = F.pad(mask, (40, 40, 40, 40))
    crops, middles = [], []
    for frame, (x, y, _) in zip(padded, coarse.tolist(), strict=True):
        column, row = int(x / HALF), int(y / HALF)
        crops.append(frame[row : row + 81, column : column + 81])
        middles.append(((column + 0.5) * HALF, (row + 0.5) * HALF))
    return torch.stack(crops), torch.tensor(middles)


def _fit_shape(
    crops: torch.Tensor,
    seen: torch.Tensor,
    middles: torch.Tensor,
    outlines: torch.Tensor,
    turns: tuple[float, ...],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    size, reach = (96, 96), 12
    side = 2 * reach + 1
    kernels = torch.fft.rfft2(outlines, s=size).conj()
    whole = outlines.sum((1, 2)).view(-1, 1, 1)

    def shared(picture: torch.Tensor) -> torch.Tensor:
        """Return what outlines have in common with a picture, for shifts up to `reach`."""
        product = torch.fft.irfft2(torch.fft.rfft2(picture, s=size) * kernels, s=size)
        return torch.roll(product, (reach, reach), (1, 2))[:, :side, :side]

    scores, places, angles = [], [], []
    for crop, there, middle in zip(crops, seen, middles, strict=True):
        both, area = shared(crop), whole
        if not bool(there.all()):
            area = shared(there)
        overlap = both / (area + crop.sum() - both)
        overlap = torch.where(area > 0.4 * whole, overlap, 0.0)
        best = int(overlap.argmax())
        kind, dy, dx = best // side**2, best // side % side - reach, best % side - reach
        scores.append(overlap.max())
        radius = FINE[kind // len(turns)]
        places.append([middle[0].item() + dx * HALF, middle[1].item() + dy * HALF, radius])
        angles.append(turns[kind % len(turns)])
    return torch.stack(scores), torch.tensor(places), torch.tensor(angles)


def _change(small: torch.Tensor, track: torch.Tensor) -> float:
    """Return how much the inside of the object changes from frame to frame, in 0..1."""
    y = (torch.arange(small.shape[2]) + 0.5)[:, None] * HALF
    x = (torch.arange(small.shape[3]) + 0.5)[None] * HALF
    middle = track.median(0).values
    inside = ((x - middle[0]) ** 2 + (y - middle[1]) ** 2).sqrt() < 0.95 * middle[2]
    steps = small.diff(dim=0).abs().mean(1)
    return float((steps * inside).sum((1, 2)).median() / inside.sum())


def _motion(track: torch.Tensor, change: float, turns: torch.Tensor) -> str:
    """Return the kind of motion of a track."""
    smooth = F.avg_pool1d(F.pad(track.T[None], (1, 1), mode="replicate"), 3, 1)[0]
    x, y, radius = smooth
    across, down = (x[-1] - x[0]).item(), (y[-1] - y[0]).item()
    wide, high = (x.max() - x.min()).item(), (y.max() - y.min()).item()
    growth = (radius[-2:].mean() / radius[:2].mean()).item()
    # At the edge of the picture a body that moves seems to grow.
    is_in_place = wide < 22 and high < 22
    if is_in_place and not 0.74 < growth < 1.35:
        return "grow" if growth > 1 else "shrink"
    if wide > 30 and abs(across) > 0.75 * wide:
        return "right" if across > 0 else "left"
    if wide > 26 and high > 14:
        return "orbit"
    if high > 22 and abs(down) > 0.75 * high and _bends(y) == 0:
        return "down" if down > 0 else "up"
    if high > 14:
        return "bounce"
    return "spin" if change > SPINNING else "still"


SPINNING = 0.012
"""Of what is read from frame to frame; a body at rest changes less."""


def _bends(y: torch.Tensor) -> int:
    """Return how often a motion turns back by a third of its height."""
    limit, bends, extreme, direction = (y.max() - y.min()).item() / 3, 0, y[0].item(), 0
    for value in y.tolist():
        if (direction >= 0 and value > extreme) or (direction <= 0 and value < extreme):
            if direction == 0 and abs(value - extreme) < limit:
                continue
            direction = direction or (1 if value > extreme else -1)
            extreme = value
        elif abs(value - extreme) > limit:
            direction, extreme, bends = -direction, value, bends + 1
    return bends
