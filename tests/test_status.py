"""`hv15-batch status` says how far a run is, and whether anyone is still working on it."""

from __future__ import annotations

import json
import os
import resource
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from hv15_batch.progress import Progress
from hv15_batch.status import main, read_status
from hv15_batch.status_text import format_duration, format_progress

NOW = datetime(2026, 11, 22, 9, 40, tzinfo=timezone.utc)


def write_status(run_dir: Path, **changes: Any) -> Path:
    """Write a status as the runner does, a moment ago and by this process unless changed."""
    values = {
        "state": "rendering",
        "run_id": "20261122T093000-00-ab12",
        "pid": os.getpid(),
        "total": 200,
        "done": 143,
        "failed": 3,
        "suspect": 2,
        "clip_id": "cat_s0_11223344",
        "stage": "denoise",
        "step": 12,
        "steps": 50,
        "seconds_per_clip": 412.34,
        "eta_p50": None,
        "updated_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "message": "",
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / "status.json"
    path.write_text(json.dumps({**values, **changes}), encoding="utf-8")
    return path


def printed(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run the command on a run directory and return its lines."""
    assert main([str(run_dir)]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.fixture
def ended_pid() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def zombie_pid() -> Iterator[int]:
    """Yield the number of a process that has ended and was not waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process.pid
    process.wait()


def test_a_run_at_work_shows_folder_state_clip_step_and_speed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(tmp_path)

    lines = printed(tmp_path, capsys)

    assert lines[:4] == [
        str(tmp_path),
        "143 of 200 done, 3 failed, 2 suspect",
        "rendering cat_s0_11223344, denoise, step 12 of 50",
        "412.3 s a clip (median of this run's warm clips)",
    ]
    assert len(lines) == 5
    assert lines[4].endswith(f"s ago by process {os.getpid()}")


@pytest.fixture
def central_european_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make this process's zone UTC+1 for one test."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("central_european_time")
def test_the_expected_end_is_said_in_local_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hv15_batch.status.utc_now", lambda: NOW)
    monkeypatch.setattr("hv15_batch.status.is_gone", lambda status: False)
    write_status(
        tmp_path,
        eta_p50="2026-11-22T16:10:00+00:00",
        eta_p90="2026-11-22T16:40:00+00:00",
        eta_basis="measured",
        updated_at="2026-11-22T09:37:00+00:00",
    )

    lines = printed(tmp_path, capsys)

    assert "about 6 h 30 min left, until 2026-11-22 17:10 CET, 90 % sure by 17:40" in lines
    assert "  (from this run's clips)" in lines
    assert lines[-1].startswith("last update 3 min ago")


def test_a_run_whose_process_is_gone_is_called_interrupted_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ended_pid: int
) -> None:
    write_status(tmp_path, pid=ended_pid)

    lines = printed(tmp_path, capsys)

    assert lines[2:4] == [
        f"interrupted at cat_s0_11223344: process {ended_pid} is gone, without a last word",
        f"go on with: hv15-batch resume={tmp_path}",
    ]
    assert "by process" not in lines[4]


def test_a_process_that_ended_but_was_not_reaped_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], zombie_pid: int
) -> None:
    write_status(tmp_path, pid=zombie_pid)

    assert printed(tmp_path, capsys)[2].startswith("interrupted")


def test_a_younger_process_with_the_same_number_is_not_taken_for_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long_ago = datetime.now(timezone.utc) - timedelta(days=400)
    write_status(tmp_path, updated_at=long_ago.isoformat())

    assert printed(tmp_path, capsys)[2].startswith("interrupted")


def test_a_process_of_another_machine_counts_as_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ended_pid: int
) -> None:
    write_status(tmp_path, pid=ended_pid, hostname=f"not-{socket.gethostname()}")

    lines = printed(tmp_path, capsys)

    assert lines[2].startswith("rendering")
    assert lines[-1].endswith(f"by process {ended_pid} on not-{socket.gethostname()}")


