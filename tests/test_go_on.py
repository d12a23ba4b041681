"""The words with which a run that ended early goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_fakes import Project

from hv15_batch.config import BenchmarkConfig, RetryConfig
from hv15_batch.go_on import MAX_ROWS, GoOn
from hv15_batch.overrides import translate
from hv15_batch.prepare import plan_against_log, prepare
from hv15_batch.records import ClipRecord


def go_on(project: Project, **changes: Any) -> GoOn:
    prepared = prepare(project.config(**changes), (), None)
    return GoOn(prepared.config, plan_against_log(prepared).todo)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt", *(f"row{n},clip {n}" for n in range(MAX_ROWS + 1)))
    return project


def test_of_many_rows_all_that_were_asked_for_are_forced_again(project: Project) -> None:
    assert go_on(project, force=True).words == ["force=true"]
    limited = go_on(project, force=True, limit=MAX_ROWS + 1)
    assert limited.words == ["force=true", f"limit={MAX_ROWS + 1}"]


def test_suspects_are_made_again_and_nothing_else(project: Project) -> None:
    project.write("id,prompt", "cat,suspect", "dog,suspect too", "owl,an owl")
    project.run(only="cat,dog")

    found = go_on(project, retry=RetryConfig(suspect=True), limit=2)

    assert found.words == ["retry.suspect=true", "only=cat,dog", "limit=2"]


def test_a_row_called_null_is_named_as_a_text(project: Project) -> None:
    project.write("id,prompt", "null,a cat", "dog,a dog")

    words = go_on(project, only="null").words

    assert words == ['only="null"']
    assert translate(words)[1] == ['only="null"']


def test_a_benchmark_keeps_its_limit_since_it_skips_what_is_measured(project: Project) -> None:
    benchmark = BenchmarkConfig(repeat=3)

    assert go_on(project, limit=2, benchmark=benchmark).words == ["limit=2"]
    forced = go_on(project, force=True, limit=2, benchmark=benchmark)
    assert forced.words == ["force=true", "limit=2"]


def test_a_clip_that_failed_is_left(project: Project) -> None:
    found = go_on(project, only="row0")
    (clip_id,) = (
        c.clip_id for c in prepare(project.config(), (), None).clips if c.row_id == "row0"
    )

    found.finished(ClipRecord(clip_id=clip_id, status="failed"))
    assert found.words == ["only=row0"]

    found.finished(ClipRecord(clip_id=clip_id, status="ok"))
    assert found.words == []
