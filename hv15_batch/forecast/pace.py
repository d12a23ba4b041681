"""How long clips take: the forecast, scaled by what this run has measured. No torch."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hv15_batch.clip import ClipSettings
from hv15_batch.clock import Clock
from hv15_batch.dispatch.protocol import Event, Finished, Job, Key, Ready, Stepped
from hv15_batch.forecast.seconds import ClipCost
from hv15_batch.record import FAILED, ClipRecord

WRITE_PIXELS_PER_SECOND = 15e6
"""Assumed of x264's `medium` on a desktop CPU, until the first clip is written."""
MAX_MEASURED = 5
"""The newest clips count, so that a run that has gone down the ladder is soon judged by it."""

_DENOISE, _DECODE, _WRITE = "denoise", "decode", "write"


@dataclass
class _InHand:
    """How far a clip is; times are seconds on the run's clock."""

    job: Job
    began: float
    is_cold: bool
    nominal_seconds: float
    stage: str | None = None
    stage_began: float = 0.0
    step: int = 0
    stepped: float = 0.0
    first: tuple[int, float] | None = None
    """The first step seen, and when."""


class Pace:
    """Predicts clips, and learns from those that this run finishes."""

    def __init__(
        self,
        cost: Callable[[ClipSettings], ClipCost],
        *,
        is_forecast: bool,
        has_latents: Callable[[Job], bool],
        clock: Clock,
    ) -> None:
        """Start with a prediction.

        Args:
            cost: Returns a clip's predicted seconds; only its proportions count if not
                `is_forecast`.
            is_forecast: Whether `cost` is about this card: otherwise nothing is known before the
                first clip.
            has_latents: Whether a job will be decoded from saved latents.
            clock: The run's.
        """
        self._cost = cost
        self._is_forecast = is_forecast
        self._has_latents = has_latents
        self._clock = clock
        self._ratios = {stage: _newest() for stage in (_DENOISE, _DECODE, _WRITE)}
        self._rest = _newest()
        self._cold_rest = _newest()
        self._is_cold = True  # the next clip waits for a worker that loads its model
        self._has_warm = False
        self._first_ratio = 0.0  # of a clip that is still being written, where nothing is known
        self._in_hand: dict[Key, _InHand] = {}
        self._on_device: _InHand | None = None

    # -- what happens -------------------------------------------------------------------------

    def started_worker(self) -> None:
        """Note that the next clip has to wait until a worker has loaded its model."""
        self._in_hand.clear()
        self._on_device = None
        self._is_cold = True

    def submitted(self, job: Job) -> None:
        """Note that a clip is begun."""
        nominal = sum(self._nominal(job, self._has_latents(job)).values())
        self._on_device = _InHand(job, self._clock.elapsed_seconds(), self._is_cold, nominal)
        self._in_hand[job.key] = self._on_device

    def heard(self, event: Event) -> None:
        """Follow an event of the worker."""
        match event:
            case Stepped(stage="denoise" | "decode"):
                self._stepped(event)
            case Ready():
                self._ready()
            case Finished(job, record):
                self._finished(job, record)
            case _:
                pass

    def _stepped(self, event: Stepped) -> None:
        clip = self._on_device
        if clip is None or clip.job.clip.clip_id != event.clip_id:
            return
        now = self._clock.elapsed_seconds()
        if clip.stage != event.stage:
            clip.stage, clip.stage_began = event.stage, now
        clip.step, clip.stepped = event.step, now
        clip.first = clip.first or (event.step, now)

    def _ready(self) -> None:
        """Note that the clip on the device is decoded and is now being written."""
        self._is_cold = False
        clip, now = self._on_device, self._clock.elapsed_seconds()
        if clip is not None:
            clip.stage, clip.stage_began = _WRITE, now
            self._first_ratio = (now - clip.began) / clip.nominal_seconds
            self._on_device = None

    def _finished(self, job: Job, record: ClipRecord) -> None:
        """Learn from a clip that has ended."""
        clip = self._in_hand.pop(job.key, None)
        if clip is None or record.status == FAILED:
            return
        is_cold = clip.is_cold or bool(record.is_cold)
        if not is_cold and not self._has_warm:
            self._has_warm = True
            for ratios in self._ratios.values():
                ratios.clear()
        measured = {
            _DENOISE: record.denoise_seconds if record.denoise_attempt == record.attempt else None,
            _DECODE: record.decode_seconds,
            _WRITE: record.write_seconds,
        }
        for stage, nominal in self._nominal(job, has_latents=False).items():
            seconds = measured[stage]
            if seconds is not None and nominal > 0 and not (is_cold and self._has_warm):
                self._ratios[stage].append(seconds / nominal)
        known = sum(seconds for seconds in measured.values() if seconds is not None)
        rest = self._clock.elapsed_seconds() - clip.began - known
        (self._cold_rest if clip.is_cold else self._rest).append(max(rest, 0.0))

    # -- what is expected ---------------------------------------------------------------------

    def clip_seconds(self, job: Job) -> float:
        """Return in how many seconds a clip begun now would be finished; 0 when not known."""
        return self._clip_seconds(job, self._is_cold)

    def remaining_seconds(self, jobs: Iterable[Job]) -> float:
        """Return in how many seconds these clips in hand will be finished; 0 when not known."""
        clips = [self._in_hand[job.key] for job in jobs if job.key in self._in_hand]
        return max(map(self._remaining_seconds, clips), default=0.0)

    def has_denoised(self, job: Job) -> bool:
        """Whether a clip in hand is only being decoded or written: its latents are saved."""
        clip = self._in_hand.get(job.key)
        return clip is not None and clip.stage in (_DECODE, _WRITE)

    def _clip_seconds(self, job: Job, is_cold: bool) -> float:
        seconds = sum(self._expected(job).values())
        rests = self._cold_rest if is_cold else self._rest
        return seconds + (statistics.median(rests) if rests else 0.0)

    def _remaining_seconds(self, clip: _InHand) -> float:
        now = self._clock.elapsed_seconds()
        expected = self._expected(clip.job)
        if clip.stage is None:
            return max(self._clip_seconds(clip.job, clip.is_cold) - (now - clip.began), 0.0)
        if clip.stage == _DENOISE:
            steps = clip.job.clip.settings.num_inference_steps
            assert clip.first is not None
            first, since = clip.first
            per_step = expected[_DENOISE] / steps
            if clip.step > first:
                per_step = (clip.stepped - since) / (clip.step - first)
            left = max((steps - clip.step) * per_step - (now - clip.stepped), 0.0)
            return left + expected[_DECODE] + expected[_WRITE]
        left = max(expected.get(clip.stage, 0.0) - (now - clip.stage_began), 0.0)
        return left + (expected[_WRITE] if clip.stage == _DECODE else 0.0)

    def _expected(self, job: Job) -> dict[str, float]:
        nominal = self._nominal(job, self._has_latents(job))
        return {stage: seconds * self._ratio(stage) for stage, seconds in nominal.items()}

    def _nominal(self, job: Job, has_latents: bool) -> dict[str, float]:
        s = job.clip.settings
        cost = self._cost(s)
        return {
            _DENOISE: 0.0 if has_latents else cost.denoise_seconds,
            _DECODE: cost.decode_seconds,
            _WRITE: s.height * s.width * s.num_frames / WRITE_PIXELS_PER_SECOND,
        }

    def _ratio(self, stage: str) -> float:
        """Return measured over nominal seconds."""
        if ratios := self._ratios[stage]:
            return statistics.median(ratios)
        if self._is_forecast:
            return 1.0
        return max(
            (statistics.median(r) for r in self._ratios.values() if r), default=self._first_ratio
        )


def _newest() -> deque[float]:
    return deque(maxlen=MAX_MEASURED)
