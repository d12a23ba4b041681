"""The page of a run directory says what the log and the plan say, and nothing else."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fakes.pages import MEASURED, RUN_ID, START, failed, make_run, make_status, record

from hv15_batch.config.settings import Config
from hv15_batch.config.words import read_words
from hv15_batch.model.variant import ModelConfig
from hv15_batch.record import ClipRecord
from hv15_batch.report.command import main
from hv15_batch.report.render import write_page
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import read_settings, write_settings

LONG_PROMPT = "A panda dances. " * 625
HOSTILE = "<script>alert(1)</script> \"q\" & 'a' {{ 7 * 7 }} </td></table>"


def read_data(run_dir: Path) -> dict[str, Any]:
    """Return what the page's scripts read."""
    text = (run_dir / "assets" / "data.js").read_text(encoding="ascii")
    values: dict[str, Any] = json.loads(text[text.index("hv15.data = ") + 12 :].rstrip(";\n"))
    return values


def build(run_dir: Path, **options: Any) -> tuple[str, list[dict[str, Any]]]:
    """Build the page of a run directory; return its HTML and its clips."""
    html = write_page(run_dir, **options).read_text(encoding="utf-8")
    return html, read_data(run_dir)["clips"]


def first_line(html: str) -> str:
    match = re.search(r"<h1>(.*?)</h1>", html, re.DOTALL)
    assert match is not None
    return " ".join(re.sub(r"<button.*?</button>|<[^>]+>", "", match[1], flags=re.DOTALL).split())


def settings(**changes: Any) -> Config:
    model = ModelConfig(name="480p_t2v", repo="a/b", revision="abc")
    return replace(Config(manifest="/home/me/my prompts.csv", model=model), **changes)


# -- the first line ---------------------------------------------------------------------------


def test_the_first_line_is_how_far_what_went_wrong_how_it_ended_and_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    clips = [
        record("a"),
        record("b", 1, status="suspect", quality_flag="black"),
        failed("c", row_index=2),
    ]
    status = {"state": "stopped", "message": "disk full: 0.41 GiB free at /data"}
    run_dir = make_run(tmp_path, clips, [*clips, record("d", 3)], status=status)

    html, _ = build(run_dir)

    assert re.fullmatch(
        r"2 of 4, 1 failed, 1 suspect, stopped [0-9: -]*\d\d:\d\d: disk full; resume with: "
        + re.escape(f"hv15-batch resume={run_dir}"),
        first_line(html),
    )
    assert "disk full: 0.41 GiB free at /data" in html


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "failed", "message": "1 of 2 clips failed"}, r"ended [\d: -]+"),
        ({"state": "interrupted", "message": "interrupted by SIGTERM"},
         r"interrupted [\d: -]+: by SIGTERM"),
        ({"state": "rendering", "pid": 2**22 + 1},
         r"interrupted [\d: -]+: its process is gone, .*"),
        ({"state": "stopped", "message": "until=07:00: the next clip takes about 9 s"},
         r"stopped [\d: -]+: until=07:00"),
    ],
)  # fmt: skip
def test_every_way_to_end_is_said_once(tmp_path: Path, status: Any, words: str) -> None:
    clips = [record("a"), failed("b", row_index=1)]

    html, _ = build(make_run(tmp_path, clips, clips, status=status))

    assert re.fullmatch(rf"1 of 2, 1 failed, {words}; resume with: .*", first_line(html))


def test_a_run_that_goes_on_says_how_long_and_offers_no_command(tmp_path: Path) -> None:
    status = make_status(state="rendering", pid=os.getpid(), eta_p50="2999-01-01T00:00:00+00:00")
    status["updated_at"] = "2999-01-01T00:00:00+00:00"  # not before this process began

    html, _ = build(make_run(tmp_path, [], [record("a")], status=status))

    assert re.fullmatch(r"0 of 1, rendering, about \d+ d \d+ h left", first_line(html))


def test_a_finished_run_is_done_and_nothing_is_to_resume(tmp_path: Path) -> None:
    html, _ = build(make_run(tmp_path, [record("a")], [record("a")], status={}))

    assert re.fullmatch(r"1 of 1, done [\d: -]+", first_line(html))


