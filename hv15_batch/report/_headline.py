"""The page's first line: how far, what went wrong, how it ended, how to resume."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from hv15_batch.planning.benchmark import Progress
from hv15_batch.planning.tables import SKIPPED
from hv15_batch.record import DONE_STATUSES, FAILED, SUSPECT
from hv15_batch.report._read import FILE_MISSING, RunData
from hv15_batch.rundir.paths import resume_command
from hv15_batch.rundir.status import ACTIVE_STATES, Status, is_gone
from hv15_batch.status.show import type_again_text
from hv15_batch.units import format_duration, parse_time

_REDUNDANT_END = re.compile(r"\d+ of \d+ clips? failed(, \d+ skipped)?")
"""The message of a run that ended with failures; the line has counted them already."""

_MAKES_AGAIN = {"force", "retry.suspect"}
"""With these settings a run has clips left to render although every clip is done."""


@dataclass(frozen=True)
class Headline:
    """The first line in its two parts."""

    text: str
    command: str | None
    """What to type to resume; None where nothing is left, and while it runs."""
    type_again: str
    """Which settings to type with it, in words; may be empty."""
    detail: str | None = None
    """The run's whole message, where the line has only its beginning."""

    def __str__(self) -> str:
        """Return the line as a whole."""
        if self.command is None:
            return self.text
        again = f" ({self.type_again})" if self.type_again else ""
        return f"{self.text}; resume with: {self.command}{again}"


def headline(run: RunData, now: datetime) -> Headline:
    """Return the first line of a run's page."""
    parts, is_complete = _clips(run) if run.progress is None else _repetitions(run.progress)
    is_active, detail = False, None
    if run.status is not None:
        is_active = run.status.state in ACTIVE_STATES and not is_gone(run.status)
        parts.append(_active(run.status, now) if is_active else _ended(run.status, now))
        if not is_active and _brief(run.status.message or "") != run.status.message:
            detail = run.status.message or None
    names = () if run.status is None or run.status.state == "done" else run.status.type_again
    is_over = is_active or (is_complete and not _MAKES_AGAIN & set(names))
    command = None if is_over else resume_command(run.directory.path)
    return Headline(", ".join(parts), command, type_again_text(names), detail)


def _clips(run: RunData) -> tuple[list[str], bool]:
    """Return how many clips are done and what the others are; whether all are done."""
    counts = Counter(clip["status"] for clip in run.clips)
    done = sum(counts[status] for status in DONE_STATUSES)
    parts = [f"{done} of {len(run.clips)}"]
    for status, word in (
        *((FAILED, "failed"), (SKIPPED, "skipped")),
        *((SUSPECT, "suspect"), (FILE_MISSING, "file missing")),
    ):
        if counts[status]:
            parts.append(f"{counts[status]} {word}")
    return parts, done == len(run.clips)


def _repetitions(progress: Progress) -> tuple[list[str], bool]:
    """Return the same of a benchmark, which keeps no clips."""
    clips = f"{progress.num_clips} clip{'' if progress.num_clips == 1 else 's'}"
    parts = [
        f"{progress.num_measured} of {progress.total} repetitions measured "
        f"({clips} x {progress.num_repeats})"
    ]
    if progress.num_failed:
        parts.append(f"{progress.num_failed} failed")
    return parts, progress.num_measured == progress.total


def _active(status: Status, now: datetime) -> str:
    if status.eta_p50 is None:
        return status.state
    left = (parse_time(status.eta_p50) - now).total_seconds()
    return f"{status.state}, about {format_duration(left)} left"


def _ended(status: Status, now: datetime) -> str:
    """Return e.g. `stopped 04:12: disk full`; with the day where it was another one."""
    at, today = parse_time(status.updated_at).astimezone(), now.astimezone()
    when = f"{at:%H:%M}" if at.date() == today.date() else f"{at:%Y-%m-%d %H:%M}"
    if status.state in ACTIVE_STATES:
        return f"interrupted {when}: its process is gone, without a message"
    message = status.message or ""
    if status.state == "failed" and (not message or _REDUNDANT_END.fullmatch(message)):
        return f"ended {when}"
    message = _brief(message.removeprefix(status.state).lstrip(" :"))
    return f"{status.state} {when}: {message}" if message else f"{status.state} {when}"


def _brief(message: str) -> str:
    """Return the cause without its details: `disk full` of `disk full: 0.4 GiB free at ...`."""
    return message.partition(": ")[0]
