"""What the pictures of a clip that denoises cost, and how near they are to its frames.

    python benchmarks/preview.py                 seconds of a picture, on the device that there is
    python benchmarks/preview.py --decibels      and PSNR of a map from one demo clip on other clips

A picture is made and written as during a run: prediction, map, JPEG of 384 pixels, rename. The time
is what the worker's thread computes. On CUDA the device's own part is measured with events.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from hv15_batch.engine.load.demo import build_demo_component
from hv15_batch.engine.preview import preview
from hv15_batch.engine.preview.colours import NUM_TERMS, ColourMap, psnr
from hv15_batch.engine.preview.learning import learn, middle_of
from hv15_batch.errors import Secondary
from hv15_batch.model.architectures import read_architecture
from hv15_batch.model.options import small_model
from hv15_batch.rundir.paths import RunDir
from training.drawing import render
from training.pixels import canvas
from training.world import sample_scenes

SIZES = {"128x192x25": (7, 8, 12), "480x832x121": (31, 30, 52), "720x1280x121": (31, 45, 80)}
REPEATS = 40


def picture_seconds(device: torch.device, grid: tuple[int, int, int]) -> tuple[float, float]:
    """Return median seconds of the thread for a picture, and of the device (0 on the CPU)."""
    latents = torch.randn(1, 32, *grid, device=device)
    sigma = torch.tensor(0.5, device=device)
    preview.MOST_OF_THE_TIME = 1e9
    host, on_device = [], []
    with tempfile.TemporaryDirectory() as folder:
        run_dir = RunDir(Path(folder))
        guard = Secondary("no picture", print)
        colours = ColourMap(torch.randn(NUM_TERMS, 3) / 100)
        for _ in range(REPEATS):
            shown = preview._Shown(run_dir, 0, colours, guard)
            events: list[Any] = []
            if device.type == "cuda":
                events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            if device.type == "cuda":
                events[0].record()
            begin = time.thread_time()
            shown.watch(1, 10, sigma, latents, latents)
            taken = time.thread_time() - begin
            if device.type == "cuda":
                events[1].record()
                torch.cuda.synchronize(device)
                on_device.append(events[0].elapsed_time(events[1]) / 1000)
                begin = time.thread_time()
                shown.watch(1, 10, sigma, latents, latents)  # writes it
                taken += time.thread_time() - begin
            host.append(taken)
    return statistics.median(host), statistics.median(on_device or [0.0])


def decibels(num_clips: int = 12, num_frames: int = 25) -> tuple[float, list[float]]:
    """Return seconds to learn from a clip of the demo VAE, and the PSNR on the other clips."""
    vae: Any = build_demo_component("vae", small_model("demo_t2v"), read_architecture("demo"))
    clips = []
    for number in range(num_clips):
        generator = torch.Generator().manual_seed(number)
        drawn, _, _ = render(sample_scenes(1, generator), canvas(1, "cpu", frames=num_frames))
        frames = ((drawn[0] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 3, 0)
        with torch.no_grad():
            latents = vae.encode(drawn).latent_dist.mode() * vae.config.scaling_factor
        clips.append((latents, frames.contiguous()))
    begin = time.perf_counter()
    learned = learn(vae, *clips[0])
    seconds = time.perf_counter() - begin
    found = []
    for latents, frames in clips[1:]:
        own, wanted = middle_of(latents, frames)
        shown = torch.stack([learned.colours(own[:, t]) for t in range(own.shape[1])])
        found.append(psnr(shown, wanted))
    return seconds, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decibels", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name, grid in SIZES.items():
        host, on_device = picture_seconds(device, grid)
        ten = 10 * (host + on_device)
        print(f"{name}: {host * 1e3:.2f} ms of the thread, {on_device * 1e3:.3f} ms of the device;")
        print(f"  ten of a clip take {ten * 1e3:.1f} ms: 1 % of a clip of {ten * 100:.1f} s")
    if arguments.decibels:
        seconds, found = decibels()
        print(f"learned in {seconds:.1f} s, once for each VAE")
        print(f"on {len(found)} other clips: {min(found):.1f} to {max(found):.1f} dB, ", end="")
        print(f"median {statistics.median(found):.1f} dB")


if __name__ == "__main__":
    main()