def test_a_run_that_made_done_clips_again_is_resumed_although_every_clip_is_done(
    tmp_path: Path,
) -> None:
    status = {"state": "interrupted", "message": "interrupted by SIGTERM"}
    forced, limited = (
        make_run(
            tmp_path / names[-1],
            [record("a")],
            [record("a")],
            status={**status, "type_again": names},
        )
        for names in (["limit", "force"], ["limit"])
    )

    assert first_line(build(forced)[0]).endswith(
        f"; resume with: hv15-batch resume={forced} (type again if you want them: limit, force)"
    )
    assert "resume with" not in first_line(build(limited)[0])


# -- the clips --------------------------------------------------------------------------------


def test_a_clip_says_what_was_asked_and_what_it_cost(tmp_path: Path) -> None:
    clip = record("a", tags='{"tag_scene": "city"}', energy_joules=3600.0)

    _, [shown] = build(make_run(tmp_path, [clip], [clip]))

    wanted = {
        "id": "a", "prompt": "prompt of a", "seed": "7", "status": "ok", "file": "clips/a.mp4",
        "poster": "thumbs/a.jpg", "isPlayable": True, "tags": {"scene": "city"},
        "facts": {"s": "412.3", "GiB": "13.4", "Wh": "1"},
    }  # fmt: skip
    assert {name: shown[name] for name in wanted} == wanted


def test_clips_follow_the_manifest_and_not_the_order_of_rendering(tmp_path: Path) -> None:
    takes = [record("a0"), record("b0", 1), record("a1", seed=8), record("b1", 1, seed=8)]

    _, clips = build(make_run(tmp_path, takes[::-1], takes))

    assert [clip["id"] for clip in clips] == ["a0", "a1", "b0", "b1"]


def test_clips_of_rows_that_left_the_manifest_are_not_shown(tmp_path: Path) -> None:
    html, clips = build(make_run(tmp_path, [record("old"), record("a")], [record("a")]))

    assert [clip["id"] for clip in clips] == ["a"]
    assert first_line(html) == "1 of 1"


def test_other_settings_of_a_row_stand_beside_it_with_what_differs(tmp_path: Path) -> None:
    now = record("a", prompt="same", row_id="fox")
    before = record("a_old", prompt="same", row_id="fox", num_inference_steps=30)

    html, clips = build(make_run(tmp_path, [before, now], [now]))

    assert [(c["id"], c["isVariant"], c["differences"]) for c in clips] == [
        ("a", False, {"Steps": "50"}),
        ("a_old", True, {"Steps": "30"}),
    ]
    assert first_line(html) == "1 of 1"


def test_what_all_clips_share_is_said_once(tmp_path: Path) -> None:
    clips = [record("a"), record("b", 1, num_frames=61)]

    html, shown = build(make_run(tmp_path, clips, clips))

    assert '<dt>Size</dt><dd dir="auto">480×848</dd>' in html
    assert "<dt>Frames</dt>" not in html
    assert [clip["differences"] for clip in shown] == [{"Frames": "121"}, {"Frames": "61"}]


def test_a_renamed_row_shows_the_clip_under_its_old_file_name(tmp_path: Path) -> None:
    renamed = replace(record("old"), clip_id="new")

    _, [clip] = build(make_run(tmp_path, [record("old")], [renamed]))

    assert (clip["id"], clip["file"], clip["poster"]) == ("new", "clips/old.mp4", "thumbs/old.jpg")


def test_the_last_attempt_counts(tmp_path: Path) -> None:
    attempts = [failed("a"), record("a", attempt=2)]

    html, [clip] = build(make_run(tmp_path, attempts, [record("a")]))

    assert (clip["status"], clip["problem"]) == ("ok", "")
    assert "out of memory" not in html


