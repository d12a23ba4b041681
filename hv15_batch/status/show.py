"""The lines of `hv15-batch status`: counts, the expected end, the card, warnings about silence."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

from hv15_batch.clock import utc_now
from hv15_batch.config.settings import CONFIG_DIR, OF_ONE_COMMAND, TYPED_ONLY
from hv15_batch.config.shard import Shard
from hv15_batch.machine.machine import read_ram
from hv15_batch.redaction import one_line
from hv15_batch.rundir.paths import RunDir, resume_command
from hv15_batch.rundir.status import (
    ACTIVE_STATES,
    IDLE_STATES,
    Holder,
    Status,
    WorkerStatus,
    format_progress,
    is_gone,
)
from hv15_batch.status.overall import OverallStatus
from hv15_batch.units import (
    age,
    counted,
    format_duration,
    format_gib,
    format_share,
    parse_time,
)

ETA_WORDS = {
    "estimated": "an estimate from vendor figures",
    "calibrated": "predicted from earlier runs on this card",
    "first_clip": "from the first clip, which was cold",
    "measured": "from this run's clips",
}
"""What each `eta_basis` means."""
QUIET_SECONDS = 120.0
"""After this time without a step, stage or clip a line says so; a long decoding takes less."""
MAX_SHARD_LINES = 16
LOST_SECONDS = 60.0
"""A living run writes its status every few seconds; after this time a line says that it stopped."""


def format_eta(status: Status, now: datetime) -> str:
    """Return the time left, the expected end, and the basis of both."""
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


def resume_lines(
    run_dir: Path, type_again: Collection[str], shard: Shard | None = None
) -> list[str]:
    """Return how to resume a run: the command, and the settings to type again.

    Args:
        run_dir: Its directory.
        type_again: `Status.type_again`.
        shard: What it rendered; None for all clips.
    """
    lines = [f"resume with: {resume_command(run_dir, shard)}"]
    again = type_again_text([name for name in type_again if shard is None or name != "shard"])
    return [*lines, again] if again else lines


def resume_words(run_dir: Path, type_again: Collection[str], shard: Shard | None = None) -> str:
    """Return the same within a sentence."""
    again = type_again_text(type_again)
    return resume_command(run_dir, shard) + (f" ({again})" if again else "")


def left_out_line(number: int, run_dir: Path, shard: Shard | None = None) -> str:
    """Return how to render the clips that `only` or `limit` left out."""
    what = f"{counted(number, 'clip')} left out by limit= or only="
    command = resume_command(run_dir, shard)
    return f"{what}; to render {'it' if number == 1 else 'them'}: {command}"


def type_again_text(names: Collection[str]) -> str:
    """Return which settings of the run `resume=` does not take over; empty if there are none.

    status.json may be foreign, so only names of settings are shown.
    """
    once = [name for name in OF_ONE_COMMAND if name in names]
    needed = [name for name in (*TYPED_ONLY, CONFIG_DIR) if name in names]
    parts = [f"type again if you want them: {', '.join(once)}"] if once else []
    parts += [f"type again in any case: {', '.join(needed)}"] if needed else []
    return "; ".join(parts)


def format_health(status: Status) -> str:
    """Return temperature, power, memory and free disk; unknown values are left out."""
    parts = _card_words(status)
    if parts:
        parts[0] = f"card {parts[0]}"
    if status.free_disk_bytes is not None:
        parts.append(f"{format_gib(status.free_disk_bytes)} GiB of disk free")
    return ", ".join(parts)


def line_facts(
    values: Mapping[str, Any], failed: int, suspect: int, now: datetime | None = None
) -> list[str]:
    """Return what the live line says besides clips and steps; what is unknown is left out.

    Args:
        values: Content of status.json as of now.
        failed: Clips of this run.
        suspect: Clips of this run.
        now: None for the time of now.
    """
    facts = [
        f"{count} {word}" for count, word in ((failed, "failed"), (suspect, "suspect")) if count
    ]
    if values.get("eta_p50") is not None:
        day = (now or utc_now()).astimezone().date()
        end = f"end {_on_the_clock(values['eta_p50'], day)}"
        if values.get("eta_p90") is not None:
            end += f", 90 % by {_on_the_clock(values['eta_p90'], day)}"
        facts.append(end)
    if values.get("temperature_celsius") is not None:
        facts.append(f"{values['temperature_celsius']:.0f} °C")
    used, total = values.get("vram_used_bytes"), values.get("vram_total_bytes")
    if used is not None and total is not None:
        facts.append(f"VRAM {format_gib(used)} of {format_gib(total)} GiB")
    else:
        total, available = read_ram()
        facts.append(f"RAM {format_gib(total - available)} of {format_gib(total)} GiB")
    return facts


def _on_the_clock(moment: str, day: date) -> str:
    """Return a moment as local time, with the day where it is another one."""
    local = parse_time(moment).astimezone()
    if local.date() == day:
        return f"{local:%H:%M}"
    is_soon = (local.date() - day).days < 7
    return f"{local:%a %H:%M}" if is_soon else f"{local:%Y-%m-%d %H:%M}"


def _card_words(of: Status | WorkerStatus) -> list[str]:
    parts = []
    if of.temperature_celsius is not None:
        parts.append(f"{of.temperature_celsius:.0f} °C")
    if of.power_watts is not None:
        parts.append(f"{of.power_watts:.0f} W")
    if of.vram_used_bytes is not None and of.vram_total_bytes is not None:
        used, total = format_gib(of.vram_used_bytes), format_gib(of.vram_total_bytes)
        parts.append(f"{used} of {total} GiB VRAM in use")
    return parts


def format_wait(status: Status) -> str:
    """Return until when a run that renders nothing waits, and why."""
    until = ""
    if status.goes_on_at is not None:
        until = f" until {parse_time(status.goes_on_at).astimezone():%Y-%m-%d %H:%M %Z}"
    return f"{status.state}{until}: {status.message}"


def silence_lines(status: Status, now: datetime) -> list[str]:
    """Return a warning if the run, its process or its machine hangs."""
    if (now - parse_time(status.updated_at)).total_seconds() > LOST_SECONDS:
        return [f"its process has not written for {age(status.updated_at, now)}: stopped, or lost"]
    event = status.last_event_at
    if event is not None and (now - parse_time(event)).total_seconds() > QUIET_SECONDS:
        return [f"no progress for {age(event, now)}"]
    return []


def format_status(run_dir: Path, status: Status, now: datetime) -> str:
    """Return the lines that a person reads."""
    path = Path(os.path.abspath(run_dir))  # without `..`
    status = _in_single_lines(status)
    lines = [
        RunDir(path).shown(),
        format_progress(
            total=status.total, done=status.done, failed=status.failed, suspect=status.suspect
        ),
    ]
    again = resume_lines(path, status.type_again)
    if is_gone(status):
        at = f" at {status.clip_id}" if status.clip_id else ""
        lines.append(f"interrupted{at}: process {status.pid} is gone, and wrote no last status")
        lines += again
    elif status.state in ACTIVE_STATES:
        lines += _active_lines(status, now)
    else:
        lines.append(_format_end(status))
        lines += _done_lines(status, path) if status.state == "done" else again
    if isinstance(status, OverallStatus):
        lines += shard_lines(status)
    lines.append(f"last update {age(status.updated_at, now)} ago{_format_process(status)}")
    return "\n".join(lines)


def shard_lines(whole: OverallStatus) -> list[str]:
    """Return how many shards there are and what each does, those that are not done first."""
    lacking = whole.num_shards - len(whole.shards)
    started = f"{lacking} of them not started" if lacking else "all of them started"
    lines = [f"{counted(whole.num_shards, 'shard')}, {started}; the counts are of those started"]
    each = sorted(whole.shards, key=lambda part: part[1].state == "done")
    for name, part in each[:MAX_SHARD_LINES]:
        status = _in_single_lines(part)
        counts = format_progress(
            total=status.total, done=status.done, failed=status.failed, suspect=status.suspect
        )
        where = f", {status.clip_id}" if status.state in ACTIVE_STATES and status.clip_id else ""
        lines.append(f"  {name}: {counts}, {_format_end(status)}{where}{_format_process(status)}")
    rest = len(each) - MAX_SHARD_LINES
    return [*lines, f"  and {rest} more"] if rest > 0 else lines


def _done_lines(status: Status, path: Path) -> list[str]:
    left_out = status.total - status.done - status.failed
    lines = [left_out_line(left_out, path)] if left_out > 0 else []
    run_dir = RunDir(path)
    has_page = run_dir.page.is_file() or run_dir.url is not None  # which has it at a run's end
    return [*lines, f"page: {run_dir.shown(run_dir.page)}"] if has_page else lines


def _in_single_lines(status: Status) -> Status:
    """Return a status with line breaks removed from its texts, because the file may be foreign."""
    texts: dict[str, Any] = {
        name: one_line(value) for name, value in vars(status).items() if isinstance(value, str)
    }
    return replace(status, **texts)


def format_start(run_dir: Path, holder: Holder, now: datetime) -> str:
    """Return the lines for a run that has started and has not written a status yet."""
    where = (
        ""
        if holder.hostname in (None, socket.gethostname())
        else f" on {one_line(holder.hostname)}"
    )
    return "\n".join(
        [
            RunDir(Path(os.path.abspath(run_dir))).shown(),
            f"a run has started {age(holder.started_at, now)} ago (process {holder.pid}{where}); "
            "it has not written its status yet",
        ]
    )


def _active_lines(status: Status, now: datetime) -> list[str]:
    if status.state in IDLE_STATES:
        lines = [format_wait(status), format_eta(status, now) if status.eta_p50 else ""]
        return [line for line in (*lines, format_health(status)) if line]
    if status.workers:
        lines = [status.state, *(_worker_line(worker, now) for worker in status.workers)]
    else:
        named = f"{status.state} {status.clip_id}" if status.clip_id else status.state
        lines = [", ".join([named, *_stage_words(status)])]
    if status.seconds_per_clip is not None:
        lines.append(f"{status.seconds_per_clip:.1f} s a clip (median of this run's warm clips)")
    if status.eta_p50 is not None:
        lines.append(format_eta(status, now))
    health = format_health(status)
    if health:
        lines.append(health)
    return lines + silence_lines(status, now)


def _stage_words(of: Status | WorkerStatus) -> list[str]:
    if of.loading:
        return [f"loading {of.loading}"]
    words = [of.stage] if of.stage else []
    if of.step is not None and of.steps:
        words.append(f"step {of.step} of {of.steps}")
    return words


def _worker_line(worker: WorkerStatus, now: datetime) -> str:
    """Return a worker's card and its health, clips, clips an hour, idle share, what it does."""
    parts = [f"{worker.done} done"]
    parts += [f"{worker.failed} failed"] if worker.failed else []
    if worker.clips_per_hour is not None:
        parts.append(f"{worker.clips_per_hour:.1f} an hour")
    if worker.idle_share is not None:
        parts.append(f"idle {format_share(worker.idle_share)}")
    doing = [*filter(None, [worker.clip_id]), *_stage_words(worker)] or ["waits"]
    parts.append(" ".join(doing))
    parts += _card_words(worker)
    if worker.last_event_at is not None:
        parts.append(f"seen {age(worker.last_event_at, now)} ago")
    return one_line(f"  worker {worker.worker} ({worker.where}): {', '.join(parts)}")


def _format_end(status: Status) -> str:
    if not status.message:
        return status.state
    if status.message.startswith(status.state):
        return status.message
    return f"{status.state}: {status.message}"


def _format_process(status: Status) -> str:
    if status.state not in ACTIVE_STATES or is_gone(status):
        return ""
    where = "" if status.hostname in (None, socket.gethostname()) else f" on {status.hostname}"
    return f" by process {status.pid}{where}"
