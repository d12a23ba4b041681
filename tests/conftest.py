from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hv15_batch.config import Distillation, Dtype, ModelConfig, Task, Weights


def tiny_model(name: str) -> ModelConfig:
    """The model option of a tiny model."""
    return ModelConfig(
        name=name,
        weights=Weights.tiny,
        task=Task.i2v if "i2v" in name else Task.t2v,
        distillation=Distillation.step if "step_distilled" in name else Distillation.none,
        dtype=Dtype.float32,
    )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a tiny checkpoint's folder by the name of its model option."""
    from hv15_batch.tiny import ensure_checkpoint

    root = tmp_path_factory.mktemp("tiny")
    return lambda name: ensure_checkpoint(tiny_model(name), root)
