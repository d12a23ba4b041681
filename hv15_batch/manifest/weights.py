"""The models of rows, and the content of the weights that their clips are made with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from hv15_batch.clip import ClipLora
from hv15_batch.config.settings import Config
from hv15_batch.manifest.rows import Row

NO_LORAS: Mapping[str, ClipLora] = MappingProxyType({})


@dataclass(frozen=True)
class KnownWeights:
    """The content of the weights of one model."""

    revision: str | None
    transformer_sha256: str | None = None
    engine: str | None = None
    """See `ClipSettings.engine`."""


UNKNOWN = KnownWeights(None)
NO_WEIGHTS: Mapping[str, KnownWeights] = MappingProxyType({})


def loras_of(row: Row, config: Config, known: Mapping[str, ClipLora]) -> tuple[ClipLora, ...]:
    """Return the LoRAs of a row, those of its cell or else of the settings, by content.

    Args:
        row: The row.
        config: The settings of its model.
        known: By absolute path; one that is not here is known by its path alone.
    """
    asked = row.loras
    if asked is None:
        asked = tuple((lora_path(lora.path), lora.scale) for lora in config.model.loras)
    found = [
        replace(known.get(path, ClipLora(path, path, 1.0)), scale=float(scale))
        for path, scale in asked
        if scale
    ]
    return tuple(sorted(found, key=lambda lora: (lora.sha256, lora.scale)))


def models_of_rows(rows: Iterable[Row], config: Config) -> list[str]:
    """Return the names of the models that rows use, in the order of the rows."""
    return list(dict.fromkeys(row.model or config.model.name for row in rows))


def lora_path(typed: str) -> str:
    """Return the absolute path of a LoRA that is typed as a setting."""
    return os.path.abspath(os.path.expanduser(typed))
