"""Which rows of which logs correct a prediction, and by how much."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fakes.forecasts import H200, NOW, PLAIN, SETTINGS, row

from hv15_batch.forecast.calibrate import (
    COLUMNS,
    MAX_LOGS,
    MAX_ROWS,
    calibrate,
    read_log_rows,
    remember,
    remembered,
)
from hv15_batch.forecast.seconds import CostBasis, Scales, predict_clip
from hv15_batch.machine.cards import Card
from hv15_batch.model.shapes import Shape
from hv15_batch.record import ClipRecord
from hv15_batch.rundir.log import RunLog

CARD: Card = H200  # type: ignore[assignment]


def test_one_warm_clip_calibrates_the_same_card_stage_by_stage() -> None:
    assert set(row()) == set(COLUMNS)
    assert_scales(calibrate([row()], CARD, PLAIN), Scales(((49_290, 1.2),), None, 0.9))


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu_name": "NVIDIA GeForce RTX 4090"},
        {"gpu_name": None},
        {"is_cold": True},
        {"denoise_seconds": None},
        {"decode_seconds": None},
        {"weights": "tiny"},
        {"status": "failed"},
        {"status": "interrupted"},
        {"attempt": 2},
        {"denoise_attempt": 0},
        {"mask_free": False},
        {"dtype": "float16"},
        {"attention_backend": "sage"},
        {"linear": "fp8"},
    ],
)
def test_rows_that_say_nothing_of_this_way_of_running_do_not_calibrate(
    changes: dict[str, Any],
) -> None:
    assert calibrate([row(**changes)], CARD, PLAIN) is None


def test_clips_with_lora_calibrate_each_other_and_no_plain_ones() -> None:
    """What a LoRA adds is not predicted, so it would count as the card's."""
    lora = row(2.0, loras='[["a", 1.0]]')
    with_lora = replace(PLAIN, lora_bytes=10**8)

    assert calibrate([lora], CARD, PLAIN) is None
    assert_scales(calibrate([lora, row()], CARD, PLAIN), Scales(((49_290, 1.2),), None, 0.9))
    assert_scales(calibrate([lora, row()], CARD, with_lora), Scales(((49_290, 2.0),), None, 0.9))
    assert_scales(calibrate([row()], CARD, with_lora), Scales(((49_290, 1.2),), None, 0.9))


def test_what_is_remembered_is_read_once_and_survives_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rows = [row(finished_at=NOW + timedelta(seconds=n)) for n in range(3)]
    cold = row(is_cold=True)

    file = remember([*rows, cold])
    remember(rows[:1])

    assert sorted(r["finished_at"] for r in remembered()) == [r["finished_at"] for r in rows]
    found = read_log_rows(tmp_path / "none" / "out" / "log")
    assert_scales(calibrate(found, CARD, PLAIN), Scales(((49_290, 1.2),), None, 0.9))
    for text in ("", "[1]", '[{"status": "ok"}]', "{}"):
        file.write_text(text, encoding="utf-8")
        assert remembered() == []
    assert remember(rows) == file


WRONG: list[dict[str, Any]] = [
    {"denoise_seconds": "abc"},
    {"denoise_seconds": float("nan")},
    {"denoise_seconds": float("inf")},
    {"denoise_seconds": 1e308},
    {"denoise_seconds": 1e-300},
    {"denoise_seconds": -5},
    {"denoise_seconds": 0.0},
    {"denoise_seconds": True},
    {"decode_seconds": [1.0]},
    {"gpu_name": 5},
    {"linear": "int4"},
    {"dtype": "float8"},
    {"task": "v2v"},
    {"offload": ["a"]},
    {"offload": "auto"},
    {"offload": None},
    {"attention_backend": None},
    {"height": None},
    {"height": "480"},
    {"height": 8},
    {"width": 10**30},
    {"num_frames": 0},
    {"num_frames": 121.5},
    {"num_inference_steps": 0},
    {"guidance_scale": "x"},
    {"cache": "2:4:30"},
    {"cache": "2:4:30", "num_computed_steps": 0},
    {"weights": {}},
    {"status": ["ok"]},
    {"compiled": "yes"},
    {"loras": 3},
]
"""Values that another version or program may have written."""


