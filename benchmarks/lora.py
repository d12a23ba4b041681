"""What a LoRA costs at full size, and that the clips after it have the bits of a run without one.

    python benchmarks/lora.py OUT_DIR runtime.compile=true
    python benchmarks/lora.py OUT_DIR offload=stream

Random weights and a random LoRA on every matrix of the blocks, so nothing is downloaded. Needs a
CUDA card; prints seconds a step and peak memory of warm clips with and without it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from hv15_batch.model.architectures import read_architecture
from hv15_batch.units import GIB
from hv15_batch.weights.layouts import shapes

SIZE = 1e-3
"""Of the LoRA's values: it changes the latents, and leaves them finite."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--frames", type=int, default=61)
    arguments, more = parser.parse_known_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = write_lora(arguments.out / "lora.safetensors", arguments.rank)
    print(f"LoRA of rank {arguments.rank}: {file.stat().st_size / GIB:.2f} GiB")
    prompt = "A teddy bear sits on a bed of soft pillows."
    rows = {"without": ["none"], "with": ["lora.safetensors", "none"]}
    logs = {}
    for name, cells in rows.items():
        manifest = arguments.out / f"{name}.csv"
        lines = [f"{cell.split('.')[0]},{prompt},0..2,{cell}" for cell in cells]
        manifest.write_text("\n".join(["id,prompt,seed,loras", *lines]) + "\n")
        command = [sys.executable, "-m", "hv15_batch", f"manifest={manifest}", "order=rows"]
        command += [f"run_dir={arguments.out / name}", "model=480p_t2v_4step"]
        command += ["model.weights=random", f"override.num_frames={arguments.frames}", *more]
        subprocess.run(command, check=True)
        logs[name] = pd.read_parquet(arguments.out / name / "log")
    before = logs["without"].set_index("seed")["latents_sha256"]
    after = logs["with"][logs["with"]["loras"].isna()].set_index("seed")["latents_sha256"]
    is_same = before.equals(after[before.index])
    print(f"clips without a LoRA, after those with one, have the bits of a run without: {is_same}")
    for label, log in (("with", logs["with"].dropna(subset="loras")), ("without", logs["without"])):
        warm = log[~log["is_cold"].astype(bool)]
        peak = log["denoise_peak_vram_allocated_bytes"].max() / GIB
        step = warm["denoise_seconds"].median() / warm["num_inference_steps"].median()
        print(f"{label} LoRA: {step:.3f} s a step ({len(warm)} warm clips), peak {peak:.2f} GiB")
    return 0


def write_lora(path: Path, rank: int) -> Path:
    """Write a random LoRA on every matrix of the blocks, as diffusers does."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes(read_architecture("full")["transformer"]).items():
        if name.startswith("transformer_blocks.") and len(shape) == 2:
            module = f"transformer.{name.removesuffix('.weight')}"
            for part, size in (("lora_A", (rank, shape[1])), ("lora_B", (shape[0], rank))):
                values = torch.randn(size, generator=generator) * SIZE
                tensors[f"{module}.{part}.weight"] = values.to(torch.bfloat16)
    save_file(tensors, path)
    return path


if __name__ == "__main__":
    sys.exit(main())
