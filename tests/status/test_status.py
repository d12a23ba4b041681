"""`hv15-batch status` says how far a run is, and whether anyone is still working on it."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pty
import re
import resource
import select
import shlex
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.command import Answer

from hv15_batch.machine.nvml import GpuHealth, GpuHealthReader
from hv15_batch.record import FAILED, SUSPECT, ClipRecord
from hv15_batch.run._progress import Progress
from hv15_batch.rundir import status as status_file
from hv15_batch.rundir.status import StatusFile, format_progress, read_status
from hv15_batch.status import _watch as watch
from hv15_batch.status.command import main
from hv15_batch.status.show import format_status

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


def test_the_folder_is_shown_without_the_way_that_was_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_status(tmp_path / "run", state="stopped")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")

    lines = printed(Path("../run"), capsys)

    assert lines[0] == str(tmp_path / "run")
    assert f"resume with: hv15-batch resume={tmp_path / 'run'}" in lines


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
    monkeypatch.setattr("hv15_batch.status.command.utc_now", lambda: NOW)
    monkeypatch.setattr("hv15_batch.status.show.is_gone", lambda status: False)
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


def test_a_run_whose_process_is_gone_is_called_interrupted_and_says_how_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ended_pid: int
) -> None:
    write_status(tmp_path, pid=ended_pid)

    lines = printed(tmp_path, capsys)

    assert lines[2:4] == [
        f"interrupted at cat_s0_11223344: process {ended_pid} is gone, and wrote no last status",
        f"resume with: hv15-batch resume={tmp_path}",
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
def test_a_run_that_ended_early_says_why_and_how_to_resume(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ended_pid: int,
    state: str,
    message: str,
    line: str,
) -> None:
    write_status(tmp_path, state=state, message=message, pid=ended_pid, clip_id=None)

    assert printed(tmp_path, capsys)[2:4] == [line, f"resume with: hv15-batch resume={tmp_path}"]


def test_a_finished_run_names_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_status(tmp_path, state="done", done=200, failed=0, suspect=0)
    (tmp_path / "index.html").write_text("page")

    assert printed(tmp_path, capsys)[1:4] == [
        "200 of 200 done",
        "done",
        f"page: {tmp_path / 'index.html'}",
    ]


def test_a_run_that_was_limited_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(tmp_path, state="done", done=197, failed=1, suspect=0, total=200)

    assert printed(tmp_path, capsys)[2:4] == [
        "done",
        f"2 clips left out by limit= or only=; to render them: hv15-batch resume={tmp_path}",
    ]


def test_a_status_of_the_version_before_is_read_and_its_words_are_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ended_pid: int
) -> None:
    words = {"go_on": ["force=true", "only=cat"], "verification": "verified: cat"}
    write_status(tmp_path, state="stopped", message="disk full", pid=ended_pid, **words)

    assert printed(tmp_path, capsys)[2:-1] == [
        "stopped: disk full",
        f"resume with: hv15-batch resume={tmp_path}",
    ]


def test_of_the_names_to_type_again_only_those_of_settings_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ended_pid: int
) -> None:
    names = ["limit", "notify.command=rm", "$(rm -r ~)", "only"]
    write_status(tmp_path, state="stopped", pid=ended_pid, type_again=names)

    assert printed(tmp_path, capsys)[3:-1] == [
        f"resume with: hv15-batch resume={tmp_path}",
        "type again if you want them: only, limit",
    ]

    write_status(tmp_path, state="stopped", pid=ended_pid, type_again=7)
    assert main([str(tmp_path)]) == 2


def test_the_command_to_resume_can_be_pasted_when_the_folder_has_spaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "my run (1)"
    write_status(run_dir, state="stopped")

    command = printed(run_dir, capsys)[3].removeprefix("resume with: ")

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


@pytest.mark.parametrize("changes", [{"done": "one"}, {"pid": None}, {"type_again": 3}])
def test_a_value_of_the_wrong_type_is_named_with_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    path = write_status(tmp_path, **changes)

    assert main([str(tmp_path)]) == 2

    error = capsys.readouterr().err
    assert error.startswith(f"{path}: not a status of this version (Expected `")
    assert f"at `$.{next(iter(changes))}`" in error


def test_a_value_that_a_newer_version_writes_is_no_fault(tmp_path: Path) -> None:
    write_status(tmp_path, of_tomorrow=[1])

    assert read_status(tmp_path).done == 143


def test_what_progress_writes_is_what_status_reads(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "status.json", "r1", total=4, done=1)

    progress.rendering(3)
    progress.end("stopped", "disk full")

    status = read_status(tmp_path)
    assert (status.state, status.total, status.done) == ("stopped", 4, 1)
    assert (status.message, status.pid, status.run_id) == ("disk full", os.getpid(), "r1")


def test_the_last_word_is_kept_where_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(tmp_path / "status.json", "r1", total=4, done=1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(status_file, "publish_json", full)
    progress.end("stopped", "disk full")

    assert (read_status(tmp_path).state, read_status(tmp_path).message) == ("stopped", "disk full")


def test_a_clip_from_saved_latents_shows_what_that_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(tmp_path / "status.json", "r1", total=1, done=0)
    record = ClipRecord(
        clip_id="a", status="ok", attempt=2, denoise_attempt=1, total_seconds=400.0,
        denoise_seconds=384.0, is_cold=False,
    )  # fmt: skip

    progress.finished_clip(record, 1, 1)
    progress.end("done")

    assert "[1/1] a 16.0 s\n" in capsys.readouterr().out
    assert read_status(tmp_path).seconds_per_clip is None


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


def test_the_command_starts_in_well_under_a_second_without_torch_pandas_or_pyarrow(
    tmp_path: Path,
) -> None:
    write_status(tmp_path)
    code = (
        "import sys; from hv15_batch.status.command import main; main(sys.argv[1:])\n"
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


def test_a_card_a_disk_and_the_basis_of_the_end_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_status(
        tmp_path,
        temperature_celsius=71,
        power_watts=348.6,
        vram_used_bytes=20 * 2**30,
        vram_total_bytes=24 * 2**30,
        free_disk_bytes=int(812.25 * 2**30),
    )

    assert "card 71 °C, 349 W, 20.0 of 24.0 GiB VRAM in use, 812.2 GiB of disk free" in printed(
        tmp_path, capsys
    )


def test_a_run_that_hangs_and_a_process_that_was_stopped_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def ago(minutes: int) -> str:
        return (datetime.now(timezone.utc) - timedelta(minutes=minutes)).isoformat()

    write_status(tmp_path, last_event_at=ago(14))
    hanging = printed(tmp_path, capsys)
    write_status(tmp_path, last_event_at=ago(14), updated_at=ago(13), hostname="elsewhere")
    stopped = printed(tmp_path, capsys)
    write_status(tmp_path, last_event_at=ago(1))
    working = printed(tmp_path, capsys)

    assert "no progress for 14 min" in hanging
    assert "its process has not written for 13 min: stopped, or lost" in stopped
    assert len(working) == 5


def test_json_prints_the_file_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_status(tmp_path)

    assert main(["--json", str(tmp_path)]) == 0

    assert capsys.readouterr().out == path.read_text()


def test_watch_and_json_exclude_each_other(tmp_path: Path, command: Callable[..., Answer]) -> None:
    write_status(tmp_path)

    answer = command("status", "--json", "--watch", tmp_path)

    assert answer.code == 2
    assert "not allowed with" in answer.err


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_run_in_which_nothing_happens_goes_on_writing_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_file, "HEARTBEAT_SECONDS", 0.1)
    progress = Progress(tmp_path / "status.json", "r1", total=4, done=1)
    progress.rendering(3)
    event = read_status(tmp_path).last_event_at

    wait_for(lambda: read_status(tmp_path).updated_at > str(event))

    assert read_status(tmp_path).last_event_at == event
    assert read_status(tmp_path).free_disk_bytes is not None
    progress.end("done")


def test_nothing_is_written_after_the_end(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "status.json", "r1", total=4, done=1)
    progress.started("a")
    progress.end("interrupted")
    before = (tmp_path / "status.json").stat().st_mtime_ns

    time.sleep(1.5)

    assert (tmp_path / "status.json").stat().st_mtime_ns == before
    assert (read_status(tmp_path).state, read_status(tmp_path).clip_id) == ("interrupted", None)


def test_an_end_waits_no_longer_than_a_moment_for_a_driver_that_hangs(tmp_path: Path) -> None:
    release = threading.Event()

    def hang() -> dict[str, Any]:
        release.wait(60)
        return {}

    file = StatusFile(tmp_path / "status.json", {"state": "rendering"}, hang)
    time.sleep(0.2)

    began = time.monotonic()
    file.close(state="done")
    took = time.monotonic() - began
    release.set()

    assert took < 10
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "done"


def test_a_clip_that_failed_and_was_made_in_a_second_attempt_counts_once(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "status.json", "r1", total=2, done=0)

    for clip_id, outcome in (("a", FAILED), ("b", FAILED), ("a", SUSPECT)):
        progress.finished_clip(ClipRecord(clip_id=clip_id, status=outcome), 1, 2)
    progress.end("failed")

    status = read_status(tmp_path)
    assert (status.done, status.failed, status.suspect) == (1, 1, 1)


def test_the_clip_in_hand_is_named_before_its_first_step(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "status.json", "r1", total=2, done=0)
    progress.rendering(2)
    progress.stepped("a", "decode", 50, 50)

    progress.started("b")
    found = progress.snapshot()
    progress.end("done")

    assert (found["clip_id"], found["stage"], found["step"]) == ("b", None, None)


# -- watching ---------------------------------------------------------------------------------


def test_watch_draws_in_place_fits_80_columns_and_ends_with_the_run(tmp_path: Path) -> None:
    run_dir = tmp_path / ("a-very-long-name-" * 6)
    write_status(run_dir, clip_id="c" * 64)
    watching, screen = watch_in_terminal(run_dir)
    first = read_until(screen, b"last update")
    write_status(run_dir, state="done", clip_id=None, done=200, failed=0)

    last = read_until(screen, b"\x1b[?25h")

    assert watching.wait(10) == 0
    assert b"\x1b[2J" not in first + last
    assert re.search(rb"\r\x1b\[\d+A", last)
    drawn = re.sub(rb"\x1b\[[?0-9]*[A-Za-z]", b"", first + last).decode().split("\r\n")
    assert max(len(line.strip()) for line in drawn) <= 79
    assert any("…" in line for line in drawn)
    assert any(line.strip("\r") == "done" for line in drawn)


def test_ctrl_c_ends_watching_and_gives_the_cursor_back(tmp_path: Path) -> None:
    write_status(tmp_path)
    watching, screen = watch_in_terminal(tmp_path)
    read_until(screen, b"last update")
    time.sleep(0.3)

    os.write(screen, b"\x03")
    rest = read_until(screen, b"\x1b[?25h")

    assert watching.wait(10) == 130
    assert b"Traceback" not in rest


def watch_in_terminal(run_dir: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Watch a run in a terminal of 24 lines and 80 columns; return process and screen."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-m", "hv15_batch", "status", "--watch", str(run_dir)]
    code = "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    # As from a shell: what a script starts in the background inherits that it is ignored.
    code += "signal.signal(signal.SIGINT, signal.SIG_DFL); "
    code += "os.execv(sys.argv[1], sys.argv[1:])"
    environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={**environ, "TERM": "xterm"},
    )
    os.close(terminal)
    return process, screen


def read_until(screen: int, text: bytes) -> bytes:
    """Return what appears on a screen, up to and with this text."""
    found = b""
    deadline = time.monotonic() + 20
    while text not in found and time.monotonic() < deadline:
        if select.select([screen], [], [], 0.2)[0]:
            found += os.read(screen, 1 << 16)
    assert text in found, found
    return found


def test_watch_into_a_file_writes_a_line_for_each_change_and_all_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: Iterator[dict[str, Any]] = iter(
        [
            {"step": 13},
            {"clip_id": "dog_s0_1", "done": 144, "eta_p50": "2026-11-22T17:10:00+01:00"},
            {"state": "done", "done": 200},
        ]
    )
    monkeypatch.setattr(watch.time, "sleep", lambda _: write_status(tmp_path, **next(states)))
    write_status(tmp_path)
    out = io.StringIO()

    assert watch.watch(tmp_path, out) == 0

    lines = out.getvalue().splitlines()
    assert lines[0].endswith(" 143 of 200 done, 3 failed, 2 suspect, rendering cat_s0_11223344")
    assert lines[1].endswith("rendering dog_s0_1, end 2026-11-22T17:10:00+01:00")
    assert lines[2:5] == [str(tmp_path), "200 of 200 done, 3 failed, 2 suspect", "done"]
    assert "\x1b" not in out.getvalue()


def test_watch_ends_when_the_process_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ended_pid: int
) -> None:
    write_status(tmp_path, pid=ended_pid)

    assert main(["-w", str(tmp_path)]) == 0

    assert "interrupted at cat_s0_11223344" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "columns", "fitted"),
    [
        ("short", 10, "short"),
        ("0123456789", 10, "0123456789"),
        ("0123456789a", 10, "01234…789a"),
        ("猫猫猫猫猫猫", 9, "猫猫…猫猫"),
        ("猫猫猫", 6, "猫猫猫"),
    ],
)
def test_a_line_is_cut_in_the_middle_by_columns(text: str, columns: int, fitted: str) -> None:
    assert watch.fit(text, columns) == fitted


# -- the card ---------------------------------------------------------------------------------


class FakeNvml:
    """A card that can be lost or keep things to itself."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, lost: bool = False, silent: tuple[str, ...] = ()) -> None:
        self.lost, self.silent = lost, silent
        self.inits = 0

    def _tell(self, name: str, value: Any) -> Any:
        if self.lost or name in self.silent:
            raise self.NVMLError(name)
        return value

    def nvmlInit(self) -> None:
        self.inits += 1

    def nvmlShutdown(self) -> None:
        self.inits -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return str(self._tell("handle", uuid))

    def nvmlDeviceGetTemperature(self, _handle: str, _sensor: int) -> int:
        return int(self._tell("temperature", 71))

    def nvmlDeviceGetPowerUsage(self, _handle: str) -> int:
        return int(self._tell("power", 348_600))

    def nvmlDeviceGetMemoryInfo(self, _handle: str) -> SimpleNamespace:
        found: SimpleNamespace = self._tell("memory", SimpleNamespace(used=5, total=24))
        return found


