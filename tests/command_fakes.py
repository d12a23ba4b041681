"""What one command line gave, and the options of tiny models."""

from __future__ import annotations

from dataclasses import dataclass

from hv15_batch.config import Distillation, Dtype, ModelConfig, Task, Weights


@dataclass(frozen=True)
class Answer:
    """What one command line gave."""

    code: int
    out: str
    err: str


def tiny_model(name: str) -> ModelConfig:
    """The model option of a tiny model."""
    return ModelConfig(
        name=name,
        weights=Weights.tiny,
        task=Task.i2v if "i2v" in name else Task.t2v,
        distillation=Distillation.step if "step_distilled" in name else Distillation.none,
        dtype=Dtype.float32,
    )
