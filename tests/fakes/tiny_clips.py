"""Clips that a small manifest makes with the tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fakes.runs import tiny_config
from hv15_batch.clip import Clip
from hv15_batch.config.settings import (
    Config,
)
from hv15_batch.manifest.clips import make_clips
from hv15_batch.manifest.read import read_manifest


def clips_of(tmp_path: Path, *lines: str, **changes: Any) -> tuple[Clip, ...]:
    path = tmp_path / "prompts.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = config_of(tmp_path, **changes)
    return make_clips(read_manifest(path, config.model.task), config, "1")


def config_of(tmp_path: Path, **changes: Any) -> Config:
    return replace(tiny_config(tmp_path / "prompts.csv", tmp_path / "out"), **changes)
