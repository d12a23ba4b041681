"""What forecasts are made of: a clip's settings, cards and machines, and rows of a log."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from hv15_batch.clip import ClipSettings
from hv15_batch.config.settings import Config
from hv15_batch.forecast.calibrate import COLUMNS
from hv15_batch.forecast.seconds import Execution, default_execution, predict_clip
from hv15_batch.machine.cards import find_card
from hv15_batch.machine.machine import Machine, read_machine
from hv15_batch.machine.nvml import Gpu
from hv15_batch.model.shapes import Shape
from hv15_batch.model.variant import ModelConfig, OffloadKind, Weights
from hv15_batch.record import columns
from hv15_batch.units import GIB

NOW = datetime(2026, 11, 22, 22, 0, tzinfo=timezone.utc)
H200 = find_card("NVIDIA H200")
assert H200 is not None
PLAIN = default_execution(H200)
SETTINGS = ClipSettings(
    prompt="",
    negative_prompt=None,
    image_sha256=None,
    seed=0,
    height=480,
    width=848,
    num_frames=121,
    num_inference_steps=8,
    guidance_scale=1.0,
    flow_shift=5.0,
    fps=24.0,
    video={},
    model="480p_t2v",
    revision=None,
    weights="random",
    dtype="bfloat16",
    attention_backend="auto",
)


def row(
    factor: float = 1.2, decode_factor: float = 0.9, execution: Execution = PLAIN, **changes: Any
) -> dict[str, Any]:
    """A warm clip of an H200 that took `factor` times what is predicted."""
    settings = replace(SETTINGS, num_frames=changes.get("num_frames", 121))
    predicted = predict_clip(Shape.of(settings), H200, execution, None)
    return (
        dict.fromkeys(COLUMNS)
        | {
            "gpu_name": "NVIDIA H200",
            "status": "ok",
            "finished_at": NOW,
            "attempt": 1,
            "denoise_attempt": 1,
            "is_cold": False,
            "weights": "random",
            "task": "t2v",
            **{name: v for name, v in vars(execution).items() if name in columns()},
            "denoise_seconds": factor * predicted.denoise_seconds,
            "decode_seconds": decode_factor * predicted.decode_seconds,
            "height": 480,
            "width": 848,
            "num_frames": 121,
            "num_inference_steps": 8,
            "guidance_scale": 1.0,
        }
        | changes
    )


def machine(card_gib: float, ram_gib: float = 64) -> Machine:
    size = int(card_gib * GIB)
    gpu = Gpu(0, "NVIDIA GeForce RTX 4090", "GPU-0", size, size, "580", None)
    return replace(read_machine(), gpus=(gpu,), ram_available_bytes=int(ram_gib * GIB))


def config(kind: str = "auto", limit: float | None = None) -> Config:
    made = Config(model=ModelConfig(name="480p_t2v", repo="a/b", weights=Weights.random))
    made.offload.kind = OffloadKind[kind]
    made.runtime.vram_limit_gib = limit
    return made
