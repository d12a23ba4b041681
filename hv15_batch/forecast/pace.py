"""How long clips take: the forecast, corrected by what this run has measured. No torch.

This is the one place where a run learns durations. A clip is expected to take as long as the
measured clips of its kind: size, frames, steps, guidance, from latents or not. For a kind without a
measurement, the times of other kinds are scaled by the ratio of predicted costs.
"""

from __future__ import annotations

import statistics
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hv15_batch.clip import ClipSettings
from hv15_batch.clock import Clock
from hv15_batch.dispatch.protocol import Died, Event, Finished, Job, Key, Note, Ready, Stepped
from hv15_batch.forecast._eta import EtaBasis, Measured, TimeLeft, time_left
from hv15_batch.forecast.forecast import Forecast, clip_cost_function
from hv15_batch.forecast.seconds import ClipCost, write_seconds
from hv15_batch.model.shapes import Shape
from hv15_batch.model.step_cache import computed_seconds, parse_step_cache
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.record import (
    DECODE,
    DENOISE,
    FAILED,
    STAGES,
    WRITE,
    ClipRecord,
    clip_seconds,
    is_denoised_here,
)
from hv15_batch.rundir.paths import RunDir

MAX_STAGES = 5
"""Newest clips that count for a stage, so that a card that slows down is noticed soon."""
MAX_CLIPS = 100
"""Whole clips that count for the predicted end, which needs their spread too."""

STEP, _CLIP = "step", "clip"
_IN_TURN = STAGES[STAGES.index(DENOISE) :]
"""What a clip goes through; `step` is a part of it, and `clip` the time from file to file."""


class _Kind(NamedTuple):
    """Clips that are expected to take the same time."""

    shape: Shape
    is_decoded_only: bool
    on_torch_attention: bool
    model: str


def _kind(settings: ClipSettings, is_decoded_only: bool, on_torch_attention: bool = False) -> _Kind:
    return _Kind(Shape.of(settings), is_decoded_only, on_torch_attention, settings.model)


@dataclass
class _Underway:
    """How far a clip is; times are seconds on the run's clock."""

    job: Job
    kind: _Kind
    began: float
    is_cold: bool
    stage: str | None = None
    stage_began: float = 0.0
    step: int = 0
    stepped: float = 0.0
    first: tuple[int, float] | None = None
    """The first step seen, and when."""


