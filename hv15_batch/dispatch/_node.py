"""What a worker of a cluster does on its own machine. No torch, and nothing of the cluster itself.

A child process renders, as on a machine of its own, and this process passes its events on. So a
renderer that dies is seen and replaced here, and the cluster need not notice.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from hv15_batch import __version__
from hv15_batch.clip import Clip
from hv15_batch.dispatch._suited import suited, with_first_frame
from hv15_batch.dispatch.local import LocalExecutor, lost_gpu, set_allocator
from hv15_batch.dispatch.protocol import (
    GPU_LOST,
    Declined,
    Died,
    Encoded,
    Event,
    ExecutorSpec,
    Finished,
    Job,
    Loading,
    Note,
    Renderer,
    Stepped,
)
from hv15_batch.dispatch.seats import Order
from hv15_batch.errors import Refused, StoreError
from hv15_batch.machine.machine import Machine, read_machine
from hv15_batch.machine.system import system_facts
from hv15_batch.redaction import redacted
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.remote.shared import Inputs, Question, Shared, answer
from hv15_batch.rundir.store import learn_frames, let_go

BATCH_SECONDS = 0.2
"""Steps are passed on together, at most so much later; what the driver acts on goes at once."""
PATIENCE_SECONDS = 300.0
"""While weights are fetched, a line comes this often: silence would count as a dead worker."""
_LATER = (Stepped, Loading, Encoded, Note)
_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Hello:
    """What a worker says of its machine before it gets anything."""

    version: str
    """Of this package."""
    machine: Machine
    """The one card in it is the worker's; none on the CPU."""
    facts: dict[str, Any]
    """`system_facts`."""
    node_id: str
    address: str


@dataclass(frozen=True)
class Batch:
    """Events that are passed on together."""

    events: tuple[Event, ...]
    resident_bytes: int | None
    """Of the process that renders."""
    is_up: bool
    """Whether it takes clips."""


class NodeWorker:
    """One worker of a cluster: a seat, on which one renderer after the other is started."""

    def __init__(self, facts: dict[str, str]) -> None:
        """Start nothing.

        Args:
            facts: `node_id` and `address`. Small and plain, so that a cluster can always make this
                worker again.
        """
        set_allocator()  # before the machine is read, and for the process that renders
        self._facts = facts
        self._number = -1
        self._serving: _Serving | None = None

    def hello(self, uses_card: bool) -> Hello:
        """Return what this machine is."""
        machine = read_machine()
        machine = replace(machine, gpus=machine.gpus[:1] if uses_card else ())
        return Hello(__version__, machine, system_facts(machine), **self._facts)

    def answer(self, place: str, question: Question) -> tuple[str | None, str]:
        """Answer a question in the run's store: (SHA-256 of the answer or None, what is wrong)."""
        try:
            return answer(Shared(place), question), ""
        except (Refused, StoreError) as error:  # the second: this machine's environment opens none
            return None, str(error)

    def start(self, number: int, order: Order, make: Callable[[ExecutorSpec], Renderer]) -> None:
        """Prepare a renderer; `events` of the same number starts it."""
        self.stop(self._number, in_order=False)
        self._number, self._serving = number, _Serving(order, make)

    def send(self, number: int, message: Any) -> None:
        """Pass on what the renderer is to do; nothing happens if it is no longer there."""
        if self._serving is not None and number == self._number:
            self._serving.send(message)

    def events(self, number: int) -> Iterator[Batch]:
        """Yield the renderer's events until it ends."""
        if self._serving is None or number != self._number:
            died = Died("the worker's process was replaced", was_up=False, is_gone=True)
            yield Batch((died,), None, False)
            return
        yield from self._serving.events()

    def stop(self, number: int, in_order: bool) -> None:
        """End the renderer of that number."""
        if self._serving is not None and number == self._number:
            self._serving.stop(in_order)
            self._serving = None


