"""What one command line gave, and the options of tiny models."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hv15_batch.model.options import model_options
from hv15_batch.model.variant import ModelConfig


@dataclass(frozen=True)
class Answer:
    """What one command line gave."""

    code: int
    out: str
    err: str


def tiny_model(name: str) -> ModelConfig:
    """The model option of a tiny model, with the bucket and the sampling of a full-size one."""
    option = model_options()[name]
    usual = ModelConfig()
    return replace(option, target_size=usual.target_size, default_sampling=usual.default_sampling)
