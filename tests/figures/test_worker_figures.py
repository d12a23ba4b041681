"""What the log says of each worker."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from hv15_batch.figures.workers import (
    COLUMNS,
    format_worker,
    place_of,
    slow_lines,
    worker_figures,
)
from hv15_batch.units import GIB, NOT_MEASURED

START = datetime(2026, 11, 30, 1, 0, tzinfo=timezone.utc)


def rows(
    worker: str, card: int, seconds: float, count: int, idle: float = 0.0, **changes: Any
) -> list[dict[str, Any]]:
    """Clips of one worker, one after another, with pauses between them."""
    found, at = [], START
    for number in range(count):
        end = at + timedelta(seconds=seconds)
        found.append(
            {
                "run_id": "r1",
                "worker_id": worker,
                "hostname": "box",
                "gpu_name": "NVIDIA H200",
                "gpu_index": card,
                "started_at": at,
                "finished_at": end,
                "status": "ok",
                "is_cold": number == 0,
                "attempt": 1,
                "denoise_attempt": 1,
                "load_seconds": None,
                "encode_seconds": None,
                "denoise_seconds": 0.8 * seconds,
                "decode_seconds": 0.2 * seconds,
                "height": 480,
                "width": 848,
                "num_frames": 121,
                "num_inference_steps": 50,
                "num_computed_steps": 50,
                "guidance_scale": 1.0,
                "task": "t2v",
                "cache": None,
                "model": "480p_t2v",
                "compiled": True,
                "temperature_celsius_max": None,
                "throttle_seconds": None,
                "peak_vram_device_bytes": None,
            }
            | changes
        )
        at = end + timedelta(seconds=idle)
    return found


def test_clips_an_hour_and_idle_share_are_of_the_time_from_first_to_last_clip() -> None:
    (only,) = worker_figures(rows("local-0", 0, 60.0, 10))
    assert (only.worker, only.num_clips, only.clips_per_hour) == ("local", 10, 60.0)
    assert only.idle_share == pytest.approx(0.0)
    (idle,) = worker_figures(rows("local-0", 0, 60.0, 10, idle=20.0))
    assert idle.idle_share == pytest.approx(9 * 20 / (10 * 60 + 9 * 20))


def test_a_replaced_worker_is_the_same_worker() -> None:
    assert [place_of(name) for name in ("local-0", "local-7", "local-2-1")] == [
        "local",
        "local",
        "local-2",
    ]
    found = worker_figures([*rows("local-1-0", 1, 60.0, 3), *rows("local-1-1", 1, 60.0, 3)])
    assert [(each.worker, each.num_clips) for each in found] == [("local-1", 6)]


def test_a_worker_that_is_much_slower_than_its_like_is_named() -> None:
    log = [r for n in range(3) for r in rows(f"local-{n}-0", n, 60.0, 8)]
    log += rows("local-3-0", 3, 96.0, 8)

    found = worker_figures(log)

    assert [each.times_as_long for each in found] == pytest.approx([1.0, 1.0, 1.0, 1.6])
    (line,) = slow_lines(found)
    assert line.startswith("local-3 (NVIDIA H200, card 3) takes 1.6 times as long as its like")


def test_each_worker_has_the_health_of_its_own_card() -> None:
    hot = {"temperature_celsius_max": 88, "throttle_seconds": 30.0}
    log = rows("local-0-0", 0, 60.0, 8, temperature_celsius_max=61, peak_vram_device_bytes=GIB)
    log += rows("local-1-0", 1, 60.0, 4, **hot) + rows("local-1-0", 1, 96.0, 8)
    log += rows("local-2-0", 2, 60.0, 8)

    cool, slow, silent = worker_figures(log)

    assert format_worker(cool, START)[5:8] == ["61 °C", NOT_MEASURED, "1.0 GiB"]
    assert format_worker(slow, START)[5:8] == ["88 °C", "2 min", NOT_MEASURED]
    assert format_worker(silent, START)[5:8] == [NOT_MEASURED] * 3
    assert len(format_worker(silent, START)) == len(COLUMNS)
    (line,) = slow_lines([cool, slow, silent])
    assert "its like (up to 88 °C, throttled for 2 min): look at" in line


def test_cards_and_sizes_that_differ_are_not_compared() -> None:
    log = rows("local-0-0", 0, 60.0, 8)
    log += rows("local-1-0", 1, 96.0, 8, gpu_name="NVIDIA L40S")
    log += rows("local-2-0", 2, 96.0, 8, num_frames=61)
    log += rows("local-3-0", 3, 96.0, 3)  # two warm clips say too little

    assert slow_lines(worker_figures(log)) == []


def test_machines_are_told_apart() -> None:
    log = rows("local-0", 0, 60.0, 4) + rows("local-0", 0, 60.0, 4, hostname="other")

    assert [each.worker for each in worker_figures(log)] == ["box local", "other local"]
