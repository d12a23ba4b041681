"""When a run will be over: measured clips, scaled by predicted cost to the clips that remain.

Clips of one kind (size, frames, steps, guidance, from latents or not) are expected to take as long
as those of it that were measured. A kind that was not measured yet is scaled from the others by the
ratio of predicted costs, so that a short clip says something about a long one and never counts as
one. No torch.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from enum import Enum

from hv15_batch.clip import ClipSettings
from hv15_batch.forecast.forecast import Forecast, clip_cost_function
from hv15_batch.forecast.seconds import ClipCost
from hv15_batch.model.shapes import Shape
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.record import FAILED, ClipRecord

NORMAL_90 = 1.2816
"""90 % quantile of the normal distribution."""
STUDENT_90 = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372)
"""The same of Student's t for 1, 2, ... degrees of freedom: few clips say little of the spread."""
ASSUMED_SPREAD = {"estimated": 0.3, "calibrated": 0.1, "first_clip": 0.1, "measured": 0.1}
"""Relative deviation by basis, assumed where fewer than two clips tell it."""


class EtaBasis(Enum):
    """What an expected end rests on."""

    estimated = "estimated"
    """Vendor figures of the card."""
    calibrated = "calibrated"
    """The same, corrected by logs of this card."""
    first_clip = "first_clip"
    """This run's first clip, whose stages include warming up."""
    measured = "measured"
    """This run's warm clips."""


@dataclass(frozen=True)
class TimeLeft:
    """Seconds that are left with a probability of 50 and of 90 %."""

    p50_seconds: float
    p90_seconds: float
    basis: EtaBasis


@dataclass(frozen=True)
class _Kind:
    """Clips that are expected to take the same time."""

    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    has_guidance: bool
    has_image: bool
    is_decoded_only: bool

    @classmethod
    def of(cls, settings: ClipSettings, is_decoded_only: bool) -> _Kind:
        shape = (settings.height, settings.width, settings.num_frames)
        steps, guidance = settings.num_inference_steps, settings.has_guidance
        return cls(*shape, steps, guidance, settings.has_image, is_decoded_only)

    def seconds_of(self, cost: ClipCost) -> float:
        return cost.decode_seconds if self.is_decoded_only else cost.seconds


class EtaEstimator:
    """Keeps what remains and what was measured; may be asked from any thread."""

    def __init__(self, todo: Iterable[PlannedClip], forecast: Forecast | None) -> None:
        """Begin with the clips of a run.

        Args:
            todo: What is to be rendered; a clip that is rendered twice is in it twice.
            forecast: The card's; None where nothing is known of it. Costs are only compared then,
                and there is no estimate before the first clip.
        """
        self._lock = threading.Lock()
        self._cost = clip_cost_function(forecast)
        self._prior = _prior(forecast)
        self._settings: dict[str, ClipSettings] = {}
        self._kinds: dict[str, _Kind] = {}
        self._left: Counter[str] = Counter()
        self._in_hand: str | None = None
        self._measured: dict[EtaBasis, dict[_Kind, list[float]]] = {
            EtaBasis.measured: {},
            EtaBasis.first_clip: {},
        }
        for planned in todo:
            clip = planned.clip
            self._settings[clip.clip_id] = clip.settings
            is_decoded_only = planned.is_from_latents
            self._kinds[clip.clip_id] = _Kind.of(clip.settings, is_decoded_only)
            self._left[clip.clip_id] += 1

    def started(self, clip_id: str) -> None:
        """Note the clip in hand; one that had failed is being tried again."""
        with self._lock:
            if clip_id in self._kinds:
                self._in_hand = clip_id
                self._left[clip_id] = max(self._left[clip_id], 1)

    def finished(self, record: ClipRecord, seconds: float) -> None:
        """Take an ended attempt.

        Args:
            record: What became of it.
            seconds: What it took of the run's time.
        """
        clip_id = record.clip_id
        with self._lock:
            if clip_id is None or clip_id not in self._kinds:
                return
            self._left[clip_id] = max(self._left[clip_id] - 1, 0)
            if self._in_hand == clip_id:
                self._in_hand = None
            if record.status == FAILED:
                return
            is_decoded_only = record.denoise_attempt != record.attempt
            kind = _Kind.of(self._settings[clip_id], is_decoded_only)
            basis = EtaBasis.first_clip if record.is_cold else EtaBasis.measured
            if record.is_cold:  # less loading and encoding, which do not come again
                seconds = _own_seconds(record) or seconds
            self._measured[basis].setdefault(kind, []).append(seconds)

    def left(self, elapsed_seconds: float) -> TimeLeft | None:
        """Return how long the rest will take; None where nothing is known.

        Args:
            elapsed_seconds: Since the last clip was finished: what the one in hand took already.
        """
        with self._lock:
            counts: Counter[_Kind] = Counter()
            for clip_id, count in self._left.items():
                counts[self._kinds[clip_id]] += count
            basis = self._basis()
            if basis is None:
                return None
            total, deviation = self._total(counts, basis)
            in_hand = self._in_hand or next((c for c, n in self._left.items() if n), None)
            if in_hand is not None:
                expected, _ = self._total(Counter({self._kinds[in_hand]: 1}), basis)
                total -= min(max(elapsed_seconds, 0.0), expected)
            total = max(total, 0.0)
            return TimeLeft(total, total + NORMAL_90 * deviation, basis)

    def _basis(self) -> EtaBasis | None:
        for basis in (EtaBasis.measured, EtaBasis.first_clip):
            if self._measured[basis]:
                return basis
        return self._prior

    def _total(self, counts: Counter[_Kind], basis: EtaBasis) -> tuple[float, float]:
        """Return expected seconds of these clips, and their standard deviation.

        The mean, not the median: a sum is asked for, and rare long clips are part of it.
        """
        measured = self._measured.get(basis, {})
        spread = ASSUMED_SPREAD[basis.name]
        total = variance = unseen = 0.0
        for kind, count in counts.items():
            seconds = measured.get(kind)
            if seconds is None:
                unseen += count * self._predicted(kind)
                continue
            mean, deviation = _mean_and_deviation(seconds, spread)
            total += count * mean
            # Each clip by itself, and the error of the mean, which all of them share.
            variance += deviation**2 * (count + count**2 / len(seconds))
        if unseen:
            ratios = [s / self._predicted(k) for k, values in measured.items() for s in values]
            mean, deviation = _mean_and_deviation(ratios or [1.0], spread)
            total += unseen * mean
            # How far a prediction is off is the same for every clip of a kind: no averaging.
            variance += (unseen * max(deviation, spread * mean)) ** 2
        return total, math.sqrt(variance)

    def _predicted(self, kind: _Kind) -> float:
        return kind.seconds_of(self._cost(Shape(*astuple(kind)[:-1])))


def _prior(forecast: Forecast | None) -> EtaBasis | None:
    if forecast is None:
        return None
    return EtaBasis.calibrated if forecast.is_calibrated else EtaBasis.estimated


def _own_seconds(record: ClipRecord) -> float:
    return sum(s for s in (record.denoise_seconds, record.decode_seconds) if s is not None)


def _mean_and_deviation(values: list[float], assumed: float) -> tuple[float, float]:
    """Return mean and deviation; the latter is widened for few values, assumed for one."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, assumed * mean
    freedom = len(values) - 1
    quantile = STUDENT_90[freedom - 1] if freedom <= len(STUDENT_90) else NORMAL_90
    return mean, statistics.stdev(values) * quantile / NORMAL_90
