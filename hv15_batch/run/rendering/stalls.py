"""When a silent worker counts as dead. No torch, no processes and no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hv15_batch.config.settings import RetryConfig
from hv15_batch.dispatch.protocol import (
    Alive,
    Encoded,
    Event,
    Finished,
    Job,
    Key,
    Loading,
    Note,
    Ready,
    Stepped,
)
from hv15_batch.forecast.pace import STEP, Pace
from hv15_batch.record import DECODE, DENOISE, FAILED, WRITE, is_denoised_here


@dataclass(frozen=True)
class Patience:
    """The least time that a silent worker gets, however short the expected time is."""

    cold_seconds: float = 1800.0
    """For what happens once: importing, loading (33 GB at 20 MB/s), encoding, compiling, the first
    clip of a size."""
    warm_seconds: float = 120.0
    """For a step, a decode or a write like others before it."""


PATIENCE = Patience()
"""For real models."""
_STEPS_TO_KNOW = 2
"""Steps of another program's clip after which the next one is expected to be like them. The first
may be told before the card has done it."""


class StallWatch:
    """Decides when a silent worker counts as dead.

    Each event that shows progress starts a new wait. Its limit is `retry.stall_factor` times the
    seconds that `Pace` expects, and at least that of `Patience`. While a clip is rendered
    `retry.stall_minutes` takes the place of both, once the worker itself has started.
    """

    def __init__(
        self, retry: RetryConfig, patience: Patience, pace: Pace, first_step_compiles: bool
    ) -> None:
        """Wait for nothing yet; `pace` knows how long what is waited for takes."""
        self._factor = retry.stall_factor
        self._typed = None if retry.stall_minutes is None else 60.0 * retry.stall_minutes
        self._patience = patience
        self._pace = pace
        self._first_step_compiles = first_step_compiles
        self._job: Job | None = None
        self._limit: float | None = None
        self._has_written = False
        self.new_worker()

    def new_worker(self) -> None:
        """Nothing is loaded or compiled any more."""
        self._warm: set[tuple[Any, ...]] = set()  # sizes of clip that this worker has finished
        self._unfinished: dict[Key, Job] = {}
        self._is_cold = True
        self._is_up = False
        self._steps: list[float] = []  # of another program's clip, as they are heard
        self._step_waited = 0.0
        self._idle()

    def encoding(self) -> None:
        """Wait for the next text or image of the encode phase."""
        self._is_cold = True
        self._wait("an encoded text or image")

    def submitted(self, job: Job) -> None:
        """Wait for a clip's first step."""
        self._job = self._unfinished[job.key] = job
        self._is_cold = self._first_step_compiles or _size(job) not in self._warm
        self._steps = []
        seconds = 0.0 if _is_foreign(job) else self._pace.expected(job)[STEP]
        self._wait(f"the first step of {job.clip.clip_id}", seconds)

    def heard(self, event: Event) -> None:
        """Start the next wait, where the event shows progress."""
        self._is_up = True
        match event:
            case Alive():
                self._waited = 0.0
            case Finished(job, record):
                self._unfinished.pop(job.key, None)
                if record.status != FAILED:
                    self._has_written = True
                    if is_denoised_here(vars(record)):
                        self._warm.add(_size(job))
                if self._job is None:
                    self._idle()
            case Ready():
                self._job = None
                self._is_cold = not self._has_written
                if self._unfinished:
                    writing = next(iter(self._unfinished.values()))
                    seconds = self._pace.expected(writing)[WRITE]
                    self._wait("the clip that is being written", seconds)
                else:
                    self._idle()
            case Stepped() if self._job is not None:
                self._wait_for_stage(self._job, event)
            case Loading():
                pass
            case Note() | Encoded() if self._limit is not None:
                # Another profile, encoders loaded again: what comes next is as slow as at first.
                self._is_cold = True
                self._warm.clear()
                self._wait(self._what)
            case _:
                self._idle()

    def _wait_for_stage(self, job: Job, event: Stepped) -> None:
        expected = self._pace.expected(job)
        if event.stage == DENOISE:
            self._is_cold = _size(job) not in self._warm
            seconds = self._foreign_step(event) if _is_foreign(job) else expected[STEP]
            self._wait(f"what follows step {event.step} of {event.clip_id}", seconds)
        elif event.stage == DECODE:
            # It also waits for the clip before it to be written. Another program's is not measured.
            seconds = 0.0 if _is_foreign(job) else expected[DECODE] + expected[WRITE]
            self._wait(f"the frames of {event.clip_id}", seconds)
        else:
            self._is_cold = True
            self._wait(f"{event.stage} for {event.clip_id}")

    def _foreign_step(self, event: Stepped) -> float:
        """Return the seconds expected of a step: the longest of this clip; 0 at its beginning.

        Each process of another program may load and compile anew, whatever was measured before.
        """
        if event.step:
            self._steps.append(self._step_waited)
        self._step_waited = 0.0
        if len(self._steps) < _STEPS_TO_KNOW:
            return 0.0
        self._is_cold = False
        return max(1.0, *self._steps)  # short ones are not counted in full

    def waited(self, seconds: float) -> str | None:
        """Add time without an event; return why the worker counts as dead, or None."""
        if self._limit is None:
            return None
        self._waited += seconds
        self._step_waited += seconds
        if self._waited <= self._limit:
            return None
        return (
            f"the worker made no progress for {self._waited:.0f} s (waiting for {self._what}; "
            f"{self._limit:.0f} s are allowed, see retry.{self._rule})"
        )

    def _wait(self, what: str, expected_seconds: float = 0.0) -> None:
        """Start a wait; 0 expected seconds mean that its length is unknown."""
        is_cold = self._is_cold or not expected_seconds
        least = self._patience.cold_seconds if is_cold else self._patience.warm_seconds
        self._what, self._rule = what, "stall_factor"
        self._limit = max(least, self._factor * expected_seconds)
        if self._typed is not None and self._job is not None and self._is_up:
            self._limit, self._rule = self._typed, "stall_minutes"
        self._waited = 0.0

    def _idle(self) -> None:
        """Wait for nothing."""
        self._job = None
        self._limit = None
        self._what = self._rule = ""
        self._waited = 0.0


def _is_foreign(job: Job) -> bool:
    """Whether another program makes the clip."""
    return job.clip.settings.engine is not None


def _size(job: Job) -> tuple[Any, ...]:
    s = job.clip.settings
    return (s.model, s.height, s.width, s.num_frames, s.has_guidance, job.on_torch_attention)
