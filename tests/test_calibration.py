"""Which rows of which logs correct a prediction, and by how much."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from test_costs import H200, PLAIN, SETTINGS

from hv15_batch.calibration import COLUMNS, MAX_LOGS, MAX_ROWS, calibrate, read_log_rows
from hv15_batch.cards import Card
from hv15_batch.costs import Scales, predict_clip
from hv15_batch.execution import Execution
from hv15_batch.records import ClipRecord
from hv15_batch.runlog import RunLog

NOW = datetime(2026, 11, 22, 22, 0, tzinfo=timezone.utc)
CARD: Card = H200  # type: ignore[assignment]


def row(
    factor: float = 1.2, decode_factor: float = 0.9, execution: Execution = PLAIN, **changes: Any
) -> dict[str, Any]:
    """A warm clip of an H200 that took `factor` times what is predicted."""
    settings = replace(SETTINGS, num_frames=changes.get("num_frames", 121))
    predicted = predict_clip(settings, CARD, execution, None)
    return {
        "gpu_name": "NVIDIA H200",
        "status": "ok",
        "finished_at": NOW,
        "attempt": 1,
        "denoise_attempt": 1,
        "is_cold": False,
        "weights": "random",
        "task": "t2v",
        **vars(execution),
        "denoise_seconds": factor * predicted.denoise_seconds,
        "decode_seconds": decode_factor * predicted.decode_seconds,
        "height": 480,
        "width": 848,
        "num_frames": 121,
        "num_inference_steps": 8,
        "guidance_scale": 1.0,
    } | changes


def test_one_warm_clip_calibrates_the_same_card_stage_by_stage() -> None:
    assert set(row()) == set(COLUMNS)
    assert calibrate([row()], CARD, PLAIN) == Scales(
        denoise=pytest.approx(1.2), decode=pytest.approx(0.9)
    )


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
        {"compiled": True},
    ],
)
def test_rows_that_say_nothing_of_this_way_of_running_do_not_calibrate(
    changes: dict[str, Any],
) -> None:
    assert calibrate([row(**changes)], CARD, PLAIN) is None


def test_the_newest_clips_count() -> None:
    old = [row(3.0, finished_at=NOW - timedelta(days=days)) for days in range(1, 50)]
    new = [row(1.1, finished_at=NOW + timedelta(seconds=n)) for n in range(MAX_ROWS)]

    scales = calibrate([*new, *old], CARD, PLAIN)

    assert scales is not None
    assert scales.denoise == pytest.approx(1.1)


def test_another_profile_says_how_fast_the_arithmetic_is_and_is_named() -> None:
    stream = replace(PLAIN, offload="stream")

    assert calibrate([row()], CARD, stream) == Scales(
        denoise=pytest.approx(1.2), decode=pytest.approx(0.9), profile="resident"
    )


def test_a_clip_that_waits_for_its_weights_says_how_fast_those_come() -> None:
    disk = replace(PLAIN, offload="stream_disk")
    waiting = row(0.7, execution=disk, num_frames=5)

    scales = calibrate([waiting, row()], CARD, disk)

    assert scales == Scales(
        denoise=pytest.approx(1.2), copy=pytest.approx(0.7), decode=pytest.approx(0.9)
    )
    assert calibrate([waiting], CARD, PLAIN) is None
    short = replace(SETTINGS, num_frames=5)
    found = predict_clip(short, CARD, disk, scales).denoise_seconds
    assert found == pytest.approx(waiting["denoise_seconds"])


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
