"""`sweep_value`: the column of the log whose median a job of a sweep gives its sweeper."""

from __future__ import annotations

import typing

from hv15_batch.config.words import suggestion
from hv15_batch.errors import ConfigError


def check_sweep_value(column: str) -> None:
    """Check that a column of the log holds numbers.

    Raises:
        ConfigError: there is no such column, or it holds something else.
    """
    from hv15_batch.record import ClipRecord

    hints = typing.get_type_hints(ClipRecord)
    numeric = [name for name, hint in hints.items() if {int, float} & set(typing.get_args(hint))]
    if column not in hints:
        raise ConfigError(
            f"sweep_value={column}: the log has no such column.{suggestion(column, numeric)} "
            "docs/log.md lists them."
        )
    if column not in numeric:
        raise ConfigError(
            f"sweep_value={column}: this column of the log is no number; name one that is, for "
            "example total_seconds."
        )
