"""Which clip is next, and for which worker. No torch, no processes and no clock."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain

from hv15_batch.clip import Group
from hv15_batch.dispatch.protocol import Job, Key
from hv15_batch.planning.next_group import next_group


class Queue:
    """The jobs that are left.

    One worker takes them in the order of the plan. Several take the longest first, so that the last
    of them do not wait long for each other. A worker keeps to its group, whose model it has loaded.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        seconds: Callable[[Job], float] | None = None,
        load_seconds: Callable[[Job, Group | None], float] = lambda _job, _own: 0.0,
    ) -> None:
        """Take the jobs in the order of the plan.

        Args:
            jobs: What is to be rendered.
            seconds: Returns how long a job takes, for several workers; None keeps the order.
            load_seconds: Returns how long a worker of another group loads before a job.
        """
        self.is_shared = seconds is not None
        """Several workers take from it."""
        self._load_seconds = load_seconds
        self._seconds: dict[Key, float] = {}
        self._left: defaultdict[Group | None, float] = defaultdict(float)
        """Seconds of work that are left in each group."""
        self._jobs: dict[Group | None, list[Job]] = {}
        """By group, the next one last."""
        for job in jobs:
            if seconds is not None:
                self._seconds[job.key] = seconds(job)
            self._add(job)
        for waiting in self._jobs.values():
            if self.is_shared:  # a stable order: equal ones stay in the plan's
                waiting.sort(key=lambda job: self._seconds[job.key], reverse=True)
            waiting.reverse()

    def _add(self, job: Job) -> None:
        key = self._key(job)
        self._jobs.setdefault(key, []).append(job)
        self._left[key] += self._seconds.get(job.key, 0.0)

    def _key(self, job: Job) -> Group | None:
        return job.clip.settings.group if self.is_shared else None

    def __len__(self) -> int:
        return sum(map(len, self._jobs.values()))

    def __iter__(self) -> Iterator[Job]:
        """Yield the jobs of each group, the next one last."""
        return chain.from_iterable(self._jobs.values())

    def put_back(self, jobs: Iterable[Job]) -> None:
        """Take jobs that are tried again, the next one last: they go before all others."""
        for job in jobs:
            self._add(job)

    def take(self, job: Job) -> None:
        """Remove a job that is handed to a worker."""
        key = self._key(job)
        waiting = self._jobs[key]
        self._left[key] -= self._seconds.get(job.key, 0.0)
        del waiting[next(n for n in reversed(range(len(waiting))) if waiting[n] is job)]
        if not waiting:
            del self._jobs[key], self._left[key]

    def drop(self, groups: Collection[Group]) -> list[Job]:
        """Remove and return the jobs of these groups."""
        dropped = []
        for key, waiting in list(self._jobs.items()):
            dropped += [job for job in waiting if job.clip.settings.group in groups]
            waiting[:] = [job for job in waiting if job.clip.settings.group not in groups]
            self._left[key] = sum((self._seconds.get(job.key, 0.0) for job in waiting), 0.0)
            if not waiting:
                del self._jobs[key], self._left[key]
        return dropped

    def next_for(
        self,
        own: Group | None,
        elsewhere: Mapping[Group, int],
        rendering: Collection[str] = (),
        fits: Callable[[Job], bool] = lambda _job: True,
    ) -> Job | None:
        """Return the job that a free worker takes next; None if it had better take none now.

        Where its group has none, `planning.next_group` decides.

        Args:
            own: Group of the worker's last job; None if it has loaded nothing.
            elsewhere: How many other workers render each group.
            rendering: `denoise_sha256` of clips that other workers render. A job that shares one
                waits for its latents.
            fits: Returns whether the worker can end a job in time. Where it cannot, it is not asked
                for others that take as long.
        """
        fits = self._once_a_length(fits)
        if not self.is_shared:
            return self._last_free(None, rendering, fits)
        if job := self._last_free(own, rendering, fits):
            return job
        found = {
            group: job
            for group in self._jobs
            if group is not None and group != own
            if (job := self._last_free(group, rendering, fits))
        }
        left = {group: self._left[group] for group in found}
        group = next_group(own, left, elsewhere, lambda to: self._load_seconds(found[to], own))
        return None if group is None else found[group]

    def _once_a_length(self, fits: Callable[[Job], bool]) -> Callable[[Job], bool]:
        too_long: set[object] = set()

        def asked(job: Job) -> bool:
            s = job.clip.settings
            size = s.model, s.height, s.width, s.num_frames, s.num_inference_steps
            length = size, self._seconds.get(job.key), job.use_latents, job.on_torch_attention
            if length in too_long:
                return False
            if not fits(job):
                too_long.add(length)
                return False
            return True

        return asked

    def _last_free(
        self, group: Group | None, rendering: Collection[str], fits: Callable[[Job], bool]
    ) -> Job | None:
        free = (
            job
            for job in reversed(self._jobs.get(group, ()))
            if job.clip.denoise_sha256 not in rendering
        )
        return next((job for job in free if fits(job)), None)
