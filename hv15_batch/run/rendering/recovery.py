"""The clips that a worker has, and the counts that decide what comes next.

The counts are deaths, bad clips and memory growth. No torch and no processes: the caller reports
what happened.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from hv15_batch.clip import Clip, Group
from hv15_batch.clock import utc_now
from hv15_batch.config.settings import RetryConfig
from hv15_batch.dispatch.protocol import (
    DECLINED,
    GPU_LOST,
    Died,
    Event,
    Finished,
    Job,
    Key,
    Note,
    Ready,
    Stepped,
)
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.record import DECODE, FAILED, OK, SUSPECT, ClipRecord, asked_record
from hv15_batch.run.rendering.queue import Queue
from hv15_batch.units import GIB, counted, format_gib, shortened

MIN_DEATHS_TO_STOP = 2


@dataclass
class Held:
    """A clip that a worker has, and that has no record yet."""

    job: Job
    since: datetime
    has_latents: bool = False
    """It is being decoded or written; its latents are saved."""


class Current:
    """The current clips, by the events of one executor."""

    def __init__(self) -> None:
        """Start without a clip."""
        self._held: dict[Key, Held] = {}
        self.rendering: Key | None = None
        """The last clip that was handed over, until the executor sends `Ready`."""

    def __len__(self) -> int:
        return len(self._held)

    @property
    def keys(self) -> set[Key]:
        """The current clips."""
        return set(self._held)

    @property
    def jobs(self) -> list[Job]:
        """The same, in the order of handing over."""
        return [held.job for held in self._held.values()]

    def submitted(self, job: Job) -> None:
        """Remember a clip that is handed over."""
        self._held[job.key] = Held(job, utc_now())
        self.rendering = job.key

    def heard(self, event: Event) -> None:
        """Follow an event."""
        match event:
            case Finished(job):
                self._held.pop(job.key, None)  # may come before `Ready`
            case Stepped(stage=stage) if stage == DECODE:
                self._note_latents()
            case Ready():
                self._note_latents()
                self.rendering = None
            case _:
                pass

    def _note_latents(self) -> None:
        if self.rendering in self._held:
            self._held[self.rendering].has_latents = True

    def let_go(self) -> list[Held]:
        """Return and forget the current clips, in the order of handing over."""
        held, self._held = list(self._held.values()), {}
        self.rendering = None
        return held


def record_of_lost(
    lost: Held, known: Mapping[str, Any], status: str, error_type: str, message: str
) -> ClipRecord:
    """Return a record for an attempt whose worker wrote none."""
    return asked_record(
        lost.job.clip,
        **known,
        attempt=lost.job.attempt,
        repeat=lost.job.repeat,
        status=status,
        error_type=error_type,
        error_message=message,
        started_at=lost.since,
        finished_at=utc_now(),
    )


class Recovery:
    """Counts deaths and bad clips of a run."""

    def __init__(self, retry: RetryConfig) -> None:
        """Start at zero."""
        self._retry = retry
        self._blamed: Counter[Key] = Counter()
        # By worker, what it lost at each death since it finished a clip.
        self._lost: defaultdict[int, list[frozenset[Key]]] = defaultdict(list)
        self._tried_alone: set[Key] = set()
        self._bad_in_a_row: Counter[tuple[Group, int]] = Counter()  # by group and worker
        self._last_bad: dict[Group, str] = {}
        self._given_up: set[Group] = set()

    def first_attempt(self, planned: PlannedClip) -> Job:
        """Return this run's first attempt at a clip; a suspect clip gets torch's own attention."""
        last = planned.last
        is_suspect = last is not None and last["status"] == SUSPECT
        return Job(
            planned.clip,
            planned.attempts + 1,
            planned.use_latents,
            planned.repeat,
            on_torch_attention=is_suspect and self._retry.suspect and planned.repeat is None,
        )

    def died(
        self, event: Died, lost: Sequence[Held], rendering: Key | None, worker: int = 0
    ) -> None:
        """Count a death of a worker.

        A clip that was only being written is not blamed, unless it was the only one. No clip is
        blamed for a lost card, or for a worker that never started. How often one leaves a cluster
        is counted there.
        """
        is_no_clips_fault = event.error_type == GPU_LOST or not event.was_up
        suspects = set() if is_no_clips_fault else {held.job.key for held in lost}
        if event.is_gone:
            self._lost[worker].clear()
        else:
            self._lost[worker].append(frozenset(suspects))
        self._blamed.update(suspects & {rendering} or suspects)

    def another_attempt(self, lost: Held) -> Job | None:
        """Return the next attempt at a clip after its worker died; None skips the clip."""
        job = lost.job
        if self._blamed[job.key] >= self._retry.max_attempts:
            self._tried_alone.discard(job.key)
            return None
        self._tried_alone.add(job.key)
        use_latents = job.use_latents or lost.has_latents
        return replace(job, attempt=job.attempt + 1, use_latents=use_latents)

    def must_be_alone(self, keys: set[Key]) -> bool:
        """Whether these must not be current together, because one of them was current at a death.

        If its worker dies again, it is clear which clip is the cause.
        """
        return len(keys) > 1 and not keys.isdisjoint(self._tried_alone)

    def finished(self, job: Job, record: ClipRecord, worker: int = 0) -> None:
        """Count an attempt that ended, well or not: it shows that the worker works."""
        self._lost[worker].clear()
        self._tried_alone.discard(job.key)
        self.ended(job, record, worker)

    def ended(self, job: Job, record: ClipRecord, worker: int = 0) -> None:
        """Count a clip's last attempt, in its group on this worker."""
        group = job.clip.settings.group
        if record.status == OK:
            self._bad_in_a_row[group, worker] = 0
            return
        self._bad_in_a_row[group, worker] += 1
        what = record.error_type if record.status == FAILED else record.quality_flag
        self._last_bad[group] = f"{record.clip_id}: {what}"

    def hopeless(self, reason: str, worker: int = 0) -> str | None:
        """Return why no worker is started there again: deaths in a row that no clip explains.

        A clip that kills its worker is current at every death. It is skipped after its attempts,
        and the next clip is tried.
        """
        lost = self._lost[worker]
        if len(lost) < MIN_DEATHS_TO_STOP or frozenset.intersection(*lost):
            return None
        return (
            f"{reason}, {len(lost)} times without a clip in between; look at run.log, "
            "nvidia-smi and dmesg for the cause"
        )

    @staticmethod
    def unfit(event: Died) -> str:
        """Return why no worker is started again where none was of use."""
        if event.error_type == DECLINED or event.is_gone:
            return event.reason
        return f"{event.reason}, twice before its first clip; look at run.log for the cause"

    def give_up(self, queue: Queue, groups: Collection[Group]) -> GivenUp | None:
        """Take the clips of groups with too many bad clips in a row out of the queue.

        Args:
            queue: What is left to render.
            groups: All groups of the run.

        Returns:
            What was given up now; None if nothing was.
        """
        most = self._retry.max_consecutive_bad
        bad = {group for (group, _), count in self._bad_in_a_row.items() if count >= most}
        if not bad:
            return None
        # A group whose clips were all tried has nothing to give up.
        self._given_up |= bad & {job.clip.settings.group for job in queue}
        left_out = [job for job in queue if job.clip.settings.group in self._given_up]
        if not left_out:
            return None
        ends_run = self._given_up.issuperset(groups)
        if ends_run and len(groups) == 1:
            return GivenUp(tuple(left_out), self._bad_text(left_out[-1]), ends_run)
        lines = [
            f"{_group_text(jobs[0].clip, groups)} is given up, and "
            f"{counted(len(jobs), 'clip')} with it: {self._bad_text(jobs[0])}"
            for jobs in _by_group(left_out)
        ]
        if not ends_run:
            queue.drop(self._given_up)
        return GivenUp(tuple(left_out), "\n".join(lines), ends_run)

    def _bad_text(self, job: Job) -> str:
        group = job.clip.settings.group
        most = max(n for (of, _), n in self._bad_in_a_row.items() if of == group)
        return (
            f"{most} clips in a row failed or are suspect (the last one "
            f"{self._last_bad[group]}); look at the page and at run.log for their common cause, "
            "and raise retry.max_consecutive_bad if there is none"
        )


