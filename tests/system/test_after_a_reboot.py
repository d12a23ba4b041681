"""The unit of docs/stop-and-resume.md: what systemd and our own parser say of it."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.command import TINY, Answer

from hv15_batch.errors import (
    EXIT_FAULT,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_SIGINT,
    EXIT_SIGTERM,
    EXIT_SOME_FAILED,
)

PAGE = Path(__file__).parents[2] / "docs" / "stop-and-resume.md"


@pytest.fixture
def text() -> str:
    found = re.search(r"^```ini\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    return found[1]


@pytest.fixture
def service(text: str) -> configparser.SectionProxy:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    return unit["Service"]


def codes(text: str) -> set[int]:
    return set(map(int, text.split()))


def test_only_what_may_end_otherwise_is_started_again(
    service: configparser.SectionProxy,
) -> None:
    assert service["Restart"] == "on-failure"
    ends = {EXIT_FAULT, EXIT_REFUSED, EXIT_SOME_FAILED}
    assert codes(service["RestartPreventExitStatus"]) == ends
    assert codes(service["SuccessExitStatus"]) == {EXIT_SIGINT, EXIT_SIGTERM}


def test_its_command_resumes_a_run_and_finds_nothing_to_do_when_all_is_done(
    service: configparser.SectionProxy, command: Callable[..., Answer], tmp_path: Path
) -> None:
    program, *words = shlex.split(service["ExecStart"])
    assert Path(program).name == "hv15-batch"
    (tmp_path / "prompts.csv").write_text("id,prompt\nfox,a fox\nowl,an owl\n", encoding="utf-8")
    assert command("prompts.csv", *TINY, "limit=1").code == EXIT_OK

    first, again = command(*words), command(*words)

    assert (first.code, again.code) == (EXIT_OK, EXIT_OK), first.err
    assert "2 done" in first.out or "1 clip rendered" in first.out
    assert "Nothing to do" in again.out
    assert command("resume=outputs/none").code == EXIT_REFUSED


def test_systemd_finds_no_fault_in_it(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # no user manager is needed
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "hv15-batch"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    unit = tmp_path / "hv15-batch.service"
    text = text.replace("%h/videos/.venv/bin/hv15-batch", str(program))
    unit.write_text(text, encoding="utf-8")

    def faults() -> str:
        done = subprocess.run(
            [analyze, "--user", "--man=no", "verify", str(unit)],
            capture_output=True,
            text=True,
            check=False,
        )
        return "\n".join(line for line in done.stderr.splitlines() if unit.name in line)

    assert faults() == ""
    unit.write_text(text.replace("Restart=on-failure", "Restart=sometimes"), encoding="utf-8")
    assert "restart" in faults().lower()
