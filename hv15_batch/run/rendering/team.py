"""The workers of a run: those that it starts with, and those of a cluster that join later."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from hv15_batch.clip import Clip, Group
from hv15_batch.dispatch.protocol import Job
from hv15_batch.errors import EXIT_STOPPED
from hv15_batch.run._run import Run
from hv15_batch.run.outcome import StopRun
from hv15_batch.run.rendering.queue import Queue
from hv15_batch.run.rendering.supervisor import Supervisor

JOIN_SECONDS = 120.0
"""Where all workers of a cluster are lost, the run waits so long for another one."""
_AT_ONCE = 64


class Arrivals(Protocol):
    """Where further workers come from."""

    def arrived(self) -> Sequence[Supervisor]:
        """Return those that came since the last call, not started yet."""


class Team:
    """All workers, by their places. One that is given up keeps its place."""

    def __init__(self, workers: Sequence[Supervisor], arrivals: Arrivals | None = None) -> None:
        """Take the first workers.

        Args:
            workers: At least one.
            arrivals: Where others come from; None if there are never more.
        """
        self.all = list(workers)
        self._arrivals = arrivals
        self._lost_at = 0.0  # when a worker was given up

    @property
    def may_grow(self) -> bool:
        """Whether further workers may join."""
        return self._arrivals is not None

    @property
    def is_alone(self) -> bool:
        """Whether there is one worker, now and later."""
        return len(self.all) == 1 and not self.may_grow

    @property
    def working(self) -> list[Supervisor]:
        """Those that are not given up."""
        return [worker for worker in self.all if not worker.is_given_up]

    @property
    def is_busy(self) -> bool:
        """Whether some worker has a clip."""
        return any(worker.is_busy for worker in self.all)

    @property
    def current_jobs(self) -> list[Job]:
        """The clips that the workers have."""
        return [job for worker in self.all for job in worker.current.jobs]

    def close(self) -> None:
        """End every worker in order, after all events were taken."""
        self._do(Supervisor.close)

    def kill(self) -> None:
        """End every worker at once."""
        self._do(Supervisor.kill)

    def _do(self, end: Callable[[Supervisor], None]) -> None:
        """End all workers; those of other machines side by side, since each answers for itself."""
        if not self.may_grow:
            for worker in self.all:
                end(worker)
            return
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="end-worker") as pool:
            list(pool.map(end, self.all))

    def goes_on_without(self, worker: Supervisor) -> bool:
        """Give a worker up; return whether others are left, or may join."""
        worker.is_given_up = True
        self._lost_at = time.monotonic()
        return bool(self.working) or self.may_grow

    def awaits_another(self) -> bool:
        """Whether all workers are lost, and another one may still join.

        Raises:
            StopRun: None came in time.
        """
        if self.working:
            return False
        if time.monotonic() - self._lost_at > JOIN_SECONDS:
            message = f"no worker is left, and none joined within {JOIN_SECONDS:.0f} s"
            raise StopRun(EXIT_STOPPED, "stopped", message)
        return True

    def arrived(self) -> list[Supervisor]:
        """Take in the workers that came since the last call, and return them."""
        new = list(self._arrivals.arrived()) if self._arrivals is not None else []
        self.all += new
        return new

    def queue_of(self, jobs: Sequence[Job], run: Run) -> Queue:
        """Return the queue of a round: in the plan's order for one worker, else longest first."""
        if self.is_alone:
            return Queue(jobs)
        return Queue(jobs, run.pace.warm_seconds, run.load_seconds)

    def to_check(self, clips: Sequence[Clip]) -> Sequence[Clip]:
        """Return the clips that a worker looks at before it renders, once another has encoded.

        Workers of other machines fetch what they look at: one clip of each model is enough.
        """
        if not self.may_grow:
            return clips
        return list({clip.settings.model: clip for clip in reversed(clips)}.values())

    def choose(
        self, queue: Queue, worker: Supervisor, fits: Sequence[Callable[[Job], bool]]
    ) -> Job | None:
        """Return the job that a free worker takes next; None if the others had better take it.

        Args:
            queue: The jobs that are left.
            worker: The free one.
            fits: Tell which jobs it can end in time, the strictest first.
        """
        others = [other for other in self.all if other is not worker]
        rendering = {job.clip.denoise_sha256 for other in others for job in other.current.jobs}
        elsewhere: Counter[Group] = Counter(o.group for o in others if o.group and o.is_busy)
        for each in fits:
            if job := queue.next_for(worker.group, elsewhere, rendering, each):
                return job
        return None
