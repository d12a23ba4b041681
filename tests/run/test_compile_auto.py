"""A run with `runtime.compile=auto`: what its workers get, what it says, stores and keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.command import CARD
from fakes.runs import FakeExecutor, FakeRenderer, Project

from hv15_batch.config.settings import Config, RuntimeConfig
from hv15_batch.dispatch.protocol import ExecutorSpec
from hv15_batch.forecast import compilation
from hv15_batch.forecast._quality import of_setting
from hv15_batch.machine.machine import read_machine
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import Weights
from hv15_batch.record import ClipRecord
from hv15_batch.run import outlook, session
from hv15_batch.rundir.stored import latest_settings
from hv15_batch.units import GIB


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Two rows on a machine with an RTX 4090, whose worker only writes a few bytes."""
    here = replace(read_machine(), gpus=(CARD,), ram_available_bytes=64 * GIB)
    for module in (session, outlook):
        monkeypatch.setattr(module, "read_machine", lambda: here)
    monkeypatch.setattr(compilation, "compiler_fault", lambda: None)
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat", "dog,a dog")
    return project


def run(project: Project, **changes: Any) -> tuple[bool | str, str]:
    """Render, and return what the worker was told and the run said of compilation."""
    specs: list[ExecutorSpec] = []

    def make(spec: ExecutorSpec) -> FakeExecutor:
        specs.append(spec)
        return FakeExecutor(spec)

    model = replace(model_options()["480p_t2v_4step"], weights=Weights.random)
    assert project.run(make, **{"model": model, **changes}) == 0
    (line,) = said(project.said) or ("",)
    (spec,) = specs
    return spec.config.runtime.compile, line


def said(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.startswith("Compilation: ")]


def stored(project: Project) -> Any:
    run_id = project.run_dir.run_ids()[-1]
    text = (project.run_dir.run_folder(run_id) / "config.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["runtime"]["compile"]


def test_the_whole_manifest_decides_and_a_longer_one_later_does_not(project: Project) -> None:
    is_on, line = run(project, limit=1)

    assert is_on is False
    assert line.startswith("Compilation: no; it would take about 22 s and save about ")
    assert line.endswith(" in the manifest's 2 clips")
    assert stored(project) == "auto"
    project.write("id,prompt", *[f"r{n},a cat {n}" for n in range(200)], "dog,a dog")
    is_on, line = run(project, limit=2)
    assert is_on is False
    assert line.startswith("Compilation: no, as decided for this run directory; ")


def test_what_is_left_does_not_decide(project: Project) -> None:
    project.write("id,prompt", *[f"r{n},a cat {n}" for n in range(30)])

    assert run(project, limit=29)[0] is True
    is_on, line = run(project)

    assert is_on is True
    assert line.startswith("Compilation: yes, as decided for this run directory; ")
    assert line.endswith(f"; quality: {of_setting('compile')}")
    project.write("id,prompt", "new,a fox")
    assert run(project)[0] is True


def test_a_typed_value_holds_for_its_run_and_is_stored_as_typed(project: Project) -> None:
    assert run(project, limit=1, runtime=RuntimeConfig(compile=True)) == (True, "")
    assert stored(project) is True
    assert latest_settings(project.run_dir).runtime.compile is True
    assert not project.run_dir.decided.exists()


def test_the_dry_run_says_what_the_run_will_do(project: Project) -> None:
    model = replace(model_options()["480p_t2v_4step"], weights=Weights.random)

    assert project.run(model=model, dry_run=True) == 0
    (told,) = said(project.said)
    assert not project.run_dir.decided.exists()

    assert run(project)[1] == told


def test_another_run_that_decided_while_this_one_was_starting_holds(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = session.plan_against_log
    calls = []

    def plan_and_decide(asked: Any, *before: Any) -> Any:
        calls.append(asked)
        if len(calls) == 2:  # under the lock
            session.write_compile(project.run_dir, asked.config_of("480p_t2v_4step"), True)
        return plan(asked, *before)

    monkeypatch.setattr(session, "plan_against_log", plan_and_decide)

    assert run(project)[0] is True


def test_another_shard_that_decided_while_this_one_was_planning_holds(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = session.check_window

    def check_and_decide(*arguments: Any) -> None:
        check(*arguments)
        model = project.config(model=model_options()["480p_t2v_4step"]).model
        config = project.config(model=replace(model, weights=Weights.random))
        session.write_compile(project.run_dir, config, True)

    monkeypatch.setattr(session, "check_window", check_and_decide)

    is_on, line = run(project, shard="1/1")

    assert is_on is True
    assert line.startswith("Compilation: yes, as decided for this run directory; ")


class Uncompiled(FakeRenderer):
    """Its compiler failed, so each clip ran without."""

    def _finish(self, job: Any, words: list[str], columns: dict[str, Any]) -> ClipRecord:
        return replace(super()._finish(job, words, columns), compiled=False)


def test_a_compilation_that_failed_is_not_tried_again_by_later_runs(project: Project) -> None:
    project.write("id,prompt", *[f"r{n},a cat {n}" for n in range(30)])

    def make(spec: ExecutorSpec) -> FakeExecutor:
        assert spec.config.runtime.compile is True
        return FakeExecutor(spec, Uncompiled)

    model = replace(model_options()["480p_t2v_4step"], weights=Weights.random)
    assert project.run(make, model=model, limit=2) == 0

    is_on, line = run(project, limit=2)
    assert is_on is False
    assert line.startswith("Compilation: no, as decided for this run directory; ")


def test_a_typed_compilation_that_failed_decides_nothing(project: Project) -> None:
    model = replace(model_options()["480p_t2v_4step"], weights=Weights.random)
    runtime = RuntimeConfig(compile=True)

    assert project.run(lambda s: FakeExecutor(s, Uncompiled), model=model, runtime=runtime) == 0

    assert not project.run_dir.decided.exists()


def test_a_tiny_model_is_not_compiled_and_nothing_is_stored(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt", *[f"r{n},a cat {n}" for n in range(30)])
    specs: list[Config] = []

    def make(spec: ExecutorSpec) -> FakeExecutor:
        specs.append(spec.config)
        return FakeExecutor(spec)

    assert project.run(make, limit=1) == 0

    assert [config.runtime.compile for config in specs] == [False]
    assert not project.run_dir.decided.exists()