@dataclass(frozen=True)
class GivenUp:
    """Clips that are not tried, because too many of their group were bad in a row."""

    jobs: tuple[Job, ...]
    reason: str
    ends_run: bool
    """Every group of the run is given up."""


def _by_group(jobs: Sequence[Job]) -> Iterable[list[Job]]:
    groups: dict[Group, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.clip.settings.group, []).append(job)
    return groups.values()


def _group_text(clip: Clip, groups: Collection[Group]) -> str:
    """Return a group in words, e.g. `model 480p_t2v with LoRA a.safetensors`."""
    model = clip.settings.model
    if names := " and ".join(shortened(os.path.basename(lora.path), 40) for lora in clip.loras):
        return f"model {model} with LoRA {names}"
    is_alone = sum(name == model for name, *_ in groups) == 1
    return f"model {model}" if is_alone else f"model {model} without LoRA"


class Recycling:
    """Decides when a worker that still works is replaced."""

    def __init__(self, retry: RetryConfig) -> None:
        """Start without a worker."""
        self._retry = retry
        self.new_worker()

    def new_worker(self) -> None:
        """Count from zero."""
        self._clips = 0
        self._base_bytes: int | None = None
        self._grown_bytes = 0

    def new_model(self) -> None:
        """Measure growth anew: another model takes other memory."""
        self._base_bytes, self._grown_bytes = None, 0

    def submitted(self) -> None:
        """Count a clip."""
        self._clips += 1

    def heard(self, event: Event, resident_bytes: Callable[[], int | None]) -> None:
        """Measure RAM after each clip; start over when a change of profile moves weights to RAM."""
        if isinstance(event, Note):
            self._base_bytes, self._grown_bytes = None, 0
        if not isinstance(event, Finished):
            return
        now = resident_bytes() if self._retry.max_ram_growth_gib is not None else None
        if now is not None:
            self._base_bytes = now if self._base_bytes is None else self._base_bytes
            self._grown_bytes = now - self._base_bytes

    @property
    def reason(self) -> str | None:
        """Why the worker must be replaced before its next clip, or None."""
        most = self._retry.max_clips_per_worker
        if most is not None and self._clips >= most:
            return f"after {self._clips} clips (retry.max_clips_per_worker={most})"
        growth = self._retry.max_ram_growth_gib
        if growth is not None and self._grown_bytes >= growth * GIB:
            return (
                f"holding {format_gib(self._grown_bytes)} GiB more than after its first clip "
                f"(retry.max_ram_growth_gib={growth:g})"
            )
        return None
