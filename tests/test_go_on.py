"""The words with which a run that ended early goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_fakes import Project

from hv15_batch.config import BenchmarkConfig
from hv15_batch.go_on import MAX_ROWS, GoOn
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


def test_of_many_rows_all_are_forced_again(project: Project) -> None:
    assert go_on(project, force=True).words == ["force=true"]


def test_a_benchmark_keeps_its_limit_since_it_skips_what_is_measured(project: Project) -> None:
    benchmark = BenchmarkConfig(repeat=3)

    assert go_on(project, limit=2, benchmark=benchmark).words == ["limit=2"]
    assert go_on(project, force=True, benchmark=benchmark).words == ["force=true"]


def test_a_clip_that_failed_is_left(project: Project) -> None:
    found = go_on(project, only="row0")
    (clip_id,) = (
        c.clip_id for c in prepare(project.config(), (), None).clips if c.row_id == "row0"
    )

    found.finished(ClipRecord(clip_id=clip_id, status="failed"))
    assert found.words == ["only=row0"]

    found.finished(ClipRecord(clip_id=clip_id, status="ok"))
    assert found.words == []
