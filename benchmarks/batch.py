"""A batch of this project at full size with random weights: seconds per warm clip and peaks.

    python benchmarks/batch.py OUT 121:8:1 121:10:6 61:10:6 [-- runtime.compile=true ...]
    python benchmarks/batch.py OUT x6 121:8:1      # six clips of each case

Each case is frames:steps:guidance, or height:width:frames:steps:guidance. Before the first case of
a size a clip of that size and one step (with a step cache, ten) is rendered, which takes the cold
start. Everything after `--` goes to `hv15_batch`. Wall seconds are those between the ends of two
clips, so whatever delays the next clip counts. Beside them stands the prediction, calibrated by the
logs of other runs of the same card below OUT's parent folder, as they are before this run.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
from nvml_peak import nvml_peak

from hv15_batch.forecast.calibrate import COLUMNS, calibrate
from hv15_batch.forecast.seconds import Execution, predict_clip
from hv15_batch.machine.cards import find_card
from hv15_batch.model.shapes import Shape
from hv15_batch.model.step_cache import LEAST_STEPS
from hv15_batch.rundir.log import read_records
from hv15_batch.units import GIB

PROMPT = "A teddy bear sits on a bed of soft pillows."


def write_manifest(path: Path, cases: list[str], repeat: int = 1, warm_up_steps: int = 1) -> None:
    seen: set[tuple[str, ...]] = set()
    rows = []
    for case in cases:
        parts = case.split(":")
        *size, frames, steps, guidance = ["480", "848", *parts][-5:]
        if (*size, frames) not in seen:
            seen.add((*size, frames))
            rows.append((f"warmup_{len(rows)}", *size, frames, str(warm_up_steps), guidance, "0"))
        for _ in range(repeat):
            number = str(len(rows))  # equal cases are different clips
            rows.append((f"case_{len(rows)}", *size, frames, steps, guidance, number))
    names = ("id", "height", "width", "num_frames", "num_inference_steps", "guidance_scale", "seed")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "prompt"])
        writer.writerows([*row, PROMPT] for row in rows)


def main() -> int:
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    out, *cases = arguments[:cut]
    more = arguments[cut + 1 :]
    repeat = 1
    if cases and cases[0].startswith("x"):
        repeat = int(cases.pop(0)[1:])
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    warm_up_steps = LEAST_STEPS if "sampling.cache=static" in more else 1
    write_manifest(folder / "cases.csv", cases, repeat, warm_up_steps)
    command = [sys.executable, "-m", "hv15_batch", str(folder / "cases.csv"), "order=rows"]
    command += [f"run_dir={folder / 'run'}", *more]
    if not any(word.startswith("model=") for word in more):
        command += ["model=480p_t2v", "model.weights=random"]
    earlier = [r for log in folder.parent.glob("*/run/log") if log.parent.parent != folder
               for r in read_records(log, COLUMNS).to_pylist()]  # fmt: skip
    begin = time.perf_counter()
    with nvml_peak() as peak:
        code = subprocess.run(command, check=False).returncode
    seconds = time.perf_counter() - begin
    print(f"exit {code}, whole run {seconds:.1f} s, NVML peak {peak.gib:.2f} GiB")
    print_log(folder / "run", earlier)
    return code


def predictions(log: pd.DataFrame, earlier: list[dict[str, Any]]) -> list[float | None]:
    """Return the predicted seconds of each clip; negative where nothing calibrates them."""
    seconds: list[float | None] = []
    for row in log.to_dict("records"):
        card = find_card(row["gpu_name"])
        if card is None:
            seconds.append(None)
            continue
        names = ("attention_backend", "offload", "compiled", "mask_free", "dtype")
        linear = row["linear"] if isinstance(row["linear"], str) else None
        execution = Execution(**{name: row[name] for name in names}, linear=linear)
        scales = calibrate(earlier, card, execution)
        cost = predict_clip(Shape.of_row(row), card, execution, scales)
        seconds.append(cost.seconds if scales is not None else -cost.seconds)
    return seconds


def print_log(run_dir: Path, earlier: list[dict[str, Any]]) -> None:
    log = pd.read_parquet(run_dir / "log").sort_values("finished_at")
    ready = log["finished_at"] - pd.to_timedelta(log["write_seconds"].fillna(0), unit="s")
    log["wall"] = ready.diff().dt.total_seconds()
    log["predicted"] = predictions(log, earlier)
    for stage in ("encode", "denoise", "decode"):
        log[f"{stage}_gib"] = log[f"{stage}_peak_vram_allocated_bytes"] / GIB
    log["reserved_gib"] = log["peak_vram_reserved_bytes"] / GIB
    log["ram_gib"] = log["peak_ram_bytes"] / GIB
    names = ["row_id", "status", "width", "num_frames", "num_inference_steps", "guidance_scale"]
    names += ["load_seconds", "encode_seconds", "denoise_seconds", "decode_seconds"]
    names += [
        "write_seconds",
        "wall",
        "predicted",
        "encode_gib",
        "denoise_gib",
        "decode_gib",
        "reserved_gib",
    ]
    names += ["ram_gib", "tflops", "num_alloc_retries"]
    with pd.option_context("display.width", 300, "display.max_columns", 40):
        print(log[names].round(3).to_string(index=False))
    first = log.iloc[-1]
    print({n: first[n] for n in ("offload", "attention_backend", "compiled", "vae_tile_size",
                                 "torch_version", "error_type", "error_message")})  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
