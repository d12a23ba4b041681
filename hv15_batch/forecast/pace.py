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

from hv15_batch.clock import Clock
from hv15_batch.dispatch.protocol import Died, Event, Finished, Job, Key, Note, Ready, Stepped
from hv15_batch.forecast._eta import EtaBasis, Measured, TimeLeft, time_left
from hv15_batch.forecast._underway import STEP as STEP
from hv15_batch.forecast._underway import Kind, Place, Underway, kind_of
from hv15_batch.forecast.forecast import Forecast, clip_cost_function, costs_by_model
from hv15_batch.forecast.seconds import ClipCost, write_seconds
from hv15_batch.model.shapes import Shape
from hv15_batch.model.step_cache import computed_seconds
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

_CLIP = "clip"
_IN_TURN = STAGES[STAGES.index(DENOISE) :]
"""What a clip goes through; `step` is a part of it, and `clip` the time from file to file."""


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
        num_workers: int = 1,
    ) -> None:
        """Begin with a prediction.

        Args:
            cost: Returns a clip's predicted seconds; only its proportions count without `prior`.
            prior: Basis of `cost`; None where nothing is known of this card before the first clip.
            has_latents: Whether a job will be decoded from saved latents.
            clock: The run's.
            todo: What is to be rendered.
            costs: The same as `cost`, by model, where models differ.
            num_workers: How many render at a time.
        """
        self._cost = cost
        self._costs = costs or {}
        self._basis = self._prior = prior
        self._has_latents = has_latents
        self._clock = clock
        self._lock = threading.Lock()
        self._left = {
            (p.clip.settings_sha256, p.repeat): kind_of(p.clip.settings, p.is_from_latents)
            for p in todo
        }
        self._measured: dict[str, dict[Kind, deque[Measured]]] = {
            stage: {} for stage in (STEP, *_IN_TURN, _CLIP)
        }
        self._is_outdated = False  # what is measured is of a profile that is no longer used
        self._rest: deque[float] = deque(maxlen=MAX_STAGES)  # of a clip, in none of its stages
        self._cold_rest: deque[float] = deque(maxlen=MAX_STAGES)
        self._warm_seconds: list[float] = []
        self._places = [Place() for _ in range(num_workers)]
        self._num_at_work = num_workers
        self._first_ratio = 0.0  # of a clip that is still being written, where nothing is known
        self._underway: dict[Key, Underway] = {}

    # -- what happens -------------------------------------------------------------------------

    def started_worker(self, worker: int = 0) -> None:
        """Note that the next clip has to wait until a worker has loaded its model."""
        with self._lock:
            self._lose_all(self._places[worker])

    def joined(self) -> None:
        """Note that one worker more renders, with the next number."""
        with self._lock:
            self._places.append(Place())
            self._num_at_work += 1

    def lost_worker(self) -> None:
        """Note that a worker is not replaced: the others do its work."""
        self._num_at_work -= 1

    def submitted(self, job: Job, worker: int = 0) -> None:
        """Note that a clip is started."""
        now, kind, place = self._clock.elapsed_seconds(), self._kind(job), self._places[worker]
        with self._lock:
            if not self._at(place):
                place.since = now
            self._left[job.key] = kind
            place.is_cold = place.is_cold_for(kind)
            place.model = kind.model
            place.on_device = Underway(job, kind, place, now, place.is_cold)
            self._underway[job.key] = place.on_device

    def added(self, jobs: Iterable[Job]) -> None:
        """Note clips that are rendered besides those of `todo`."""
        with self._lock:
            self._left.update((job.key, self._kind(job)) for job in jobs)

    def left_out(self, jobs: Iterable[Job]) -> None:
        """Note that clips are not rendered in this run."""
        with self._lock:
            for job in jobs:
                self._left.pop(job.key, None)

    def heard(self, event: Event, worker: int = 0) -> None:
        """Follow an event of a worker."""
        place = self._places[worker]
        with self._lock:
            match event:
                case Stepped(stage=stage) if stage in (DENOISE, DECODE):
                    self._stepped(event, place)
                case Ready():
                    self._ready(place)
                case Finished(job, record):
                    self._finished(job, record)
                case Died():
                    for clip in self._at(place):
                        self._left.pop(clip.job.key, None)  # until it is tried again
                    self._lose_all(place)
                case Note(offload=kind) if kind is not None:
                    self._is_outdated = True
                case _:
                    pass

    def _at(self, place: Place) -> list[Underway]:
        return [clip for clip in self._underway.values() if clip.place is place]

    def _lose_all(self, place: Place) -> None:
        for clip in self._at(place):
            del self._underway[clip.job.key]
        place.on_device = None
        place.is_cold = True

    def _stepped(self, event: Stepped, place: Place) -> None:
        clip = place.on_device
        if clip is None or clip.job.clip.clip_id != event.clip_id:
            return
        now = self._clock.elapsed_seconds()
        if clip.stage != event.stage:
            clip.stage, clip.stage_began = event.stage, now
        clip.step, clip.stepped = event.step, now
        clip.first = clip.first or (event.step, now)

    def _ready(self, place: Place) -> None:
        """Note that the clip on the device is decoded and is now being written."""
        place.is_cold = False
        clip, now = place.on_device, self._clock.elapsed_seconds()
        if clip is not None:
            clip.stage, clip.stage_began = WRITE, now
            nominal = self._nominal(clip.kind)
            if nominal[_CLIP]:
                self._first_ratio = (now - clip.began) / sum(nominal[stage] for stage in _IN_TURN)
            place.on_device = None

    def _finished(self, job: Job, record: ClipRecord) -> None:
        """Learn from a clip that has ended."""
        clip = self._underway.pop(job.key, None)
        if clip is None:
            return
        place = clip.place
        if clip is place.on_device:
            place.on_device = None
        self._left.pop(job.key, None)
        now = self._clock.elapsed_seconds()
        wall, place.since = now - place.since, now
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

    def _learn(self, kind: Kind, stages: dict[str, float | None], is_cold: bool) -> None:
        """Take what a clip took; cold clips count only until there is a warm one."""
        if not self._is_outdated and is_cold and self._basis is EtaBasis.measured:
            return
        if (nominal := self._nominal(kind))[_CLIP]:  # a small model tells nothing of other kinds
            if self._is_outdated or not (is_cold or self._basis is EtaBasis.measured):
                for kinds in self._measured.values():
                    kinds.clear()
            self._is_outdated = False
            self._basis = EtaBasis.first_clip if is_cold else EtaBasis.measured
        for stage, seconds in stages.items():
            if seconds is not None:
                most = MAX_CLIPS if stage == _CLIP else MAX_STAGES
                newest = self._measured[stage].setdefault(kind, deque(maxlen=most))
                ratio = seconds / nominal[stage] if nominal[_CLIP] and nominal[stage] else None
                newest.append(Measured(seconds, ratio))

    # -- what is expected of a clip -----------------------------------------------------------

    def expected(self, job: Job) -> dict[str, float]:
        """Return the seconds expected of `step`, `denoise`, `decode`, `write`; 0 means unknown."""
        clip = self._underway.get(job.key)
        return self._expected(clip.kind if clip else self._kind(job))

    def clip_seconds(self, job: Job, worker: int = 0) -> float:
        """Return in how many seconds a clip started now would be finished; 0 when not known."""
        kind = self._kind(job)
        return self._clip_seconds(kind, self._places[worker].is_cold_for(kind))

    def warm_seconds(self, job: Job) -> float:
        """Return how long a clip keeps a worker that is warm; only proportions count at first."""
        kind = self._kind(job)
        expected = self._expected(kind)
        found = expected[DENOISE] + expected[DECODE]
        return found or self._nominal(kind)[_CLIP]

    def remaining_seconds(self, jobs: Iterable[Job]) -> float:
        """Return in how many seconds these current clips will be finished; 0 when not known."""
        clips = [self._underway[job.key] for job in jobs if job.key in self._underway]
        return max(map(self._remaining_seconds, clips), default=0.0)

    def is_modelled(self, job: Job) -> bool:
        """Whether a clip's seconds say something about those of other kinds."""
        return self._nominal(self._kind(job))[_CLIP] > 0

    def has_denoised(self, job: Job) -> bool:
        """Whether a current clip is only being decoded or written: its latents are saved."""
        clip = self._underway.get(job.key)
        return clip is not None and clip.stage in (DECODE, WRITE)

    def lengths(self, denoise_share: float = 1.0) -> list[tuple[float, float]]:
        """Return for each clip that is left its seconds, and those of its writing.

        Several workers share the seconds.

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
            seconds /= max(self._num_at_work, 1)
            found += [(seconds, expected[WRITE])] * count
        return found

    @property
    def seconds_per_clip(self) -> float | None:
        """Median `record.clip_seconds` of warm clips that this run denoised; None without any."""
        return statistics.median(self._warm_seconds) if self._warm_seconds else None

    def _clip_seconds(self, kind: Kind, is_cold: bool) -> float:
        expected = self._expected(kind)
        rests = self._cold_rest if is_cold else self._rest
        return sum(expected[s] for s in _IN_TURN) + (statistics.median(rests) if rests else 0.0)

    def _remaining_seconds(self, clip: Underway) -> float:
        now, expected = self._clock.elapsed_seconds(), self._expected(clip.kind)
        if clip.stage is None:
            return max(self._clip_seconds(clip.kind, clip.is_cold) - (now - clip.began), 0.0)
        return clip.remaining_seconds(now, expected)

    def _kind(self, job: Job) -> Kind:
        return kind_of(job.clip.settings, self._has_latents(job), job.on_torch_attention)

    def _expected(self, kind: Kind) -> dict[str, float]:
        nominal, expected = self._nominal(kind), {}
        for stage in (STEP, *_IN_TURN):
            if own := self._measured[stage].get(kind):
                expected[stage] = statistics.median(m.seconds for m in own)
            else:
                expected[stage] = nominal[stage] * self._ratio(stage)
        return expected

    def _nominal(self, kind: Kind) -> dict[str, float]:
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
        ratios = {
            s: [m.ratio for newest in kinds.values() for m in newest if m.ratio is not None]
            for s, kinds in self._measured.items()
        }
        medians = {s: statistics.median(found) for s, found in ratios.items() if found}
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
            now = self._clock.elapsed_seconds()
            current = []
            for place in self._places:
                if clips := self._at(place):
                    current.append(((place.on_device or clips[0]).kind, now - place.since))
            counts = Counter(self._left.values())
            nominal = {kind: self._nominal(kind)[_CLIP] for kind in counts}
            measured = self._measured[_CLIP]
            return time_left(
                counts, nominal, measured, self._basis, current, max(self._num_at_work, 1)
            )


def make_pace(
    forecast: Forecast | None,
    run_dir: RunDir,
    clock: Clock,
    todo: Iterable[PlannedClip] = (),
    num_workers: int = 1,
) -> Pace:
    """Return what predicts the clips of a run.

    Args:
        forecast: The card's; None where nothing is known of it. Costs are only compared then, and
            there is no estimate before the first clip.
        run_dir: Has the latents.
        clock: The run's.
        todo: What is to be rendered.
        num_workers: How many render at a time.
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
    todo = list(todo)
    costs = costs_by_model(forecast, todo)
    return Pace(
        cost,
        prior=prior,
        has_latents=has_latents,
        clock=clock,
        todo=todo,
        costs=costs,
        num_workers=num_workers,
    )
