"""Distributions per group of equal settings, and the warnings that go with them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from hv15_batch.figures.groups import (
    GROUP_COLUMNS,
    TIMING_COLUMNS,
    TimingWarning,
    WarningKind,
    distribution,
    group_rows,
)
from hv15_batch.figures.tables import group_names
from hv15_batch.units import GIB

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def row(seconds: float, number: int = 0, **changes: Any) -> dict[str, Any]:
    """A timed repetition of this many seconds."""
    values: dict[str, Any] = dict.fromkeys(TIMING_COLUMNS) | {
        "status": "ok",
        "is_cold": False,
        "repeat": number + 1,
        "attempt": 1,
        "denoise_attempt": 1,
        "started_at": START + timedelta(minutes=number),
        "total_seconds": seconds,
        "denoise_seconds": seconds * 0.75,
        "decode_seconds": seconds * 0.25,
        "step_seconds": [seconds / 10, seconds / 20, seconds / 20],
        "model": "480p_t2v",
        "offload": "resident",
        "gpu_name": "NVIDIA H200",
        "num_alloc_retries": 0,
        "peak_vram_allocated_bytes": 20 * GIB,
        "peak_vram_reserved_bytes": 21 * GIB,
    }
    assert set(changes) <= set(values)
    return values | changes


def rows(*seconds: float, **changes: Any) -> list[dict[str, Any]]:
    return [row(value, number, **changes) for number, value in enumerate(seconds)]


def kinds(records: list[dict[str, Any]]) -> list[WarningKind]:
    return [warning.kind for warning in warnings_of(records)]


def warnings_of(records: list[dict[str, Any]]) -> list[TimingWarning]:
    return [warning for group in group_rows(records) for warning in group.warnings]


def test_a_group_has_n_median_p90_spread_and_both_ends() -> None:
    (group,) = group_rows(rows(10, 12, 11, 14, 13))

    found = group.seconds["clip_seconds"]
    assert (found.n, found.median, found.minimum, found.maximum) == (5, 12, 10, 14)
    assert found.p90 == pytest.approx(13.6)
    assert found.spread == pytest.approx(2 / 12)
    assert group.seconds["step_seconds"].median == pytest.approx(0.6)
    assert "write_seconds" not in group.seconds


def test_one_value_has_no_spread_and_none_is_nothing() -> None:
    single = distribution([3.0])

    assert single is not None
    assert (single.n, single.median, single.p90, single.spread) == (1, 3.0, None, None)
    assert distribution([]) is None


def test_one_outlier_of_many_moves_neither_median_nor_spread_much() -> None:
    steady, disturbed = distribution([10.0] * 8), distribution([10.0] * 7 + [100.0])

    assert steady is not None
    assert disturbed is not None
    assert disturbed.median == steady.median
    assert disturbed.spread == steady.spread == 0
    assert disturbed.maximum == 100


def test_cold_clips_are_counted_apart() -> None:
    (group,) = group_rows([row(90, is_cold=True, repeat=0), *rows(10, 11, 12)])

    assert (group.num_timed, group.num_cold) == (3, 1)
    assert group.seconds["clip_seconds"].maximum == 12


def test_failures_and_clips_from_saved_latents_are_no_timings() -> None:
    failed = row(1, status="failed", denoise_attempt=None)
    from_latents = row(2, attempt=2, denoise_attempt=1)

    assert group_rows([failed, from_latents]) == []
    (group,) = group_rows([failed, from_latents, *rows(10)])
    assert group.seconds["clip_seconds"].n == 1


def test_encoding_that_only_the_first_clip_pays_is_left_out() -> None:
    (group,) = group_rows([row(15, encode_seconds=5.0), row(10, 1)])

    assert group.seconds["clip_seconds"].maximum == 10


@pytest.mark.parametrize(
    "other",
    [
        {"offload": "stream"},
        {"attention_backend": "_native_flash"},
        {"compiled": True},
        {"num_frames": 61},
        {"gpu_name": "NVIDIA RTX 4090"},
        {"system_sha256": "other"},
    ],
)
def test_other_settings_and_another_machine_are_another_group(other: dict[str, Any]) -> None:
    first, second = group_rows([*rows(10, 10), *rows(20, 20, **other)])

    assert first.seconds["clip_seconds"].median == 10
    assert second.seconds["clip_seconds"].median == 20
    assert {name: second.columns[name] for name in other} == other


def test_steady_clips_give_no_warning() -> None:
    assert kinds(rows(10.2, 10, 10.1)) == []


@pytest.mark.parametrize(
    ("records", "kind", "detail"),
    [
        (rows(20, 10, 10, 10, 10), WarningKind.slow_first, "20 s, the others 10 s (median)"),
        (rows(10, 12, 13, 9), WarningKind.wide_spread, "23% of the median"),
        (rows(10, 10), WarningKind.few_timed, "n = 2"),
        ([row(10, is_cold=True)], WarningKind.few_timed, "n = 0"),
        (rows(10, 10, 10, num_alloc_retries=2), WarningKind.alloc_retries, "6 times"),
        (
            rows(10, 10, 10, peak_vram_reserved_bytes=25 * GIB),
            WarningKind.fragmented,
            "25.0 GiB reserved, 20.0 GiB allocated",
        ),
    ],
)
def test_a_warning_names_what_it_rests_on_and_a_remedy(
    records: list[dict[str, Any]], kind: WarningKind, detail: str
) -> None:
    (warning,) = warnings_of(records)

    assert warning.kind is kind
    assert detail in warning.detail
    assert warning.kind.about
    assert warning.remedy


@pytest.mark.parametrize(
    ("records", "remedy"),
    [
        (rows(20, 10, 10, 10, 10), "raise benchmark.repeat"),
        (rows(10, 12, 13, 9), "raise benchmark.repeat"),
        (rows(10, 10), "run the same command again"),
    ],
)
def test_who_used_repetitions_is_not_told_to_use_them(
    records: list[dict[str, Any]], remedy: str
) -> None:
    (repeated,) = warnings_of(records)
    (usual,) = warnings_of([r | {"repeat": None} for r in records])

    assert remedy in repeated.remedy
    assert "use benchmark.repeat" not in repeated.remedy
    assert "use benchmark.repeat" in usual.remedy


def test_clocks_are_no_remedy_without_a_card() -> None:
    (warning,) = warnings_of(rows(10, 12, 13, 9, gpu_name=None))

    assert warning.remedy == "keep other work off the machine, raise benchmark.repeat"


def test_what_makes_another_clip_makes_another_group() -> None:
    others = ({"flow_shift": 7.0}, {"fps": 15.0}, {"off_recipe": True}, {"revision": "b" * 40})

    assert len(group_rows(row(10, **other) for other in ({}, *others))) == 5


def test_groups_are_named_by_every_column_that_differs() -> None:
    first = {"height": 480, "width": 848, "num_frames": 121, "guidance_scale": 6.0}
    others = (
        *({"mask_free": False}, {"dtype": "float32"}, {"vae_tile_size": 256}),
        *({"torch_version": "2.12"}, {"system_sha256": "f" * 64}, {"compiled": False}),
    )
    kinds = [first, *(first | other for other in others)]

    names = group_names([s.columns for s in group_rows(row(10, **kind) for kind in kinds)])

    assert len(set(names)) == len(kinds)
    said = ("mask_free False", "dtype float32", "vae_tile_size 256", "torch_version 2.12",
            "system_sha256 ffffffff", "compiled False")  # fmt: skip
    assert all(words in name for words, name in zip(said, names[1:], strict=True))
    assert group_names([first | dict.fromkeys(GROUP_COLUMNS, None) | first]) == [
        "None 480x848x121, None steps, guidance 6, offload none, attention none"
    ]


def test_what_was_not_measured_warns_of_nothing() -> None:
    records = rows(
        10,
        10,
        10,
        num_alloc_retries=None,
        peak_vram_allocated_bytes=None,
        peak_vram_reserved_bytes=None,
    )

    assert kinds(records) == []
