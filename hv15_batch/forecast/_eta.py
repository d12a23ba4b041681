"""When a run will end: the sum over its clips, and its uncertainty. Arithmetic, no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeVar

NORMAL_90 = 1.2816
"""90 % quantile of the normal distribution."""
STUDENT_90 = (3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372)
"""90 % quantile of Student's t for 1, 2, ... degrees of freedom: few clips say little about the
spread."""
ASSUMED_SPREAD = {"estimated": 0.3, "calibrated": 0.1, "first_clip": 0.1, "measured": 0.1}
"""Relative standard deviation by basis, assumed until two clips were measured."""

Kind = TypeVar("Kind", bound=Hashable)
"""Clips that are expected to take the same time."""


class EtaBasis(Enum):
    """The basis of a predicted end."""

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


class Measured(NamedTuple):
    """What something took, in seconds and relative to what was predicted."""

    seconds: float
    ratio: float | None
    """None where nothing was predicted, so that it says nothing about other kinds."""


def time_left(
    counts: Mapping[Kind, int],
    predicted: Mapping[Kind, float],
    measured: Mapping[Kind, Iterable[Measured]],
    basis: EtaBasis,
    current: Kind | None = None,
    passed_seconds: float = 0.0,
) -> TimeLeft:
    """Return how long clips will take, one after another.

    Args:
        counts: Clips that are left, by kind, the current one included.
        predicted: Seconds of a clip of each of these kinds; only proportions count once
            something is measured.
        measured: What clips took, by kind; may lack kinds of `counts` and have others.
        basis: Basis of `measured`, or of `predicted` where nothing was measured.
        current: Kind of the clip that is being rendered, if any.
        passed_seconds: What that one has taken so far; at most its expected time counts.
    """
    spread = ASSUMED_SPREAD[basis.name]
    known = {kind: [m.seconds for m in found] for kind, found in measured.items()}
    each = (m.ratio for found in measured.values() for m in found)
    ratios = [ratio for ratio in each if ratio is not None] or [1.0]
    ratio, ratio_deviation = _mean_and_deviation(ratios, spread)
    total = variance = unseen = 0.0
    for kind, count in counts.items():
        if kind in known:
            # The mean and no median: the result is a sum, and rare long clips are part of it.
            mean, deviation = _mean_and_deviation(known[kind], spread)
            # Each clip by itself, and the error of the mean, which all of them share.
            variance += deviation**2 * (count + count**2 / len(known[kind]))
        else:
            mean = predicted[kind] * ratio
            unseen += count * predicted[kind]
        total += count * mean
        if kind == current:
            total -= min(passed_seconds, mean)
    # A prediction has the same error for every clip of a kind, so errors do not average out.
    variance += (unseen * max(ratio_deviation, spread * ratio)) ** 2
    return TimeLeft(total, total + NORMAL_90 * math.sqrt(variance), basis)


def _mean_and_deviation(values: list[float], assumed: float) -> tuple[float, float]:
    """Return mean and deviation; the latter is widened for few values, assumed for one."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, assumed * mean
    freedom = len(values) - 1
    quantile = STUDENT_90[freedom - 1] if freedom <= len(STUDENT_90) else NORMAL_90
    return mean, statistics.stdev(values) * quantile / NORMAL_90
