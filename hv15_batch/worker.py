"""The local executor: one spawned child process, its life and death. No torch in the parent."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

import psutil

from hv15_batch.clip import Clip
from hv15_batch.config import ConfigError
from hv15_batch.executor import (
    Died,
    EncodingEnded,
    Event,
    ExecutorSpec,
    Finished,
    Job,
    Ready,
    Refused,
    Renderer,
    RendererBroken,
)
from hv15_batch.records import ClipRecord
from hv15_batch.redaction import redacted
from hv15_batch.rundir import RunDir
from hv15_batch.signals import HANDLED
from hv15_batch.text_log import text_log

logger = logging.getLogger(__name__)

_CLOSE_SECONDS = 30.0
_KILL_SECONDS = 60.0
"""Freeing the memory of a killed child takes seconds; one stuck in a driver call may never end."""
_PR_SET_PDEATHSIG = 1
_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")


def set_allocator() -> None:
    """Let torch's allocator grow blocks in place, unless the user has set it up.

    Without it a decode close to the limit fails with gigabytes reserved but unused (24 GiB cap,
    480x848x121, H200, measured 2026-11-22). The executor inherits the environment.
    """
    if not any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        os.environ[_ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"


def make_renderer(spec: ExecutorSpec) -> Renderer:
    """Return the real renderer; called in the child, where torch is imported."""
    _quieten_libraries()
    from hv15_batch.render import ClipRenderer

    return ClipRenderer(spec)


def _quieten_libraries() -> None:
    """Send notices of the libraries to run.log, and their progress bars nowhere.

    Before anything else of them is imported: some say a word at import.
    """
    import diffusers.utils.logging
    import transformers.utils.logging
    from tqdm import tqdm

    # tqdm's own lock is shared between processes: a killed worker would leave its semaphore behind.
    tqdm.set_lock(threading.RLock())
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.disable_default_handler()
        library.enable_propagation()


class LocalExecutor:
    """Runs a `Renderer` in a child process and talks to it through a pipe."""

    def __init__(
        self,
        spec: ExecutorSpec,
        renderer: Callable[[ExecutorSpec], Renderer] = make_renderer,
    ) -> None:
        """Remember what to run; `start` runs it. `renderer` must be picklable."""
        self._spec = spec
        self._renderer = renderer
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def start(self) -> None:
        """Spawn the child; it imports torch while the parent goes on."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        lock = _connection_to(self._spec.lock_descriptor)
        self._process = context.Process(
            target=_child_main,
            args=(theirs, lock, self._spec, self._renderer, _signalling_parent()),
            name="hv15_batch-worker",
        )
        resource_tracker.ensure_running()  # first: it unblocks signals when it starts its process
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)  # until the child ignores them
        try:
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

    def encode(self, clips: Sequence[Clip]) -> None:
        """See `executor.Executor.encode`."""
        self._send(list(clips))

    def submit(self, job: Job) -> None:
        """See `executor.Executor.submit`."""
        self._send(job)

    def poll(self, timeout_seconds: float) -> Event | None:
        """See `executor.Executor.poll`; a lost child is the event `Died`."""
        assert self._pipe is not None
        try:
            if not self._pipe.poll(timeout_seconds):
                return None
            event: Event = self._pipe.recv()
            return event
        except (EOFError, OSError):
            return Died(self._reason_of_death())

    def close(self) -> None:
        """Ask the child to end, and wait for it."""
        if self._process is None:
            return
        self._send(None)
        self._process.join(_CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the child at once and reap it."""
        if self._process is not None:
            if self._process.is_alive():
                self._process.kill()
            self._process.join(_KILL_SECONDS)
            if self._process.is_alive():
                logger.error("worker %s does not end, not even by SIGKILL", self._process.pid)
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def resident_bytes(self) -> int | None:
        """See `executor.Executor.resident_bytes`."""
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


def _connection_to(descriptor: int | None) -> Connection | None:
    """Return a copy of a descriptor in a form that a spawned process inherits."""
    return None if descriptor is None else Connection(os.dup(descriptor))


def _signalling_parent() -> int | None:
    """Return this process, if the kernel is to end the child with it.

    The kernel does so when the *thread* that started the child ends (PR_SET_PDEATHSIG, prctl(2)),
    which is when the process ends for the main thread only.
    """
    return os.getpid() if threading.current_thread() is threading.main_thread() else None


def _child_main(
    pipe: Connection,
    run_lock: Connection | None,
    spec: ExecutorSpec,
    make: Callable[[ExecutorSpec], Renderer],
    parent: int | None,
) -> None:
    """Serve the parent until it closes the pipe or dies.

    `run_lock` is held open and nothing else: a lock is released when all who have it open are gone.
    """
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)  # the parent decides what they mean
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    _die_with_parent(parent)
    sending = threading.Lock()

    def emit(event: Event) -> None:
        with sending:
            try:
                pipe.send(event)
            except OSError:
                os._exit(0)  # the parent is gone

    with text_log(RunDir(spec.run_dir).run_log(spec.run_id)):
        try:
            _serve(pipe, make(spec), emit)
        except ConfigError as error:
            emit(Refused(redacted(str(error))))
        except RendererBroken as error:
            emit(Died(redacted(error.reason), record=error.record))
        except Exception as error:  # not a clip's: those are records
            logger.exception("the worker failed")
            emit(Died(redacted(f"the worker failed: {type(error).__name__}: {error}")))


def _serve(pipe: Connection, renderer: Renderer, emit: Callable[[Event], None]) -> None:
    """Answer messages: a list of clips to encode, a job to render, or None to end.

    What is being written is finished in any case, also when the renderer breaks.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        writing: Future[None] | None = None
        while True:
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                os._exit(0)  # the parent is gone: nobody would log what is still being written
            if message is None:
                break
            if isinstance(message, list):
                renderer.encode(message, emit)
                emit(EncodingEnded())
                continue
            finish = renderer.render(message, emit)
            if writing is not None:
                writing.result()  # one clip at most waits in memory
            writing = writer.submit(_finish, message, finish, emit)
            emit(Ready())
        if writing is not None:
            writing.result()


def _finish(job: Job, finish: Callable[[], ClipRecord], emit: Callable[[Event], None]) -> None:
    record = finish()
    emit(Finished(job, record))


def _die_with_parent(parent: int | None) -> None:
    """End this process when the parent dies: by the kernel (Linux), and by a thread that watches.

    The thread cannot run while this process is stopped or native code holds the interpreter.
    """
    if parent is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
    process = multiprocessing.parent_process()
    assert process is not None

    def watch() -> None:
        multiprocessing.connection.wait([process.sentinel])
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
