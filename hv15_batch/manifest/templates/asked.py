"""The settings for templates, and how many seeds a row has: what limits a manifest's clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hv15_batch.config.checks import typed_templates
from hv15_batch.config.settings import Config
from hv15_batch.manifest.cells import parse_seeds


@dataclass(frozen=True)
class Templates:
    """The settings for templates."""

    draws: int | None
    """Prompts to draw for each row; None makes all combinations."""
    seed: int = 0
    has_limit: bool = False
    """`limit` is typed, so the cap on their clips does not hold."""
    own_seeds: int = 0
    """Seeds of every row, typed as `override.seeds`; 0 without them."""
    default_seeds: int = 1
    """Seeds of a row without a cell."""


def templates_of(config: Config) -> Templates | None:
    """Return the settings for templates; None if braces are text.

    Raises:
        Refused: `templates` has another value than its forms.
    """
    asked = typed_templates(config)
    if asked is None:
        return None
    return Templates(
        asked if isinstance(asked, int) else None,
        config.templates_seed,
        config.limit is not None,
        _num_seeds(config.override.seeds, 0),
        _num_seeds(config.sampling.seeds, 1),
    )


def _num_seeds(typed: Any, default: int) -> int:
    try:
        return default if typed is None else len(parse_seeds(typed))
    except ValueError:
        return default  # it is refused when clips are made
