r"""VAE decode of one clip, plain diffusers and ours side by side, on one CUDA card.

    PYTHONPATH=. python benchmarks/vae_decode.py --profile
    PYTHONPATH=. python benchmarks/vae_decode.py --height 720 --width 1280 --skip-stock \
        --budgets 24 16 10 --repeats 1

Builds the full-size VAE with random weights on the card (time and memory do not depend on the
values) and decodes random latents. The last convolution is scaled so that the picture fills the
range. Rows of plain diffusers (`stock`) time `vae.decode` alone; our rows run up to uint8 frames in
host memory, one per memory budget. A row is the median of the repeats after one warm-up. Memory:
torch's peaks of allocated and reserved bytes, and NVML's use of the card by all processes after the
variant, torch's cache included. PSNR is over the uint8 frames, against the untiled and the tiled
decode of plain diffusers.
"""

from __future__ import annotations

import argparse
import copy
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pynvml
import torch
from diffusers import AutoencoderKLHunyuanVideo15

from hv15_batch.engine.decode.decode import apply_fast_vae, decode_frames, decode_untiled
from hv15_batch.model.tiles import plan_tiles, predict_peak_bytes
from hv15_batch.units import GIB


def main() -> None:
    """Run all variants and print one row for each as it finishes."""
    args = parse_args()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, {args}", flush=True)
    vae = build_vae()
    size = (args.frames - 1) // 4 + 1, args.height // 16, args.width // 16
    generator = torch.Generator("cuda").manual_seed(1)
    latents = torch.randn(1, 32, *size, device="cuda", dtype=torch.bfloat16, generator=generator)
    fill_range(vae, latents)
    latents *= vae.config.scaling_factor
    bench = Bench(vae, latents, args.repeats)
    if not args.skip_stock:
        print_accuracy(vae)
        bench.run_stock("stock untiled", tile=None, keep_as="untiled")
        bench.run_stock("stock 256-px tiles", tile=256, keep_as="tiled")
        bench.run_stock("stock 128-px tiles", tile=128)
    for budget in args.budgets:
        bench.run_ours(budget)
    if args.profile:
        bench.profile()
    if not args.skip_stock:
        apply_fast_vae(vae)  # last: from here on `vae.decode` is ours
        bench.run_stock("patched vae.decode, 256-px tiles", tile=256)


def parse_args(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options; of this command line where no words are given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=848)
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[10.5, 8, 6.5, 5.5, 5.1], help="GiB"
    )
    parser.add_argument("--skip-stock", action="store_true", help="ours only, no PSNR")
    parser.add_argument("--profile", action="store_true", help="also print the longest kernels")
    return parser.parse_args(words)


@torch.no_grad()
def build_vae() -> Any:
    """Return the full-size VAE in bf16 on the card, with seeded random weights."""
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo15()
    vae = vae.to(torch.bfloat16).to_empty(device="cuda").eval().requires_grad_(False)
    generator = torch.Generator("cuda").manual_seed(0)
    for name, parameter in vae.named_parameters():
        if name.endswith("gamma"):
            parameter.fill_(1.0)
        elif parameter.ndim <= 1:
            parameter.zero_()
        else:
            parameter.normal_(0, 0.02, generator=generator)
    return vae


@torch.no_grad()
def fill_range(vae: Any, latents: torch.Tensor) -> None:
    """Scale the last convolution so that the picture's deviation is 0.4 of -1..1."""
    sample = vae.decode(latents[:, :, :2], return_dict=False)[0]
    vae.decoder.conv_out.conv.weight.mul_(0.4 / sample.float().std())


@torch.no_grad()
def print_accuracy(vae: Any) -> None:
    """Print how far both bf16 decoders are from plain diffusers' in float32, on a small clip."""
    generator = torch.Generator("cuda").manual_seed(2)
    z = torch.randn(1, 32, 5, 16, 16, device="cuda", dtype=torch.bfloat16, generator=generator)
    torch.backends.cudnn.allow_tf32 = False
    exact = copy.deepcopy(vae.decoder).float()(z.float())
    torch.backends.cudnn.allow_tf32 = True
    for name, video in (("stock", vae.decoder(z)), ("ours", decode_untiled(vae.decoder, z))):
        error = ((video.float() - exact).norm() / exact.norm()).item()
        print(f"relative error of {name} in bf16 against float32: {error:.5f}", flush=True)


