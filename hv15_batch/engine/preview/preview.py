"""Makes the pictures of the clip that a worker denoises, and decides when.

A picture is that of the finished clip as the transformer predicts it: latents less sigma times
velocity, of the middle frame. It never waits for the device, and never takes more than a hundredth
of the clip's time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from hv15_batch.engine.denoise.pipeline import Watch
from hv15_batch.engine.preview.colours import ColourMap
from hv15_batch.engine.preview.learning import fits, learn, read_colours, write_colours
from hv15_batch.errors import Secondary
from hv15_batch.rundir.chosen.previews import remove_preview, write_preview
from hv15_batch.rundir.paths import RunDir
from hv15_batch.weights.checkpoint import cache_root

MOST_OF_THE_TIME = 0.01
"""Pictures take at most this share of the time since a clip's denoising began."""
FIRST_SECONDS = 0.01
"""What the first picture is expected to take; a later one what the longest took."""
PICTURES = 10
"""Pictures of a clip, where its steps take long enough."""
_LONG_SIDE = 384
"""Pixels, about; the latents' grid itself is too small to look at."""


class Previews:
    """The pictures of one worker."""

    def __init__(self, run_dir: RunDir, worker: int, tell: Callable[[str], None]) -> None:
        """Show nothing yet.

        Args:
            run_dir: As the run or shard sees it.
            worker: Number of the worker.
            tell: Told once why there are no pictures, if something fails.
        """
        self._run_dir = run_dir
        self._worker = worker
        self._guard = Secondary("clips are not shown while they denoise", tell)
        self._colours: dict[str, ColourMap | None] = {}
        self._is_judged: set[str] = set()

    def watch(self, vae_sha256: Callable[[], str]) -> Watch | None:
        """Return what `denoise` calls for a clip; None while the colours are not known.

        Args:
            vae_sha256: Returns the content hash of the clip's VAE.
        """
        with self._guard:
            remove_preview(self._run_dir, self._worker)
            colours = self._known(vae_sha256())
            if colours is not None:
                return _Shown(self._run_dir, self._worker, colours, self._guard).watch
        return None

    def _known(self, key: str) -> ColourMap | None:
        if key not in self._colours:
            self._colours[key] = read_colours(_kept(key), key)
        return self._colours[key]

    def decoded(
        self,
        vae_sha256: Callable[[], str],
        vae: Callable[[], AbstractContextManager[Any]],
        latents: torch.Tensor,
        frames: torch.Tensor,
    ) -> None:
        """Learn the colours from the first clip of a VAE, where no known ones fit it.

        Args:
            vae_sha256: See `watch`.
            vae: Gives the VAE on its device.
            latents: [1, 32, T, h, w], as the pipeline returns them.
            frames: uint8 [F, H, W, 3], decoded from them.
        """
        with self._guard:
            key = vae_sha256()
            if key in self._is_judged:
                return
            self._is_judged.add(key)
            known = self._known(key)
            if known is not None and fits(known, latents, frames):
                return
            with vae() as loaded:
                learned = learn(loaded, latents, frames)
            self._colours[key] = learned
            write_colours(_kept(key), key, learned)

    def end(self) -> None:
        """Remove the picture: the clip is there, or has failed."""
        with self._guard:
            remove_preview(self._run_dir, self._worker)


def _kept(key: str) -> Any:
    return cache_root() / "previews" / f"{key}.safetensors"


@dataclass
class _OnItsWay:
    """A picture that the device may not have made yet."""

    pixels: torch.Tensor
    """uint8 [h, w, 3] on the CPU."""
    made: torch.cuda.Event | None
    """None where it is made already."""


class _Shown:
    """The pictures of one clip."""

    def __init__(self, run_dir: RunDir, worker: int, colours: ColourMap, guard: Secondary) -> None:
        self._run_dir, self._worker = run_dir, worker
        self._colours = colours
        self._guard = guard
        self._began = time.perf_counter()
        self._spent = 0.0
        self._cost = FIRST_SECONDS
        self._taken_at = 0
        self._on_its_way: _OnItsWay | None = None

    def watch(
        self,
        step: int,
        steps: int,
        sigma: torch.Tensor,
        latents: torch.Tensor,
        velocity: torch.Tensor,
    ) -> None:
        """Take or write a picture, if it is time; see `engine.denoise.pipeline.Watch`."""
        with self._guard:
            begin = time.perf_counter()
            self._write_if_made()
            is_due = step >= self._taken_at + max(steps // PICTURES, 1) and step < steps
            if is_due and self._spent + self._cost <= MOST_OF_THE_TIME * (begin - self._began):
                self._taken_at = step
                self._on_its_way = self._taken(sigma, latents, velocity)
                self._write_if_made()
            taken = time.perf_counter() - begin
            self._spent += taken
            self._cost = max(self._cost, taken)

    def _taken(
        self, sigma: torch.Tensor, latents: torch.Tensor, velocity: torch.Tensor
    ) -> _OnItsWay:
        middle = latents.shape[2] // 2
        now, towards = latents[0, :, middle].float(), velocity[0, :, middle].float()
        colours = self._colours.colours(now - sigma.to(now.device) * towards)
        pixels = (colours * 255).round().to(torch.uint8)
        if pixels.device.type != "cuda":
            return _OnItsWay(pixels, None)
        host = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=True)
        host.copy_(pixels, non_blocking=True)
        made = torch.cuda.Event()
        made.record(torch.cuda.current_stream(pixels.device))
        return _OnItsWay(host, made)

    def _write_if_made(self) -> None:
        taken = self._on_its_way
        if taken is None or (taken.made is not None and not taken.made.query()):
            return
        self._on_its_way = None
        image = _enlarged(taken.pixels.numpy())
        write_preview(self._run_dir, self._worker, lambda path: _save(image, path))


def _enlarged(pixels: np.ndarray[Any, Any]) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = max(_LONG_SIDE // max(image.size), 1)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)


def _save(image: Image.Image, path: Any) -> None:
    with path.open("wb") as file:
        image.save(file, "JPEG", quality=80)
