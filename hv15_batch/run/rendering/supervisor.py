"""Keeps one executor at work: starts it, notices when it stalls, replaces and recycles it.

No torch. The loop decides which clip is next and when to stop.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing.connection
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from hv15_batch.clip import Clip, Group
from hv15_batch.config.settings import RetryConfig
from hv15_batch.dispatch.protocol import (
    WORKER_STALLED,
    Died,
    Event,
    Executor,
    ExecutorSpec,
    Job,
    Note,
)
from hv15_batch.dispatch.seats import Cluster
from hv15_batch.machine.nvml import Gpu
from hv15_batch.model.variant import OffloadKind
from hv15_batch.run.rendering.fitting import Fitting
from hv15_batch.run.rendering.recovery import Current, Recycling
from hv15_batch.run.rendering.stalls import Patience, StallWatch

logger = logging.getLogger(__name__)

_MAX_TICK_SECONDS = 5.0
"""After a longer wait the parent itself was stopped (Ctrl-Z) or starved."""


class Supervisor:
    """The loop's executor. It passes everything on to the worker of the moment."""

    def __init__(
        self,
        make_executor: Callable[[Mapping[str, OffloadKind]], Executor],
        retry: RetryConfig,
        stalls: StallWatch,
        place: int = 0,
        gpu: Gpu | None = None,
        columns: Mapping[str, Any] | None = None,
        seat: int | None = None,
    ) -> None:
        """Make a supervisor without a worker; `start` starts one.

        Args:
            make_executor: Called for each worker. It gets the profiles that earlier workers had
                to change to, by model.
            retry: Decides when a worker is recycled.
            stalls: Decides when a worker counts as dead.
            place: Number of this supervisor among those of the run.
            gpu: The card of its workers; None on the CPU.
            columns: What the log says of its worker, where that runs on another machine.
            seat: Number of its seat in the cluster, which a worker that comes back keeps.
        """
        self.place, self.gpu = place, gpu
        self.seat = place if seat is None else seat
        """Under which number its bad clips and deaths are counted."""
        self.columns = {} if columns is None else columns
        self.current = Current()
        """The clips that its worker has."""
        self.group: Group | None = None
        """Of the worker's last clip; None before its first."""
        self.asked_at = 0.0
        """When it was asked for an event, see `next_event`."""
        self.is_given_up = False
        """No worker is started here again."""
        self._make_executor = make_executor
        self._stalls = stalls
        self._recycling = Recycling(retry)
        self._executor: Executor | None = None
        self._offloads: dict[str, OffloadKind] = {}
        self._model = ""
        self._waited_seconds = 0.0

    def start(self) -> None:
        """Start a new worker; returns at once."""
        self._recycling.new_worker()
        self._stalls.new_worker()
        self.group = None
        self._executor = self._make_executor(self._offloads)
        self._executor.start()

    def encode(self, clips: Sequence[Clip]) -> None:
        """See `dispatch.protocol.Executor.encode`."""
        assert self._executor is not None
        self._stalls.encoding()
        self._executor.encode(clips)

    def submit(self, job: Job) -> None:
        """See `dispatch.protocol.Executor.submit`."""
        assert self._executor is not None
        self._stalls.submitted(job)
        if job.clip.settings.model != self._model:
            self._recycling.new_model()
        self._model, self.group = job.clip.settings.model, job.clip.settings.group
        self._recycling.submitted()
        self.current.submitted(job)
        self._executor.submit(job)

    def waited(self, seconds: float) -> None:
        """Note that all workers were waited for, before `poll` asks this one."""
        self._waited_seconds += seconds

    def poll(self, timeout_seconds: float) -> Event | None:
        """Return the next event. A worker that stalls is ended, and the event is `Died`."""
        assert self._executor is not None
        begin = time.monotonic() - self._waited_seconds
        self._waited_seconds = 0.0
        event = self._executor.poll(timeout_seconds)
        if event is None:
            seconds = min(time.monotonic() - begin, _MAX_TICK_SECONDS)
            if reason := self._stalls.waited(seconds):
                self._executor.kill()
                return Died(reason, WORKER_STALLED)
            return None
        if isinstance(event, Note) and event.offload is not None:
            self._offloads[self._model] = event.offload
        self._stalls.heard(event)
        self._recycling.heard(event, self._executor.resident_bytes)
        return event

    @property
    def is_up(self) -> bool:
        """Whether there is a worker; without one the card is free."""
        return self._executor is not None

    @property
    def is_busy(self) -> bool:
        """Whether its worker has a clip, or is still at work on the device."""
        return bool(self.current) or self.current.rendering is not None

    @property
    def waitable(self) -> Connection | None:
        """What `next_event` waits for; None without a worker."""
        return self._executor.waitable if self._executor is not None else None

    @property
    def recycle_reason(self) -> str | None:
        """Why this worker must be replaced before its next clip, or None."""
        return self._recycling.reason

    def recycle(self) -> None:
        """Replace a worker that has no clip."""
        logger.info("the worker is replaced %s", self.recycle_reason)
        self.close()
        self.start()

    def close(self) -> None:
        """End the worker in order, after all its events were taken."""
        if self._executor is not None:
            self._executor.close()
            self._executor = None

    def kill(self) -> None:
        """End the worker at once."""
        if self._executor is not None:
            self._executor.kill()
            self._executor = None


