"""Clips of the made-up world, drawn by plain torch: place, shadow, objects and sign.

Lengths are pixels of a 128x192 frame, x to the right, y downwards, time runs from 0 to 1.
"""

from __future__ import annotations

import math

import torch

from training.lettering import CELL, glyph_atlas
from training.pixels import Canvas, mix, rgb, smooth, table
from training.places import draw_place
from training.world import (
    COLORS,
    MAX_LETTERS,
    MOTIONS,
    PLACES,
    RADII,
    SHAPES,
    SIGN_COLUMN,
    SIGN_ROW,
    WIDTH,
    Scenes,
)


def render(
    scenes: Scenes, pixels: Canvas, places: tuple[int, ...] | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw clips.

    Args:
        scenes: on the CPU, or anywhere if the places are given.
        pixels: what to draw; their device draws.
        places: of the scenes; with them, nothing is read from the device.

    Returns:
        The clips, float32 [B, 3, T, H, W] in -1..1; the objects' cover and the sign's, each
        [B, 1, T or 1, H, W] in 0..1.
    """
    image = draw_place(scenes, pixels, places or tuple(scenes.place.tolist()))
    scenes = scenes.to(pixels.x.device)
    covers = []
    for k in (1, 0):
        present = scenes.two.float() if k else torch.ones_like(scenes.two, dtype=torch.float32)
        image, cover = _draw_object(image, scenes, k, pixels, present.view(-1, 1, 1, 1, 1))
        covers.append(cover)
    image, sign = _draw_sign(image, scenes, pixels)
    return image.clamp(0, 1) * 2 - 1, torch.maximum(*covers), sign


def object_track(
    scenes: Scenes, k: int, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return where an object is: x, y, radius (pixels), turn (radians) and squash, each [B, T].

    Args:
        scenes: the scenes.
        k: 0 for the first object, 1 for the second.
        t: [B, T], 0..1.
    """
    pose = scenes.poses[:, k]
    u = [pose[:, i : i + 1] for i in range(pose.shape[1])]
    move = {m: (scenes.motion == i).float()[:, None] for i, m in enumerate(MOTIONS)}
    radius = table(RADII.values(), scenes.size[:, k])[:, None] * (0.95 + 0.1 * u[0])
    two = scenes.two.float()[:, None]
    radius = radius * (1 - 0.28 * two)
    side = (1 - 2 * k) * two
    middle = WIDTH / 2 + (u[1] - 0.5) * 2 * (40 - 28 * two) + side * 44
    resting = 112 - radius - 8 * (1 - two) * u[2]
    travel = (t - 0.5) * (1.0 + 0.25 * (u[3] - 0.5))
    goes = move["right"] - move["left"]
    # Two objects that cross the picture keep their distance.
    crossing = WIDTH / 2 + (u[1] - 0.5) * 16 + side * 44 + goes * travel * (122 - 50 * two)
    x = mix(middle, crossing, goes.abs())
    climbs = move["up"] - move["down"]
    low, high = 112 - radius, (0.8 * radius).clamp(min=30)
    y = mix(resting, (low + high) / 2 - climbs * travel * (low - high), climbs.abs())
    beat = (2 * t * (0.95 + 0.1 * u[3]) + u[4]) % 1
    height = 4 * beat * (1 - beat)
    y = mix(y, 110 - radius - height * (92 - radius - 24).clamp(min=26), move["bounce"])
    squash = 1 - 0.16 * move["bounce"] * (1 - height).clamp(0, 1) ** 6
    around = 2 * math.pi * (t * (0.95 + 0.1 * u[3]) + u[4])
    x = x + move["orbit"] * (28 - 8 * two) * torch.cos(around)
    y = mix(y, 96 - 0.7 * radius + 17 * torch.sin(around), move["orbit"])
    y = mix(y, 78 + (u[2] - 0.5) * 8, move["grow"] + move["shrink"] + move["spin"])
    growth = move["grow"] * (t - 0.55) + move["shrink"] * (0.45 - t)
    radius = radius * (1 + 0.70 * growth)
    turn = move["spin"] * (2 * math.pi * t * (0.85 + 0.3 * u[3]) + 2 * math.pi * u[4])
    return x, y, radius, turn, squash.expand_as(x)


def _draw_object(
    image: torch.Tensor, scenes: Scenes, k: int, pixels: Canvas, present: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    track = object_track(scenes, k, pixels.t[:, 0, :, 0, 0])
    x, y, radius, turn, squash = (v[:, None, :, None, None] for v in track)
    shape = scenes.shape[:, k]
    dx, dy = pixels.x - x, (pixels.y - y - (1 - squash) * radius) / squash
    cos, sin = torch.cos(turn), torch.sin(turn)
    px, py = (cos * dx + sin * dy) / radius, -(-sin * dx + cos * dy) / radius
    distance = _distance(shape, px, py)
    cover = (0.5 - distance * radius / 1.2).clamp(0, 1) * present
    image = _draw_shadow(image, scenes, k, pixels, x, y, radius, present)
    color = table(COLORS.values(), scenes.color[:, k]).view(-1, 3, 1, 1, 1)
    return mix(
        image, _surface(shape, color, px, py, dx / radius, dy / radius, distance), cover
    ), cover


def _draw_shadow(
    image: torch.Tensor, scenes: Scenes, k: int, pixels: Canvas,
    x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor, present: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Darken the ground below an object, or the wall behind it."""
    ground, wall = 113.0, len(PLACES) - 1
    on_wall = (scenes.place == wall).view(-1, 1, 1, 1, 1).float()
    height = ((ground - y - radius) / 70).clamp(0, 1)
    wide, flat = radius * (0.95 + 0.5 * height), 4.5 + radius * 0.10
    below = ((pixels.x - x - 4) / wide) ** 2 + ((pixels.y - ground + 1) / flat) ** 2
    soft = torch.exp(-1.3 * below**1.5) * (0.55 - 0.33 * height)
    behind = ((pixels.x - x - 9) ** 2 + (pixels.y - y - 11) ** 2).sqrt() / radius
    cast = 0.30 * smooth(1.25, 0.65, behind)
    shadow = mix(soft, cast, on_wall) * present
    is_sea = (scenes.place == 3).view(-1, 1, 1, 1, 1).float()
    tint = table(COLORS.values(), scenes.color[:, k]).view(-1, 3, 1, 1, 1)
    return mix(image * (1 - shadow), mix(image, tint * 0.7, shadow), is_sea * 0.8)


def _distance(shape: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the distance to a shape's outline in radii, negative inside; y grows upwards."""
    r = (x * x + y * y).sqrt()
    cube = torch.maximum(torch.maximum(x.abs(), y.abs()) - 0.88, ((x - y).abs() - 1.36) * 0.7071)
    side = 0.866 * x.abs() + 0.5 * (y + 0.1)
    triangle = torch.maximum(side - 0.58, -(y + 0.1) - 0.62) - 0.04
    ring = (r - 0.74).abs() - 0.25
    every = torch.stack([r - 0.98, cube, triangle, _star(x, y), ring, _heart(x, y)], dim=0)
    index = shape.view(1, -1, 1, 1, 1, 1).expand(1, *every.shape[1:])
    return every.gather(0, index)[0]


def _star(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, y)
    angle = (angle - sector * torch.round(angle / sector)).abs()
    r = (x * x + y * y).sqrt()
    qx, qy = r * torch.cos(angle), r * torch.sin(angle)
    # The edge from the outer point (1, 0) to the inner one, as a line.
    ax, ay = 1.02, 0.0
    bx, by = 0.50 * math.cos(sector / 2), 0.50 * math.sin(sector / 2)
    length = math.hypot(bx - ax, by - ay)
    return ((qx - ax) * -(by - ay) + (qy - ay) * (bx - ax)) / -length - 0.02


def _heart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = x.abs() / 1.75, (y + 0.92) / 1.75
    upper = ((x - 0.25) ** 2 + (y - 0.75) ** 2).sqrt() - 0.35355
    half = 0.5 * (x + y).clamp(min=0)
    lower = torch.minimum(x**2 + (y - 1) ** 2, (x - half) ** 2 + (y - half) ** 2)
    lower = lower.clamp(min=1e-9).sqrt() * torch.sign(x - y)
    return torch.where(x + y > 1, upper, lower) * 1.75 - 0.03


def _surface(
    shape: torch.Tensor, color: torch.Tensor, px: torch.Tensor, py: torch.Tensor,
    dx: torch.Tensor, dy: torch.Tensor, distance: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """Return the lit colour of an object. px, py turn with it, dx, dy (downwards) do not."""
    is_shape = [(shape == i).view(-1, 1, 1, 1, 1).float() for i in range(len(SHAPES))]
    r2 = (dx * dx + dy * dy).clamp(max=1)
    # A ball is lit as a ball, a ring as a tube, the rest as slabs with a soft edge.
    ball = (-0.45 * dx - 0.55 * dy + 0.75 * (1 - r2).sqrt()).clamp(0, 1)
    tube = ((r2.sqrt() - 0.74) / 0.25).clamp(-1, 1)
    outward = (-0.6 * dx - 0.8 * dy) / r2.sqrt().clamp(min=0.2)
    ring = (0.72 * (1 - tube * tube).clamp(min=0).sqrt() + 0.34 * tube * outward).clamp(0, 1)
    slab = (0.70 - 0.20 * dx - 0.24 * dy) * (1 - 0.22 * torch.exp(distance * 9).clamp(max=1))
    faces = torch.where((px > 0.46) & (px > py), 0.46, torch.where(py > 0.46, 1.0, 0.74))
    light = ball * is_shape[0] + ring * is_shape[4]
    light = light + slab * (1 - is_shape[0] - is_shape[4] - is_shape[1]) + faces * is_shape[1]
    # Panels make the turning of a ball or a ring visible.
    angle = torch.atan2(py, px)
    panel = smooth(-0.12, 0.12, torch.sin(3 * angle)) * (is_shape[0] + is_shape[4])
    base = mix(color, color * 0.85 + 0.38 * (1 - color), 0.75 * panel)
    lit = base * (0.50 + 0.60 * light)
    gloss = torch.exp(-(((dx + 0.36) / 0.22) ** 2) - ((dy + 0.42) / 0.17) ** 2)
    return lit + 0.45 * gloss * (is_shape[0] + 0.25 * (is_shape[3] + is_shape[5]))


def _draw_sign(
    image: torch.Tensor, scenes: Scenes, pixels: Canvas
) -> tuple[torch.Tensor, torch.Tensor]:
    length = (scenes.letters > 0).sum(1).view(-1, 1, 1, 1, 1).float()
    has = (length > 0).float()
    left, top = SIGN_COLUMN * CELL - 4.0, SIGN_ROW * CELL - 1.0
    half_w, half_h = (length * CELL + 8) / 2, (CELL + 2) / 2

    def board(shift: float, corner: float) -> torch.Tensor:
        qx = (pixels.x - left - half_w - shift).abs() - half_w + corner
        qy = (pixels.y - top - half_h - shift).abs() - half_h + corner
        outside = (qx.clamp(min=0) ** 2 + qy.clamp(min=0) ** 2).sqrt()
        return outside + torch.maximum(qx, qy).clamp(max=0) - corner

    image = image * (1 - 0.30 * has * smooth(3.0, -2.0, board(2.0, 5.0)))
    plate = has * (0.5 - board(0.0, 4.5)).clamp(0, 1)
    image = mix(image, rgb(pixels.x, 0.98, 0.96, 0.90) - 0.008 * (pixels.y - top), plate)
    ink = letter_ink(scenes.letters, pixels)
    return mix(image, rgb(pixels.x, 0.13, 0.12, 0.20), ink), plate


def letter_ink(letters: torch.Tensor, pixels: Canvas) -> torch.Tensor:
    """Return the ink of words: [B, 1, 1, H, W] in 0..1. letters: [B, 9]."""
    atlas = glyph_atlas(pixels.x.device)
    number, height, width = len(letters), pixels.y.shape[3], pixels.x.shape[4]
    x = (pixels.x[:, 0, 0, 0] - 0.5).long() - SIGN_COLUMN * CELL
    y = (pixels.y[:, 0, 0, :, 0] - 0.5).long() - SIGN_ROW * CELL
    column = torch.div(x, CELL, rounding_mode="floor")
    inside_x = (x >= 0) & (column < MAX_LETTERS)
    letter = letters.gather(1, column.clamp(0, MAX_LETTERS - 1)) * inside_x
    inside_y = (y >= 0) & (y < CELL)
    at = (letter[:, None, :], y.clamp(0, CELL - 1)[:, :, None], (x % CELL)[:, None, :])
    ink = atlas[at] * inside_y[:, :, None]
    return ink.view(number, 1, 1, height, width)
