"""Formats bytes, seconds, energy, shares and values for people. Only this module rounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

Say = Callable[[str], None]
"""Prints a line for the user."""

GIB = 2**30
MIB = 2**20
JOULES_PER_WATT_HOUR = 3600
NOT_MEASURED = "\N{EN DASH}"


def format_seconds(seconds: float | None) -> str:
    """Return seconds with one decimal, two below ten; a dash if not measured."""
    if seconds is None:
        return NOT_MEASURED
    return f"{seconds:.1f}" if seconds >= 10 else f"{seconds:.2f}"


def format_gib(num_bytes: float | None, decimals: int = 1) -> str:
    """Return bytes as a number of GiB (1024³), or a dash if not measured."""
    return NOT_MEASURED if num_bytes is None else f"{num_bytes / GIB:.{decimals}f}"


def format_watt_hours(joules: float | None) -> str:
    """Return joules as Wh with three significant digits, or a dash."""
    return NOT_MEASURED if joules is None else f"{joules / JOULES_PER_WATT_HOUR:.3g}"


def format_share(share: float | None, decimals: int = 1) -> str:
    """Return a share as per cent, or a dash if unknown."""
    return NOT_MEASURED if share is None else f"{share:.{decimals}%}"


def format_number(value: float | None) -> str:
    """Return a number with four significant digits, or a dash if not measured."""
    return NOT_MEASURED if value is None else f"{value:.4g}"


def counted(number: int, noun: str) -> str:
    """Return e.g. `1 clip` or `3 clips`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shortened(text: str, max_characters: int) -> str:
    """Return a text on one line, cut at the end if it is too long."""
    text = " ".join(text.split())
    return text if len(text) <= max_characters else f"{text[: max_characters - 1]}…"


def format_setting(value: Any) -> str:
    """Return a setting as text: whole floats without a point, a flag as yes or no."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)


MAX_SHOWN_CHARACTERS = 60
"""A longer value is shortened in a message."""


def printable(character: str) -> str:
    """Return a character for a terminal; control characters are escaped."""
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()


MAX_NAME_CHARACTERS = 160
"""A longer name that stands in a file is shortened in a message."""


def format_name(name: str) -> str:
    """Return a name that stands in somebody's file as one short printable line."""
    start = name[: MAX_NAME_CHARACTERS + 1]
    return shortened("".join(map(printable, start)), MAX_NAME_CHARACTERS)


def format_value(value: Any) -> str:
    """Return a cell as one short printable line."""
    if isinstance(value, str):
        text = value
    else:
        if isinstance(value, list):
            value = value[:MAX_SHOWN_CHARACTERS]
        text = json.dumps(value, ensure_ascii=False, default=str)
    if len(text) > MAX_SHOWN_CHARACTERS:
        text = text[: MAX_SHOWN_CHARACTERS - 1] + "…"
    if text and text.isprintable() and text == text.strip():
        return text
    return repr(text)


def format_duration(seconds: float) -> str:
    """Return a duration for people, e.g. `45 s`, `12 min`, `6 h 30 min`, `2 d 3 h`."""
    if seconds < 59.5:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def age(moment: str, now: datetime) -> str:
    """Return how long ago a moment of status.json was."""
    return format_duration((now - parse_time(moment)).total_seconds())


def parse_time(text: str) -> datetime:
    """Return a moment of status.json; without a zone it is UTC."""
    # Python 3.10 does not know the Z.
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