def next_event(
    supervisors: Sequence[Supervisor], timeout_seconds: float
) -> tuple[Supervisor, Event | None]:
    """Return the next event of any worker, and whose it is; None when there was none in that time.

    Each worker is asked in turn, so that one that sends much does not hide the others.
    """
    up = [each for each in supervisors if each.is_up]
    if len(up) == 1:
        return up[0], up[0].poll(timeout_seconds)
    begin = time.monotonic()
    pipes = [pipe for each in up if (pipe := each.waitable) is not None]
    multiprocessing.connection.wait(pipes, timeout_seconds)
    seconds = time.monotonic() - begin
    for each in up:
        each.waited(seconds)
    for each in sorted(up, key=lambda each: each.asked_at):
        each.asked_at = time.monotonic()
        if (event := each.poll(0.0)) is not None:
            return each, event
    return supervisors[0], None


@dataclass(frozen=True)
class Start:
    """How workers of a run are started, and how long they may be silent."""

    make_executor: Callable[[ExecutorSpec], Executor]
    patience: Patience
    cluster: Cluster | None = None
    """Whose seats the workers take; None for child processes of this machine."""
    lock_descriptor: int | None = None
    """File descriptor of the run directory's lock, which holds until parent and worker are gone."""


def make_supervisors(fitting: Fitting, start: Start) -> list[Supervisor]:
    """Return a supervisor for each card of a run, or for each process on the CPU.

    Workers are `local-0`, `local-1`, ... where there is one at a time; else the card's place comes
    before that number, e.g. `local-2-0`.
    """
    run, retry = fitting.run, fitting.run.config.retry
    return [
        Supervisor(
            _maker(fitting, start, place),
            retry,
            StallWatch(retry, start.patience, run.pace, run.compiles),
            place,
            gpu,
        )
        for place, gpu in enumerate(run.cards)
    ]


def _maker(
    fitting: Fitting, start: Start, place: int
) -> Callable[[Mapping[str, OffloadKind]], Executor]:
    """Return what makes the workers of one card, which are numbered from 0."""
    numbers = itertools.count()
    prefix = f"local-{place}" if len(fitting.run.cards) > 1 else "local"

    def make_executor(offloads: Mapping[str, OffloadKind]) -> Executor:
        run = fitting.run
        run.pace.started_worker(place)
        spec = run.spec(start.lock_descriptor, place)
        worker_id = f"{prefix}-{next(numbers)}"
        return start.make_executor(replace(spec, worker_id=worker_id).with_offloads(offloads))

    return make_executor
