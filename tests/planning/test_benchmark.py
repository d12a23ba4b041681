"""benchmark.repeat: what is rendered, what is logged, and that nothing else changes."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.runs import FakeExecutor, FakeRenderer, Project

from hv15_batch.config.settings import BenchmarkConfig, OffloadConfig, RuntimeConfig, VideoConfig
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Job
from hv15_batch.figures.groups import group_rows
from hv15_batch.figures.tables import repetitions_of
from hv15_batch.machine import system
from hv15_batch.model.variant import OffloadKind
from hv15_batch.record import ClipRecord
from hv15_batch.rundir.log import read_last_attempts


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt,num_frames", "cat,a cat,1", "dog,a dog,1", "owl,an owl,5")
    return project


def measure(
    project: Project, repeat: int = 2, make_executor: Any = FakeExecutor, **more: Any
) -> int:
    return project.run(make_executor, benchmark=BenchmarkConfig(repeat), **more)


def order(project: Project, since: int = 0) -> list[tuple[str, int | None]]:
    return [(r["row_id"], r["repeat"]) for r in project.records()[since:]]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


WHOLE = [
    ("cat", 0),
    ("owl", 0),
    ("cat", 1),
    ("dog", 1),
    ("owl", 1),
    ("cat", 2),
    ("dog", 2),
    ("owl", 2),
]


def test_a_warm_up_per_size_comes_first_and_the_clips_take_turns(project: Project) -> None:
    assert measure(project) == 0

    assert order(project) == WHOLE
    assert [r["is_cold"] for r in project.records()] == [True, True, *[False] * 6]


class ColdAfterLoading(FakeRenderer):
    """Loads a model whenever a clip needs another, and logs that clip as cold."""

    loaded: str | None = None

    def render(self, job: Job, emit: Any) -> Any:
        finish = super().render(job, emit)
        is_cold = job.repeat == 0 or job.clip.settings.model != self.loaded
        self.loaded = job.clip.settings.model
        return lambda: replace(finish(), is_cold=is_cold)


def test_each_model_is_loaded_once_and_its_repetitions_are_warm(project: Project) -> None:
    project.write("id,prompt,model", "cat,a cat,", "dog,a dog,demo_t2v", "owl,an owl,")

    def measured() -> int:
        return measure(project, make_executor=lambda spec: FakeExecutor(spec, ColdAfterLoading))

    assert measured() == 0

    by_model = [
        *(("cat", 0), ("cat", 1), ("owl", 1), ("cat", 2), ("owl", 2)),
        *(("dog", 0), ("dog", 1), ("dog", 2)),
    ]
    assert order(project) == by_model
    assert [r["row_id"] for r in project.records() if r["is_cold"]] == ["cat", "dog"]
    assert measured() == 0
    assert len(project.records()) == len(by_model)  # nothing is left to measure


def test_no_file_is_kept_and_no_clip_counts_as_done(project: Project) -> None:
    measure(project)

    assert [names(f) for f in (project.run_dir.clips, project.run_dir.latents)] == [[], []]
    assert project.strays() == []
    assert read_last_attempts(project.run_dir.log) == []
    assert {r["file"] for r in project.records()} == {None}
    assert [row["state"] for row in project.plan()] == ["new"] * 3
    project.did()

    assert project.run() == 0
    assert [line.split("_")[0] for line in project.did()] == [
        "denoise cat",
        "denoise dog",
        "denoise owl",
    ]


def test_finished_clips_are_measured_denoising_included_and_stay_as_they_are(
    project: Project,
) -> None:
    project.run()
    project.did()
    before = names(project.run_dir.clips), names(project.run_dir.latents)
    last = read_last_attempts(project.run_dir.log)

    assert measure(project, keep_latents=False) == 0

    assert order(project, since=3) == WHOLE
    assert {line.split()[0] for line in project.did()} == {"denoise"}
    assert (names(project.run_dir.clips), names(project.run_dir.latents)) == before
    assert read_last_attempts(project.run_dir.log) == last
    assert [row["state"] for row in project.plan()] == ["done"] * 3


def test_repetitions_count_as_no_attempts_at_their_clip(project: Project) -> None:
    assert (project.run(), measure(project), project.run(force=True)) == (0, 0, 0)

    attempts = [(r["attempt"], r["denoise_attempt"]) for r in project.records()]
    assert attempts == [(1, 1)] * 3 + [(2, 2)] * len(WHOLE) + [(2, 2)] * 3


class StopsInTheMiddle(FakeRenderer):
    """Fails the second repetition of one row, once."""

    def render(self, job: Job, emit: Any) -> Any:
        finish = super().render(job, emit)
        if (job.clip.row_id, job.repeat) != ("dog", 2):
            return finish

        def fail() -> ClipRecord:
            record = replace(finish(), status="failed", error_type="RuntimeError")
            return replace(record, error_message="as the test says", is_cold=None)

        return fail


def test_what_is_measured_is_not_measured_again_and_the_rest_is(project: Project) -> None:
    assert measure(project, make_executor=lambda spec: FakeExecutor(spec, StopsInTheMiddle)) == 3

    assert measure(project) == 0
    assert order(project, since=8) == [("dog", 0), ("dog", 2)]

    assert measure(project, repeat=3) == 0
    assert order(project, since=10) == [("cat", 0), ("owl", 0), ("cat", 3), ("dog", 3), ("owl", 3)]


def test_a_finished_benchmark_says_its_figures_and_force_measures_again(project: Project) -> None:
    measure(project)

    assert measure(project) == 0
    assert "Nothing to do: every repetition is measured. force=true measures again." in project.said
    assert any("n = 4 and 1 cold" in line for line in project.said)
    assert len(project.records()) == 8

    assert measure(project, force=True) == 0
    assert order(project, since=8) == WHOLE


@pytest.mark.parametrize(
    "other",
    [
        {"runtime": RuntimeConfig(mask_free=False)},
        {"offload": OffloadConfig(OffloadKind.stream)},
    ],
)
def test_another_configuration_is_measured_for_itself(
    project: Project, other: dict[str, Any]
) -> None:
    measure(project, repeat=1)

    assert measure(project, repeat=1, **other) == 0

    assert len(project.records()) == 10


def test_other_code_is_measured_for_itself_and_counted_apart(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at(commit: str, *, dirty: bool = False) -> int:
        facts = {"git_commit": commit * 40, "git_is_dirty": dirty}
        monkeypatch.setattr(system, "project_facts", lambda _: facts)
        return measure(project, repeat=1)

    assert [at("a"), at("a"), at("b"), at("b", dirty=True), at("b", dirty=True)] == [0] * 5

    assert len(project.records()) == 15
    text = (project.run_dir.path / "benchmark.md").read_text(encoding="utf-8")
    for commit in ("aaaaaaaaaaaa;", "bbbbbbbbbbbb;", "bbbbbbbbbbbb and changes;"):
        assert f"commit {commit}" in text


def test_limits_of_memory_and_presets_are_counted_apart(project: Project) -> None:
    measure(project, repeat=1, runtime=RuntimeConfig(vram_limit_gib=8))
    measure(project, repeat=1, runtime=RuntimeConfig(vram_limit_gib=24))
    measure(project, repeat=1, video=VideoConfig(preset="ultrafast"), add=True)

    groups = {
        (g["vram_limit_gib"], g["video"])
        for g in (s.columns for s in group_rows(repetitions_of(project.run_dir)))
    }

    assert groups == {
        (8.0, "h264 crf 17 medium"),
        (24.0, "h264 crf 17 medium"),
        (None, "h264 crf 17 ultrafast"),
    }


def test_a_card_named_for_the_forecast_is_no_other_configuration(project: Project) -> None:
    measure(project, repeat=1)

    assert measure(project, repeat=1, runtime=RuntimeConfig(card="rtx_4090")) == 0

    assert len(project.records()) == 5


def test_a_repetition_that_was_measured_cold_is_measured_again(project: Project) -> None:
    class ColdOwl(FakeRenderer):
        def render(self, job: Job, emit: Any) -> Any:
            finish = super().render(job, emit)
            is_cold = job.clip.row_id == "owl" or job.repeat == 0
            return lambda: replace(finish(), is_cold=is_cold)

    measure(project, 1, lambda spec: FakeExecutor(spec, ColdOwl))

    measure(project, 1)

    assert order(project, since=5) == [("owl", 0), ("owl", 1)]


def test_a_worker_that_dies_leaves_repetitions_not_failed_clips(project: Project) -> None:
    project.write("id,prompt", "cat,a cat", "dog,die")

    assert measure(project) in (3, 4)

    assert {r["repeat"] for r in project.records() if r["status"] == "failed"} <= {0, 1, 2}
    assert read_last_attempts(project.run_dir.log) == []


def test_only_and_limit_choose_what_is_measured_done_or_not(project: Project) -> None:
    project.run()

    measure(project, 1, only="owl")
    assert order(project, since=3) == [("owl", 0), ("owl", 1)]
    measure(project, 1, limit=1)
    assert order(project, since=5) == [("cat", 0), ("cat", 1)]


def test_a_dry_run_counts_the_renderings(project: Project) -> None:
    assert measure(project, dry_run=True) == 0
    line = (
        "Benchmark: 3 clips x 2 repetitions + 2 warm-ups = 8 renderings, of which no file is kept"
    )
    assert line in project.said

    measure(project, only="owl")
    measure(project, dry_run=True)
    line = (
        "Benchmark: 3 clips x 2 repetitions - 2 measured before + 1 warm-ups = 5 renderings, "
        "of which no file is kept"
    )
    assert line in project.said


def test_resume_goes_on_with_the_benchmark(project: Project) -> None:
    from hv15_batch.rundir.stored import latest_settings

    measure(project, 2, only="cat")

    assert latest_settings(project.run_dir).benchmark.repeat == 2


def test_the_tables_have_every_group_and_the_status_counts_renderings(project: Project) -> None:
    measure(project, 3)

    with project.run_dir.benchmark_table.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    shown = ("num_frames", "num_timed", "num_cold", "quantity", "n", "median")
    clips = [t for t in table if t["quantity"] == "clip_seconds"]
    assert [tuple(t[name] for name in shown) for t in clips] == [
        ("1", "6", "1", "clip_seconds", "6", "0.25"),
        ("5", "3", "1", "clip_seconds", "3", "0.25"),
    ]
    markdown = project.run_dir.benchmark_table.with_suffix(".md").read_text(encoding="utf-8")
    assert "| clip_seconds | 3 | 0.25 |" in markdown
    status = json.loads(project.run_dir.status.read_text(encoding="utf-8"))
    assert (status["done"], status["total"]) == (11, 11)


def test_the_page_counts_repetitions_and_links_the_tables(project: Project) -> None:
    def page() -> str:
        return project.run_dir.page.read_text(encoding="utf-8")

    measure(project, make_executor=lambda spec: FakeExecutor(spec, StopsInTheMiddle))
    assert "<h1>5 of 6 repetitions measured (3 clips x 2), 1 failed, ended " in page()
    assert f"hv15-batch resume={project.run_dir.path}</code>" in page()

    measure(project)
    assert "<h1>6 of 6 repetitions measured (3 clips x 2), done " in page()
    assert "resume with" not in page()
    assert 'href="benchmark.md"' in page()

    measure(project, only="cat", force=True)
    assert "<h1>2 of 2 repetitions measured (1 clip x 2), done " in page()

    project.run()
    assert "<h1>3 of 3, done " in page()


@pytest.mark.slow
def test_the_real_renderer_leaves_nothing_but_its_rows(project: Project) -> None:
    project.write("id,prompt", "cat,a cat")

    assert measure(project, 2, LocalExecutor) == 0

    records = project.records()
    assert [(r["repeat"], r["is_cold"], r["status"]) for r in records] == [
        (0, True, "ok"),
        (1, False, "ok"),
        (2, False, "ok"),
    ]
    assert len({r["latents_sha256"] for r in records}) == 1
    assert len({r["file_sha256"] for r in records}) == 1
    assert {(r["file"], r["latents_file"]) for r in records} == {(None, None)}
    assert all(r["write_seconds"] > 0 and r["denoise_attempt"] == 1 for r in records)
    assert [r["encode_cached"] for r in records] == [False, True, True]
    for folder in (project.run_dir.clips, project.run_dir.latents, project.run_dir.thumbs):
        assert names(folder) == []
