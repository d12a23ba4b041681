"""Render two rows with two seeds at full size with random weights, and print the log.

    python benchmarks/full_size_batch.py --steps 4 OUT_DIR

Time and memory do not depend on the values of the weights, so nothing is downloaded. Needs a
CUDA card; prints seconds per stage and peak memory of each clip, and that each component was
loaded once.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from PIL import Image

from hv15_batch.units import GIB

MODELS = ("480p_t2v", "480p_i2v_step_distilled")
COLUMNS = (
    "clip_id",
    "status",
    "is_cold",
    "load_seconds",
    "encode_seconds",
    "denoise_seconds",
    "decode_seconds",
    "write_seconds",
    "total_seconds",
)
MEMORY = ("encode", "denoise", "decode")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("overrides", nargs="*", help="further options, e.g. offload=model")
    arguments, more = parser.parse_known_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    worst = 0
    for model in arguments.models:
        manifest = write_manifest(arguments.out, model)
        run_dir = arguments.out / model
        begin = time.perf_counter()
        command = [sys.executable, "-m", "hv15_batch", f"manifest={manifest}", f"run_dir={run_dir}"]
        command += [f"model={model}", "model.weights=random", "runtime.allow_off_recipe=true"]
        command += [f"override.num_inference_steps={arguments.steps}", *more]
        worst = max(worst, subprocess.run(command, check=False).returncode)
        print(f"\n{model}: whole run {time.perf_counter() - begin:.1f} s")
        print_log(run_dir)
    return worst


def write_manifest(folder: Path, model: str) -> Path:
    """Write two rows with two seeds; for image-to-video each with a first frame."""
    rows = [
        {"id": "bear", "prompt": "A teddy bear sits on a bed of soft pillows.", "seed": "0,1"},
        {"id": "sign", "prompt": 'A neon sign reads "OPEN 24 HOURS" in the rain.', "seed": "0,1"},
    ]
    if "i2v" in model:
        for number, row in enumerate(rows):
            image = folder / f"first_{number}.png"
            Image.radial_gradient("L").resize((848, 480)).convert("RGB").save(image)
            row["image"] = image.name
    path = folder / f"{model}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def print_log(run_dir: Path) -> None:
    """Print seconds per stage and peak memory per clip."""
    log = pd.read_parquet(run_dir / "log")
    with pd.option_context("display.width", 250, "display.max_columns", 30):
        print(log[list(COLUMNS)].to_string(index=False))
        gib = log[[f"{stage}_peak_vram_allocated_bytes" for stage in MEMORY]] / GIB
        print(gib.round(2).to_string(index=False))
        first = log.iloc[0]
        for name in ("gpu_name", "driver_version", "torch_version", "diffusers_version",
                     "attention_backend", "mask_free", "offload", "vae_tile_size", "height",
                     "width", "num_frames", "num_text_tokens", "num_video_tokens", "model_pflop",
                     "tflops", "error_type", "error_message"):  # fmt: skip
            print(f"{name}: {first[name]}")
        print("step_seconds:", [round(s, 3) for s in first["step_seconds"]])


if __name__ == "__main__":
    sys.exit(main())
