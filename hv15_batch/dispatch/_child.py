"""The child process of a local executor: it imports torch and serves the parent."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection

from hv15_batch.dispatch.protocol import (
    HANDLED,
    Declined,
    Died,
    Emit,
    EncodingEnded,
    Event,
    ExecutorSpec,
    Finished,
    Job,
    Ready,
    Renderer,
    RendererBroken,
)
from hv15_batch.errors import Refused
from hv15_batch.model.variant import Engine
from hv15_batch.record import ClipRecord
from hv15_batch.redaction import redacted
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.text_log import text_log

logger = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
UP = "up"
"""Sent once, before all events: the renderer is made, and takes clips."""


def make_renderer(spec: ExecutorSpec) -> Renderer:
    """Return the real renderer; called in the child, where torch is imported if it is needed."""
    if spec.config.runtime.engine is Engine.official:
        from hv15_batch.external.renderer import ScriptRenderer

        return ScriptRenderer(spec)
    from hv15_batch.engine.device import quieten_libraries

    quieten_libraries()
    from hv15_batch.engine.render import ClipRenderer

    return ClipRenderer(spec)


def child_main(
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
        send(event)

    def send(message: object) -> None:
        with sending:
            try:
                pipe.send(message)
            except OSError:
                os._exit(0)  # the parent is gone

    if spec.only_card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = spec.only_card  # before CUDA looks at it, once
    with text_log(RunDir(spec.run_dir).run_log(spec.run_id)):
        is_up = False
        try:
            renderer = make(spec)
            send(UP)
            is_up = True
            _serve(pipe, renderer, emit)
        except Refused as error:
            emit(Declined(redacted(str(error))))
        except RendererBroken as error:
            emit(Died(redacted(error.reason), record=error.record))
        except Exception as error:  # not a clip's: those are records
            logger.exception("the worker failed")
            reason = redacted(f"the worker failed: {type(error).__name__}: {error}")
            emit(Died(reason, was_up=is_up))


def _serve(pipe: Connection, renderer: Renderer, emit: Emit) -> None:
    """Answer messages: a list of clips to encode, a job to render, or None to end.

    What is being written is finished in any case, also when the renderer breaks. Where writing
    itself breaks, that ends the worker as soon as it renders nothing.
    """
    broken, tell_broken = multiprocessing.Pipe(duplex=False)

    def finish_or_tell(job: Job, finish: Callable[[], ClipRecord]) -> None:
        try:
            _finish(job, finish, emit)
        except BaseException:
            tell_broken.send(True)
            raise

    with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
        writing: Future[None] | None = None
        while True:
            if broken in multiprocessing.connection.wait([pipe, broken]):
                assert writing is not None
                writing.result()  # raises
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
            writing = writer.submit(finish_or_tell, message, finish)
            emit(Ready())
        if writing is not None:
            writing.result()


def _finish(job: Job, finish: Callable[[], ClipRecord], emit: Emit) -> None:
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
