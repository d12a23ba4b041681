"""What 8-bit linear modules cost and save at full size: error, seconds and memory of a forward.

    python benchmarks/linears.py OUT                 # about five minutes on one H200
    python benchmarks/linears.py OUT --tiny          # the tiny model on the CPU, to try this file

Random weights, 480x848x121, bf16. Prints a line for each measurement as it comes and writes all of
them to OUT/linears.json. Errors are the norm of the difference from bf16 with the same weights and
inputs, over the norm. Seconds are the median of three forwards after one that warms up. The parts
of `stored` are kept in 8 bits without computing in them. A cap is what torch may take, 0.8 GiB less
than the card that it stands for; NVML is the used memory of the whole card.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as the program does

import torch
from nvml_peak import Peak, nvml_peak

from hv15_batch.engine.denoise.attention import apply_attention
from hv15_batch.engine.denoise.compilation import compile_blocks
from hv15_batch.engine.load import random_weights
from hv15_batch.engine.load.linears import EightBits
from hv15_batch.engine.placement.blocks import BlockStream
from hv15_batch.model.architectures import Architecture, read_architecture
from hv15_batch.model.linears import COMPUTED, MODULATION, STORED, TEXT_STREAM
from hv15_batch.model.variant import Linear, ModelConfig
from hv15_batch.units import GIB

TEXT = 60
OUTSIDE_GIB = 0.8
"""CUDA's own part, which torch's cap leaves out."""
PARTS = {
    "computed": (COMPUTED, ()),
    "stored: text stream": ((), TEXT_STREAM),
    "stored: modulation": ((), MODULATION),
    "stored": ((), STORED),
    "computed and stored": (COMPUTED, STORED),
}


class Bench:
    """The model, its inputs, and what was measured so far."""

    def __init__(self, out: Path, is_tiny: bool, minutes: float) -> None:
        self.device = torch.device("cpu" if is_tiny else "cuda")
        self._end = time.monotonic() + 60 * minutes
        self._out = out
        self._results: list[dict[str, Any]] = []
        self._size = (3, 4, 6) if is_tiny else (31, 30, 53)
        self._architecture: Architecture = read_architecture("tiny" if is_tiny else "full")
        out.mkdir(parents=True, exist_ok=True)

    def has_time(self, seconds: float) -> bool:
        """Whether something that takes so long may still begin."""
        return time.monotonic() + seconds < self._end

    def add(self, name: str, **values: Any) -> None:
        """Print and store a measurement."""
        self._results.append({"name": name, **values})
        shown = "  ".join(
            f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in values.items()
            if value is not None
        )
        print(f"{name:36s} {shown}", flush=True)
        text = json.dumps(self._results, indent=1, allow_nan=False)
        (self._out / "linears.json").write_text(text + "\n", encoding="utf-8")

    def build(self, bits: EightBits | None, where: torch.device | None = None) -> Any:
        """Return the transformer without a mask."""
        transformer = random_weights.build_component(
            "transformer",
            ModelConfig(name="480p_t2v", repo="-"),
            torch.bfloat16,
            where or self.device,
            architecture=self._architecture,
            eight_bits=bits,
        )
        apply_attention(transformer, "auto", True, self.device)
        return transformer

    def bits(self, linear: Linear, parts: str) -> EightBits:
        """Return how such parts are loaded."""
        computed, stored = PARTS[parts]
        return EightBits(linear, self.device, computed, stored)

    def inputs(self) -> dict[str, Any]:
        """Return a forward's inputs, the same ones each time."""
        config = self._architecture["transformer"]
        generator = torch.Generator().manual_seed(0)

        def make(*shape: int) -> torch.Tensor:
            values = torch.randn(shape, generator=generator)
            return values.to(self.device, torch.bfloat16)

        video = make(1, config["in_channels"], *self._size)
        video[:, 32:] = 0
        return {
            "hidden_states": video,
            "timestep": torch.tensor([900.0], device=self.device, dtype=torch.bfloat16),
            "encoder_hidden_states": make(1, TEXT, config["text_embed_dim"]),
            "encoder_attention_mask": torch.ones(1, TEXT, device=self.device),
            "encoder_hidden_states_2": make(1, 0, config["text_embed_2_dim"]),
            "encoder_attention_mask_2": torch.ones(1, 0, device=self.device),
            "image_embeds": make(1, 0, config["image_embed_dim"]),
            "return_dict": False,
        }

    def measure(self, transformer: Any, repeats: int) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the output on the CPU, and seconds and peak bytes of a forward."""
        given = self.inputs()
        begin = time.perf_counter()
        output = self._forward(transformer, given)
        first = time.perf_counter() - begin
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            self._forward(transformer, given)
            seconds.append(time.perf_counter() - begin)
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        return output.float().cpu(), {
            "seconds": statistics.median(seconds),
            "first_seconds": first,
            "peak_gib": peak / GIB,
        }

    def _forward(self, transformer: Any, given: dict[str, Any]) -> torch.Tensor:
        output = transformer(**given)[0]
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return output

    def release(self) -> None:
        """Give back the memory of what is no longer used."""
        torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def capped(self, gib: float) -> Iterator[Peak]:
        """Within: torch takes no more than a card of this size would let it."""
        if self.device.type == "cpu":
            yield Peak()
            return
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction((gib - OUTSIDE_GIB) * GIB / total)
        try:
            with nvml_peak() as peak:
                yield peak
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


def weights_gib(transformer: Any) -> float:
    """Return what the parameters take."""
    return sum(p.numel() * p.element_size() for p in transformer.parameters()) / GIB


def relative(output: torch.Tensor, base: torch.Tensor) -> float:
    """Return the norm of the difference over that of `base`."""
    return ((output - base).norm() / base.norm()).item()


def measure_errors(bench: Bench) -> dict[str, torch.Tensor]:
    """Measure forwards that are not compiled, part by part; return those of bf16, both ways."""
    transformer = bench.build(None)
    weights = weights_gib(transformer)
    base, values = bench.measure(transformer, 1)
    bench.add("bf16", weights_gib=weights, **values)
    compile_blocks(transformer)
    compiled, values = bench.measure(transformer, 3)
    bench.add("bf16, compiled", error=relative(compiled, base), weights_gib=weights, **values)
    del transformer
    bench.release()
    for linear in (Linear.fp8, Linear.int8):
        for parts in PARTS:
            transformer = bench.build(bench.bits(linear, parts))
            output, values = bench.measure(transformer, 1)
            error = relative(output, base)
            bench.add(
                f"{linear.name}, {parts}",
                error=error,
                weights_gib=weights_gib(transformer),
                **values,
            )
            del transformer
            bench.release()
    return {"plain": base, "compiled": compiled}


def measure_compiled(bench: Bench, bases: dict[str, torch.Tensor]) -> None:
    """Measure compiled forwards with all parts in 8 bits."""
    for linear in (Linear.fp8, Linear.int8):
        if not bench.has_time(60):
            return
        transformer = bench.build(bench.bits(linear, "computed and stored"))
        compile_blocks(transformer)
        output, values = bench.measure(transformer, 3)
        bench.add(
            f"{linear.name}, compiled",
            error=relative(output, bases["compiled"]),
            weights_gib=weights_gib(transformer),
            **values,
        )
        del transformer
        bench.release()


def measure_capped(bench: Bench, base: torch.Tensor) -> None:
    """Measure both profiles within the memory of smaller cards, nothing compiled."""
    for linear in (Linear.fp8, Linear.int8):
        if not bench.has_time(90):
            return
        bits = bench.bits(linear, "computed and stored")
        streamed = Streamed(bench, bits)
        for gib in (24, 12):
            run_capped(bench, f"{linear.name}, stream, {gib} GiB", gib, streamed.opened, base)
            streamed.stream.close()
        streamed.stream.free()
        for gib in (24, 12):
            build = partial(bench.build, bits)
            run_capped(bench, f"{linear.name}, resident, {gib} GiB", gib, build, base)


class Streamed:
    """A transformer whose blocks are in host memory."""

    def __init__(self, bench: Bench, bits: EightBits) -> None:
        begin = time.perf_counter()
        self._transformer = bench.build(bits, torch.device("cpu"))
        self.stream = BlockStream(self._transformer.transformer_blocks, bench.device)
        for name, module in self._transformer.named_children():
            if name != "transformer_blocks":
                module.to(bench.device)
        bench.add(
            f"{bits.linear.name}, built and packed",
            seconds=time.perf_counter() - begin,
            host_peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        )

    def opened(self) -> Any:
        """Return the transformer, its two slots on the card."""
        self.stream.open()
        return self._transformer


def run_capped(
    bench: Bench, name: str, gib: float, build: Callable[[], Any], base: torch.Tensor
) -> None:
    """Measure one forward under a cap, or note that it does not fit."""
    output, values, fault = None, {}, ""
    bench.release()
    held = torch.cuda.memory_allocated() if bench.device.type == "cuda" else 0
    with bench.capped(gib) as peak:
        try:
            output, values = bench.measure(build(), 1)
        except torch.OutOfMemoryError as error:
            fault = str(error)[:200]
    if output is None:
        bench.add(name, does_not_fit=fault)
    else:
        error = relative(output, base)
        bench.add(name, error=error, **values, nvml_gib=peak.gib, held_before_gib=held / GIB)
    bench.release()


@torch.no_grad()
def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for linears.json")
    parser.add_argument("--tiny", action="store_true", help="the tiny model on the CPU")
    parser.add_argument("--minutes", type=float, default=7.5, help="then nothing more is begun")
    arguments = parser.parse_args()
    bench = Bench(arguments.out, arguments.tiny, arguments.minutes)
    name = "CPU" if arguments.tiny else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {name}", flush=True)
    with nullcontext() if arguments.tiny else nvml_peak() as peak:
        bases = measure_errors(bench)
        measure_compiled(bench, bases)
        measure_capped(bench, bases["plain"])
    if peak is not None:
        print(f"NVML's peak of all: {peak.gib:.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
