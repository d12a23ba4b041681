"""The eight places of the made-up world, drawn by plain torch.

Each drawer takes the scenery's numbers, the pixels' x and y and the time, and returns pictures
[B, 3, T or 1, H, W] in 0..1.
"""

from __future__ import annotations

import math

import torch

from training.pixels import Canvas, Numbers, glow, mix, rgb, ridge, row_index, smooth
from training.world import HEIGHT, WIDTH, Scenes

HORIZON = 84.0


def draw_place(scenes: Scenes, pixels: Canvas, places: tuple[int, ...]) -> torch.Tensor:
    """Return the empty places of scenes: [B, 3, T, H, W] in 0..1.

    Args:
        scenes: on any device.
        pixels: what to draw.
        places: of the scenes.
    """
    drawers = (_meadow, _desert, _snow, _sea, _sunset, _night, _studio, _wall)
    shape = (len(scenes), 3, pixels.t.shape[2], pixels.y.shape[3], pixels.x.shape[4])
    image = torch.empty(shape, device=pixels.x.device)
    scenery = scenes.scenery.to(image.device)
    for number, draw in enumerate(drawers):
        chosen = tuple(i for i, place in enumerate(places) if place == number)
        if chosen:
            index = row_index(chosen, image.device)
            rows = pixels.rows(index)
            drawn = draw(Numbers(scenery[index]), rows.x, rows.y, rows.t)
            image[index] = drawn.expand(len(chosen), *shape[1:])
    return image


def _clouds(
    image: torch.Tensor,
    n: Numbers,
    x: torch.Tensor,
    y: torch.Tensor,
    t: torch.Tensor,
    strength: float,
) -> torch.Tensor:
    thick = torch.zeros_like(x * y)
    for k in range(2):
        cx = n(4 + k, -10, 110) + 95 * k + 5 * t
        cy = n(6 + k, 26, 52)
        thick = thick + glow(x, y, cx, cy, 26, 7) + 0.8 * glow(x, y, cx + 14, cy - 5, 13, 7)
        thick = thick + 0.7 * glow(x, y, cx - 15, cy - 3, 12, 6)
    white = rgb(x, 1.0, 1.0, 1.0) - 0.10 * smooth(-8, 10, y - n(6, 26, 52))
    return mix(image, white, strength * smooth(0.25, 1.0, thick))