class Pace:
    """Predicts clips, and learns from those that this run finishes.

    `left` may be asked from any thread, all else from the one that gives the events.
    """

    def __init__(
        self,
        cost: Callable[[Shape], ClipCost],
        *,
        prior: EtaBasis | None,
        has_latents: Callable[[Job], bool],
        clock: Clock,
        todo: Iterable[PlannedClip] = (),
        costs: Mapping[str, Callable[[Shape], ClipCost]] | None = None,
    ) -> None:
        """Begin with a prediction.

        Args:
            cost: Returns a clip's predicted seconds; only its proportions count without `prior`.
            prior: Basis of `cost`; None where nothing is known of this card before the first clip.
            has_latents: Whether a job will be decoded from saved latents.
            clock: The run's.
            todo: What is to be rendered.
            costs: The same as `cost`, by model, where models differ.
        """
        self._cost = cost
        self._costs = costs or {}
        self._basis = self._prior = prior
        self._has_latents = has_latents
        self._clock = clock
        self._lock = threading.Lock()
        self._left = {
            (p.clip.settings_sha256, p.repeat): _kind(p.clip.settings, p.is_from_latents)
            for p in todo
        }
        self._measured: dict[str, dict[_Kind, deque[Measured]]] = {
            stage: {} for stage in (STEP, *_IN_TURN, _CLIP)
        }
        self._is_outdated = False  # what is measured is of a profile that is no longer used
        self._rest: deque[float] = deque(maxlen=MAX_STAGES)  # of a clip, in none of its stages
        self._cold_rest: deque[float] = deque(maxlen=MAX_STAGES)
        self._warm_seconds: list[float] = []
        self._is_cold = True  # the next clip waits for a worker that loads its model
        self._model: str | None = None  # of the last clip: another one is loaded first
        self._first_ratio = 0.0  # of a clip that is still being written, where nothing is known
        self._underway: dict[Key, _Underway] = {}
        self._on_device: _Underway | None = None
        self._since = 0.0  # the last file was finished, or a worker that had nothing got a clip

    # -- what happens -------------------------------------------------------------------------

    def started_worker(self) -> None:
        """Note that the next clip has to wait until a worker has loaded its model."""
        with self._lock:
            self._lose_all()

    def submitted(self, job: Job) -> None:
        """Note that a clip is started."""
        now, kind = self._clock.elapsed_seconds(), self._kind(job)
        with self._lock:
            if not self._underway:
                self._since = now
            self._left[job.key] = kind
            self._is_cold = self._is_cold_for(kind)
            self._model = kind.model
            self._on_device = _Underway(job, kind, now, self._is_cold)
            self._underway[job.key] = self._on_device

    def left_out(self, jobs: Iterable[Job]) -> None:
        """Note that clips are not rendered in this run."""
        with self._lock:
            for job in jobs:
                self._left.pop(job.key, None)

    def heard(self, event: Event) -> None:
        """Follow an event of the worker."""
        with self._lock:
            match event:
                case Stepped(stage=stage) if stage in (DENOISE, DECODE):
                    self._stepped(event)
                case Ready():
                    self._ready()
                case Finished(job, record):
                    self._finished(job, record)
                case Died():
                    for key in self._underway:
                        self._left.pop(key, None)  # until it is tried again
                    self._lose_all()
                case Note(offload=kind) if kind is not None:
                    self._is_outdated = True
                case _:
                    pass

    def _lose_all(self) -> None:
        self._underway.clear()
        self._on_device = None
        self._is_cold = True

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
            clip.stage, clip.stage_began = WRITE, now
            nominal = self._nominal(clip.kind)
            self._first_ratio = (now - clip.began) / sum(nominal[stage] for stage in _IN_TURN)
            self._on_device = None

    def _finished(self, job: Job, record: ClipRecord) -> None:
        """Learn from a clip that has ended."""
        clip = self._underway.pop(job.key, None)
        if clip is None:
            return
        if clip is self._on_device:
            self._on_device = None
        self._left.pop(job.key, None)
        now = self._clock.elapsed_seconds()
        wall, self._since = now - self._since, now
        if record.status == FAILED:
            return
        is_own = is_denoised_here(vars(record))
        computed = computed_seconds(record.step_seconds or (), record.cache)
        stages = {
            STEP: statistics.median(computed) if computed else None,
            DENOISE: record.denoise_seconds,
            DECODE: record.decode_seconds,
            WRITE: record.write_seconds,
        }
        if not is_own:
            stages[STEP] = stages[DENOISE] = None
        rest = now - clip.began - sum(stages[stage] or 0.0 for stage in _IN_TURN)
        (self._cold_rest if clip.is_cold else self._rest).append(max(rest, 0.0))
        if is_own and not record.is_cold and (seconds := clip_seconds(vars(record))) is not None:
            self._warm_seconds.append(seconds)
        # Two files may be finished at once while one clip takes as long as ever; and what comes
        # once, loading and encoding, says nothing of the clips to come.
        busy = (stages[DENOISE] or 0.0) + (stages[DECODE] or 0.0)
        stages[_CLIP] = busy or wall if record.is_cold else max(wall, busy)
        self._learn(clip.kind._replace(is_decoded_only=not is_own), stages, bool(record.is_cold))

    def _learn(self, kind: _Kind, stages: dict[str, float | None], is_cold: bool) -> None:
        """Take what a clip took; cold clips count only until there is a warm one."""
        if not self._is_outdated and is_cold and self._basis is EtaBasis.measured:
            return
        if self._is_outdated or not (is_cold or self._basis is EtaBasis.measured):
            for kinds in self._measured.values():
                kinds.clear()
        self._is_outdated = False
        self._basis = EtaBasis.first_clip if is_cold else EtaBasis.measured
        nominal = self._nominal(kind)
        for stage, seconds in stages.items():
            if seconds is not None and nominal[stage] > 0:
                most = MAX_CLIPS if stage == _CLIP else MAX_STAGES
                newest = self._measured[stage].setdefault(kind, deque(maxlen=most))
                newest.append(Measured(seconds, seconds / nominal[stage]))

    # -- what is expected of a clip -----------------------------------------------------------

    def expected(self, job: Job) -> dict[str, float]:
        """Return the seconds expected of `step`, `denoise`, `decode`, `write`; 0 means unknown."""
        clip = self._underway.get(job.key)
        return self._expected(clip.kind if clip else self._kind(job))

    def clip_seconds(self, job: Job) -> float:
        """Return in how many seconds a clip started now would be finished; 0 when not known."""
        kind = self._kind(job)
        return self._clip_seconds(kind, self._is_cold_for(kind))

    def remaining_seconds(self, jobs: Iterable[Job]) -> float:
        """Return in how many seconds these current clips will be finished; 0 when not known."""
        clips = [self._underway[job.key] for job in jobs if job.key in self._underway]
        return max(map(self._remaining_seconds, clips), default=0.0)

    def has_denoised(self, job: Job) -> bool:
        """Whether a current clip is only being decoded or written: its latents are saved."""
        clip = self._underway.get(job.key)
        return clip is not None and clip.stage in (DECODE, WRITE)

    def lengths(self, denoise_share: float = 1.0) -> list[tuple[float, float]]:
        """Return for each clip that is left its seconds, and those of its writing.

        Args:
            denoise_share: Of the expected seconds of denoising, where what was measured of them
                includes work that does not come again.
        """
        with self._lock:
            kinds = Counter(self._left.values())
        found = []
        for kind, count in kinds.items():
            expected = self._expected(kind)
            seconds = denoise_share * expected[DENOISE] + expected[DECODE]
            found += [(seconds, expected[WRITE])] * count
        return found

    @property
    def seconds_per_clip(self) -> float | None:
        """Median of `record.clip_seconds` of this run's warm clips that it denoised itself.

        None before the first.
        """
        return statistics.median(self._warm_seconds) if self._warm_seconds else None

    def _clip_seconds(self, kind: _Kind, is_cold: bool) -> float:
        expected = self._expected(kind)
        rests = self._cold_rest if is_cold else self._rest
        return sum(expected[s] for s in _IN_TURN) + (statistics.median(rests) if rests else 0.0)

    def _remaining_seconds(self, clip: _Underway) -> float:
        now = self._clock.elapsed_seconds()
        expected = self._expected(clip.kind)
        if clip.stage is None:
            return max(self._clip_seconds(clip.kind, clip.is_cold) - (now - clip.began), 0.0)
        if clip.stage == DENOISE:
            settings = clip.job.clip.settings
            steps = settings.num_inference_steps
            if settings.cache is not None:
                cache = parse_step_cache(settings.cache)
                num_left = sum(cache.computes(step) for step in range(clip.step, steps))
                left = max(num_left * expected[STEP] - (now - clip.stepped), 0.0)
                return left + expected[DECODE] + expected[WRITE]
            assert clip.first is not None
            first, since = clip.first
            per_step = expected[DENOISE] / steps
            if clip.step > first:
                per_step = (clip.stepped - since) / (clip.step - first)
            left = max((steps - clip.step) * per_step - (now - clip.stepped), 0.0)
            return left + expected[DECODE] + expected[WRITE]
        left = max(expected.get(clip.stage, 0.0) - (now - clip.stage_began), 0.0)
        return left + (expected[WRITE] if clip.stage == DECODE else 0.0)

    def _kind(self, job: Job) -> _Kind:
        return _kind(job.clip.settings, self._has_latents(job), job.on_torch_attention)

    def _is_cold_for(self, kind: _Kind) -> bool:
        return self._is_cold or kind.model != self._model

    def _expected(self, kind: _Kind) -> dict[str, float]:
        nominal, expected = self._nominal(kind), {}
        for stage in (STEP, *_IN_TURN):
            if own := self._measured[stage].get(kind):
                expected[stage] = statistics.median(m.seconds for m in own)
            else:
                expected[stage] = nominal[stage] * self._ratio(stage)
        return expected

    def _nominal(self, kind: _Kind) -> dict[str, float]:
        cost = self._costs.get(kind.model, self._cost)(kind.shape)
        denoise = 0.0 if kind.is_decoded_only else cost.denoise_seconds
        return {
            STEP: denoise / kind.shape.num_computed_steps,
            DENOISE: denoise,
            DECODE: cost.decode_seconds,
            WRITE: write_seconds(kind.shape),
            _CLIP: denoise + cost.decode_seconds,  # writing runs beside the next clip
        }

    def _ratio(self, stage: str) -> float:
        """Return measured over nominal seconds, of all kinds."""
        medians = {
            s: statistics.median(m.ratio for newest in kinds.values() for m in newest)
            for s, kinds in self._measured.items()
            if kinds
        }
        if stage in medians:
            return medians[stage]
        if self._prior is not None:
            return 1.0
        return max((medians[s] for s in _IN_TURN if s in medians), default=self._first_ratio)

    # -- when all will be done ----------------------------------------------------------------

    def left(self) -> TimeLeft | None:
        """Return how long the rest of the run will take; None where nothing is known."""
        with self._lock:
            if self._basis is None:
                return None
            clip, passed = None, 0.0
            if self._underway:
                clip = (self._on_device or next(iter(self._underway.values()))).kind
                passed = self._clock.elapsed_seconds() - self._since
            counts = Counter(self._left.values())
            nominal = {kind: self._nominal(kind)[_CLIP] for kind in counts}
            return time_left(counts, nominal, self._measured[_CLIP], self._basis, clip, passed)


def make_pace(
    forecast: Forecast | None, run_dir: RunDir, clock: Clock, todo: Iterable[PlannedClip] = ()
) -> Pace:
    """Return what predicts the clips of a run.

    Args:
        forecast: The card's; None where nothing is known of it. Costs are only compared then, and
            there is no estimate before the first clip.
        run_dir: Has the latents.
        clock: The run's.
        todo: What is to be rendered.
    """
    stored = run_dir.stored()
    in_store = stored.latents if stored else {}

    def has_latents(job: Job) -> bool:
        sha256 = job.clip.denoise_sha256
        return job.use_latents and (sha256 in in_store or run_dir.latents_file(sha256).is_file())

    prior = None
    if forecast is not None:
        is_calibrated = all(own.is_calibrated for own in forecast.each)
        prior = EtaBasis.calibrated if is_calibrated else EtaBasis.estimated
    cost = clip_cost_function(forecast)
    costs = {name: own.clip_cost for name, own in forecast.further.items()} if forecast else {}
    return Pace(cost, prior=prior, has_latents=has_latents, clock=clock, todo=todo, costs=costs)