class _Serving:
    """One renderer, from its order to its end."""

    def __init__(self, order: Order, make: Callable[[ExecutorSpec], Renderer]) -> None:
        self._order = order
        self._make = make
        self._lock = threading.Lock()
        self._waiting: list[Any] = []
        self._executor: LocalExecutor | None = None
        self._run_dir = RunDir(order.spec.run_dir)
        self._inputs: Inputs | None = None
        self._stopped, self._stop = multiprocessing.Pipe(duplex=False)
        self._ended = threading.Event()

    def send(self, message: Any) -> None:
        with self._lock:
            if self._executor is None:
                self._waiting.append(message)
            else:
                self._pass_on(self._executor, message)

    def _pass_on(self, executor: LocalExecutor, message: Any) -> None:
        assert self._inputs is not None
        clips: list[Clip] = [message.clip] if isinstance(message, Job) else message
        sources = [clip.source for clip in clips if clip.source is not None]
        with suppress(OSError, StoreError):  # the renderer says which frame is missing
            learn_frames(self._run_dir, [(each.denoise_sha256, each.number) for each in sources])
        if isinstance(message, Job):
            executor.submit(replace(message, clip=with_first_frame(message.clip, self._inputs)))
        else:
            executor.encode([with_first_frame(clip, self._inputs) for clip in clips])

    def stop(self, in_order: bool) -> None:
        self._stop.send(True)
        self._ended.wait(_STOP_SECONDS)
        if self._executor is not None:
            if in_order:
                self._executor.close()
            else:
                self._executor.kill()

    def events(self) -> Iterator[Batch]:
        try:
            spec: ExecutorSpec | None = None
            for found in self._prepare():
                if isinstance(found, ExecutorSpec):
                    spec = found
                else:
                    yield Batch((found,), None, False)
            if spec is not None and not self._stopped.poll():
                yield from self._render(spec)
        finally:
            self._ended.set()

    def _prepare(self) -> Iterator[Event | ExecutorSpec]:
        """Yield notes while weights are fetched, and then the settings of this machine."""
        notes: list[str] = []
        with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
            preparing = pool.submit(suited, self._order, notes.append)
            seconds = 0.0
            while True:
                try:
                    spec = preparing.result(PATIENCE_SECONDS)
                except NotYet:
                    seconds += PATIENCE_SECONDS
                    told = notes[-1] if notes else "weights are looked for"
                    yield Note(f"after {seconds:.0f} s: {told}")
                    continue
                except Refused as error:
                    yield Declined(redacted(str(error)))
                except Exception as error:
                    reason = f"the worker failed: {type(error).__name__}: {error}"
                    yield Died(redacted(reason), was_up=False)
                else:
                    self._run_dir = RunDir(spec.run_dir)
                    self._inputs = Inputs(self._run_dir)
                    yield spec
                return

    def _render(self, spec: ExecutorSpec) -> Iterator[Batch]:
        executor = LocalExecutor(spec, self._make, parent=os.getpid())
        executor.start()
        with self._lock:
            self._executor = executor
            for message in self._waiting:
                self._pass_on(executor, message)
        while True:
            assert executor.waitable is not None
            ready = multiprocessing.connection.wait([executor.waitable, self._stopped])
            if self._stopped in ready:
                return
            events = _next_events(executor)
            if events and isinstance(events[-1], Died) and (lost := lost_gpu(spec.gpu)):
                events[-1] = replace(events[-1], reason=lost, error_type=GPU_LOST)
            for event in events:
                if isinstance(event, Finished):
                    let_go(RunDir(spec.run_dir), event.record)
            yield Batch(tuple(events), executor.resident_bytes(), executor.is_up)
            if events and isinstance(events[-1], Died | Declined):
                return


def _next_events(executor: LocalExecutor) -> list[Event]:
    """Return what has come: up to the first event that the driver acts on, and not for long.

    Of steps of one clip the last one says all.
    """
    events: list[Event] = []
    until = time.monotonic() + BATCH_SECONDS
    while (left := until - time.monotonic()) > 0:
        was_up = executor.is_up
        event = executor.poll(left)
        if event is None and executor.is_up != was_up:
            break
        if event is not None:
            if isinstance(event, Stepped) and events and _is_step_before(events[-1], event):
                events.pop()
            events.append(event)
            if not isinstance(event, _LATER):
                break
    return events


def _is_step_before(event: Event, step: Stepped) -> bool:
    return isinstance(event, Stepped) and (event.clip_id, event.stage) == (step.clip_id, step.stage)
