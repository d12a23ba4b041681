"""Progress of a run, read from its `status.json`: `hv15-batch status [RUN_DIR]`.

Starts at once: neither torch nor pandas nor the log is touched.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil

from hv15_batch.config import ConfigError
from hv15_batch.rundir import RunDir, utc_now
from hv15_batch.status_text import (
    IDLE_STATES,
    age,
    format_eta,
    format_health,
    format_progress,
    format_wait,
    parse_time,
    resume_lines,
    silence_lines,
)

ACTIVE_STATES = ("encoding", "rendering", *IDLE_STATES)
"""States that a living process is behind."""
OUTPUTS = Path("outputs")
"""Where runs are looked for when none is named."""

_CLOCK_SLACK = timedelta(seconds=2)
"""Process start times are read to about a hundredth of a second, boot time to a second."""


@dataclass(frozen=True)
class Status:
    """Contents of `status.json`, which the runner writes."""

    state: str
    """encoding, rendering, waiting, paused, done, stopped, failed or interrupted."""
    total: int
    """Clips of the current manifest."""
    done: int
    """Clips that are `ok` or `suspect`, of this run and earlier ones."""
    failed: int
    """Clips that failed in this run."""
    suspect: int
    """Clips of this run that are `suspect`."""
    updated_at: str
    """ISO 8601, UTC."""
    pid: int
    """Process that wrote it."""
    run_id: str | None = None
    clip_id: str | None = None
    """Clip being rendered."""
    stage: str | None = None
    """What is being done to it."""
    step: int | None = None
    """Steps of that stage that are finished."""
    steps: int | None = None
    seconds_per_clip: float | None = None
    """Median of this run's warm clips; None before the first."""
    eta_p50: str | None = None
    """Expected end, ISO 8601 with the machine's zone; None when not known."""
    eta_p90: str | None = None
    """When it will be over with a probability of 90 %."""
    eta_basis: str | None = None
    """estimated, calibrated, first_clip or measured: see `eta.EtaBasis`."""
    temperature_celsius: float | None = None
    """Of the card."""
    power_watts: float | None = None
    vram_used_bytes: int | None = None
    """Of all processes."""
    vram_total_bytes: int | None = None
    free_disk_bytes: int | None = None
    """Of the disk that the run directory is on."""
    last_event_at: str | None = None
    """When the run last got on with something, ISO 8601, UTC; `updated_at` goes on without it."""
    message: str | None = None
    """Why the run ended, waits or is paused."""
    goes_on_at: str | None = None
    """When a wait ends, ISO 8601; None where that is not known."""
    type_again: Sequence[str] = ()
    """Names of the settings of this run that `resume=` does not know."""
    hostname: str | None = None
    """Machine of the process; None counts as this one."""


def read_status(run_dir: Path) -> Status:
    """Return the status of a run directory.

    Raises:
        ConfigError: there is none, or it cannot be understood.
    """
    path = RunDir(run_dir).status
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Status)}
        status = Status(**{name: value for name, value in values.items() if name in known})
        set(status.type_again)  # a sequence of texts, or it is no status
        parse_time(status.updated_at)
        for moment in (status.eta_p50, status.eta_p90, status.last_event_at):
            parse_time(moment or status.updated_at)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{run_dir}: no run has written its status here; name a run directory, or leave it "
            f"out for the latest run below {OUTPUTS}/."
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: not a status of this version ({error}); the next run writes a new one."
        ) from error
    return status


