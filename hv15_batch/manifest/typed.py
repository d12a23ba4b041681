"""Typed settings that cells of rows beat: refused without any effect, counted otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hv15_batch.config.options import config_of
from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.manifest.read import Manifest
from hv15_batch.manifest.rows import Row
from hv15_batch.model.variant import Weights
from hv15_batch.units import counted


def check_typed(manifest: Manifest, config: Config, typed: Iterable[str]) -> dict[str, int]:
    """Return for each typed `sampling.*` how many rows have their own value.

    Args:
        manifest: The rows.
        config: Settings.
        typed: Names in `sampling`, and names that begin with `model.`.

    Raises:
        Refused: Every row has one, or another model, so the typed value would have no effect.
    """
    beaten: dict[str, int] = {}
    others = sum(row.model not in (None, config.model.name) for row in manifest.rows)
    for name in typed:
        if name.startswith("model."):
            if others and others == len(manifest.rows) and not _holds_for_all(name, config):
                raise Refused(
                    f"{name}: every row of {manifest.name} has another model than "
                    f"{config.model.name}, for which {name} is; leave {name} out."
                )
            continue
        if getattr(config.override, name) is not None:
            continue  # replaces both
        count = sum(getattr(row, name, None) is not None for row in manifest.rows)  # or no column
        if count and count == len(manifest.rows):
            value = getattr(config.sampling, name)
            raise Refused(
                f"sampling.{name}={value}: every row of {manifest.name} has its own value, which "
                f"takes precedence; to replace them all use override.{name}={value}."
            )
        if count:
            beaten[name] = count
    return beaten


def _holds_for_all(name: str, config: Config) -> bool:
    """Whether a typed `model.*` holds for full-size models of rows too."""
    return name == "model.weights" and config.model.weights is Weights.random


def _is_full_size(config: Config, row: Row) -> bool:
    """Whether `model.weights=random` holds for a row of another model too."""
    weights = config_of(config, row.model).model.weights
    return weights in (Weights.pretrained, Weights.random)


def swept_model_notes(manifest: Manifest, config: Config, swept: Iterable[str]) -> Iterator[str]:
    """Yield for each swept `model` or `model.*` how many rows it does not change.

    Raises:
        Refused: It changes no row.
    """
    for key in swept:
        if key != "model" and not key.startswith("model."):
            continue
        own = (None,) if key == "model" else (None, config.model.name)
        others = (row for row in manifest.rows if row.model not in own)
        count = sum(not (key == "model.weights" and _is_full_size(config, r)) for r in others)
        if count == len(manifest.rows):
            raise Refused(
                f"{key}: every row of {manifest.name} has its own model, so the runs of this sweep "
                f"would be the same; leave {key} out, or empty cells of the column model."
            )
        if count:
            rows = counted(len(manifest.rows), "row")
            yield f"Swept {key}: without effect in {count} of {rows}, which have their own model"
