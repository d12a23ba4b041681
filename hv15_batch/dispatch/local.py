"""The local executor: one spawned child process, its life and death. No torch here."""

from __future__ import annotations

import logging
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import ModuleType

import psutil

from hv15_batch.clip import Clip
from hv15_batch.dispatch._child import UP, child_main, make_renderer
from hv15_batch.dispatch.protocol import (
    HANDLED,
    Died,
    Event,
    ExecutorSpec,
    Job,
    Renderer,
)
from hv15_batch.machine.nvml import Gpu, read_gpus

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 30.0
_GUARD_SECONDS = 5.0
_KILL_SECONDS = 60.0
"""Freeing the memory of a killed child takes seconds; one stuck in a driver call may never end."""
_START_METHODS = ("fork", "spawn", "forkserver")
"""Those of Python itself."""
_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def set_allocator() -> None:
    """Let torch's allocator grow blocks in place, unless the user has set it up.

    Without it a decode close to the limit fails with gigabytes reserved but unused (24 GiB cap,
    480x848x121, H200, measured 2026-11-22). The executor inherits the environment.
    """
    if not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ[_ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"


class LocalExecutor:
    """Runs a `Renderer` in a child process and talks to it through a pipe."""

    def __init__(
        self,
        spec: ExecutorSpec,
        renderer: Callable[[ExecutorSpec], Renderer] = make_renderer,
        parent: int | None = None,
    ) -> None:
        """Remember what to run; `start` runs it.

        Args:
            spec: Its settings.
            renderer: Makes what renders; must be picklable.
            parent: This process, if the thread that calls `start` lives as long as it; else None.
        """
        self._spec = spec
        self._renderer = renderer
        self._parent = parent
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._is_up = False

    def start(self) -> None:
        """Spawn the child; it imports torch while the parent continues."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        lock = _connection_to(self._spec.lock_descriptor)
        self._process = context.Process(
            target=child_main,
            args=(theirs, lock, self._spec, self._renderer, self._parent or _signalling_parent()),
            name="hv15_batch-worker",
        )
        resource_tracker.ensure_running()  # first: it unblocks signals when it starts its process
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # until the child ignores them
        try:
            needs_main = self._renderer is not make_renderer  # another one may be defined there
            with nullcontext() if needs_main else _without_main_module(), _plain_start_method():
                self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()
            if lock is not None:
                lock.close()

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid if self._process else None

    @property
    def is_up(self) -> bool:
        """Whether the renderer is made and takes clips."""
        return self._is_up

    @property
    def waitable(self) -> Connection | None:
        """See `dispatch.protocol.Executor.waitable`."""
        return self._pipe

    def encode(self, clips: Sequence[Clip]) -> None:
        """See `dispatch.protocol.Executor.encode`."""
        self._send(list(clips))

    def submit(self, job: Job) -> None:
        """See `dispatch.protocol.Executor.submit`."""
        self._send(job)

    def poll(self, timeout_seconds: float) -> Event | None:
        """See `dispatch.protocol.Executor.poll`; a lost child is the event `Died`."""
        assert self._pipe is not None
        try:
            if not self._pipe.poll(timeout_seconds):
                return None
            message = self._pipe.recv()
        except (EOFError, OSError):
            return Died(self._reason_of_death(), was_up=self._is_up)
        if message == UP:
            self._is_up = True
            return None
        event: Event = message
        return event

    def close(self) -> None:
        """Ask the child to end, and wait for it."""
        if self._process is None:
            return
        below = _below(self.pid)
        self._send(None)
        self._process.join(_CLOSE_SECONDS)
        self.kill()
        _end_all(below)

    def kill(self) -> None:
        """End the child and all that it started at once, and reap it."""
        if self._process is not None:
            below = _below(self.pid)
            if self._process.is_alive():
                self._process.kill()
            self._process.join(_KILL_SECONDS)
            _end_all(below)
            if self._process.is_alive():
                logger.error("worker %s does not end, not even by SIGKILL", self._process.pid)
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def resident_bytes(self) -> int | None:
        """See `dispatch.protocol.Executor.resident_bytes`."""
        if self.pid is None:
            return None
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return None  # it has just died: the next poll says so

    def _send(self, message: object) -> None:
        assert self._pipe is not None
        with suppress(OSError):  # the child is gone: the next poll says so
            self._pipe.send(message)

    def _reason_of_death(self) -> str:
        assert self._process is not None
        self._process.join(_CLOSE_SECONDS)
        code = self._process.exitcode
        if code is None:
            return "the worker closed its pipe"
        if code >= 0:
            return f"the worker exited with code {code}"
        name = signal.Signals(-code).name
        hint = "; the host may have run out of memory" if name == "SIGKILL" else ""
        return f"the worker was ended by {name}{hint}"


def _below(pid: int | None) -> list[psutil.Process]:
    """Return the processes that a process started, directly or not."""
    try:
        return [] if pid is None else psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []  # it has just died


def _end_all(processes: list[psutil.Process]) -> None:
    """Wait until processes without a worker have ended by themselves, and kill those that do not.

    A guard needs a moment to end a program (`external/_guard.py`).
    """
    _, left = psutil.wait_procs(processes, _GUARD_SECONDS)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, _GUARD_SECONDS)


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Within: a process that is spawned does not import the main module, and need not.

    The child uses nothing of it. Importing it would run a user's script once more, from its first
    line to the one that started this run, unless all of that stood behind a main guard.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")  # `spawn` imports it by spec or file: no such
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _plain_start_method() -> Iterator[None]:
    """Use a start method that a spawned process knows, while the block runs.

    A spawned process takes over the start method of this one. In a process that loky made for a
    launcher of Hydra that is `loky`, which another Python does not know before it imports loky.
    """
    method = multiprocessing.get_start_method(allow_none=True)
    if method in (None, *_START_METHODS):
        yield
        return
    multiprocessing.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(method, force=True)


def _connection_to(descriptor: int | None) -> Connection | None:
    """Return a copy of a descriptor in a form that a spawned process inherits."""
    return None if descriptor is None else Connection(os.dup(descriptor))


def _signalling_parent() -> int | None:
    """Return this process, if the kernel is to end the child with it.

    The kernel does so when the *thread* that started the child ends (PR_SET_PDEATHSIG, prctl(2)),
    which is when the process ends for the main thread only.
    """
    return os.getpid() if threading.current_thread() is threading.main_thread() else None


def lost_gpu(card: Gpu | None) -> str | None:
    """Return a message if the driver no longer lists the card, else None; for use after a death.

    Args:
        card: `ExecutorSpec.gpu`; None on the CPU.
    """
    if card is None or card.uuid in {gpu.uuid for gpu in read_gpus()}:
        return None
    return f"the GPU is lost: the driver no longer lists {card.name} ({card.uuid})"
