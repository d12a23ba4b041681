"""Attention kernels on the card: seconds, and errors beside float32.

    python benchmarks/attention.py                                  # all that run here
    python benchmarks/attention.py --only '_native_*' comfy_int8    # some of them
    python benchmarks/attention.py --tokens 49350 --minutes 2

One clip of 480x848x121 attends over about 49,350 tokens, one of 61 frames over 25,500; 16 heads of
128, bfloat16, no mask. Kernels are called as the transformer's blocks call them: quantisation and
copies count. Each line is printed as soon as it is known. `worst` is the worst head in 16 rows,
`all` the error over all of a sample of rows. The last column is what the check before a run says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hv15_batch.engine.denoise.attention_check import (
    INPUTS,
    ROWS,
    KernelOff,
    judge_kernel,
    make_inputs,
    relative_errors,
)
from hv15_batch.engine.denoise.attention_kernels import Heads, attend, probe
from hv15_batch.errors import Refused
from hv15_batch.model.attention import KERNELS, is_fetched, package_fault
from hv15_batch.units import MIB
from hv15_batch.weights.kernels.fetched import hub_fault

TOKENS = (49_350, 25_500)
SAMPLE = 4096
"""Rows that are compared with float32, in pieces of `ROWS`."""
PACKAGES = ("torch", "diffusers", "triton", "comfy-kitchen", "sageattention", "flash-attn",
            "flash_attn_3", "kernels", "xformers")  # fmt: skip
COMPILED = ("flex",)
"""Uncompiled they write all scores to memory."""

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def sample_rows(num_tokens: int, device: torch.device) -> torch.Tensor:
    """Return the numbers of the rows that are compared, in whole pieces."""
    pieces = num_tokens // ROWS
    chosen = torch.linspace(0, pieces - 1, min(pieces, SAMPLE // ROWS), device=device).long()
    rows: torch.Tensor = (chosen[:, None] * ROWS + torch.arange(ROWS, device=device)).flatten()
    return rows


def exact(inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
    """Return attention of some rows in float32 [1, rows, heads, channels]."""
    query, key, value = inputs
    heads = []
    for head in range(query.shape[2]):
        keys, values = key[0, :, head].float(), value[0, :, head].float()
        parts = [
            ((query[0, part, head].float() * query.shape[-1] ** -0.5) @ keys.T).softmax(-1) @ values
            for part in rows.split(1024)
        ]
        heads.append(torch.cat(parts))
    return torch.stack(heads, dim=1)[None]


def milliseconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median of some calls, after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def calls(name: str) -> Callable[..., torch.Tensor]:
    """Return how the kernel is called."""
    if name in COMPILED:
        compiled: Callable[..., torch.Tensor] = torch.compile(attend, dynamic=False)
        return lambda *inputs: compiled(name, *inputs)
    return lambda *inputs: attend(name, *inputs)


class Bench:
    """Measures kernels, and keeps the reference of each kind of inputs."""

    def __init__(self, heads: Heads, tokens: Sequence[int], device: torch.device) -> None:
        """Compute what the results are compared with."""
        self.heads, self.tokens, self.device = heads, tokens, device
        self.rows = sample_rows(tokens[0], device)
        self.references = {
            kind: exact(make_inputs(kind, heads, tokens[0], device), self.rows) for kind in INPUTS
        }

    def measure(self, name: str, repeats: int) -> dict[str, Any]:
        """Return the figures of one kernel; `skipped` has the reason where it does not run."""
        row: dict[str, Any] = {"name": name, "bits": KERNELS[name].bits}
        # A kernel of the hub is not fetched to be measured.
        fault = package_fault(name) or hub_fault(name)
        fault = fault or probe(name, self.heads, True, self.device)
        if fault is not None:
            return row | {"skipped": fault.partition(";")[0][:160]}
        call = calls(name)
        for kind in INPUTS:
            inputs = make_inputs(kind, self.heads, self.tokens[0], self.device)
            found = call(*inputs)[:, self.rows].float()
            expected = self.references[kind]
            worst = float(relative_errors(found, expected).max())
            whole = float((found - expected).norm() / expected.norm())
            row[kind] = {"worst": worst, "all": whole}
        for count in self.tokens:
            inputs = make_inputs("normal", self.heads, count, self.device)
            held = torch.cuda.memory_allocated() if self.device.type == "cuda" else 0
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken = milliseconds(lambda: call(*inputs), self.device, repeats)  # noqa: B023
            peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
            flop = 4 * self.heads.count * self.heads.dim * count**2
            row[str(count)] = {
                "ms": taken, "tflops": flop / taken / 1e9, "extra_mib": (peak - held) / MIB,
            }  # fmt: skip
        row["check"] = self._verdict(name)
        return row

    def _verdict(self, name: str) -> str:
        """Return what the check before a run says, and how long it takes."""
        if "native" in name:
            return "not checked"
        if name in COMPILED:
            return "not checked here"
        begin = time.perf_counter()
        try:
            judge_kernel(name, self.heads, self.tokens[0], self.device)
            text = "right"
        except KernelOff as off:
            text = f"OFF: {off}"
        return f"{text} ({time.perf_counter() - begin:.1f} s)"


def line(row: dict[str, Any], tokens: Sequence[int]) -> str:
    """Return a row as it is printed."""
    if "skipped" in row:
        return f"{row['name']:<32}skipped: {row['skipped']}"
    text = f"{row['name']:<32}"
    for count in tokens:
        text += f"{row[str(count)]['ms']:>9.2f}{row[str(count)]['tflops']:>7.0f}"
    for kind in INPUTS:
        text += f"{row[kind]['worst']:>10.4f}{row[kind]['all']:>8.4f}"
    return f"{text}  {row['check']}"


def facts(device: torch.device) -> dict[str, Any]:
    """Return the card and the versions."""
    found: dict[str, Any] = {"device": device.type}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if device.type == "cuda":
        found["card"] = torch.cuda.get_device_name()
        found["capability"] = torch.cuda.get_device_capability()
        found["cudnn"] = torch.backends.cudnn.version()
    return found


@torch.no_grad()
def main() -> None:
    """Do what the words say."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--only", nargs="*", default=["*"], help="patterns of names")
    arguments.add_argument("--tokens", nargs="*", type=int, default=list(TOKENS))
    arguments.add_argument("--heads", type=int, default=16)
    arguments.add_argument("--repeats", type=int, default=7)
    arguments.add_argument("--minutes", type=float, default=2.5, help="then no kernel is begun")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--json", type=Path, help="write all figures here after each kernel")
    chosen = arguments.parse_args()
    begin, device = time.monotonic(), torch.device(chosen.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    print(json.dumps(facts(device)), flush=True)
    bench = Bench(Heads(chosen.heads, 128, dtype), chosen.tokens, device)
    head = f"{'kernel':<32}" + "".join(f"{f'ms {n}':>9}{'TFLOPs':>7}" for n in chosen.tokens)
    head += "".join(f"{kind:>10}{'all':>8}" for kind in INPUTS)
    print(f"{head}  check   ({time.monotonic() - begin:.0f} s so far)", flush=True)
    rows: list[dict[str, Any]] = []
    # Those that can crash the process last: packages, then the hub's.
    names = sorted(KERNELS, key=lambda n: (is_fetched(n), KERNELS[n].package is not None))
    for name in names:
        if not any(fnmatch(name, pattern) for pattern in chosen.only):
            continue
        if time.monotonic() - begin > 60 * chosen.minutes:
            row: dict[str, Any] = {"name": name, "skipped": "no time left"}
        else:
            try:
                row = bench.measure(name, chosen.repeats)
            except (Exception, Refused) as error:  # third-party kernels raise anything
                row = {"name": name, "skipped": f"{type(error).__name__}: {error}"[:160]}
        rows.append(row)
        print(line(row, chosen.tokens), flush=True)
        if chosen.json:
            chosen.json.write_text(json.dumps({"facts": facts(device), "rows": rows}, indent=1))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(f"{time.monotonic() - begin:.0f} s in all", flush=True)
    sys.stdout.flush()
    os._exit(0)  # some kernels crash when the process ends


if __name__ == "__main__":
    main()
