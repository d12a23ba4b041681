"""Keeps one executor at work: starts it, notices when it stalls, replaces and recycles it.

No torch. The loop decides which clip is next and when to stop.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from hv15_batch.clip import Clip
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
from hv15_batch.forecast.stalls import Patience, StallWatch
from hv15_batch.machine.nvml import Gpu, read_gpus
from hv15_batch.model.variant import OffloadKind
from hv15_batch.run._recovery import Recycling
from hv15_batch.run._run import Run

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
    ) -> None:
        """Make a supervisor without a worker; `start` starts one.

        Args:
            make_executor: Called for each worker. It gets the profiles that earlier workers had
                to change to, by model.
            retry: Decides when a worker is recycled.
            stalls: Decides when a worker counts as dead.
        """
        self._make_executor = make_executor
        self._stalls = stalls
        self._recycling = Recycling(retry)
        self._executor: Executor | None = None
        self._offloads: dict[str, OffloadKind] = {}
        self._model = ""

    def start(self) -> None:
        """Start a new worker; returns at once."""
        self._recycling.new_worker()
        self._stalls.new_worker()
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
        self._model = job.clip.settings.model
        self._recycling.submitted()
        self._executor.submit(job)

    def poll(self, timeout_seconds: float) -> Event | None:
        """Return the next event. A worker that stalls is ended, and the event is `Died`."""
        assert self._executor is not None
        begin = time.monotonic()
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
    def recycle_reason(self) -> str | None:
        """Why this worker must be replaced before its next clip, or None."""
        return self._recycling.reason

    def recycle(self) -> None:
        """Replace a worker that has no clip."""
        logger.info("the worker is replaced %s", self.recycle_reason)
        self.close()
        self.start()

    def replace(self) -> None:
        """Replace a dead worker."""
        self.kill()
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


@dataclass(frozen=True)
class Start:
    """How workers of a run are started, and how long they may be silent."""

    make_executor: Callable[[ExecutorSpec], Executor]
    patience: Patience
    lock_descriptor: int | None
    """File descriptor of the run directory's lock, which holds until parent and worker are gone."""


def make_supervisor(run: Run, start: Start) -> Supervisor:
    """Return the supervisor of a run's workers, which are numbered from 0."""
    spec = run.spec(start.lock_descriptor)
    numbers = itertools.count()
    retry, compiles = spec.config.retry, run.compiles
    stalls = StallWatch(retry.stall_factor, start.patience, run.pace, compiles)

    def make_executor(offloads: Mapping[str, OffloadKind]) -> Executor:
        run.pace.started_worker()
        worker_id = f"local-{next(numbers)}"
        return start.make_executor(replace(spec, worker_id=worker_id).with_offloads(offloads))

    return Supervisor(make_executor, retry, stalls)


def lost_gpu(card: Gpu | None) -> str | None:
    """Return a message if the driver no longer lists the card, else None; for use after a death.

    Args:
        card: `ExecutorSpec.gpu`; None on the CPU.
    """
    if card is None or card.uuid in {gpu.uuid for gpu in read_gpus()}:
        return None
    return f"the GPU is lost: the driver no longer lists {card.name} ({card.uuid})"
