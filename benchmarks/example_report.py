"""A sweep of two variants and two profiles, each clip three times, and its report.

    python benchmarks/example_report.py OUT [WORD ...]

Full-size random weights, short clips, and the memory of a 24 GiB card; the pictures and figures in
docs/report.md are of it. Further words go to every job.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROMPTS = (
    "A fluffy teddy bear sits on a bed of soft pillows.",
    'A rainy street at night; a neon sign reads ""OPEN 24 HOURS"" above a small shop.',
)
SIZE = ("height=320", "width=576", "num_frames=33", "num_inference_steps=4")
SWEEP = ("model=480p_t2v,480p_t2v_distilled", "offload=resident,stream")


def main() -> int:
    out, *words = sys.argv[1:]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "example.csv"
    rows = [f'{name},"{text}"' for name, text in zip(("bear", "street"), PROMPTS, strict=True)]
    manifest.write_text("\n".join(["id,prompt", *rows]) + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "hv15_batch",
        "-m",
        str(manifest),
        f"run_dir={folder / 'runs'}",
    ]
    command += [*SWEEP, *(f"override.{word}" for word in SIZE), "model.weights=random"]
    command += ["runtime.vram_limit_gib=24"]
    command += ["runtime.allow_off_recipe=true", "benchmark.repeat=3", *words]
    code = subprocess.run(command, check=False).returncode
    report = [sys.executable, "-m", "hv15_batch.report", str(folder / "runs")]
    return max(code, subprocess.run(report, check=False).returncode)


if __name__ == "__main__":
    sys.exit(main())