class Bench:
    """Times variants of one decode and compares their frames with plain diffusers'."""

    def __init__(self, vae: Any, latents: torch.Tensor, repeats: int) -> None:
        self.vae = vae
        self.latents = latents
        self.repeats = repeats
        self.references: dict[str, torch.Tensor] = {}
        pynvml.nvmlInit()
        self.card = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())

    @torch.no_grad()
    def run_stock(self, name: str, tile: int | None, keep_as: str | None = None) -> None:
        """Time `vae.decode`, tiled or not."""
        if tile is None:
            self.vae.disable_tiling()
        else:
            self.vae.enable_tiling(tile, tile, tile // 16, tile // 16)
        z = self.latents / self.vae.config.scaling_factor
        video = self._time(name, lambda: self.vae.decode(z, return_dict=False)[0])
        self.vae.disable_tiling()
        if video is None:
            return
        frames = to_frames(video)
        self._print_psnr(frames)
        if keep_as is not None:
            self.references[keep_as] = frames.cpu()

    def run_ours(self, budget_gib: float) -> None:
        """Time `decode_frames` with the plan for a memory budget."""
        frames, height, width = self.latents.shape[2:]
        try:
            plan = plan_tiles(height, width, frames, int(budget_gib * GIB), "cuda")
        except ValueError as error:
            print(f"ours, budget {budget_gib} GiB: {error}", flush=True)
            return
        predicted = predict_peak_bytes(plan, height, width, frames) / GIB
        name = f"ours, {budget_gib:.1f} GiB: {plan.rows}x{plan.columns} tiles, predicted"
        result = self._time(
            f"{name} {predicted:.2f}", lambda: decode_frames(self.vae, self.latents, plan)
        )
        if result is not None:
            self._print_psnr(result.cuda())

    def profile(self) -> None:
        """Print the kernels that take the longest in our fastest plan."""
        frames, height, width = self.latents.shape[2:]
        plan = plan_tiles(height, width, frames, None, "cuda")
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            decode_frames(self.vae, self.latents, plan)
        rows = sorted(profiler.key_averages(), key=lambda row: -row.self_device_time_total)
        total = sum(row.self_device_time_total for row in rows)
        print(f"kernels of the fastest plan: {total / 1e6:.3f} s", flush=True)
        for row in rows[:18]:
            seconds = row.self_device_time_total / 1e6
            print(f"  {seconds:7.3f} s x{row.count:5d} {row.key[:120]}", flush=True)

    def _time(self, name: str, call: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """Print a row for this variant; return what it gave, or None if it failed."""
        result = None
        gc.collect()
        torch.cuda.empty_cache()
        try:
            call()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            seconds = []
            for _ in range(self.repeats):
                result = None
                start = time.perf_counter()
                result = call()
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        except (RuntimeError, ValueError) as error:
            print(f"{name:44s} FAILED {type(error).__name__}: {str(error)[:200]}", flush=True)
            return None
        peak = torch.cuda.max_memory_allocated() / GIB
        reserved = torch.cuda.max_memory_reserved() / GIB
        used = pynvml.nvmlDeviceGetMemoryInfo(self.card).used / GIB
        print(
            f"{name:44s} {statistics.median(seconds):6.2f} s ({min(seconds):.2f}-{max(seconds):.2f}"
            f", n={len(seconds)})  peak {peak:.2f} GiB, reserved {reserved:.2f}, NVML {used:.2f}",
            end="",
            flush=True,
        )
        return result

    def _print_psnr(self, frames: torch.Tensor) -> None:
        for name, reference in self.references.items():
            squares = [
                (a.float() - b.cuda().float()).square().mean()
                for a, b in zip(frames, reference, strict=True)
            ]
            error = torch.stack(squares).mean().item()
            psnr = float("inf") if error == 0 else 10 * math.log10(255**2 / error)
            print(f"  {psnr:.2f} dB to {name}", end="")
        print(flush=True)


def to_frames(video: torch.Tensor) -> torch.Tensor:
    """Return uint8 [F, H, W, 3] of plain diffusers' [1, 3, F, H, W], frame by frame."""
    frames = []
    for frame in video[0].unbind(1):
        value = (frame.float() * 0.5 + 0.5).clamp(0, 1) * 255
        frames.append(value.round().to(torch.uint8).permute(1, 2, 0))
    return torch.stack(frames)


if __name__ == "__main__":
    main()
