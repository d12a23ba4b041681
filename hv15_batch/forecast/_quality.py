"""What a faster setting costs in quality, in words: a speed-up is never shown without it. No torch.

The figures are rows of BENCHMARKS.md, kept in `conf/quality.yaml`. They are of the demonstration
models: nobody can measure what a prompt of the full-size model asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from hv15_batch.files import read_yaml
from hv15_batch.model.options import conf_dir
from hv15_batch.model.variant import Distillation, ModelConfig
from hv15_batch.units import counted

FILE = "quality.yaml"
_ALIKE = 0.01
"""Shares of obeyed cases that differ by less: two clips of 160."""


@dataclass(frozen=True)
class Measured:
    """A row of the table."""

    row: str
    """Its name there."""
    clips: int
    psnr_db: float
    """Median, beside plain float32."""
    obeyed: int
    asked: int
    of: str = ""
    """What else was the same in all of them, where a reader would take it for something else."""

    @property
    def obedience(self) -> float:
        """Share of what was asked that the clips show."""
        return self.obeyed / self.asked


@cache
def measured() -> dict[str, Measured]:
    """Return the rows by the setting that they are about; `base` is the setting's absence."""
    values: dict[str, dict[str, Any]] = read_yaml(conf_dir() / FILE)
    return {name: Measured(**row) for name, row in values.items()}


def of_setting(name: str) -> str:
    """Return the quality line of a setting in `measured`."""
    found = measured()[name]
    base = measured()["base"]
    difference = found.obedience - base.obedience
    obeys = f"{found.obedience:.1%} of what the prompts ask, and {base.obedience:.1%} without"
    if abs(difference) < _ALIKE:
        obeys = "prompts obeyed as without"
    of = f" ({found.of})" if found.of else ""
    return (
        f"PSNR {found.psnr_db:.1f} dB on {found.clips} demo clips{of}, "
        f"{base.psnr_db:.1f} without; {obeys}"
    )


def of_model(model: ModelConfig, frames: int | None = None) -> str:
    """Return the quality line of another model option: what is known of it, and what is not.

    Args:
        model: The option.
        frames: Of the longest clip; None means the option's own.
    """
    frames = model.default_sampling.num_frames if frames is None else frames
    steps = counted(model.default_sampling.num_inference_steps, "step")
    parts = [f"{steps}, other weights"]
    if model.distillation is not Distillation.none:
        parts.append("without guidance")
    if model.advice.max_frames is not None and frames > model.advice.max_frames:
        parts.append(f"trained on up to {model.advice.max_frames} frames")
    return f"{', '.join(parts)}; compared with none of these clips yet: look at one first"


def of_frames(frames: int, fps: float) -> str:
    """Return the quality line of shorter clips."""
    return f"same weights and steps, clips of {frames / fps:.1f} s"


def of_size(height: int, width: int) -> str:
    """Return the quality line of smaller pictures."""
    return f"same weights and steps, pictures of {height}x{width}"
