"""benchmarks/attention.py: errors beside float32, and what does not run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from fakes import kernels
from fakes.packages import install

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from attention import Bench, line

from hv15_batch.engine.denoise.attention_check import INPUTS
from hv15_batch.engine.denoise.attention_kernels import Heads


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(Heads(2, 32, torch.float32), (200, 64), torch.device("cpu"))


def test_a_kernel_of_torch_is_exact_and_timed(bench: Bench) -> None:
    row = bench.measure("native", 1)

    assert all(row[kind]["worst"] < 1e-5 for kind in INPUTS)
    assert row["200"]["ms"] > 0
    assert line(row, bench.tokens).startswith("native ")
    assert line(row, bench.tokens).endswith("not checked")


def test_a_kernel_that_loses_keys_is_said_to_be_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, sageattention="2.2.0")
    kernels.register(monkeypatch, "sage", kernels.without_last_keys)

    row = bench.measure("sage", 1)

    assert row["aimed"]["worst"] > 0.15
    assert "OFF: its result differs from torch's by " in line(row, bench.tokens)


def test_what_is_not_installed_is_skipped_with_the_reason(bench: Bench) -> None:
    assert line(bench.measure("comfy_int8", 1), bench.tokens) == (
        f"{'comfy_int8':<32}skipped: needs comfy-kitchen 0.2.40 or later, which is not installed"
    )
    assert "skipped: needs kernels 0.12 or" in line(bench.measure("sage_hub", 1), bench.tokens)
