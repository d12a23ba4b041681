"""What the page shows of benchmarks, and of published numbers."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from fakes.pages import (
    RUN_ID,
    START,
    build,
    failed,
    first_line,
    make_run,
    read_data,
    record,
    settings,
)

from hv15_batch.record import ClipRecord
from hv15_batch.report.command import main
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import write_settings


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
    RunLog(RunDir(run_dir).log, RUN_ID + "ff").append(stopped)

    html, _ = build(run_dir)

    assert first_line(html).startswith("3 of 4 repetitions measured (2 clips x 2), done ")


def test_head_and_table_of_a_benchmark_agree_beside_clips_that_were_kept(tmp_path: Path) -> None:
    run_dir = benchmark_run(tmp_path)
    kept = record("a", weights="random", offload="stream", total_seconds=99.0,
                  system_sha256="m" * 64)  # fmt: skip
    RunLog(RunDir(run_dir).log, RUN_ID + "ff").append(kept)

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
    assert '<td data-label="utilisation implied">29% to 134%</td>' in table


def test_of_what_is_not_comparable_one_reason_is_in_sight_and_the_others_are_folded(
    tmp_path: Path,
) -> None:
    html, _ = build(make_run(tmp_path, [reproducing("a", gpu_name="NVIDIA H200")]))

    table = html[html.index('class="references"') :]
    assert table.index("stated, NVIDIA H200 here.") < table.index('<details class="why">')
    assert re.search(r"<summary>\d+ more: what differs, what to do</summary>", table)


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
    assert all("Published numbers" in html for html in (folded, benchmark))


def test_without_a_plan_the_log_is_shown(tmp_path: Path) -> None:
    html, clips = build(make_run(tmp_path, [record("b", 1), record("a", 0)]))

    assert [clip["id"] for clip in clips] == ["a", "b"]
    assert first_line(html) == "2 of 2"


def test_a_run_without_a_finished_clip_has_a_page(tmp_path: Path) -> None:
    html, [clip] = build(make_run(tmp_path, [], [record("a")]))

    assert first_line(html).startswith("0 of 1; resume with")
    assert clip["status"] == "not rendered"