@pytest.mark.parametrize("changes", WRONG, ids=str)
def test_a_row_with_a_value_that_means_nothing_here_is_passed_over_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    good, wrong = row(), row(2.0) | changes
    expected = Scales(((49_290, 1.2),), None, 0.9)

    assert_scales(calibrate([wrong, good], CARD, PLAIN), expected)
    assert calibrate([wrong], CARD, PLAIN) is None
    file = remember([good])
    stored = [each | {"finished_at": NOW.isoformat()} for each in (wrong, good)]
    file.write_text(json.dumps([*stored, 5, "x", None]), encoding="utf-8")
    found = read_log_rows(tmp_path / "none" / "out" / "log")
    assert found == [good]


@pytest.mark.parametrize("moment", [None, 5, "yesterday", "0001-01-01T00:00:00"])
def test_a_remembered_row_without_a_moment_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: object
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = remember([row()])
    stored = [row() | {"finished_at": each} for each in (moment, NOW.isoformat())]
    file.write_text(json.dumps(stored), encoding="utf-8")

    assert remembered() == [row()]


def test_a_neighbours_log_with_a_name_of_a_newer_version_does_not_stop_a_prediction(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "other" / "log"
    folder.mkdir(parents=True)
    newer = row(2.0) | {"linear": "int4"}
    for number, each in enumerate((newer, row())):
        record = ClipRecord(settings_sha256=str(number), **each)
        RunLog(folder, f"r{number}").append(record)

    found = calibrate(read_log_rows(tmp_path / "this" / "log"), CARD, PLAIN)

    assert_scales(found, Scales(((49_290, 1.2),), None, 0.9))


def test_the_newest_clips_count() -> None:
    old = [row(3.0, finished_at=NOW - timedelta(days=days)) for days in range(1, 50)]
    new = [row(1.1, finished_at=NOW + timedelta(seconds=n)) for n in range(MAX_ROWS)]

    scales = calibrate([*new, *old], CARD, PLAIN)

    assert_scales(scales, Scales(((49_290, 1.1),), None, 0.9))


def test_another_profile_says_how_fast_the_arithmetic_is_and_is_named() -> None:
    stream = replace(PLAIN, offload="stream")

    scales = calibrate([row()], CARD, stream)

    assert_scales(scales, Scales(((49_290, 1.2),), None, 0.9, "resident"))


def test_without_a_compiled_clip_a_plain_one_says_it_and_the_other_way_round() -> None:
    """Else a card that is slower than its vendor's figures would seem fast when compiled."""
    compiled = replace(PLAIN, compiled=True)
    stream = replace(PLAIN, offload="stream")
    found = calibrate([row(), row(1.5, execution=stream)], CARD, compiled)
    back = calibrate([row(1.5, execution=compiled)], CARD, stream)

    assert_scales(found, Scales(((49_290, 1.2),), None, 0.9, "resident, not compiled"))
    assert_scales(back, Scales(((49_290, 1.5),), None, 0.9, "resident, compiled"))
    own = calibrate([row(), row(1.1, execution=compiled)], CARD, compiled)
    assert_scales(own, Scales(((49_290, 1.1),), None, 0.9))


def test_clips_of_the_nearest_size_say_it_and_far_ones_only_roughly() -> None:
    small = row(2.0, num_frames=5)
    scales = calibrate([row(1.1), small, row(1.3, num_frames=61)], CARD, PLAIN)

    assert_scales(scales, Scales(((3_180, 2.0), (25_440, 1.3), (49_290, 1.1)), None, 0.9))
    plain = predict_clip(Shape.of(SETTINGS), CARD, PLAIN, None)
    cost = predict_clip(Shape.of(SETTINGS), CARD, PLAIN, scales)
    assert cost.denoise_seconds == pytest.approx(1.1 * plain.denoise_seconds)
    assert cost.basis is CostBasis.calibrated
    far = predict_clip(Shape.of(SETTINGS), CARD, PLAIN, calibrate([small], CARD, PLAIN))
    assert far.denoise_seconds == pytest.approx(2.0 * plain.denoise_seconds)
    assert far.basis is CostBasis.scaled
    assert plain.basis is CostBasis.estimated


def assert_scales(found: Scales | None, expected: Scales) -> None:
    assert found is not None
    sizes, factors = zip(*found.denoise, strict=True)
    expected_sizes, expected_factors = zip(*expected.denoise, strict=True)
    assert sizes == expected_sizes
    assert factors == pytest.approx(expected_factors)
    assert (found.copy, found.decode) == pytest.approx((expected.copy, expected.decode))
    assert found.source == expected.source


def test_a_clip_that_waits_for_its_weights_says_how_fast_those_come() -> None:
    disk = replace(PLAIN, offload="stream_disk")
    waiting = row(0.7, execution=disk, num_frames=5)

    scales = calibrate([waiting, row()], CARD, disk)

    assert_scales(scales, Scales(((49_290, 1.2),), 0.7, 0.9, "resident"))
    assert calibrate([waiting], CARD, PLAIN) is None
    short = replace(SETTINGS, num_frames=5)
    found = predict_clip(Shape.of(short), CARD, disk, scales).denoise_seconds
    assert found == pytest.approx(waiting["denoise_seconds"])


def test_what_decides_a_clips_time_must_have_been_measured() -> None:
    """Arithmetic says nothing of a disk, and a bus nothing of arithmetic."""
    disk, stream = (replace(PLAIN, offload=kind) for kind in ("stream_disk", "stream"))
    waiting = row(0.7, execution=stream, num_frames=5)
    by_arithmetic = predict_clip(Shape.of(SETTINGS), CARD, disk, calibrate([row()], CARD, disk))
    by_bus = predict_clip(Shape.of(SETTINGS), CARD, stream, calibrate([waiting], CARD, stream))

    assert by_arithmetic.is_copy_bound
    assert not by_bus.is_copy_bound
    assert by_arithmetic.basis is by_bus.basis is CostBasis.estimated


def write_log(folder: Path, clip: str, age: float = 0.0) -> None:
    folder.mkdir(parents=True)
    RunLog(folder, "r").append(ClipRecord(clip_id=clip, settings_sha256=clip, attempt=1, **_row()))
    for path in folder.iterdir():
        os.utime(path, (2e9 - age, 2e9 - age))


def _row() -> dict[str, Any]:
    return {k: v for k, v in row().items() if k != "attempt"}


def test_logs_beside_are_read_sweeps_jobs_included_the_newest_first(tmp_path: Path) -> None:
    write_log(tmp_path / "this" / "log", "this")
    write_log(tmp_path / "other" / "log", "other")
    write_log(tmp_path / "x.sweep" / "job" / "log", "job")

    assert len(read_log_rows(tmp_path / "this" / "log")) == 3
    assert len(read_log_rows(tmp_path / "x.sweep" / "next" / "log")) == 3


def test_of_many_logs_those_written_last_are_read(tmp_path: Path) -> None:
    for n in range(MAX_LOGS):
        write_log(tmp_path / f"z{n}" / "log", "old", age=1000)
    write_log(tmp_path / "a" / "log", "new")

    rows = read_log_rows(tmp_path / "this" / "log")

    assert len(rows) == MAX_LOGS
    assert rows[0]["finished_at"] is not None


def test_a_damaged_log_beside_is_passed_over(tmp_path: Path) -> None:
    write_log(tmp_path / "good" / "log", "good")
    (tmp_path / "bad" / "log").mkdir(parents=True)
    (tmp_path / "bad" / "log" / "x.parquet").write_bytes(b"no parquet")

    assert len(read_log_rows(tmp_path / "this" / "log")) == 1
