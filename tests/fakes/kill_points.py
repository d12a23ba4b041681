"""Named points at which a run of the kill suite is killed, planted in its two processes.

A kill waits in FOLDER/kill.json. Whichever process comes to its point often enough takes the file
away and sends the SIGKILLs, so that a replaced child isn't killed again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hv15_batch.rundir import publish

FOLDERS = ("clips", "latents", "thumbs", "embeddings", "log")
MOMENTS = ("half", "before sync", "before rename", "after rename", "published")
"""Of a file that is published; at `half` its second half is missing."""
VICTIMS = ("parent", "child", "both")


@dataclass(frozen=True)
class Kill:
    """Who is killed, and at which call of which point."""

    victim: str
    point: str
    call: int = 1


def published(places: tuple[str, ...], moments: tuple[str, ...] = MOMENTS) -> list[str]:
    """Return the points in the life of the files at these places."""
    return [f"{place}: {moment}" for place in places for moment in moments]


def named_kills() -> list[Kill]:
    """Return every named point with every victim that is alive there."""
    whole = ("half", "before rename", "published")
    of_both = [
        *published(("log", "clips", "latents")),
        *published(("embeddings", "thumbs"), whole),
        *("before row", "after row", "child begins", "encoding", "denoising", "writing"),
        *("file written", "told"),
    ]
    of_parent = [
        *published(("plan.csv", "config.yaml", "system.json", ".lock.json"), whole),
        *published(("clips.csv", "data.js", "index.html", "status.json"), whole),
        *("before child", "after child"),
    ]
    kills = [Kill(victim, point) for point in of_both for victim in VICTIMS]
    kills.remove(Kill("child", "log: half"))  # the parent, who writes it, lives on and finishes it
    return kills + [Kill("parent", point) for point in of_parent]


def place_of(path: Path) -> str:
    """Return what a point calls a published file: its folder in the run directory, or its name."""
    return path.parent.name if path.parent.name in FOLDERS else path.name.split(".", 2)[-1]


class Trap:
    """Kills at the point that FOLDER/kill.json names, for the points of this process."""

    def __init__(self, folder: Path, side: str) -> None:
        self._folder, self._side = folder, side
        self._file = folder / "kill.json"
        self._kill = Kill(**json.loads(self._file.read_text())) if self._file.exists() else None
        self._calls = 0
        self._lock = threading.RLock()  # to spoil a file is an operation too
        self._last = threading.local()

    def reach(self, point: str, spoil: Callable[[], None] = lambda: None) -> None:
        """Die here if it is time to; `spoil` is done before."""
        with self._lock:
            if self._kill is None or point != self._kill.point:
                return
            self._calls += 1
            if self._calls < self._kill.call:
                return
            victim, self._kill = self._kill.victim, None
            try:
                self._file.unlink()
            except FileNotFoundError:
                return  # another worker came first
            spoil()
            note(self._folder, f"kill {victim} at {point}")
            self._send(victim)

    def _send(self, victim: str) -> None:
        me = os.getpid()
        if self._side == "child":
            pids = {"parent": [os.getppid()], "child": [me], "both": [os.getppid(), me]}[victim]
        else:
            children = [p.pid for p in multiprocessing.active_children() if p.pid is not None]
            pids = {"parent": [me], "child": children, "both": [*children, me]}[victim]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        if victim == "parent" and self._side == "child":
            signal.pause()  # until the kernel has noticed

    def sync(self, real: Callable[[Path], None]) -> Callable[[Path], None]:
        """Return `rundir._sync` with the points of a published file around it."""

        def wrapped(path: Path) -> None:
            if path.is_dir():
                place = self._last.place
                self.reach(f"{place}: after rename")
                real(path)
                self.reach(f"{place}: published")
                return
            place = self._last.place = place_of(path)
            self.reach(f"{place}: half", lambda: os.truncate(path, path.stat().st_size // 2))
            self.reach(f"{place}: before sync")
            real(path)
            self.reach(f"{place}: before rename")

        return wrapped

    def watch_operations(self) -> None:
        """Make every operation that changes the run directory a point: `parent operation`."""
        within, sync = str(self._folder / "out"), os.fsync

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in CHANGES or not isinstance(arguments[0], str | os.PathLike):
                return
            if event == "open" and not changes_something(*arguments[1:]):
                return
            if os.fspath(arguments[0]).startswith(within):
                self.reach(f"{self._side} operation")

        def syncing(descriptor: int) -> None:
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith(within):
                self.reach(f"{self._side} operation")
            sync(descriptor)

        sys.addaudithook(audit)
        os.fsync = syncing

    def around(self, real: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        """Return a function with a point before and one after it."""

        def wrapped(*arguments: Any, **rest: Any) -> Any:
            self.reach(before)
            result = real(*arguments, **rest)
            self.reach(after)
            return result

        return wrapped


CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
"""Events of the interpreter that come before a file is made, changed, renamed or removed; what a
library does on its own, between opening and syncing, has the named point `half`."""


def changes_something(mode: object, flags: object) -> bool:
    """Whether opening a file like this makes or changes it."""
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    return bool(isinstance(flags, int) and flags & writes) or bool(
        isinstance(mode, str) and set(mode) & set("wax+")
    )


def plant(folder: Path, side: str) -> Trap:
    """Plant the points of this process, `parent` or `child`, and return what kills at them."""
    trap = Trap(folder, side)
    publish._sync = trap.sync(publish._sync)
    trap.watch_operations()
    if side == "parent":
        from hv15_batch.dispatch import local as worker
        from hv15_batch.rundir import log as runlog

        log, executor = runlog.RunLog, worker.LocalExecutor
        log.append = trap.around(log.append, "before row", "after row")
        executor.start = trap.around(executor.start, "before child", "after child")
    return trap


def arm(folder: Path, kill: Kill) -> None:
    """Leave a kill for the next run."""
    (folder / "kill.json").write_text(json.dumps(asdict(kill)), encoding="utf-8")


def note(folder: Path, line: str) -> None:
    """Add a line to what was done, whole also when this process is killed right after."""
    descriptor = os.open(folder / "journal.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)
