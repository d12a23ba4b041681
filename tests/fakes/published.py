"""A clip's row in the log as published numbers state it."""

from __future__ import annotations

from datetime import datetime, timezone

from hv15_batch.units import GIB

START = datetime(2026, 11, 22, tzinfo=timezone.utc)

OMNI = {
    "status": "ok", "is_cold": False, "attempt": 1, "denoise_attempt": 1,
    "model": "480p_t2v", "weights": "pretrained", "task": "t2v", "height": 480, "width": 832,
    "num_frames": 121, "num_inference_steps": 50, "guidance_scale": 6.0, "flow_shift": 5.0,
    "dtype": "bfloat16", "attention_backend": "_native_cudnn", "mask_free": True,
    "compiled": False, "offload": "resident", "gpu_name": "NVIDIA H200",
    "gpu_total_bytes": int(140.4 * GIB), "total_seconds": 250.0, "denoise_seconds": 240.0,
    "decode_seconds": 6.0, "mfu": 0.55,
}  # fmt: skip
"""A warm clip as the figures of vLLM-Omni's pull request state it."""
