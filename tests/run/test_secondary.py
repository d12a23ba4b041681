"""What is secondary never decides how a run ends: it is made to raise, and the clips stand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.runs import Project

from hv15_batch.errors import LogSchemaError, Refused, Secondary
from hv15_batch.report import live
from hv15_batch.run import _notify, _progress, _results, session
from hv15_batch.rundir import status, text_log

ERRORS = (
    ModuleNotFoundError("No module named 'jinja2'"),
    MemoryError(),
    RuntimeError("a bug"),
    OSError(5, "Input/output error"),
    LogSchemaError("cannot be read"),
)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat", "dog,fail", "owl,an owl")
    return project


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_arguments: object, **_named: object) -> Any:
        raise error

    return fail


def ends_as_ever(project: Project) -> None:
    """Run, and hold that all clips were rendered and the code is that of the clips."""
    assert project.run(notify=_telling()) == 3
    assert [r["status"] for r in project.records()] == ["ok", "failed", "ok"]
    assert not any("Traceback" in line for line in project.said)


def _telling() -> Any:
    from hv15_batch.config.settings import NotifyConfig

    return NotifyConfig(command="true")


# -- at the end -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    ("place", "what"), [("write_page", "the page"), ("write_clips_table", "clips.csv")]
)
def test_a_page_or_table_that_fails_is_one_line(
    project: Project, monkeypatch: pytest.MonkeyPatch, place: str, what: str, error: Exception
) -> None:
    monkeypatch.setattr(_results, place, raising(error))

    ends_as_ever(project)

    (line,) = [line for line in project.said if "not up to date" in line]
    assert line.startswith(f"{what} is not up to date (")
    assert project.run_dir.page.is_file() or place == "write_page"
    assert project.run_dir.clips_table.is_file() or place == "write_clips_table"


def test_a_plan_that_cannot_be_worded_is_one_line_at_either_end(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (session, _results):
        monkeypatch.setattr(module, "write_plan", raising(RuntimeError("a bug")))

    ends_as_ever(project)

    told = [line for line in project.said if "plan.csv" in line]
    assert told == ["plan.csv is not up to date (RuntimeError: a bug)"] * 2


def test_a_summary_that_fails_keeps_what_it_had_said(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_arguments: object) -> Iterator[str]:
        yield "failed: 2 clips rendered"
        raise RuntimeError("a bug")

    monkeypatch.setattr(session, "closing_lines", cut_off)

    ends_as_ever(project)

    assert project.said[-2:] == [
        "failed: 2 clips rendered",
        "the summary is cut off (RuntimeError: a bug)",
    ]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_run_that_finds_all_done_ends_well_without_its_page(
    project: Project, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    project.write("id,prompt", "cat,a cat")
    project.run()
    project.run_dir.page.unlink()
    project.run_dir.clips_table.unlink()
    monkeypatch.setattr(_results, "write_page", raising(error))

    assert project.run() == 0

    assert any(line.startswith("the page is not up to date (") for line in project.said)
    assert any(line.startswith("Nothing to do") for line in project.said)


# -- while it goes on -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (live, "write_page"),
        (_notify, "_first_clip"),
        (_notify.Notices, "heard"),
        (_notify.Notices, "submitted"),
        (_notify.Notices, "end"),
        (_notify.Notifier, "tell"),
        (_notify._Notice, "run"),
        (_progress, "_line"),
        (_progress.Progress, "_count"),
        (_progress.Progress, "_sample"),
        (_progress.Progress, "_expected_end"),
        (status, "publish_json"),
        (status.StatusFile, "update"),
        (text_log._FileHandler, "__init__"),
        (text_log._FileHandler, "emit"),
        (text_log._Formatter, "format"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.rpartition(".")[2],
)
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a bug")], ids=["memory", "bug"])
def test_what_only_shows_or_tells_a_run_costs_nothing_but_itself(
    project: Project, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, error: Exception
) -> None:
    if name == "update":  # the first one makes the file
        real = status.StatusFile.update
        calls = iter([real])
        monkeypatch.setattr(place, name, lambda *a, **k: next(calls, raising(error))(*a, **k))
    else:
        monkeypatch.setattr(place, name, raising(error))

    ends_as_ever(project)


def test_a_text_log_that_cannot_be_opened_or_written_is_one_line(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(project.run_dir), "run_log", lambda *_: Path("/dev/full"))
    ends_as_ever(project)
    assert project.said[-1] == "run.log lacks lines (No space left on device)"

    monkeypatch.setattr(type(project.run_dir), "run_log", lambda *_: Path("/dev/null/run.log"))
    assert project.run(force=True) == 3
    assert [line for line in project.said if "run.log lacks" in line] == [
        "run.log lacks lines (File exists)"
    ]


# -- the one place ----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    """Warnings are heard, also after a sweep in this process: Hydra leaves the root at ERROR."""
    caplog.set_level(logging.WARNING)


def test_the_same_failure_is_told_once_and_another_one_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []
    guard = Secondary("the page is not up to date", told.append)

    for reason in ("a", "a", "b", "a"):
        with guard:
            raise RuntimeError(reason)

    assert told == [
        "the page is not up to date (RuntimeError: a)",
        "the page is not up to date (RuntimeError: b)",
    ]
    assert caplog.text.count("Traceback") == 2  # in run.log, where somebody can look for the cause


def test_a_failure_of_known_kind_has_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with Secondary("lost") as guard:
        raise Refused("no run directory")

    assert str(guard.error) == "no run directory"
    assert [r.getMessage() for r in caplog.records] == ["lost (no run directory)"]
    assert "Traceback" not in caplog.text
    with guard:
        pass
    assert guard.error is None


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_who_ends_the_program_is_not_held_up(stop: type[BaseException]) -> None:
    with pytest.raises(stop), Secondary("lost"):
        raise stop


def test_who_tells_of_a_failure_may_fail_too(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), Secondary("lost", raising(OSError(5, "EIO"))):
        raise ValueError("x")

    assert "lost (ValueError: x)" in caplog.text
