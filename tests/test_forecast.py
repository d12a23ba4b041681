"""The dry run's predictions: for this card, another card, and calibrated by a log."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from run_fakes import FakeClock
from test_costs import SETTINGS, row
from test_offload_choice import config, machine

from hv15_batch.config import ConfigError
from hv15_batch.forecast import forecast_lines, make_forecast
from hv15_batch.machine import Machine
from hv15_batch.records import ClipRecord
from hv15_batch.runlog import RunLog
from hv15_batch.schedule import Deadline, Rules

NOW = datetime(2026, 11, 22, 22, 0, tzinfo=timezone.utc)
CLOCK = FakeClock(NOW)
RULES = Rules(CLOCK)


def without_card() -> Machine:
    return replace(machine(24), gpus=())


def test_another_card_is_predicted_as_an_estimate(tmp_path: Path) -> None:
    asked = config()
    asked.runtime.card = "rtx_4090"

    lines = forecast_lines(asked, [SETTINGS] * 10, without_card(), tmp_path / "log", RULES)

    assert len(lines) == 2
    assert "(an estimate from the rtx_4090's vendor figures)" in lines[0]
    assert lines[1].startswith("Memory: offload resident: ")


def test_an_unknown_card_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    asked = config()
    asked.runtime.card = "rtx_9090"

    with pytest.raises(ConfigError, match=r"^runtime.card=rtx_9090: known cards are rtx_3060, "):
        make_forecast(asked, [SETTINGS], without_card(), tmp_path / "log")


def test_without_a_card_the_way_to_predict_is_named(tmp_path: Path) -> None:
    lines = forecast_lines(config(), [SETTINGS], without_card(), tmp_path / "log", RULES)

    assert lines == ["Time: no card here that is in the table; runtime.card=rtx_4090 predicts"]


def test_a_log_of_the_same_card_calibrates(tmp_path: Path) -> None:
    measured = {k: v for k, v in row(gpu_name="NVIDIA GeForce RTX 4090").items()}
    log_folder = tmp_path / "other" / "log"
    log_folder.mkdir(parents=True)
    record = replace(ClipRecord(), **measured, settings_sha256="a", attempt=1)
    assert asdict(record)["num_frames"] == 121
    RunLog(log_folder, "r").append(record)

    forecast = make_forecast(config(), [SETTINGS], machine(24), tmp_path / "this" / "log")

    assert forecast is not None
    assert forecast.basis == "calibrated by the log of this NVIDIA GeForce RTX 4090"
    total = measured["denoise_seconds"] + measured["decode_seconds"]
    assert forecast.clip_seconds(SETTINGS) == pytest.approx(total)


def test_until_counts_clips_and_names_a_cheaper_setting(tmp_path: Path) -> None:
    todo = [SETTINGS] * 100
    forecast = make_forecast(config(), todo, machine(24), tmp_path / "log")
    assert forecast is not None
    until = NOW + timedelta(seconds=10.5 * forecast.clip_seconds(SETTINGS))

    rules = Rules(CLOCK, (Deadline("until=07:00", until),))
    lines = forecast_lines(config(), todo, machine(24), tmp_path / "log", rules)

    assert f"Until {until:%a %H:%M}: 10 of 100 clips" in lines
    assert lines[-1].startswith("Cheaper: runtime.compile=true would take ")
