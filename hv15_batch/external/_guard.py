"""Runs a program and ends all that it started when the worker is gone, by whatever it died.

Only Python's own library: it is started by its path. `_guard.py FD PASSED COMMAND...`, where `FD`
can be read at its end once the worker is gone, and `PASSED` are descriptors for the program,
separated by commas.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.1
_KILLED = 128
"""A shell's exit code of a program that a signal ended, less the signal."""


def main(argv: list[str]) -> int:
    """Run the program; return its exit code."""
    alive, passed, *command = argv
    # Not ignored, which the program would inherit: what a signal means is the parent's decision.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, lambda *_: None)
    # What the program's own children leave behind becomes a child of this process.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    descriptors = [int(number) for number in passed.split(",") if number]
    try:
        child = subprocess.Popen(command, pass_fds=descriptors)
    except OSError as error:
        print(f"OSError: {command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    for number in descriptors:
        os.close(number)
    while child.poll() is None:
        readable, _, _ = select.select([int(alive)], [], [], _POLL_SECONDS)
        if readable:
            break
    end_all()
    code = child.returncode if child.returncode is not None else -signal.SIGKILL
    return code if code >= 0 else _KILLED - code


def end_all() -> None:
    """Kill everything below this process, until nothing is left."""
    while True:
        for process in below(os.getpid()):
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while os.waitpid(-1, 0 if not below(os.getpid()) else os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        select.select([], [], [], 0.005)


def below(root: int) -> list[int]:
    """Return all processes that `root` started, directly or not, and that still run."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    rest = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if rest[0] != b"Z":
                parents[int(name)] = int(rest[1])
    found, front = [], [root]
    while front:
        front = [process for process, parent in parents.items() if parent in front]
        found += front
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