@pytest.mark.parametrize(
    ("state", "message", "line"),
    [
        ("stopped", "disk full", "stopped: disk full"),
        ("failed", "3 clips failed", "failed: 3 clips failed"),
        ("interrupted", "interrupted by SIGTERM", "interrupted by SIGTERM"),
        ("interrupted", "", "interrupted"),
    ],
)
def test_a_run_that_ended_early_says_why_and_how_to_go_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ended_pid: int,
    state: str,
    message: str,
    line: str,
) -> None:
    write_status(tmp_path, state=state, message=message, pid=ended_pid, clip_id=None)

    assert printed(tmp_path, capsys)[2:4] == [line, f"go on with: hv15-batch resume={tmp_path}"]


def test_a_finished_run_names_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_status(tmp_path, state="done", done=200, failed=0, suspect=0)
    (tmp_path / "index.html").write_text("page")

    assert printed(tmp_path, capsys)[1:4] == [
        "200 of 200 done",
        "done",
        f"page: {tmp_path / 'index.html'}",
    ]


def test_the_command_to_go_on_can_be_pasted_when_the_folder_has_spaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "my run (1)"
    write_status(run_dir, state="stopped")

    command = printed(run_dir, capsys)[3].removeprefix("go on with: ")

    assert shlex.split(command) == ["hv15-batch", f"resume={run_dir}"]


def test_without_an_argument_the_latest_run_is_shown_also_one_of_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [Path("outputs/a"), Path("outputs/s.sweep/x-1"), Path("outputs/b")]
    for age, run in zip((300, 100, 200), runs, strict=True):
        path = write_status(run)
        os.utime(path, (time.time() - age, time.time() - age))

    assert main([]) == 0

    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "outputs/s.sweep/x-1")


def test_without_any_run_the_command_says_where_it_looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main([]) == 2

    assert capsys.readouterr().err == (
        f"no run below {tmp_path / 'outputs'}; name a run directory: hv15-batch status RUN_DIR.\n"
    )


def test_a_folder_without_a_status_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2

    assert capsys.readouterr().err == (
        f"{tmp_path}: no run has written its status here; name a run directory, or leave it out "
        "for the latest run below outputs/.\n"
    )


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"state": "done"}', "{"])
def test_a_status_that_cannot_be_understood_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "status.json").write_text(text)

    assert main([str(tmp_path)]) == 2

    error = capsys.readouterr().err
    assert error.startswith(f"{tmp_path / 'status.json'}: not a status of this version (")
    assert error.count("\n") == 1


def test_what_progress_writes_is_what_status_reads(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "status.json", "r1", total=4, done=1)

    progress.rendering(3)
    progress.end("stopped", "disk full")

    status = read_status(tmp_path)
    assert (status.state, status.total, status.done) == ("stopped", 4, 1)
    assert (status.message, status.pid, status.run_id) == ("disk full", os.getpid(), "r1")


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ((200, 143, 3, 2), "143 of 200 done, 3 failed, 2 suspect"),
        ((200, 200, 0, 0), "200 of 200 done"),
        ((1, 0, 0, 0), "0 of 1 done"),
        ((5, 4, 0, 1), "4 of 5 done, 1 suspect"),
    ],
)
def test_progress_is_one_phrase(counts: tuple[int, int, int, int], text: str) -> None:
    total, done, failed, suspect = counts

    assert format_progress(total=total, done=done, failed=failed, suspect=suspect) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (45.4, "45 s"),
        (59.9, "1 min"),
        (61, "1 min"),
        (3599, "1 h"),
        (23_400, "6 h 30 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_duration_reads_as_a_person_says_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_command_starts_in_well_under_a_second_without_torch_pandas_or_pyarrow(
    tmp_path: Path,
) -> None:
    write_status(tmp_path)
    code = (
        "import sys; from hv15_batch.status import main; main(sys.argv[1:])\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'pandas', 'pyarrow', 'hydra', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )

    after = resource.getrusage(resource.RUSAGE_CHILDREN)

    assert done.stdout.splitlines()[-1] == "[]"
    # Processor time, which a busy machine does not stretch as it does the clock.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
