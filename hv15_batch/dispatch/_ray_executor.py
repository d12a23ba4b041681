"""One renderer on a seat of a Ray cluster, as the loop knows executors."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from hv15_batch.clip import Clip
from hv15_batch.dispatch._node import Batch
from hv15_batch.dispatch.protocol import (
    Declined,
    Died,
    Event,
    ExecutorSpec,
    Finished,
    Job,
    Renderer,
)
from hv15_batch.dispatch.seats import Order
from hv15_batch.errors import Refused
from hv15_batch.rundir.remote.shared import Shared, ask, check_answer

logger = logging.getLogger(__name__)

_STOP_SECONDS = 15.0
_CLOSE_SECONDS = 45.0


class RayExecutor:
    """One renderer on a seat of the cluster; a thread here feeds its events to a pipe."""

    def __init__(
        self,
        ray: Any,
        handle: Any,
        order: Order,
        renderer: Callable[[ExecutorSpec], Renderer],
        number: int,
        node: str,
        finished: Callable[[], None],
        gone: Callable[[bool], None],
    ) -> None:
        """Remember what to run; `start` runs it.

        Args:
            ray: The module, connected.
            handle: Of the actor.
            order: What the actor is to start.
            renderer: Makes what renders.
            number: Of this executor among those of the actor.
            node: The actor's machine, in words.
            finished: Called when a clip is finished.
            gone: Called once when the actor is gone, with whether it had a clip.
        """
        self._ray = ray
        self._handle = handle
        self._order = order
        self._renderer = renderer
        self._finished, self._gone = finished, gone
        self._number = number
        self._node = node
        self._pipe: Connection | None = None
        self._feed: Connection | None = None
        self._lock = threading.Lock()
        self._waiting: list[Any] | None = []
        self._resident_bytes: int | None = None
        self._num_clips = 0
        self._is_up = self._is_gone = False
        self._send = handle.send.options(concurrency_group="orders")

    def start(self) -> None:
        """See `dispatch.protocol.Executor.start`."""
        self._pipe, self._feed = multiprocessing.Pipe(duplex=False)
        threading.Thread(target=self._serve, name="ray-worker", daemon=True).start()

    @property
    def waitable(self) -> Connection | None:
        """See `dispatch.protocol.Executor.waitable`."""
        return self._pipe

    def encode(self, clips: Sequence[Clip]) -> None:
        """See `dispatch.protocol.Executor.encode`."""
        self._order_of(list(clips))

    def submit(self, job: Job) -> None:
        """See `dispatch.protocol.Executor.submit`."""
        self._num_clips += 1
        self._order_of(job)

    def _order_of(self, message: Any) -> None:
        with self._lock:
            if self._waiting is not None:
                self._waiting.append(message)
            else:
                self._send.remote(self._number, message)

    def _send_waiting(self) -> None:
        """Send what waited until the renderer is known to be up.

        So an actor that dies with a clip was up, and one that was not never got the clip.
        """
        with self._lock:
            for message in self._waiting or ():
                self._send.remote(self._number, message)
            self._waiting = None

    def poll(self, timeout_seconds: float) -> Event | None:
        """See `dispatch.protocol.Executor.poll`."""
        assert self._pipe is not None
        try:
            if not self._pipe.poll(timeout_seconds):
                return None
            event: Event = self._pipe.recv()
        except (EOFError, OSError):
            event = self._death("it sends nothing more")
        if isinstance(event, Died) and event.is_gone and not self._is_gone:
            self._is_gone = True
            self._gone(event.was_up and self._num_clips > 0)
        elif isinstance(event, Finished):
            self._num_clips -= 1
            self._finished()
        return event

    def close(self) -> None:
        """See `dispatch.protocol.Executor.close`."""
        self._end(in_order=True)

    def kill(self) -> None:
        """See `dispatch.protocol.Executor.kill`."""
        self._end(in_order=False)

    def resident_bytes(self) -> int | None:
        """See `dispatch.protocol.Executor.resident_bytes`; as of its last event."""
        return self._resident_bytes

    def _end(self, in_order: bool) -> None:
        if self._pipe is None:
            return
        if not self._is_gone:
            stop = self._handle.stop.options(concurrency_group="control")
            seconds = _CLOSE_SECONDS if in_order else _STOP_SECONDS
            try:
                self._ray.get(stop.remote(self._number, in_order), timeout=seconds)
            except self._ray.exceptions.GetTimeoutError:
                logger.error("%s does not answer: its worker is started anew", self._node)
                self._ray.kill(self._handle, no_restart=False)
            except Exception as error:  # it is gone: its stream says so
                logger.info("%s: %s", self._node, first_line(error))
        self._pipe.close()
        self._pipe = None

    # -- the thread ---------------------------------------------------------------------------

    def _serve(self) -> None:
        """Try the store, start the renderer, and pass its events on until it ends."""
        assert self._feed is not None
        with suppress(OSError), self._feed as feed:  # the driver needs them no more
            try:
                for event in self._events():
                    feed.send(event)
            except self._ray.exceptions.RayActorError as error:
                feed.send(self._death(first_line(error)))
            except Refused as error:
                feed.send(Declined(f"{self._node}: {error}"))
            except OSError:
                raise
            except Exception as error:
                logger.exception("a worker's events are lost")
                feed.send(self._death(first_line(error)))

    def _death(self, reason: str) -> Died:
        reason = f"the worker on {self._node} is gone from the cluster ({reason})"
        return Died(reason, was_up=self._is_up, is_gone=True)

    def _events(self) -> Iterator[Event]:
        """Yield the renderer's events.

        Raises:
            Refused: Driver and worker do not see one store.
        """
        handle = self._handle
        self._try_store()
        start = handle.start.options(concurrency_group="orders")
        self._ray.get(start.remote(self._number, self._order, self._renderer))
        stream = handle.events.options(num_returns="streaming", concurrency_group="events")
        for reference in stream.remote(self._number):
            batch: Batch = self._ray.get(reference)
            self._resident_bytes, self._is_up = batch.resident_bytes, batch.is_up
            if batch.is_up:
                self._send_waiting()
            for event in batch.events:
                if isinstance(event, Declined):
                    event = Declined(f"{self._node}: {event.message}")
                yield event

    def _try_store(self) -> None:
        """Let the worker read a random file of the driver's, and read one of the worker's.

        Raises:
            Refused: One of both does not work.
        """
        place = self._order.place
        shared = Shared(place)
        try:
            question = ask(shared)
        except OSError as error:
            raise Refused(f"the driver cannot write into {place} ({error}).") from error
        try:
            method = self._handle.answer.options(concurrency_group="control")
            sha256, fault = self._ray.get(method.remote(place, question))
            if sha256 is None:
                raise Refused(fault)
            check_answer(shared, question, sha256)
        finally:
            with suppress(OSError):
                shared.delete(question.names)


def first_line(error: BaseException) -> str:
    """Return an error's type and the first line of its text."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:300]}"
