"""One transformer forward at full size, random weights: plain diffusers, mask-free, compiled.

    python benchmarks/forward.py [FRAMES ...]
    python benchmarks/forward.py --accuracy 61

480x848, bf16. Prints median seconds, activations (peak less weights), the share of the card's
measured matrix-product rate, and the relative difference from plain diffusers. `--accuracy` prints
instead how far the bf16 forwards of both are from float32 ones with the same weights and inputs, as
norm of the difference over the norm.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from hv15_batch.engine.denoise.attention import apply_attention
from hv15_batch.engine.denoise.compilation import compile_blocks
from hv15_batch.engine.load import random_weights
from hv15_batch.model.shapes import forward_flop
from hv15_batch.model.variant import ModelConfig
from hv15_batch.units import GIB

TEXT, PADDED, GLYPHS, IMAGE = 60, 1000, 256, 729


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Return median seconds, peak bytes and the last result; one warm-up."""
    output = call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        del output
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        output = call()
        end.record()
        torch.cuda.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)
    return statistics.median(seconds), torch.cuda.max_memory_allocated(), output


def matmul_rate() -> float:
    """Return the card's rate in a large bf16 matrix product, FLOP/s."""
    one = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    other = torch.randn_like(one)
    seconds, _, _ = timed(lambda: [one @ other for _ in range(10)], 5)
    return 10 * 2 * 8192**3 / seconds


def inputs(frames: int, trimmed: bool) -> dict[str, Any]:
    """Return a forward's inputs: padded as in plain diffusers, or trimmed to valid tokens."""
    generator = torch.Generator("cuda").manual_seed(0)
    make = {"device": "cuda", "dtype": torch.bfloat16}
    video = torch.randn(1, 65, (frames - 1) // 4 + 1, 30, 53, generator=generator, **make)
    video[:, 32:] = 0
    text = torch.randn(1, TEXT, 3584, generator=generator, **make)
    length, glyphs, image = (TEXT, 0, 0) if trimmed else (PADDED, GLYPHS, IMAGE)
    states = torch.zeros(1, length, 3584, **make)
    states[:, :TEXT] = text
    mask = torch.zeros(1, length, **make)
    mask[:, :TEXT] = 1
    return {
        "hidden_states": video,
        "timestep": torch.tensor([900.0], **make),
        "encoder_hidden_states": states,
        "encoder_attention_mask": mask,
        "encoder_hidden_states_2": torch.zeros(1, glyphs, 1472, **make),
        "encoder_attention_mask_2": torch.zeros(1, glyphs, **make),
        "image_embeds": torch.zeros(1, image, 1152, **make),
        "return_dict": False,
    }


def accuracy(transformer: Any, frames: int) -> None:
    """Print the relative error of each bf16 forward against float32."""
    exact = copy.deepcopy(transformer).float()
    torch.backends.cudnn.allow_tf32 = False
    references = {}
    for name, mask_free in (("stock", False), ("mask-free", True)):
        apply_attention(exact, "native", mask_free=mask_free)
        given = inputs(frames, trimmed=mask_free)
        given = {k: v.float() if torch.is_tensor(v) else v for k, v in given.items()}
        references[name] = exact(**given)[0]
        torch.cuda.synchronize()
        print(f"{frames} frames in float32: {name} done", flush=True)
    del exact
    torch.backends.cudnn.allow_tf32 = True
    reference = references["stock"]

    def report(name: str, output: torch.Tensor) -> None:
        error = ((output.float() - reference).norm() / reference.norm()).item()
        print(f"{frames} frames, {name:28s} differs from stock in float32 by {error:.3e}")

    report("mask-free in float32", references["mask-free"])
    apply_attention(transformer, "native", mask_free=False)
    report("stock in bf16", transformer(**inputs(frames, False))[0])
    backend = apply_attention(transformer, "auto", mask_free=True)
    report(f"mask-free {backend} in bf16", transformer(**inputs(frames, True))[0])
    compile_blocks(transformer)
    report("the same, compiled", transformer(**inputs(frames, True))[0])


@torch.no_grad()
def main() -> None:
    wants_accuracy = "--accuracy" in sys.argv
    sizes = [int(a) for a in sys.argv[1:] if a != "--accuracy"] or [121]
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    matmul = matmul_rate()
    print(f"matrix product 8192^3: {matmul / 1e12:.0f} TFLOP/s", flush=True)
    model = ModelConfig(name="480p_t2v", repo="-")
    transformer = random_weights.build_component("transformer", model, torch.bfloat16, "cuda")
    if wants_accuracy:
        for frames in sizes:
            accuracy(transformer, frames)
        return
    weights = torch.cuda.memory_allocated()
    reference: dict[int, torch.Tensor] = {}

    def report(name: str, frames: int, trimmed: bool, repeats: int) -> None:
        given = inputs(frames, trimmed)
        begin = time.perf_counter()
        seconds, peak, output = timed(lambda: transformer(**given)[0], repeats)
        rate = forward_flop((frames - 1) // 4 * 1590 + 1590, TEXT) / seconds
        base = reference.setdefault(frames, output)
        error = ((output - base).float().norm() / base.float().norm()).item()
        print(
            f"{frames} frames {name:28s} {seconds:7.3f} s  activations "
            f"{(peak - weights) / GIB:5.2f} GiB  {rate / 1e12:4.0f} TFLOP/s = {rate / matmul:.0%}"
            f" of matmul  differs from stock {error:.4f}  "
            f"(in all {time.perf_counter() - begin:.0f} s)",
            flush=True,
        )

    for frames in sizes:
        apply_attention(transformer, "native", mask_free=False)
        report("stock", frames, False, 1)
        backend = apply_attention(transformer, "auto", mask_free=True)
        report(f"mask-free {backend}", frames, True, 3)
    compile_blocks(transformer)
    for frames in sizes:
        report("mask-free compiled", frames, True, 3)


if __name__ == "__main__":
    main()
