"""Clips that are being rendered: of which kind they are, and how far. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hv15_batch.clip import ClipSettings
from hv15_batch.dispatch.protocol import Job
from hv15_batch.model.shapes import Shape
from hv15_batch.model.step_cache import parse_step_cache
from hv15_batch.record import DECODE, DENOISE, WRITE

STEP = "step"
"""A part of denoising; the other stages are those of `record.STAGES`."""


class Kind(NamedTuple):
    """Clips that are expected to take the same time."""

    shape: Shape
    is_decoded_only: bool
    on_torch_attention: bool
    model: str


def kind_of(
    settings: ClipSettings, is_decoded_only: bool, on_torch_attention: bool = False
) -> Kind:
    """Return the kind of a clip."""
    return Kind(Shape.of(settings), is_decoded_only, on_torch_attention, settings.model)


@dataclass(eq=False)
class Place:
    """What is known of one worker."""

    is_cold: bool = True
    """Its next clip waits for a worker that loads its model."""
    model: str | None = None
    """Of its last clip: another one is loaded first."""
    on_device: Underway | None = None
    since: float = 0.0
    """The last file was finished, or the worker that had nothing got a clip."""

    def is_cold_for(self, kind: Kind) -> bool:
        """Whether such a clip waits until its model is loaded."""
        return self.is_cold or kind.model != self.model


@dataclass(eq=False)
class Underway:
    """How far a clip is; times are seconds on the run's clock."""

    job: Job
    kind: Kind
    place: Place
    began: float
    is_cold: bool
    stage: str | None = None
    stage_began: float = 0.0
    step: int = 0
    stepped: float = 0.0
    first: tuple[int, float] | None = None
    """The first step seen, and when."""

    def remaining_seconds(self, now: float, expected: Mapping[str, float]) -> float:
        """Return in how many seconds a clip that has reached a stage will be finished.

        Args:
            now: On the run's clock.
            expected: Seconds of `step` and of each stage; 0 means unknown.
        """
        if self.stage == DENOISE:
            left = max(self._denoise_seconds(expected) - (now - self.stepped), 0.0)
            return left + expected[DECODE] + expected[WRITE]
        left = max(expected.get(self.stage or "", 0.0) - (now - self.stage_began), 0.0)
        return left + (expected[WRITE] if self.stage == DECODE else 0.0)

    def _denoise_seconds(self, expected: Mapping[str, float]) -> float:
        """Return the seconds of the steps that are left, by the pace of this clip's own."""
        settings = self.job.clip.settings
        steps = settings.num_inference_steps
        if settings.cache is not None:
            cache = parse_step_cache(settings.cache)
            return sum(cache.computes(step) for step in range(self.step, steps)) * expected[STEP]
        assert self.first is not None
        first, since = self.first
        per_step = expected[DENOISE] / steps
        if self.step > first:
            per_step = (self.stepped - since) / (self.step - first)
        return (steps - self.step) * per_step
