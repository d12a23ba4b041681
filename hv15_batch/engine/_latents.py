"""Saved latents: the tensor, the settings that made it and what denoising it took."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hv15_batch.clip import Clip
from hv15_batch.files import check_regular, parse_json
from hv15_batch.rundir.paths import MAX_LATENTS_BYTES
from hv15_batch.rundir.publish import publishing

TENSOR = "latents"


@dataclass(frozen=True)
class DenoisedClip:
    """Latents with the log columns that describe their denoising."""

    latents: torch.Tensor
    """[1, 32, T, h, w] on the CPU, scaled as the pipeline returns them."""
    columns: dict[str, Any]
    """Denoise timings, memory and what was in effect, by column name."""
    settings_sha256: str
    """Hash of the clip that they were denoised for; another clip may share them."""

    @cached_property
    def latents_sha256(self) -> str:
        """Hash of the tensor's raw bytes."""
        flat = self.latents.contiguous().flatten().view(torch.uint8)
        return hashlib.sha256(flat.numpy().tobytes()).hexdigest()


def write_latents(path: Path, clip: Clip, denoised: DenoisedClip) -> None:
    """Save latents before they are decoded: a decode that fails loses nothing."""
    settings = clip.settings.as_dict()
    metadata = {
        "denoise_sha256": clip.denoise_sha256,
        "settings_sha256": denoised.settings_sha256,
        "latents_sha256": denoised.latents_sha256,
        "settings": json.dumps(settings, ensure_ascii=False),
        "denoise": json.dumps(denoised.columns),
    }
    with publishing(path, makes_folder=True) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(save({TENSOR: denoised.latents.contiguous()}, metadata))


def read_latents(path: Path, denoise_sha256: str) -> DenoisedClip | None:
    """Return saved latents, or None where they are missing, damaged or of other settings."""
    try:
        check_regular(path, MAX_LATENTS_BYTES)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("denoise_sha256") != denoise_sha256:
                return None
            saved = DenoisedClip(
                file.get_tensor(TENSOR),
                _columns(metadata["denoise"]),
                metadata["settings_sha256"],
            )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    return saved if saved.latents_sha256 == metadata["latents_sha256"] else None


def _columns(text: str) -> dict[str, Any]:
    """Return log columns from a file's metadata.

    Raises:
        ValueError: they are none.
    """
    columns = parse_json(text)
    if not isinstance(columns, dict):
        raise ValueError("no columns")
    return columns
