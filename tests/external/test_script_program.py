"""A program under guard: its lines, its end, and the end of what it started."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from hv15_batch.external._process import RESULTS, Program

FAMILY = textwrap.dedent(
    """
    import os, subprocess, sys, time
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    if os.fork() == 0:
        os.setsid()
        child = subprocess.Popen(sleep, start_new_session=True)
        print(child.pid, flush=True)
        os._exit(0)
    os.wait()
    print(os.getpid(), flush=True)
    time.sleep(600)
    """
)
"""Starts a process that has another group, and whose parent is gone."""


def lines_of(program: Program, count: int) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    while len(found) < count and not program.is_over:
        found += program.read(0.1)
    return found


def start(code: str, folder: Path, has_results: bool = False, *words: str) -> Program:
    return Program([sys.executable, "-c", code, *words], folder, {"A": "1"}, has_results)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_lines_come_by_stream_and_bars_by_their_states(tmp_path: Path) -> None:
    code = (
        "import os, sys; print(os.environ['A'], os.getcwd()); "
        "sys.stderr.write('\\r1/2\\r2/2\\nend'); sys.exit(7)"
    )

    with start(code, tmp_path) as program:
        found = lines_of(program, 99)
        code_of_exit = program.wait()

    assert ("out", f"1 {tmp_path}") in found
    assert [line for stream, line in found if stream == "error"] == ["", "1/2", "2/2", "end"]
    assert code_of_exit == 7


def test_a_state_of_a_bar_is_heard_before_the_next_one(tmp_path: Path) -> None:
    state = " 50%|##  | 1/2 [00:01<00:01,  1.00s/it]"
    code = f"import sys, time; sys.stderr.write('\\r{state}'); sys.stderr.flush(); time.sleep(30)"
    begin = time.monotonic()

    with start(code, tmp_path) as program:
        assert lines_of(program, 2) == [("error", ""), ("error", state)]
    assert time.monotonic() - begin < 25


def test_what_was_said_comes_before_the_errors_that_followed(tmp_path: Path) -> None:
    code = "import os, sys; os.write(2, b'1\\n'); os.write(1, b'2\\n'); os.write(2, b'3\\n')"
    with start(code + "; sys.stdin.read()", tmp_path, True, RESULTS) as program:
        time.sleep(1.0)  # so that all of it is there
        assert [line for _, line in lines_of(program, 3)] == ["2", "1", "3"]


def test_what_has_no_last_newline_is_heard_when_it_is_asked_for(tmp_path: Path) -> None:
    code = "import os, sys; os.write(1, b'z' * 40_000 + b'\\nsaved'); sys.stdin.readline()"

    with start(code, tmp_path, True, RESULTS) as program:
        time.sleep(1.0)
        assert [line[-9:] for _, line in program.read_rest()] == ["z" * 9, "saved"]
        assert list(program.read_rest()) == []


def test_the_signal_that_ended_it_is_its_negative_code(tmp_path: Path) -> None:
    with start("import os; os.kill(os.getpid(), 9)", tmp_path) as program:
        lines_of(program, 99)
        assert program.wait() == -9


def test_it_answers_lines_on_a_descriptor_of_its_own(tmp_path: Path) -> None:
    code = "import os, sys; os.write(int(sys.argv[1]), b'got ' + sys.stdin.readline().encode())"

    with start(code, tmp_path, True, RESULTS) as program:
        program.write("a row")
        assert lines_of(program, 1) == [("results", "got a row")]


def test_its_end_is_that_of_all_that_it_started(tmp_path: Path) -> None:
    program = start(FAMILY, tmp_path)
    pids = [int(line) for _, line in lines_of(program, 2)]
    assert len(pids) == 2
    assert not any(map(is_gone, pids))

    program.end()

    assert all(map(is_gone, pids))


def test_what_it_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    with start(FAMILY.replace("time.sleep(600)\n", ""), tmp_path) as program:
        pids = [int(line) for _, line in lines_of(program, 2)]
        lines_of(program, 99)
        program.wait()
        assert all(map(is_gone, pids))


@pytest.mark.parametrize("number", [9, 15])
def test_it_ends_when_the_process_that_started_it_dies(tmp_path: Path, number: int) -> None:
    code = textwrap.dedent(
        f"""
        import sys
        from pathlib import Path
        from hv15_batch.external._process import Program
        program = Program([sys.executable, "-c", {FAMILY!r}], Path("."), {{}}, False)
        found = []
        while len(found) < 2:
            found += program.read(1.0)
        print(*(line for _, line in found), flush=True)
        import time; time.sleep(600)
        """
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    pids = [int(word) for word in worker.stdout.readline().split()]

    worker.send_signal(number)
    worker.wait()
    worker.stdout.close()

    end = time.monotonic() + 10
    while not all(map(is_gone, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert len(pids) == 2
    assert all(map(is_gone, pids))