def _meadow(n: Numbers, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    sky = mix(rgb(x, 0.33, 0.62, 0.95), rgb(x, 0.82, 0.93, 1.0), (y / HORIZON).clamp(0, 1))
    image = _clouds(sky, n, x, y, t, 0.85)
    far = HORIZON - 12 + 7 * ridge(x, n(0), 170)
    image = mix(image, rgb(x, 0.44, 0.66, 0.55), smooth(-0.8, 0.8, y - far))
    near = HORIZON - 2 + 4 * ridge(x, n(1), 230)
    depth = ((y - near) / (HEIGHT - HORIZON)).clamp(0, 1)
    grass = mix(rgb(x, 0.50, 0.78, 0.30), rgb(x, 0.20, 0.53, 0.17), depth)
    bands = torch.sin((y - HORIZON) * 0.30 + 2 * ridge(x, n(2), 300))
    return mix(image, grass * (1 + 0.05 * bands), smooth(-0.8, 0.8, y - near))


def _desert(n: Numbers, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    sky = mix(rgb(x, 0.38, 0.66, 0.90), rgb(x, 0.99, 0.88, 0.66), (y / HORIZON).clamp(0, 1))
    sx, sy = n(3, 20, 172), n(4, 44, 58)
    distance = ((x - sx) ** 2 + (y - sy) ** 2).sqrt()
    image = mix(sky, rgb(x, 1.0, 0.97, 0.85), 0.6 * torch.exp(-distance / 16))
    image = mix(image, rgb(x, 1.0, 0.99, 0.93), smooth(1.0, -1.0, distance - 9))
    for k, (base, high, length) in enumerate(((-8, 7, 150), (2, 7, 210), (18, 8, 330))):
        top = HORIZON + base + high * ridge(x, n(k), length)
        slope = ridge(x + 4, n(k), length) - ridge(x - 4, n(k), length)
        sand = mix(rgb(x, 0.93, 0.74, 0.47), rgb(x, 0.80, 0.54, 0.30), smooth(0.35, -0.35, slope))
        sand = sand * (0.90 + 0.07 * k + 0.10 * torch.exp(-(y - top).clamp(min=0) / 9))
        image = mix(image, sand, smooth(-0.8, 0.8, y - top))
    return image


def _snow(n: Numbers, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    image = mix(rgb(x, 0.58, 0.73, 0.88), rgb(x, 0.90, 0.93, 0.97), (y / HORIZON).clamp(0, 1))
    far = HORIZON - 15 + 8 * ridge(x, n(0), 130)
    blue = mix(rgb(x, 0.72, 0.80, 0.90), rgb(x, 0.86, 0.90, 0.96), ((y - far) / 25).clamp(0, 1))
    image = mix(image, blue, smooth(-0.8, 0.8, y - far))
    near = HORIZON + 1 + 4 * ridge(x, n(1), 240)
    for k in range(4):  # firs
        cx = n(3 + k, -8, 40) + 48 * k
        foot, high = HORIZON + 6 + 3 * n(7), n(8, 20, 26) - 3 * (k % 2)
        down = (y - (foot - high)).clamp(min=0)
        half = down * 0.26 + 1.2 * torch.sin(down * 1.05).clamp(min=0)
        inside = smooth(-0.8, 0.8, half - (x - cx).abs()) * smooth(1, -1, y - foot)
        fir = mix(rgb(x, 0.20, 0.36, 0.38), rgb(x, 0.33, 0.50, 0.52), smooth(3, -3, x - cx))
        image = mix(image, fir, inside * (down > 0))
    shade = 0.5 + 0.5 * ridge(x + 0.9 * y, n(2), 160)
    snow = mix(rgb(x, 0.97, 0.98, 1.0), rgb(x, 0.82, 0.88, 0.97), 0.75 * shade)
    return mix(image, snow, smooth(-0.8, 0.8, y - near))


def _sea(n: Numbers, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    sky = mix(rgb(x, 0.28, 0.58, 0.92), rgb(x, 0.84, 0.94, 0.99), (y / HORIZON).clamp(0, 1))
    image = _clouds(sky, n, x, y, t, 0.75)
    depth = ((y - HORIZON) / (HEIGHT - HORIZON)).clamp(0.001, 1)
    water = mix(rgb(x, 0.25, 0.58, 0.76), rgb(x, 0.03, 0.26, 0.50), depth**0.7)
    row = 26 * depth**0.6
    wave = torch.sin(row + 0.6 * torch.sin(x / (9 + 16 * depth) + 6 * n(0)) + 2 * math.pi * t)
    water = water * (1 + 0.10 * wave) + 0.05 * smooth(0.6, 1.0, wave)
    glint = glow(x, y * 0, n(3, 30, 160), y * 0, 22, 1) * (0.35 + 0.3 * wave) * (1 - 0.6 * depth)
    water = mix(water, rgb(x, 0.97, 0.98, 0.92), 0.7 * glint.clamp(0, 1))
    return mix(image, water, smooth(-0.8, 0.8, y - HORIZON))


def _sunset(n: Numbers, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    h = (y / HORIZON).clamp(0, 1)
    image = mix(rgb(x, 0.27, 0.16, 0.42), rgb(x, 0.93, 0.38, 0.32), smooth(0.0, 0.75, h))
    image = mix(image, rgb(x, 1.0, 0.73, 0.36), smooth(0.55, 1.0, h))
    sx, sy = n(3, 30, 162), n(4, HORIZON - 16, HORIZON - 4)
    distance = ((x - sx) ** 2 + (y - sy) ** 2).sqrt()
    image = mix(image, rgb(x, 1.0, 0.80, 0.45), 0.75 * torch.exp(-distance / 26))
    image = mix(image, rgb(x, 1.0, 0.93, 0.66), smooth(1.0, -1.0, distance - 15))
    for k in range(2):
        streak = glow(x, y, n(5 + k, 20, 170) + 4 * t, n(7 + k, 30, 60), 40, 2.6)
        image = mix(image, rgb(x, 0.99, 0.60, 0.42), 0.5 * streak)
    far = HORIZON - 5 + 6 * ridge(x, n(0), 150)
    image = mix(image, rgb(x, 0.44, 0.20, 0.35), smooth(-0.8, 0.8, y - far))
    near = HORIZON + 5 + 4 * ridge(x, n(1), 230)
    ground = mix(rgb(x, 0.36, 0.17, 0.26), rgb(x, 0.15, 0.09, 0.18), ((y - near) / 34).clamp(0, 1))
    ground = ground + 0.10 * rgb(x, 1.0, 0.5, 0.2) * glow(x, y, sx, near, 45, 14)
    return mix(image, ground, smooth(-0.8, 0.8, y - near))


def _night(n: Numbers, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    image = mix(rgb(x, 0.03, 0.04, 0.14), rgb(x, 0.14, 0.19, 0.42), (y / HORIZON).clamp(0, 1))
    for k in range(10):
        sx = (n(k, 0, 53) * 7.31 + 19.7 * k) % WIDTH
        sy = 5 + (n((k + 5) % 12, 0, 41) * 3.7 + 13.1 * k) % 62
        bright = 0.75 + 0.25 * torch.sin(2 * math.pi * (t + 0.37 * k))
        image = image + 0.9 * bright * torch.exp(-((x - sx) ** 2 + (y - sy) ** 2) / 1.6)
    mx, my = n(3, 24, 168), n(4, 46, 60)
    distance = ((x - mx) ** 2 + (y - my) ** 2).sqrt()
    image = image + 0.30 * rgb(x, 0.75, 0.82, 1.0) * torch.exp(-distance / 20)
    spots = glow(x, y, mx - 3, my + 2, 4, 3) + glow(x, y, mx + 4, my - 3, 3, 3)
    moon = rgb(x, 0.97, 0.96, 0.88) * (1 - 0.12 * spots)
    image = mix(image, moon, smooth(1.0, -1.0, distance - 11))
    far = HORIZON - 6 + 7 * ridge(x, n(0), 160)
    image = mix(image, rgb(x, 0.07, 0.10, 0.24), smooth(-0.8, 0.8, y - far))
    near = HORIZON + 3 + 4 * ridge(x, n(1), 240)
    ground = mix(rgb(x, 0.10, 0.15, 0.27), rgb(x, 0.03, 0.05, 0.11), ((y - near) / 38).clamp(0, 1))
    ground = ground + 0.06 * rgb(x, 0.6, 0.7, 1.0) * glow(x, y, mx, near, 50, 16)
    return mix(image, ground, smooth(-0.8, 0.8, y - near))


def _studio(n: Numbers, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    light = glow(x, y, n(0, 60, 132), n(1, 40, 64), 95, 70)
    wall = mix(rgb(x, 0.40, 0.41, 0.43), rgb(x, 0.70, 0.70, 0.71), light)
    pool = glow(x, y, n(0, 60, 132), n(1, 40, 64) * 0 + 112, 80, 24)
    floor = mix(rgb(x, 0.44, 0.45, 0.46), rgb(x, 0.76, 0.76, 0.77), pool)
    return mix(wall, floor, smooth(-7, 9, y - HORIZON - n(2, 0, 6)))


def _wall(n: Numbers, x: torch.Tensor, y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    base = mix(rgb(x, 0.97, 0.93, 0.83), rgb(x, 0.87, 0.79, 0.64), ((x + y) / 330).clamp(0, 1))
    left = n(0, 20, 110)
    slanted = x - left - 0.45 * (y - 20)
    window = smooth(-4, 4, slanted) * smooth(4, -4, slanted - n(1, 46, 64))
    bar = 1 - 0.8 * smooth(3.5, 1.5, (slanted - n(1, 23, 32)).abs())
    image = mix(base, rgb(x, 1.0, 0.98, 0.91), 0.75 * window * bar * smooth(8, 22, y))
    skirting = smooth(-0.8, 0.8, y - 116)
    board = rgb(x, 0.78, 0.66, 0.50) * (1.06 - 0.12 * smooth(116, 128, y))
    image = image * (1 - 0.10 * torch.exp(-(y - 116).abs() / 3))
    return mix(image, board, skirting)