def find_latest_run(outputs: Path) -> Path:
    """Return the run directory whose status was written last, jobs of sweeps included.

    Raises:
        ConfigError: there is none.
    """
    found = [*outputs.glob("*/status.json"), *outputs.glob("*.sweep/*/status.json")]
    if not found:
        raise ConfigError(
            f"no run below {outputs.absolute()}; name a run directory: hv15-batch status RUN_DIR."
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


def is_gone(status: Status) -> bool:
    """Whether the status is that of a run at work, but the process behind it has ended.

    A process of another machine cannot be seen and counts as there.
    """
    if status.state not in ACTIVE_STATES:
        return False
    if status.hostname not in (None, socket.gethostname()):
        return False
    try:
        process = psutil.Process(status.pid)
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        started = datetime.fromtimestamp(process.create_time(), timezone.utc)
    except psutil.NoSuchProcess:
        return True
    # A process that began after the last update only has the number of the one that wrote it.
    return is_zombie or started > parse_time(status.updated_at) + _CLOCK_SLACK


def format_status(run_dir: Path, status: Status, now: datetime) -> str:
    """Return the lines that a person reads."""
    path = Path(os.path.abspath(run_dir))  # without `..`
    lines = [
        str(path),
        format_progress(
            total=status.total, done=status.done, failed=status.failed, suspect=status.suspect
        ),
    ]
    if is_gone(status):
        at = f" at {status.clip_id}" if status.clip_id else ""
        lines.append(f"interrupted{at}: process {status.pid} is gone, without a last word")
        lines += resume_lines(path, status.type_again)
    elif status.state in ACTIVE_STATES:
        lines += _active_lines(status, now)
    else:
        lines.append(_format_end(status))
        if status.state != "done":
            lines += resume_lines(path, status.type_again)
        elif RunDir(path).page.is_file():
            lines.append(f"page: {RunDir(path).page}")
    lines.append(f"last update {age(status.updated_at, now)} ago{_format_process(status)}")
    return "\n".join(lines)


def _active_lines(status: Status, now: datetime) -> list[str]:
    if status.state in IDLE_STATES:
        lines = [format_wait(status), format_eta(status, now) if status.eta_p50 else ""]
        return [line for line in (*lines, format_health(status)) if line]
    what = [f"{status.state} {status.clip_id}" if status.clip_id else status.state]
    if status.stage:
        what.append(status.stage)
    if status.step is not None and status.steps:
        what.append(f"step {status.step} of {status.steps}")
    lines = [", ".join(what)]
    if status.seconds_per_clip is not None:
        lines.append(f"{status.seconds_per_clip:.1f} s a clip (median of this run's warm clips)")
    if status.eta_p50 is not None:
        lines.append(format_eta(status, now))
    health = format_health(status)
    if health:
        lines.append(health)
    return lines + silence_lines(status, now)


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


def _set_pause(run_dir: RunDir, is_wanted: bool, status: Status) -> str:
    """Make or remove the file that pauses a run, and return what that means now.

    Raises:
        ConfigError: the run directory cannot be written.
    """
    try:
        if is_wanted:
            run_dir.pause.touch()
        else:
            run_dir.pause.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{run_dir.pause}: {error.strerror}; correct its permissions.") from error
    folder = shlex.quote(str(run_dir.path))
    is_active = status.state in ACTIVE_STATES and not is_gone(status)
    if not is_wanted:
        if is_active:
            return "no longer paused; the run resumes"
        how = resume_lines(run_dir.path, status.type_again)
        return "\n".join(["no longer paused; no run is at work", *how])
    when = "pauses before its next clip" if is_active else "no run is at work; the next one waits"
    return f"{when}; to resume: hv15-batch status {folder} --unpause"


def main(argv: Sequence[str]) -> int:
    """Print the progress of a run; return 0, or 2 where there is nothing to read."""
    parser = argparse.ArgumentParser(
        prog="hv15-batch status", description="Print the progress and the expected end of a run."
    )
    parser.add_argument(
        "run_dir", nargs="?", type=Path, help=f"default: the latest run below {OUTPUTS}/"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-w", "--watch", action="store_true", help="show it until the end")
    how.add_argument("--json", action="store_true", help="print status.json as it is")
    how.add_argument(
        "--pause",
        action="store_true",
        help="let the run stop before its next clip and release the card, until --unpause",
    )
    how.add_argument("--unpause", action="store_true", help="let it resume")
    arguments = parser.parse_args(argv)
    try:
        run_dir: Path = arguments.run_dir or find_latest_run(OUTPUTS)
        if arguments.watch:
            from hv15_batch.watch import watch

            return watch(run_dir)
        status = read_status(run_dir)
        if arguments.json:
            print(RunDir(run_dir).status.read_text(encoding="utf-8"), end="")
        elif arguments.pause or arguments.unpause:
            print(_set_pause(RunDir(Path(os.path.abspath(run_dir))), arguments.pause, status))
        else:
            print(format_status(run_dir, status, utc_now()))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
