"""The static step cache: which steps of a clip compute the transformer, and which reuse it.

The list is fixed before the run, so the same settings give the same frames, and the time can be
predicted exactly. Source of the idea and of the list for 50 steps: Tencent's own cache for
HunyuanVideo-1.5, which computes steps 0 to 10, every fourth of 11 to 44, and 45 to 49.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from hv15_batch.errors import Refused

LEAST_STEPS = 10
"""Fewer steps differ too much from each other to stand for one another."""
_USUAL_EVERY = 4
_USUAL_START = 11 / 50
"""Share of the steps that are computed before any is reused."""
_USUAL_END = 45 / 50
"""Share of the steps after which all are computed again."""


@dataclass(frozen=True)
class StepCache:
    """Steps before `start` and from `end` on are computed; in between every so many."""

    every: int
    start: int
    end: int

    def __str__(self) -> str:
        """Return the form that is hashed and logged: `every:start:end`."""
        return f"{self.every}:{self.start}:{self.end}"

    def computes(self, step: int) -> bool:
        """Whether a step, counted from 0, runs the transformer's blocks."""
        if not self.start <= step < self.end:
            return True
        return (step - self.start) % self.every == 0

    def num_computed(self, steps: int) -> int:
        """Return how many of a clip's steps run the transformer's blocks."""
        return sum(self.computes(step) for step in range(steps))


def make_step_cache(steps: int, every: int | None, start: int | None, end: int | None) -> StepCache:
    """Return the cache of a clip.

    Args:
        steps: Of the clip.
        every: One step of so many is computed between `start` and `end`; None means 4.
        start: First step of that part, from 0; None means 22 % of the steps.
        end: First step after it; None means 90 % of the steps.

    Raises:
        Refused: too few steps, or bounds that are none of these steps.
    """
    if steps < LEAST_STEPS:
        raise Refused(
            f"sampling.cache=static with num_inference_steps={steps}: needs at least {LEAST_STEPS} "
            "steps, since fewer differ too much; leave the cache out."
        )
    cache = StepCache(
        _USUAL_EVERY if every is None else every,
        round(_USUAL_START * steps) if start is None else start,
        round(_USUAL_END * steps) if end is None else end,
    )
    if not 1 <= cache.start < cache.end <= steps:
        raise Refused(
            f"sampling.cache_start={cache.start} and sampling.cache_end={cache.end} with "
            f"{steps} steps: must be 1 <= start < end <= {steps}; leave them out for "
            f"{round(_USUAL_START * steps)} and {round(_USUAL_END * steps)}."
        )
    return cache


def computed_seconds(step_seconds: Sequence[float], cache: str | None) -> list[float]:
    """Return the seconds of those steps that ran the transformer's blocks.

    Args:
        step_seconds: Of each step.
        cache: As hashed and logged; None without one.
    """
    if cache is None:
        return list(step_seconds)
    steps = parse_step_cache(cache)
    return [seconds for step, seconds in enumerate(step_seconds) if steps.computes(step)]


@lru_cache(1024)
def parse_step_cache(text: str) -> StepCache:
    """Return a cache from its form `every:start:end`.

    Raises:
        ValueError: it has another form.
    """
    every, start, end = (int(number) for number in text.split(":"))
    return StepCache(every, start, end)
