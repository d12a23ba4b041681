"""The plots of the page."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fakes.pages import (
    MEASURED,
    RUN_ID,
    START,
    build,
    failed,
    make_run,
    read_data,
    record,
    settings,
)


def test_every_plot_has_its_measured_values(tmp_path: Path) -> None:
    clips = [record(f"c{n}", n, **MEASURED) for n in range(4)]
    config = settings()
    config.report.price_per_kwh = 0.5
    run_dir = make_run(tmp_path, clips, clips, config=config)

    build(run_dir)

    plots = {plot["id"]: plot for plot in read_data(run_dir)["plots"]}
    assert [name for name, plot in plots.items() if not plot["traces"]] == []
    assert plots["stages"]["traces"][1]["y"] == [395.0] * 4
    assert plots["vram"]["lines"] == [{"y": 24.0, "name": "memory of the card"}]
    highest = {t["name"]: max(t["y"]) for t in plots["vram"]["traces"]}
    assert highest == {
        "encode": 9.0, "denoise": 13.0, "decode": 12.0, "reserved": 13.4004, "whole card": 15.0
    }  # fmt: skip
    assert plots["vram"]["caption"] == (
        "Highest: 13.4 GiB reserved by torch, 15.0 GiB of the whole card. By stage: allocated by "
        "torch. The line: memory of the card, 24.0 GiB."
    )
    assert "at 0.5 a kWh 0.139" in plots["energy"]["caption"]


def test_the_clocks_say_how_long_the_card_was_throttled_and_why(tmp_path: Path) -> None:
    old = record("a", **MEASURED | {"throttle_seconds": 60.0})  # before reasons were logged
    new = record("b", **MEASURED | {"throttle_seconds": 30.0, "throttle_other_seconds": 0.0})
    new = replace(new, throttle_power_seconds=28.0, throttle_thermal_seconds=5.0)

    captions = []
    for name, clips in (("old", [old]), ("both", [old, new]), ("none", [record("a", **MEASURED)])):
        run_dir = make_run(tmp_path / name, clips, clips)
        build(run_dir)
        plots = {plot["id"]: plot for plot in read_data(run_dir)["plots"]}
        captions.append(plots["clocks"]["caption"])

    assert captions == [
        "1 attempt; throttled for 60.0 s of the 409.1 s that the card worked.",
        "2 attempts; throttled for 90.0 s of the 818.2 s that the card worked: "
        "power 28.0 s, heat 5.00 s; reasons may overlap.",
        "1 attempt; throttled for 0.00 s of the 409.1 s that the card worked.",
    ]


def test_a_set_limit_of_vram_is_the_line_of_the_plot(tmp_path: Path) -> None:
    config = settings()
    config.runtime.vram_limit_gib = 14.0
    clip = record("a", **MEASURED)
    run_dir = make_run(tmp_path, [clip], [clip], config=config)

    build(run_dir)

    plots = {plot["id"]: plot for plot in read_data(run_dir)["plots"]}
    assert plots["vram"]["lines"] == [{"y": 14.0, "name": "runtime.vram_limit_gib"}]


def test_a_limit_far_above_the_peaks_is_said_and_does_not_press_them_down(tmp_path: Path) -> None:
    clip = record("a", **MEASURED | {"gpu_total_bytes": 80 * 2**30})
    run_dir = make_run(tmp_path, [clip], [clip])

    build(run_dir)

    plot = {plot["id"]: plot for plot in read_data(run_dir)["plots"]}["vram"]
    assert plot["lines"] == []
    assert plot["caption"].endswith("Memory of the card, 80.0 GiB, is far above.")


def test_what_saved_latents_spared_is_not_counted_again(tmp_path: Path) -> None:
    clips = [record("a", **MEASURED), record("b", 1, attempt=2, denoise_attempt=1, **MEASURED)]
    run_dir = make_run(tmp_path, clips, clips)

    _, shown = build(run_dir)

    stages = {plot["id"]: plot for plot in read_data(run_dir)["plots"]}["stages"]
    (denoise,) = (trace for trace in stages["traces"] if trace["name"] == "denoise")
    assert denoise["y"] == [395.0, None]
    assert stages["caption"] == (
        "2 attempts, 0 of them cold, 1 from saved latents: denoised by an earlier attempt."
    )
    assert [clip["facts"]["s"] for clip in shown] == ["412.3", "17.3"]
    assert [clip["isFromLatents"] for clip in shown] == [False, True]


def test_steps_of_different_settings_are_never_one_line(tmp_path: Path) -> None:
    clips = [record("a", **MEASURED), record("b", 1, num_frames=61, **MEASURED)]
    run_dir = make_run(tmp_path, clips, clips)

    build(run_dir)

    plots = {plot["id"]: plot for plot in read_data(run_dir)["plots"]}
    assert [trace["name"] for trace in plots["steps"]["traces"]] == [
        "Frames 121, 50 steps: median",
        "Frames 61, 50 steps: median",
    ]


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        ({"compiled": False}, {"compiled": True}, ("Compiled no", "Compiled yes")),
        ({"mask_free": True}, {"mask_free": False}, ("Mask-free yes", "Mask-free no")),
        (
            {"weights": "pretrained"},
            {"weights": "random"},
            ("Weights pretrained", "Weights random"),
        ),
        (
            {"system_sha256": "a" * 64},
            {"system_sha256": "b" * 64},
            ("Machine aaaaaaaa", "Machine bbbbbbbb"),
        ),
        ({}, {"driver_version": "580"}, ("Driver not known", "Driver 580")),
    ],
    ids=["compiled", "mask", "weights", "machine", "driver"],
)
def test_steps_are_grouped_by_all_that_the_table_of_figures_is(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], names: tuple[str, str]
) -> None:
    clips = [record("a", **MEASURED | one), record("b", 1, **MEASURED | other)]
    run_dir = make_run(tmp_path, clips, clips)

    build(run_dir)

    plots = {plot["id"]: plot for plot in read_data(run_dir)["plots"]}
    assert [trace["name"] for trace in plots["steps"]["traces"]] == [
        f"{name}, 50 steps: median" for name in names
    ]


def test_steps_of_another_shift_or_frame_rate_are_the_same(tmp_path: Path) -> None:
    clips = [record("a", **MEASURED, fps=24.0), record("b", 1, **MEASURED, fps=8.0, flow_shift=9.0)]
    run_dir = make_run(tmp_path, clips, clips)

    build(run_dir)

    plots = {plot["id"]: plot for plot in read_data(run_dir)["plots"]}
    assert plots["steps"]["caption"] == "Warm clips only; 2 of them."
    assert [trace["name"] for trace in plots["steps"]["traces"]] == ["median", "p90"]


def rate(run_dir: Path) -> list[float]:
    build(run_dir)
    plots = {plot["id"]: plot for plot in read_data(run_dir)["plots"]}
    rates: list[float] = plots["rate"]["traces"][0]["y"]
    return rates


def test_the_rate_of_steady_clips_is_the_same_from_the_first_to_the_last(tmp_path: Path) -> None:
    clips = [
        record(f"c{n}", n, started_at=START + timedelta(seconds=3.1 * n),
               finished_at=START + timedelta(seconds=3.1 * (n + 1)))
        for n in range(6)
    ]  # fmt: skip

    assert rate(make_run(tmp_path, clips, clips)) == pytest.approx([3600 / 3.1] * 6, rel=1e-4)


def test_the_rate_is_that_of_work_and_no_pause_of_a_week_makes_it_less(tmp_path: Path) -> None:
    spells = [(timedelta(), RUN_ID, 3), (timedelta(hours=1), RUN_ID, 2)]
    spells += [(timedelta(days=7), RUN_ID + "x", 4)]
    clips, number = [], 0
    for begin, run_id, num in spells:
        for n in range(num):
            start = START + begin + timedelta(seconds=100 * n)
            clips.append(record(f"c{number}", number, run_id=run_id, started_at=start,
                                finished_at=start + timedelta(seconds=100)))  # fmt: skip
            number += 1

    run_dir = make_run(tmp_path, clips, clips)

    assert rate(run_dir) == pytest.approx([36.0] * 9)
    plot = {plot["id"]: plot for plot in read_data(run_dir)["plots"]}["rate"]
    assert plot["caption"] == (
        "9 clips in 15 min of work, 3 spells of it; the time between them does not count. The "
        "start of a run, before its first clip, does not count."
    )
    assert plot["traces"][0]["x"][0].endswith(":50.000")


def test_a_warm_up_is_work_and_is_said(tmp_path: Path) -> None:
    clips = [
        record("c0", repeat=n, is_cold=n == 0, started_at=START + timedelta(minutes=n),
               finished_at=START + timedelta(minutes=n + 1))
        for n in range(3)
    ]  # fmt: skip

    run_dir = make_run(tmp_path, clips, clips[:1])
    build(run_dir)

    plot = {plot["id"]: plot for plot in read_data(run_dir)["plots"]}["rate"]
    assert plot["caption"].startswith("3 clips in 3 min of work; 1 of them warmed up. The start ")


def test_a_failed_attempt_is_work_too(tmp_path: Path) -> None:
    start = START + timedelta(seconds=400)
    clips = [
        record("a", started_at=START, finished_at=START + timedelta(seconds=400)),
        failed("b", row_index=1, started_at=start, finished_at=start + timedelta(seconds=400)),
    ]

    assert rate(make_run(tmp_path, clips, clips)) == [4.5]


def test_the_rates_of_all_stretches_add_up_to_the_clips(tmp_path: Path) -> None:
    ends = [100 * n + 17 * (n % 3) for n in range(1, 301)]
    clips = [
        record(f"c{n}", n, started_at=START + timedelta(seconds=end - 130),
               finished_at=START + timedelta(seconds=end))
        for n, end in enumerate(ends)
    ]  # fmt: skip

    rates = rate(make_run(tmp_path, clips, clips))

    hours = (max(ends) - min(ends) + 130) / 3600
    assert sum(rates) / len(rates) * hours == pytest.approx(300, rel=1e-4)
    assert min(rates[1:]) > 0.9 * max(rates)  # the last is no exception