def test_a_clip_whose_file_is_gone_is_not_done(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")])
    (run_dir / "clips" / "a.mp4").unlink()

    html, [clip] = build(run_dir)

    assert first_line(html).startswith("0 of 1, 1 file missing; resume with")
    assert (clip["status"], clip["file"]) == ("file missing", None)


def test_a_seed_above_2_to_the_53_is_exact(tmp_path: Path) -> None:
    clip = record("a", seed=2**63 - 1)

    _, [shown] = build(make_run(tmp_path, [clip], [clip]))

    assert shown["seed"] == "9223372036854775807"


def test_failures_come_before_suspects_with_their_reasons(tmp_path: Path) -> None:
    clips = [record("s", status="suspect", quality_flag="frozen"), failed("f", row_index=1)]

    html, _ = build(make_run(tmp_path, clips, clips))

    section = html[html.index('id="problems"') :]
    places = [section.index(words) for words in ("RuntimeError: out of memory", "frozen")]
    assert places == sorted(places)


def test_a_thousand_failures_do_not_bury_the_rest(tmp_path: Path) -> None:
    clips = [failed(f"f{number:03d}", row_index=number) for number in range(60)]

    html, shown = build(make_run(tmp_path, clips, clips))

    assert html.count("data-clip=") == 50
    assert "and 10 more: set the gallery" in html
    assert len(shown) == 60


@pytest.mark.parametrize(
    "prompt", [HOSTILE, "\u2028 </script> <!--", "“开业大吉”\n🐼 مرحبا", LONG_PROMPT]
)
def test_text_arrives_whole_in_the_data_and_never_as_markup(tmp_path: Path, prompt: str) -> None:
    clip = failed("a", message=prompt, prompt=prompt, image=prompt)
    run_dir = make_run(tmp_path, [clip], [clip])

    html, [shown] = build(run_dir)

    assert (shown["prompt"], shown["image"]) == (prompt, prompt)
    assert shown["problem"] == f"RuntimeError: {prompt}"
    assert "<" not in (run_dir / "assets" / "data.js").read_text(encoding="ascii")
    assert "<script>alert" not in html
    assert html.count("<script") == 6


def test_a_prompt_longer_than_the_csv_module_allows_is_read(tmp_path: Path) -> None:
    clip = record("a", prompt="x" * 200_000)

    _, [shown] = build(make_run(tmp_path, [clip], [clip]))

    assert len(shown["prompt"]) == 200_000


@pytest.mark.parametrize(
    ("weights", "words"),
    [("tiny", "the tiny models are small"), ("random", "builds the full-size model")],
)
def test_noise_on_purpose_is_said(tmp_path: Path, weights: str, words: str) -> None:
    clip = record("a", weights=weights)

    html, _ = build(make_run(tmp_path, [clip], [clip]))

    assert "These clips are noise on purpose" in html
    assert words in html


def test_clips_of_published_weights_carry_no_such_note(tmp_path: Path) -> None:
    html, _ = build(make_run(tmp_path, [record("a")], [record("a")]))

    assert "noise" not in html


def test_a_lossless_clip_is_no_video_because_browsers_do_not_play_it(tmp_path: Path) -> None:
    clip = record("a", file="clips/a.mkv")

    _, [shown] = build(make_run(tmp_path, [clip], [clip]))

    assert (shown["file"], shown["isPlayable"]) == ("clips/a.mkv", False)


def test_what_was_not_measured_is_left_out_and_never_zero(tmp_path: Path) -> None:
    clip = record("a", peak_vram_reserved_bytes=None, total_seconds=None)
    run_dir = make_run(tmp_path, [clip], [clip])

    html, [shown] = build(run_dir)

    assert shown["facts"] == {}
    assert "<dt>Peak VRAM</dt>" not in html
    assert {plot["id"] for plot in read_data(run_dir)["plots"] if not plot["traces"]} == {
        "stages", "steps", "vram", "ram", "clocks", "temperature", "rate", "energy"
    }  # fmt: skip


def test_seconds_a_clip_leaves_cold_clips_out_and_says_how_many_count(tmp_path: Path) -> None:
    clips = [
        record("cold", total_seconds=900.0, is_cold=True),
        record("a", 1, total_seconds=10.0),
        record("b", 2, total_seconds=30.0),
    ]

    html, _ = build(make_run(tmp_path, clips, clips))

    assert "20.0 (median of 2 warm clips)" in html


def head_table(html: str) -> list[list[str]]:
    """Return the lines of the table of settings at the head."""
    head = html[html.index("<header>") : html.index("<nav")]
    rows = re.findall(r"<tr>(.*?)</tr>", head, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_different_settings_have_a_line_each_and_are_never_one_sample(tmp_path: Path) -> None:
    clips = [
        *(record(f"a{n}", n, total_seconds=10.0 + n) for n in range(3)),
        *(record(f"b{n}", n, num_frames=61, total_seconds=1.0) for n in range(2)),
    ]

    html, _ = build(make_run(tmp_path, clips, clips))

    _, *lines = head_table(html)
    assert [line[:3] for line in lines] == [["Frames 121", "3", "11.0"], ["Frames 61", "2", "1.00"]]
    assert "median of 5" not in html


def test_many_settings_are_folded_behind_the_first(tmp_path: Path) -> None:
    clips = [record(f"c{n}", n, num_frames=4 * n + 1) for n in range(9)]

    html, _ = build(make_run(tmp_path, clips, clips))

    assert "and 3 more settings" in html
    assert len(head_table(html)) == 2 + 9  # two tables, each with its head


def test_energy_is_that_of_warm_clips_and_says_how_many(tmp_path: Path) -> None:
    clips = [
        record("cold", energy_joules=36_000.0, is_cold=True),
        record("a", 1, energy_joules=3600.0),
        record("b", 2, energy_joules=7200.0),
        record("c", 3, energy_joules=None),
    ]
    config = settings()
    config.report.price_per_kwh = 0.5

    html, _ = build(make_run(tmp_path, clips, clips, config=config))

    assert "<dt>Energy a clip</dt><dd>1.5 Wh (median of 2 warm clips)</dd>" in html
    assert "<dt>Cost a clip</dt><dd>0.00075 (at 0.5 a kWh)</dd>" in html


# -- benchmarks -------------------------------------------------------------------------------


def benchmark_run(folder: Path, done: int = 4, **changes: Any) -> Path:
    """Write a run of two clips, each measured twice, of which nothing is in clips/."""
    clips = [record("a"), record("b", 1)]
    measured = [
        replace(
            clip, repeat=n, file=None, weights="random", offload="stream", num_alloc_retries=0,
            total_seconds=10.0 + n, system_sha256="m" * 64, started_at=START + timedelta(minutes=n),
        )
        for n in (0, 1, 2)
        for clip in (clips if n else clips[:1])
    ]  # fmt: skip
    measured[0] = replace(measured[0], is_cold=True)
    config = settings()
    config.benchmark.repeat = 2
    attempts = measured[: done + 1]
    return make_run(folder, attempts, clips, config=config, **{"status": {}, **changes})


def test_the_first_line_of_a_benchmark_counts_repetitions_and_has_nothing_to_resume(
    tmp_path: Path,
) -> None:
    html, _ = build(benchmark_run(tmp_path))

    assert re.fullmatch(
        r"4 of 4 repetitions measured \(2 clips x 2\), done [\d: -]+", first_line(html)
    )


def test_a_benchmark_that_was_stopped_says_what_is_left(tmp_path: Path) -> None:
    status = {"state": "stopped", "message": "disk full: 0.4 GiB free"}
    run_dir = benchmark_run(tmp_path, done=3, status=status)

    html, _ = build(run_dir)

    line = first_line(html)
    assert line.startswith("3 of 4 repetitions measured (2 clips x 2), stopped ")
    assert line.endswith(f"hv15-batch resume={run_dir}")


def test_an_interrupted_repetition_is_not_called_failed(tmp_path: Path) -> None:
    stopped = record("b", 1, repeat=2, file=None, status="interrupted", error_type="SIGTERM")
    run_dir = benchmark_run(tmp_path, done=3)
    RunLog(RunDir(run_dir).log, RUN_ID + "x").append(stopped)

    html, _ = build(run_dir)

    assert first_line(html).startswith("3 of 4 repetitions measured (2 clips x 2), done ")


def test_head_and_table_of_a_benchmark_agree_beside_clips_that_were_kept(tmp_path: Path) -> None:
    run_dir = benchmark_run(tmp_path)
    kept = record("a", weights="random", offload="stream", total_seconds=99.0,
                  system_sha256="m" * 64)  # fmt: skip
    RunLog(RunDir(run_dir).log, RUN_ID + "x").append(kept)

    assert main([str(run_dir)]) == 0

    html = RunDir(run_dir).page.read_text(encoding="utf-8")
    assert "<dd>11.5 (median of 4 warm repetitions)</dd>" in html
    assert '<td class="number">4</td>\n<td class="number">11.5</td>' in html


def test_a_run_of_clips_after_a_benchmark_counts_clips(tmp_path: Path) -> None:
    run_dir = benchmark_run(tmp_path)
    later = RunDir(run_dir).run_folder("20261125T230000-0000-bbbb")
    later.mkdir()
    write_settings(later, settings())

    html, clips = build(run_dir)

    assert first_line(html).startswith("0 of 2, done")
    assert len(clips) == 0


def test_a_benchmark_shows_its_table_and_no_empty_gallery(tmp_path: Path) -> None:
    run_dir = benchmark_run(tmp_path)

    assert main([str(run_dir)]) == 0

    html = RunDir(run_dir).page.read_text(encoding="utf-8")
    section = html[html.index('id="benchmark"') : html.index('id="clips"')]
    assert "<code>clip_seconds</code>" in section
    assert '<td class="number">11.5</td>' in section
    assert all(f'href="{name}"' in section for name in ("benchmark.csv", "benchmark.md"))
    assert '<section id="clips" aria-labelledby="clips-title" hidden>' in html
    assert read_data(run_dir)["clips"] == []


def test_what_was_in_effect_in_a_benchmark_is_said_though_nothing_is_in_clips(
    tmp_path: Path,
) -> None:
    html, _ = build(benchmark_run(tmp_path))

    assert "These clips are noise on purpose" in html
    for name, value in (("Offload", "stream"), ("Weights", "random"), ("Machine", "m" * 8)):
        assert f'<dt>{name}</dt><dd dir="auto">{value}</dd>' in html


def test_repetitions_beside_finished_clips_leave_the_gallery_as_it_is(tmp_path: Path) -> None:
    clip = record("a")
    run_dir = make_run(tmp_path, [clip, replace(clip, repeat=1, file=None)], [clip])

    html, clips = build(run_dir)

    assert [c["id"] for c in clips] == ["a"]
    assert 'id="benchmark"' in html


def test_the_head_leads_past_the_gallery_to_what_there_is(tmp_path: Path) -> None:
    html, _ = build(make_run(tmp_path, [record("a"), failed("b", row_index=1)]))

    contents = html[html.index('<nav class="contents"') : html.index("</nav>")]
    goals = re.findall(r'href="#(\w+)"', contents)
    assert goals == ["clips", "problems", "warnings", "plots", "references", "common"]
    assert all(html.count(f'id="{goal}"') == 1 for goal in goals)


def test_a_median_of_two_carries_a_warning_with_its_remedy(tmp_path: Path) -> None:
    html, _ = build(make_run(tmp_path, [record("a"), record("b", 1)]))

    assert "benchmark.repeat=3 or more" in html[html.index('id="warnings"') :]


def test_a_published_figure_of_another_card_is_not_called_reproduced(tmp_path: Path) -> None:
    fast = record("a", total_seconds=10.0, gpu_name="NVIDIA H200")

    html, _ = build(make_run(tmp_path, [fast]))

    table = html[html.index('class="references"') :]
    assert "within 75 s per clip" in table
    assert "Card: RTX 4090 stated, NVIDIA H200 here" in table
    assert "<strong>reproduced</strong>" not in table


def reproducing(name: str, **changes: Any) -> ClipRecord:
    """Return a warm clip that meets the authors' 75 s with a combination of the sweep."""
    step_distilled = {
        "model": "480p_i2v_step_distilled", "task": "i2v", "num_frames": 61,
        "num_inference_steps": 8, "guidance_scale": 1.0, "flow_shift": 7.0, "dtype": "bfloat16",
        "attention_backend": "_native_cudnn", "mask_free": True, "offload": "stream",
        "gpu_name": "NVIDIA GeForce RTX 4090", "gpu_total_bytes": 24 * 2**30, "mfu": 0.61,
        "compiled": False, "denoise_seconds": 60.0, "decode_seconds": 6.0, "total_seconds": 68.0,
    }  # fmt: skip
    return record(name, **{**step_distilled, **changes})


def test_a_figure_that_is_met_says_with_what_and_what_it_implies(tmp_path: Path) -> None:
    html, _ = build(make_run(tmp_path, [reproducing("a")]))

    table = html[html.index('class="references"') : html.index("comfyui_rtx5090")]
    assert (
        "<strong>reproduced</strong> with 480x848, 61 frames, 8 steps, shift 7, bfloat16, "
        "offload=stream, attention _native_cudnn and not compiled, which the source does not state"
    ) in table
    assert '<td data-label="utilisation here">61%</td>' in table
    assert '<td data-label="implied by the figure">29% to 134%</td>' in table


def test_of_what_is_not_comparable_one_reason_is_in_sight_and_the_others_are_folded(
    tmp_path: Path,
) -> None:
    html, _ = build(make_run(tmp_path, [reproducing("a", gpu_name="NVIDIA H200")]))

    table = html[html.index('class="references"') :]
    assert table.index("stated, NVIDIA H200 here.") < table.index('<details class="why">')
    assert re.search(r"<summary>\d+ more to know: what differs, what to do</summary>", table)


def test_five_frames_reproduce_nothing_on_the_page(tmp_path: Path) -> None:
    html, _ = build(make_run(tmp_path, [reproducing("a", num_frames=5, total_seconds=4.0)]))

    table = html[html.index('class="references"') :]
    assert "<strong>reproduced</strong>" not in table
    assert "<strong>surpassed</strong>" not in table
    assert "Settings differ from the reference: render again with -m override.num_frames=" in table


def test_published_figures_are_folded_unless_something_was_measured_repeatedly(
    tmp_path: Path,
) -> None:
    folded, _ = build(make_run(tmp_path / "run", [record("a")]))
    benchmark, _ = build(make_run(tmp_path / "repeated", [record("a", repeat=1)]))

    is_open = ['panel" open' in html for html in (folded, benchmark)]
    assert is_open == [False, True]
    assert all("Published figures" in html for html in (folded, benchmark))


def test_without_a_plan_the_log_is_shown(tmp_path: Path) -> None:
    html, clips = build(make_run(tmp_path, [record("b", 1), record("a", 0)]))

    assert [clip["id"] for clip in clips] == ["a", "b"]
    assert first_line(html) == "2 of 2"


def test_a_run_without_a_finished_clip_has_a_page(tmp_path: Path) -> None:
    html, [clip] = build(make_run(tmp_path, [], [record("a")]))

    assert first_line(html).startswith("0 of 1; resume with")
    assert clip["status"] == "not rendered"


# -- plots ------------------------------------------------------------------------------------


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
        "9 clips in 15 min of work, 3 spells of it; the time between them does not count. A run's "
        "start, before its first clip, is not in it."
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
    assert plot["caption"].startswith("3 clips in 3 min of work; 1 of them warmed up. A run's ")


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


# -- commands and picks -----------------------------------------------------------------------


def test_the_command_of_a_clip_names_its_row_seed_and_every_setting_that_is_no_default(
    tmp_path: Path,
) -> None:
    config = settings()
    config.override.negative_prompt = "blurry, it's grey"
    config.video.crf = 12
    clip = record("fox_s7", row_id="fox")
    run_dir = make_run(tmp_path / "it's", [clip], [clip], config=config)

    _, [shown] = build(run_dir)

    assert shlex.split(shown["command"]) == [
        "hv15-batch",
        f"manifest={run_dir}/runs/{RUN_ID}/manifest.csv",
        "only=fox",
        "override.seeds=7",
        "model=480p_t2v",
        "model.repo=a/b",
        "override.negative_prompt=blurry, it's grey",
        "video.crf=12",
        f"run_dir={run_dir}.again/fox_s7",
    ]


def test_the_command_of_a_clip_names_a_row_called_null_as_a_text(tmp_path: Path) -> None:
    clip = record("null_s7", row_id="null")

    _, [shown] = build(make_run(tmp_path, [clip], [clip], config=settings()))

    words = shlex.split(shown["command"])
    assert 'only="null"' in words
    typed = read_words(words[1:], is_sweep=False)
    assert typed.texts["only"] == "null"  # the text, not what Hydra calls null


def test_the_command_of_a_clip_makes_that_clip(tmp_path: Path, command: Any) -> None:
    (tmp_path / "p.csv").write_text(
        'id,prompt,seed,guidance_scale\nfox,"a fox, ""OPEN"", ${x}",3 4,\ncat,a cat,,2\n',
        encoding="utf-8",
    )
    words = ["p.csv", "model=tiny_t2v", "sampling.negative_prompt=dull, grey", "video.crf=20"]
    small = ["override.num_frames=1", "override.num_inference_steps=1", "override.height=32"]
    assert command(*words, *small, "limit=2").code == 0
    clips = {clip["id"]: clip for clip in read_data(tmp_path / "outputs" / "p")["clips"]}
    name, clip = next((n, c) for n, c in clips.items() if n.startswith("fox_s3"))

    answer = command(*shlex.split(clip["command"])[1:])

    assert (answer.code, answer.err) == (0, "")
    again = tmp_path / "outputs" / f"p.again/{name}"
    assert [path.stem for path in (again / "clips").iterdir()] == [name]


def test_a_first_frame_of_a_pick_is_named_by_its_absolute_path(tmp_path: Path) -> None:
    clip = record("a", image="frames/a.png")

    _, [shown] = build(make_run(tmp_path, [clip], [clip], config=settings()))

    assert shown["pick"]["image"] == "/home/me/frames/a.png"
    assert "height" not in shown["pick"]


# -- files ------------------------------------------------------------------------------------


def test_the_page_asks_the_network_for_nothing(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")])
    html, _ = build(run_dir)

    own = [p for p in (run_dir / "assets").iterdir() if p.name != "plotly.min.js"]
    texts = [html, *(path.read_text(encoding="utf-8") for path in own)]
    assert [m for t in texts for m in re.findall(r"https?://|@import|url\(", t)] == []
    assert "default-src 'none'" in html


def test_the_plotting_library_is_copied_once(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")])
    build(run_dir)
    before = {p.name: p.stat().st_mtime_ns for p in (run_dir / "assets").iterdir()}

    build(run_dir)

    after = {p.name: p.stat().st_mtime_ns for p in (run_dir / "assets").iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"data.js"}
    assert "plotly.min.js" in after


def test_the_page_says_that_it_is_private_and_what_to_share(tmp_path: Path) -> None:
    html, _ = build(make_run(tmp_path, [record("a")], [record("a")]))

    head = html[: html.index("</header>")]
    assert "This page is private: it shows prompts, clips, tags and folders." in head
    assert "benchmark.md, or comparison.md of several runs" in head


def test_a_run_of_a_version_before_that_was_set_public_has_its_page(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")], config=settings())
    stored = RunDir(run_dir).run_folder(RUN_ID) / "config.yaml"
    text = stored.read_text(encoding="utf-8")
    stored.write_text(text.replace("report:\n", "report:\n  public: true\n"), encoding="utf-8")

    assert main([str(run_dir)]) == 0

    assert read_data(run_dir)["clips"][0]["prompt"] == "prompt of a"
    assert read_settings(stored) == settings()


# -- the command line -------------------------------------------------------------------------


def test_a_folder_that_is_no_run_directory_is_refused_and_the_others_are_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", [record("a")], [record("a")])

    assert main([str(tmp_path / "photos"), str(run)]) == 2

    captured = capsys.readouterr()
    assert captured.err == (
        f"{tmp_path / 'photos'}: no run directory (it has no log); "
        "name the folder that a run has printed as its first line.\n"
    )
    assert captured.out == f"{run / 'index.html'}\n"


@pytest.mark.parametrize("word", ["--price={}", "report.price_per_kwh={}"])
@pytest.mark.parametrize(
    ("price", "rule"),
    [("-2", "0 or more"), ("nan", "a finite number, 0 or more"),
     ("inf", "a finite number, 0 or more")],
)  # fmt: skip
def test_a_price_that_is_none_is_refused(
    tmp_path: Path, word: str, price: str, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, [record("a")], [record("a")])

    assert main([str(run), word.format(price)]) == 2

    said = capsys.readouterr()
    expected = f"{word.format(price)}: must be {rule}; leave it out for the default.\n"
    assert (said.out, said.err) == ("", expected)


def test_a_damaged_log_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, [record("a")], [record("a")])
    (segment,) = (run / "log").glob("*.parquet")
    os.truncate(segment, 100)

    assert main([str(run)]) == 2

    error = capsys.readouterr().err
    assert error.startswith(f"{segment}: not a readable log segment")
    assert "Traceback" not in error


def test_the_module_runs_from_any_directory_with_a_relative_path(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [record("a")], [record("a")])

    done = subprocess.run(
        [sys.executable, "-m", "hv15_batch.report", "run"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout == f"{tmp_path / 'run' / 'index.html'}\n"


def test_building_a_page_imports_no_plotly(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [record("a")], [record("a")])
    code = (
        "import sys; from hv15_batch.report import main; main(['run']);"
        "print(sorted({'plotly', 'torch'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


def test_clips_csv_is_written_again_too(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, [record("a")], [record("a")])

    main([str(run_dir)])

    with RunDir(run_dir).clips_table.open(encoding="utf-8", newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["clip_id"], row["status"], row["prompt"]) == ("a", "ok", "prompt of a")
