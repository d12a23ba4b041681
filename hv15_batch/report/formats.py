"""Numbers as a person reads them; the only place of the page that rounds."""

from __future__ import annotations

from typing import Any

GIB = 2**30
JOULES_PER_WATT_HOUR = 3600
NOT_MEASURED = "\N{EN DASH}"


def format_seconds(seconds: float | None) -> str:
    """Return seconds with one decimal, two below ten; a dash where nothing was measured."""
    if seconds is None:
        return NOT_MEASURED
    return f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.2f}"


def format_gib(num_bytes: float | None) -> str:
    """Return bytes as GiB (1024³) with one decimal, or a dash where nothing was measured."""
    return NOT_MEASURED if num_bytes is None else f"{num_bytes / GIB:.1f}"


def format_watt_hours(joules: float | None) -> str:
    """Return joules as Wh with three significant digits, or a dash."""
    return NOT_MEASURED if joules is None else f"{joules / JOULES_PER_WATT_HOUR:.3g}"


def format_share(share: float | None) -> str:
    """Return a share as per cent, or a dash."""
    return NOT_MEASURED if share is None else f"{share:.1%}"


def format_value(value: Any) -> str:
    """Return a setting as text: whole floats without a point, a flag as yes or no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)
