"""When a worker that says nothing counts as dead. No torch, no processes and no clock."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hv15_batch.clip import ClipSettings
from hv15_batch.dispatch.protocol import Encoded, Event, Finished, Job, Note, Ready, Stepped
from hv15_batch.forecast.seconds import ClipCost
from hv15_batch.record import FAILED, ClipRecord

_MEASUREMENTS = 100
"""Of the newest of them the median is taken."""


@dataclass(frozen=True)
class Patience:
    """How long a silent worker is given at least, however short the expected time is."""

    cold_seconds: float = 1800.0
    """For what happens once: importing, loading (33 GB at 20 MB/s), encoding, compiling, the first
    clip of a size."""
    warm_seconds: float = 120.0
    """For a step, a decode or a write like others before it."""


PATIENCE = Patience()
"""For real models."""


class StallWatch:
    """Decides when a worker that says nothing counts as dead.

    Each event that shows progress of what is waited for begins a new wait. Its limit is
    `retry.stall_factor` times the expected time: the median of this run for that size, before that
    the prediction; never less than `Patience` says.
    """

    def __init__(
        self,
        factor: float,
        patience: Patience,
        predict: Callable[[ClipSettings], ClipCost | None],
        first_step_compiles: bool,
    ) -> None:
        """Wait for nothing yet."""
        self._factor = factor
        self._patience = patience
        self._predict = predict
        self._first_step_compiles = first_step_compiles
        self._measured: dict[tuple[Any, ...], deque[float]] = {}
        self._warm: set[tuple[Any, ...]] = set()
        self._job: Job | None = None
        self._is_cold = True
        self.idle()

    def new_worker(self) -> None:
        """Nothing is loaded or compiled any more."""
        self._warm.clear()
        self.idle()

    def idle(self) -> None:
        """Wait for nothing."""
        self._job = None
        self._limit: float | None = None
        self._what = ""
        self._waited = 0.0

    def encoding(self) -> None:
        """Wait for the next text or image of the encode phase."""
        self._is_cold = True
        self._wait("an encoded text or image", None)

    def submitted(self, job: Job) -> None:
        """Wait for a clip's first step."""
        self._job = job
        self._is_cold = self._first_step_compiles or _size(job) not in self._warm
        self._wait(f"the first step of {job.clip.clip_id}", self._step_seconds(job))

    def heard(self, event: Event, is_writing: bool) -> None:
        """Begin the next wait, where the event shows progress of what is waited for.

        Args:
            event: of the worker.
            is_writing: after it, whether a clip is still being written.
        """
        match event:
            case Finished(job, record):
                self._learn(job, record)
                if self._job is None:
                    self.idle()
            case Ready():
                self._job = None
                self._is_cold = False
                if is_writing:
                    self._wait("the clip that is being written", self._median("write"))
                else:
                    self.idle()
            case Stepped(clip_id, stage, step) if self._job is not None:
                self._wait_for_stage(self._job, clip_id, stage, step)
            case Note() | Encoded() if self._limit is not None:
                # Another profile, encoders loaded again: what comes next is as slow as at first.
                self._is_cold = True
                self._warm.clear()
                self._measured.clear()
                self._wait(self._what, None)
            case _:
                self.idle()

    def _wait_for_stage(self, job: Job, clip_id: str, stage: str, step: int) -> None:
        size = _size(job)
        if stage == "denoise":
            self._is_cold = size not in self._warm
            self._wait(f"what follows step {step} of {clip_id}", self._step_seconds(job))
        elif stage == "decode":
            # It also waits for the clip before it to be written.
            seconds = self._median("decode", *size)
            if seconds is None and (cost := self._predict(job.clip.settings)) is not None:
                seconds = cost.decode_seconds
            seconds = None if seconds is None else seconds + (self._median("write") or 0.0)
            self._wait(f"the frames of {clip_id}", seconds)
        else:
            self._is_cold = True
            self._wait(f"{stage} for {clip_id}", None)

    def waited(self, seconds: float) -> str | None:
        """Add time without an event; return why the worker counts as dead, or None."""
        if self._limit is None:
            return None
        self._waited += seconds
        if self._waited <= self._limit:
            return None
        return (
            f"the worker made no progress for {self._waited:.0f} s (waiting for {self._what}; "
            f"{self._limit:.0f} s are allowed, see retry.stall_factor)"
        )

    def _wait(self, what: str, expected_seconds: float | None) -> None:
        is_cold = self._is_cold or expected_seconds is None
        least = self._patience.cold_seconds if is_cold else self._patience.warm_seconds
        self._what = what
        self._limit = max(least, self._factor * (expected_seconds or 0.0))
        self._waited = 0.0

    def _learn(self, job: Job, record: ClipRecord) -> None:
        if record.status == FAILED:
            return
        size = _size(job)
        self._add("write", (), record.write_seconds)
        self._add("decode", size, record.decode_seconds)
        if record.denoise_attempt == record.attempt:
            self._warm.add(size)
            for seconds in record.step_seconds or ():
                self._add("step", size, seconds)

    def _add(self, stage: str, size: tuple[Any, ...], seconds: float | None) -> None:
        if seconds is not None:
            values = self._measured.setdefault((stage, *size), deque(maxlen=_MEASUREMENTS))
            values.append(seconds)

    def _median(self, stage: str, *size: Any) -> float | None:
        values = self._measured.get((stage, *size))
        return statistics.median(values) if values else None

    def _step_seconds(self, job: Job) -> float | None:
        measured = self._median("step", *_size(job))
        if measured is not None:
            return measured
        cost = self._predict(job.clip.settings)
        return cost.denoise_seconds / job.clip.settings.num_inference_steps if cost else None


def _size(job: Job) -> tuple[Any, ...]:
    s = job.clip.settings
    return (s.height, s.width, s.num_frames, s.has_guidance, job.on_torch_attention)
