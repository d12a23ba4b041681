"""When a run will end: the sum over its clips, and its uncertainty. Arithmetic, no torch."""

from __future__ import annotations

import heapq
import math
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import NamedTuple, TypeVar

from hv15_batch.planning.next_group import next_group

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
    current: Iterable[tuple[Kind, float]] = (),
    num_workers: int = 1,
) -> TimeLeft:
    """Return how long clips will take, one after another on each worker.

    Args:
        counts: Clips that are left, by kind, the current ones included.
        predicted: Seconds of a clip of each of these kinds; only proportions count once
            something is measured.
        measured: What clips took, by kind; may lack kinds of `counts` and have others.
        basis: Basis of `measured`, or of `predicted` where nothing was measured.
        current: Of each clip that is being rendered, its kind and the seconds that it has taken so
            far; at most its expected time counts.
        num_workers: How many render at a time. Several are idle for a part of a clip at the end:
            (1 - 1 / n) / 2 of the shortest one, the mean over all numbers of equal clips, while
            more clips wait than there are workers. No end is before that of the longest clip.
    """
    spread = ASSUMED_SPREAD[basis.name]
    known = {kind: [m.seconds for m in found] for kind, found in measured.items()}
    each = (m.ratio for found in measured.values() for m in found)
    ratios = [ratio for ratio in each if ratio is not None] or [1.0]
    ratio, ratio_deviation = _mean_and_deviation(ratios, spread)
    total = variance = unseen = 0.0
    means = {}
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
        means[kind] = mean
    # Of each current clip what is left of it, and of the others their kinds.
    begun = [(kind, max(means[kind] - passed, 0.0)) for kind, passed in current if kind in means]
    waiting = Counter(counts)
    waiting.subtract(Counter(kind for kind, _ in begun))
    total -= sum(means[kind] for kind, _ in begun) - sum(left for _, left in begun)
    # A prediction has the same error for every clip of a kind, so errors do not average out.
    variance += (unseen * max(ratio_deviation, spread * ratio)) ** 2
    tail = 0.0
    if sum(waiting.values()) > num_workers:
        tail = min(means.values()) * (1 - 1 / num_workers) / 2
    longest = max(
        [*(left for _, left in begun), *(means[k] for k, n in waiting.items() if n > 0)],
        default=0.0,
    )
    p50 = max(total / num_workers + tail, longest)
    return TimeLeft(p50, p50 + NORMAL_90 * math.sqrt(variance) / num_workers, basis)


def _mean_and_deviation(values: list[float], assumed: float) -> tuple[float, float]:
    """Return mean and deviation; the latter is widened for few values, assumed for one."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, assumed * mean
    freedom = len(values) - 1
    quantile = STUDENT_90[freedom - 1] if freedom <= len(STUDENT_90) else NORMAL_90
    return mean, statistics.stdev(values) * quantile / NORMAL_90


@dataclass(frozen=True)
class Course:
    """How a run goes on several workers."""

    seconds: float
    """From the start until the last file is written."""
    idle_seconds: float
    """How long a worker has nothing to do at the end, in the mean over all workers."""
    ready_seconds: Sequence[float]
    """When each clip is decoded, in that order."""


def course(
    work: Iterable[tuple[Kind, float]],
    num_workers: int,
    load_seconds: Callable[[Kind | None, Kind], float],
    first_seconds: float,
    last_seconds: float,
) -> Course:
    """Return how clips go on several workers, each of which takes the longest that is left.

    A free worker keeps to its group. Where that has no clip left, `planning.next_group` decides, as
    it does in `run.rendering`.

    Args:
        work: For each clip its group and its own seconds.
        num_workers: How many render at a time.
        load_seconds: Returns how long a worker of a group (None: a new one) loads for another one.
        first_seconds: Before the first clip, for all of them.
        last_seconds: Writing of the last file.
    """
    waiting: dict[Kind, list[float]] = {}
    for group, seconds in work:
        waiting.setdefault(group, []).append(seconds)
    for each in waiting.values():
        each.sort()  # the longest is taken from the end
    left = {group: sum(each) for group, each in waiting.items()}
    at: Counter[Kind] = Counter()
    free: list[tuple[float, int]] = [(first_seconds, number) for number in range(num_workers)]
    groups: list[Kind | None] = [None] * num_workers
    ends: list[float] = []
    ready: list[float] = []
    while free:
        now, number = heapq.heappop(free)
        own = groups[number]
        if own is not None:
            at[own] -= 1
        following = own
        if own not in left:
            following = next_group(own, left, at, partial(load_seconds, own))
        if following is None:
            ends.append(now)
            continue
        at[following] += 1
        start = 0.0 if following == own else load_seconds(own, following)
        seconds = waiting[following].pop()
        left[following] -= seconds
        if not waiting[following]:
            del left[following]
        ready.append(now + start + seconds)
        groups[number] = following
        heapq.heappush(free, (ready[-1], number))
    end = max(ends)
    idle = statistics.fmean(end - each for each in ends)
    return Course(end + last_seconds, idle, sorted(ready))
