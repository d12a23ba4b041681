"""How `hv15-batch status` words things: counts, durations, the expected end, the card, silence."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from hv15_batch.rundir import resume_command
from hv15_batch.settings import OF_ONE_COMMAND

if TYPE_CHECKING:
    from hv15_batch.status import Status

ETA_WORDS = {
    "estimated": "an estimate from vendor figures",
    "calibrated": "predicted from earlier runs on this card",
    "first_clip": "from the first clip, which warmed up",
    "measured": "from this run's clips",
}
"""What each `eta_basis` means."""
QUIET_SECONDS = 120.0
"""After that long without a step, stage or clip it is said; decoding a long clip takes less."""
LOST_SECONDS = 60.0
"""A living run writes its status every few seconds; after that long it is said that it does not."""
GIB = 2**30
IDLE_STATES = ("waiting", "paused")
"""A living process is behind these, but it renders nothing."""


def format_progress(*, total: int, done: int, failed: int, suspect: int) -> str:
    """Return e.g. `143 of 200 done, 3 failed, 2 suspect`; nothing is said of zero."""
    parts = [f"{done} of {total} done"]
    parts += [f"{n} {word}" for n, word in ((failed, "failed"), (suspect, "suspect")) if n]
    return ", ".join(parts)


def format_duration(seconds: float) -> str:
    """Return a duration as a person says it, e.g. `45 s`, `12 min`, `6 h 30 min`, `2 d 3 h`."""
    if seconds < 59.5:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"


def format_eta(status: Status, now: datetime) -> str:
    """Return how much time is left, until when, and what that rests on."""
    assert status.eta_p50 is not None
    end = parse_time(status.eta_p50).astimezone()
    left = format_duration((end - now).total_seconds())
    text = f"about {left} left, until {end:%Y-%m-%d %H:%M %Z}"
    if status.eta_p90 is not None:
        late = parse_time(status.eta_p90).astimezone()
        day = "" if late.date() == end.date() else "%a "
        text += f", 90 % sure by {late:{day}%H:%M}"
    basis = ETA_WORDS.get(status.eta_basis or "")
    return f"{text}\n  ({basis})" if basis else text


def resume_lines(run_dir: Path, type_again: Collection[str]) -> list[str]:
    """Return how to resume a run: the command, and what is to be typed again, if anything.

    Args:
        run_dir: Where it is.
        type_again: `Status.type_again`.
    """
    lines = [f"resume with: {resume_command(run_dir)}"]
    again = type_again_text(type_again)
    return [*lines, again] if again else lines


def type_again_text(names: Collection[str]) -> str:
    """Return which settings the run had that `resume=` does not know; empty where there are none.

    status.json is data: of the names in it those of settings are shown, and nothing else.
    """
    known = [name for name in OF_ONE_COMMAND if name in names]
    return f"type again if you want them: {', '.join(known)}" if known else ""


def format_health(status: Status) -> str:
    """Return how card and disk are; nothing is said of what is not known."""
    parts = []
    if status.temperature_celsius is not None:
        parts.append(f"{status.temperature_celsius:.0f} °C")
    if status.power_watts is not None:
        parts.append(f"{status.power_watts:.0f} W")
    if status.vram_used_bytes is not None and status.vram_total_bytes is not None:
        used, total = status.vram_used_bytes / GIB, status.vram_total_bytes / GIB
        parts.append(f"{used:.1f} of {total:.1f} GiB VRAM in use")
    if parts:
        parts[0] = f"card {parts[0]}"
    if status.free_disk_bytes is not None:
        parts.append(f"{status.free_disk_bytes / GIB:.1f} GiB of disk free")
    return ", ".join(parts)


def format_wait(status: Status) -> str:
    """Return until when a run that renders nothing waits, and why."""
    until = ""
    if status.goes_on_at is not None:
        until = f" until {parse_time(status.goes_on_at).astimezone():%Y-%m-%d %H:%M %Z}"
    return f"{status.state}{until}: {status.message}"


def silence_lines(status: Status, now: datetime) -> list[str]:
    """Return what is said of a run that hangs, or whose process or machine does."""
    if (now - parse_time(status.updated_at)).total_seconds() > LOST_SECONDS:
        return [f"no word from its process for {age(status.updated_at, now)}: stopped, or lost"]
    event = status.last_event_at
    if event is not None and (now - parse_time(event)).total_seconds() > QUIET_SECONDS:
        return [f"nothing has moved for {age(event, now)}"]
    return []


def age(moment: str, now: datetime) -> str:
    """Return how long ago a moment of status.json was."""
    return format_duration((now - parse_time(moment)).total_seconds())


def parse_time(text: str) -> datetime:
    """Return a moment of status.json; without a zone it is UTC."""
    # Python 3.10 does not know the Z.
    time = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
