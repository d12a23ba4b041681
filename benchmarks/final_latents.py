"""How far a setting moves a clip's final latents from those of bf16, from equal noise.

    python benchmarks/final_latents.py OUT           # full size, about five minutes on one H200
    python benchmarks/final_latents.py OUT --tiny    # the tiny model on the CPU, to try this file

Each setting is one run of one clip with random weights: 480p_t2v_distilled, 480x848x61, 12 steps,
resident. The error is the norm of the difference from the first run's saved latents, over their
norm. A setting that cannot run here is left out, with the reason. The same command again resumes.

With random weights a step's residual says nothing about the next one. So the figure of the static
cache is not what trained weights give.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

STEPS = 12
"""The static cache needs at least 10."""
FULL = (
    *("model=480p_t2v_distilled", "model.weights=random", "offload=resident"),
    *("override.num_frames=61", f"override.num_inference_steps={STEPS}"),
    "runtime.allow_off_recipe=true",
)
TINY = ("model=tiny_t2v", "override.num_frames=9", f"override.num_inference_steps={STEPS}")
PLAIN = "bf16"
SETTINGS = {
    PLAIN: (),
    "fp8 linears": ("runtime.linear=fp8",),
    "int8 linears": ("runtime.linear=int8",),
    "attention comfy_int8": ("runtime.attention_backend=comfy_int8",),
    "static cache": ("sampling.cache=static",),
}
"""What is typed beside `FULL`; the first is what the others are compared with. The tiny model is in
float32, whatever its name here."""
PROMPT = "A teddy bear sits on a bed of soft pillows."


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS)[1:], metavar="SETTING")
    arguments = parser.parse_args(words)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "clip.csv").write_text(f"id,prompt,seed\nclip,{PROMPT},0\n", encoding="utf-8")
    names = arguments.only or list(SETTINGS)[1:]
    plain = None
    for name in (PLAIN, *names):
        latents = render(out, name, TINY if arguments.tiny else FULL)
        if name == PLAIN:
            plain = latents
        elif latents is not None and plain is not None:
            print(f"{name}: relative error {relative_error(latents, plain):.4f}", flush=True)
    return 0 if plain is not None else 1


def render(out: Path, name: str, model: Sequence[str]) -> torch.Tensor | None:
    """Return the saved latents of a run with a setting; None, with a line, if it cannot run."""
    run_dir = out / name.replace(" ", "_")
    command = [sys.executable, "-m", "hv15_batch", f"manifest={out / 'clip.csv'}"]
    command += [f"run_dir={run_dir}", *model, *SETTINGS[name]]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        print(f"{name}: not measured: {ended.stderr.strip() or f'exit {ended.returncode}'}")
        return None
    return saved_latents(run_dir)


def saved_latents(run_dir: Path) -> torch.Tensor:
    """Return the latents of the last clip in a run's log, in float32."""
    row = pd.read_parquet(run_dir / "log").sort_values("finished_at").iloc[-1]
    return load_file(run_dir / row["latents_file"])["latents"].float()


def relative_error(latents: torch.Tensor, plain: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of `plain`; both of one shape."""
    if latents.shape != plain.shape:
        raise ValueError(f"latents of {tuple(latents.shape)} and {tuple(plain.shape)}")
    return float((latents - plain).norm() / plain.norm())


if __name__ == "__main__":
    sys.exit(main())
