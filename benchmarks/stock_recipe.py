"""One warm clip of plain diffusers at full size with random weights, as in a published recipe.

    python benchmarks/stock_recipe.py 121:8:1 61:10:6        # frames:steps:guidance ...

It calls `enable_model_cpu_offload()` and `vae.enable_tiling()`, as Option B of smeltcore's recipe
for the RTX 4090 does (`conf/reference/recipe_rtx4090.yaml`). The recipe's `flash_hub` line is left
out, since that backend raises on this model's mask. Each case is one warm clip; before the
first one a one-step clip of its size is rendered. Frames are not written to a file. Prints seconds
per clip, torch's and NVML's peak.
"""

from __future__ import annotations

import sys
import time

import torch
from diffusers import HunyuanVideo15Pipeline
from nvml_peak import nvml_peak

from hv15_batch.engine.load import random_weights
from hv15_batch.model.variant import ModelConfig
from hv15_batch.units import GIB

PROMPT = "A teddy bear sits on a bed of soft pillows."


def build() -> HunyuanVideo15Pipeline:
    model = ModelConfig(name="480p_t2v", repo="-")
    parts = {}
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        part = random_weights.build_component(name, model, torch.bfloat16, "cuda")
        parts[name] = part.to("cpu")
        torch.cuda.empty_cache()
    tokenizer, tokenizer_2 = random_weights.tokenizers()
    pipe = HunyuanVideo15Pipeline(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=random_weights.build_scheduler(model),
        guider=random_weights.build_guider(model),
        **parts,
    )
    pipe.enable_model_cpu_offload()
    pipe.vae.enable_tiling()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(pipe: HunyuanVideo15Pipeline, frames: int, steps: int, guidance: float) -> float:
    pipe.guider = pipe.guider.new(guidance_scale=guidance)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    pipe(
        prompt=PROMPT,
        height=480,
        width=848,
        num_frames=frames,
        num_inference_steps=steps,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="pt",
    )
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    begin = time.perf_counter()
    pipe = build()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    print(f"built in {time.perf_counter() - begin:.1f} s", flush=True)
    for number, case in enumerate(sys.argv[1:]):
        frames, steps, guidance = case.split(":")
        if number == 0:
            print(f"one-step clip: {clip(pipe, int(frames), 1, float(guidance)):.1f} s", flush=True)
        torch.cuda.reset_peak_memory_stats()
        with nvml_peak() as peak:
            seconds = clip(pipe, int(frames), int(steps), float(guidance))
        print(
            f"stock {frames} frames, {steps} steps, guidance {guidance}: {seconds:.1f} s a clip, "
            f"peak {torch.cuda.max_memory_allocated() / GIB:.1f} "
            f"GiB by torch, {peak.gib:.1f} by NVML",
            flush=True,
        )


if __name__ == "__main__":
    main()
