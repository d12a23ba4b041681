from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo15
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from hv15_batch.engine.decode import decode
from hv15_batch.engine.decode import decode as fast_vae
from hv15_batch.engine.decode import layers as vae_layers
from hv15_batch.model.tiles import (
    WEIGHT_BYTES,
    WORKSPACE_BYTES,
    TilePlan,
    candidate_plans,
    make_plan,
    plan_tiles,
    predict_peak_bytes,
    spans,
)
from hv15_batch.units import GIB

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("height", "width"), [(30, 53), (45, 80)])
def test_every_plan_fits_its_budget_and_a_larger_budget_is_never_slower(
    height: int, width: int
) -> None:
    order = candidate_plans(height, width)
    places = []
    for budget in (24, 16, 12, 10.5, 8, 6.5):
        plan = plan_tiles(height, width, 31, int(budget * GIB), "cuda")
        assert predict_peak_bytes(plan, height, width, 31) <= budget * GIB
        places.append(order.index(plan))

    assert places == sorted(places)
    assert places[0] < places[-1]


def test_a_budget_that_nothing_fits_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        ValueError,
        match=r"^decoding 480x848 with 31 latent frames needs \d\.\d GiB at least, "
        r"and 2\.0 GiB are free for it; free memory or render smaller clips\.$",
    ):
        plan_tiles(30, 53, 31, 2 * GIB, "cuda")


def test_without_a_budget_and_on_a_cpu_nothing_is_tiled() -> None:
    assert plan_tiles(45, 80, 31, None, "cuda").tile_size is None
    assert plan_tiles(45, 80, 31, 1, "cpu").tile_size is None


def test_the_tile_size_is_the_longer_edge_in_pixels() -> None:
    plan = make_plan(30, 53, 1, 2, 1 << 28)

    assert plan == TilePlan(1, 2, 30, 27, 4, 1 << 28)
    assert plan.tile_size == 480


class LiveBytes(TorchDispatchMode):
    """Sums up the storages alive on the meta device, and keeps the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.is_meta:
            reference = StorageWeakRef(result.untyped_storage())
            self.alive[reference.cdata] = reference, result.untyped_storage().nbytes()
        self.alive = {key: kept for key, kept in self.alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return result


@pytest.mark.parametrize(
    ("rows", "columns", "frames"), [(1, 1, 4), (1, 1, 1), (2, 2, 2), (1, 1, 8)]
)
def test_the_predicted_peak_is_what_a_full_size_decode_keeps_alive(
    monkeypatch: pytest.MonkeyPatch, rows: int, columns: int, frames: int
) -> None:
    """Without a card: shapes only, and operations that allocate what the kernels would."""
    height, width, latent_frames = 30, 53, 9
    with torch.device("meta"):
        vae = AutoencoderKLHunyuanVideo15(block_out_channels=(128, 256, 512, 1024, 1024))
    decoder = vae.decoder.to(torch.bfloat16).requires_grad_(False)
    in_place = SimpleNamespace(
        pad_into=lambda *_: None, add_into=lambda *_: None, unpack_into=lambda *_: None
    )
    monkeypatch.setattr(fast_vae, "ops_for", lambda _: in_place)
    monkeypatch.setattr(vae_layers, "_attend", lambda query, keys, values: query)
    monkeypatch.setattr(
        vae_layers.CausalConv,
        "convolve",
        lambda self, padded: self.site.empty(padded.shape[0] - 2, self.conv.out_channels),
    )
    largest = make_plan(height, width, rows, columns, 0)
    (row, *_), (column, *_) = (
        spans(height, largest.tile_height, largest.overlap),
        spans(width, largest.tile_width, largest.overlap),
    )
    chunk_bytes = frames * row.outer_size * column.outer_size * 256 * 128 * 2
    plan = replace(largest, chunk_bytes=chunk_bytes)

    with torch.no_grad(), LiveBytes() as live:
        x = torch.empty(latent_frames, height, width, 32, dtype=torch.bfloat16, device="meta")
        finite = torch.ones((), dtype=torch.bool, device="meta")
        if plan.is_tiled:
            size = (4 * latent_frames - 3, height * 16, width * 16, 3)
            canvas = torch.empty(size, dtype=torch.uint8, device="meta")
            decode._decode_tiles(decoder, x, plan, canvas, finite)
        else:
            for piece in fast_vae.stream(decoder, x, plan.chunk_bytes):
                decode._to_uint8(piece, finite)

    fixed = WEIGHT_BYTES + WORKSPACE_BYTES
    predicted = predict_peak_bytes(plan, height, width, latent_frames) - fixed
    assert predicted == pytest.approx(live.peak, rel=0.03)


@pytest.mark.parametrize(
    ("height", "width", "frames", "found"),
    [(480, 848, 121, 10.14), (480, 848, 61, 9.64), (480, 848, 33, 9.02), (320, 576, 33, 5.40)],
)
def test_peaks_of_clips_of_any_length_are_those_found_on_a_card(
    height: int, width: int, frames: int, found: float
) -> None:
    """One H100, 2026-11-25, untiled, eight frames at a time: decode less what else was there."""
    size = height // 16, width // 16
    predicted = predict_peak_bytes(candidate_plans(*size)[0], *size, (frames - 1) // 4 + 1)

    assert found * 0.99 < predicted / GIB < found * 1.03


# -- the benchmark's table --------------------------------------------------------------------


def vae_commands() -> list[tuple[str, Any]]:
    """The tables of VAE decoding in BENCHMARKS.md, and the command that makes each."""
    import vae_decode

    page = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
    text = page.partition("## How long does decoding take")[2]
    commands = re.findall(r"^    PYTHONPATH=. python benchmarks/vae_decode.py(.*)$", text, re.M)
    found = []
    for words in commands:
        args = vae_decode.parse_args(words.split())
        _, _, table = text.partition(f"| {args.height}x{args.width}x{args.frames}")
        found.append((table.partition("\n\n")[0], args))
    return found


def test_every_row_of_the_vae_benchmark_is_made_by_the_command_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    commands = vae_commands()

    assert len(commands) == 2
    for table, args in commands:
        size = (args.height // 16, args.width // 16, (args.frames - 1) // 4 + 1)
        made = []
        for budget in args.budgets:
            plan = plan_tiles(size[0], size[1], size[2], int(budget * 2**30), "cuda")
            predicted = predict_peak_bytes(plan, *size) / 2**30
            made.append((plan.rows * plan.columns, f"(budget {budget:g})", f"({predicted:.2f})"))
        rows = [line for line in table.splitlines() if "whole frame" in line or " tiles (" in line]
        assert len(rows) == len(made)
        for line, (num_tiles, budget, predicted) in zip(rows, made, strict=True):
            assert budget in line
            assert predicted in line
            tiles = re.search(r"(\d)x(\d) tiles", line)
            assert num_tiles == (int(tiles[1]) * int(tiles[2]) if tiles else 1)