class OwnHealth:
    """Stands for the reader of one card."""

    def __init__(self, uuid: str | None) -> None:
        self._heat = {"GPU-0": 61, "GPU-1": 84}[uuid or ""]

    def read(self) -> GpuHealth:
        return GpuHealth(self._heat, 300.0, 5 * 2**30, 24 * 2**30)

    def close(self) -> None:
        pass


def test_each_worker_shows_the_health_of_its_own_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hv15_batch.run._progress.GpuHealthReader", OwnHealth)
    monkeypatch.setattr(status_file, "HEARTBEAT_SECONDS", 0.1)
    workers, cards = ["H200, card 0", "H200, card 1"], ["GPU-0", "GPU-1"]
    progress = Progress(tmp_path / "status.json", "r1", 2, 0, workers=workers, cards=cards)
    progress.rendering(2)

    wait_for(lambda: read_status(tmp_path).workers[1].temperature_celsius is not None)
    text = format_status(tmp_path, read_status(tmp_path), datetime.now(timezone.utc))
    progress.end("done")

    own = [line for line in text.splitlines() if "°C" in line]
    assert [line.partition(":")[0].strip() for line in own] == [
        "worker 0 (H200, card 0)",
        "worker 1 (H200, card 1)",
    ]
    assert "61 °C, 300 W, 5.0 of 24.0 GiB VRAM in use" in own[0]
    assert "84 °C" in own[1]


def test_a_card_is_read_again_and_again_with_one_initialisation() -> None:
    nvml = FakeNvml()
    reader = GpuHealthReader("GPU-1", nvml)

    readings = [reader.read() for _ in range(3)]

    assert set(readings) == {GpuHealth(71, 348.6, 5, 24)}
    assert nvml.inits == 1
    reader.close()
    assert nvml.inits == 0


def test_an_error_that_is_not_the_drivers_is_null_too(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setattr(nvml, "nvmlInit", lambda: 1 / 0)
    assert GpuHealthReader("GPU-1", nvml).read() == GpuHealth()

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuHealthReader("GPU-1").read() == GpuHealth()


def test_what_a_card_does_not_tell_is_null_and_no_error() -> None:
    assert GpuHealthReader("GPU-1", FakeNvml(silent=("power", "memory"))).read() == GpuHealth(71)
    assert GpuHealthReader("GPU-1", FakeNvml(lost=True)).read() == GpuHealth()
    assert GpuHealthReader(None).read() == GpuHealth()
