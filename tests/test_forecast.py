"""The dry run's predictions: for this card, another card, and calibrated by a log."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from run_fakes import FakeClock
from test_costs import SETTINGS, row
from test_offload_choice import config, machine

from hv15_batch.clip import make_clip
from hv15_batch.config import Config, ConfigError
from hv15_batch.executor import Job
from hv15_batch.forecast import forecast_lines, make_forecast, make_pace
from hv15_batch.machine import Machine
from hv15_batch.pace import WRITE_PIXELS_PER_SECOND, Pace
from hv15_batch.plan import PlannedClip, State
from hv15_batch.records import ClipRecord
from hv15_batch.rundir import RunDir
from hv15_batch.runlog import RunLog
from hv15_batch.schedule import Deadline, Rules, read_rules

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


def test_time_limit_and_window_say_how_many_clips_and_when_the_last_is_done(
    tmp_path: Path,
) -> None:
    todo = [SETTINGS] * 800
    forecast = make_forecast(config(), todo, machine(24), tmp_path / "log")
    assert forecast is not None
    seconds = forecast.clip_seconds(SETTINGS)
    asked = replace(config(), window="22:00-07:00", time_limit="8h")
    per_night, in_eight_hours = int(9 * 3600 // seconds), int(8 * 3600 // seconds)
    clock = FakeClock(datetime(2026, 11, 22, 21, 0).astimezone())

    lines = forecast_lines(asked, todo, machine(24), tmp_path / "log", read_rules(asked, clock))

    nights, rest = divmod(800, per_night)
    last = datetime(2026, 11, 22, 22, 0) + timedelta(days=nights, seconds=rest * seconds)  # noqa: DTZ001
    assert 0 < nights < 5
    assert f"done {last:%a %H:%M} (an estimate" in lines[0]
    fitting = int(7 * 3600 // seconds)  # of the eight hours one passes before it opens
    assert fitting < in_eight_hours
    assert lines[2] == f"Until Mon 05:00 (time_limit=8h): {fitting} of 800 clips"
    assert lines[3] == (
        f"Window 22:00-07:00: {per_night} of 800 clips by Mon 07:00, all 800 on "
        f"{last:%a %d %b %H:%M} ({nights + 1} windows)"
    )
    assert lines[4].startswith("Cheaper: ")


def test_a_clip_longer_than_the_window_is_refused(tmp_path: Path) -> None:
    asked = replace(config(), window="22:00-22:01")
    rules = read_rules(asked, CLOCK)

    with pytest.raises(ConfigError, match=r"^window=22:00-22:01: the longest of 3 clips takes ab"):
        forecast_lines(asked, [SETTINGS] * 3, machine(24), tmp_path / "log", rules)


def test_a_run_is_refused_a_window_in_which_a_clip_is_never_finished(tmp_path: Path) -> None:
    asked = replace(config(), window="22:00-22:01")

    with pytest.raises(ConfigError) as refused:
        pace_of(asked, tmp_path)

    assert re.fullmatch(
        r"window=22:00-22:01: cat takes about \d+ min, longer than the window \(1 min\); widen it, "
        r"or ask for less\.",
        str(refused.value),
    )


def test_a_card_that_is_known_predicts_before_the_first_clip(tmp_path: Path) -> None:
    pace, job = pace_of(config(), tmp_path)
    forecast = make_forecast(config(), [SETTINGS], machine(24), tmp_path / "log")
    assert forecast is not None

    writing = 480 * 848 * 121 / WRITE_PIXELS_PER_SECOND
    assert pace.clip_seconds(job) == pytest.approx(forecast.clip_seconds(SETTINGS) + writing)


def test_a_clip_with_saved_latents_is_predicted_without_denoising(tmp_path: Path) -> None:
    pace, job = pace_of(config(), tmp_path)
    run_dir = RunDir(tmp_path)
    run_dir.create()
    before = pace.clip_seconds(job)

    run_dir.latents_file(job.clip.denoise_sha256).touch()

    assert pace.clip_seconds(job) < before / 5
    assert pace.clip_seconds(replace(job, use_latents=False)) == before


def pace_of(asked: Config, folder: Path) -> tuple[Pace, Job]:
    clip = make_clip(
        row_id="cat",
        row_index=0,
        line=2,
        settings=SETTINGS,
        image=None,
        image_path=None,
        tags={},
        off_recipe=False,
    )
    clip = replace(clip, clip_id="cat")
    planned = PlannedClip(clip, State.new, "", 0, False, True, False, None)
    rules = read_rules(asked, CLOCK)
    forecast = make_forecast(asked, [SETTINGS], machine(24), folder / "log")
    return make_pace(forecast, [planned], RunDir(folder), rules), Job(clip, 1, True)
