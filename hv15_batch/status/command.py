"""Progress of a run, read from its `status.json`: `hv15-batch status [RUN_DIR]`.

It starts fast, because it reads neither the log nor imports torch or pandas.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from hv15_batch.clock import utc_now
from hv15_batch.config.messages import Parser
from hv15_batch.errors import Refused
from hv15_batch.files import MAX_JSON_BYTES, read_text
from hv15_batch.redaction import printable_json, show
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.shard_status import OverallStatus, current_run, overall_status
from hv15_batch.rundir.status import (
    ACTIVE_STATES,
    OUTPUTS,
    Holder,
    Status,
    find_latest_run,
    is_gone,
    read_holder,
    set_pause,
)
from hv15_batch.rundir.store import place, refresher
from hv15_batch.status.show import format_start, format_status, resume_lines


def _set_pause(run_dir: RunDir, is_wanted: bool, status: Status) -> str:
    """Make or remove the file that pauses a run, and return what that means now.

    Raises:
        Refused: the run directory cannot be written, or is on object storage and the run elsewhere.
    """
    if run_dir.url is not None and read_holder(run_dir.path) is None:
        raise Refused(
            f"{run_dir.url}: no run of this machine is active there; a run is paused on the "
            "machine that it runs on."
        )
    set_pause(run_dir, is_wanted)
    folder = shlex.quote(run_dir.shown())
    is_active = status.state in ACTIVE_STATES and not is_gone(status)
    if not is_wanted:
        if is_active:
            return "no longer paused; the run resumes"
        how = resume_lines(run_dir.path, status.type_again)
        return "\n".join(["no longer paused; no run is active", *how])
    when = (
        "pauses before its next clip" if is_active else "no run is active; the next one will wait"
    )
    return f"{when}; to resume: hv15-batch status {folder} --unpause"


def main(argv: Sequence[str]) -> int:
    """Print the progress of a run; return 0, or 2 if there is no run."""
    parser = Parser(
        prog="hv15-batch status",
        description="Print the progress and the expected end of a run.",
        epilog="example: hv15-batch status outputs/prompts --watch",
    )
    parser.add_argument("run_dir", nargs="?", help=f"default: the latest run below {OUTPUTS}/")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("-w", "--watch", action="store_true", help="show it until the run ends")
    how.add_argument("--json", action="store_true", help="print status.json, of shards their sum")
    how.add_argument(
        "--pause",
        action="store_true",
        help="let the run stop before its next clip and release the card, until --unpause",
    )
    how.add_argument("--unpause", action="store_true", help="let a paused run resume")
    arguments = parser.parse_args(argv)
    try:
        typed: str | None = arguments.run_dir
        run_dir = find_latest_run(OUTPUTS) if typed is None else place(typed)
        if arguments.watch:
            from hv15_batch.status._watch import watch

            return watch(run_dir, refresh=refresher(typed or ""))
        if arguments.json:
            if isinstance(whole := overall_status(run_dir), OverallStatus):
                show(printable_json(msgspec.json.encode(whole).decode()))
                return 0
            show(printable_json(read_text(RunDir(run_dir).status, MAX_JSON_BYTES)), end="")
            return 0
        if isinstance(status := current_run(run_dir), Holder):
            if not (arguments.pause or arguments.unpause):
                show(format_start(run_dir, status, utc_now()))
                return 0
            status = overall_status(run_dir)
        if arguments.pause or arguments.unpause:
            show(_set_pause(RunDir(Path(os.path.abspath(run_dir))), arguments.pause, status))
        else:
            show(format_status(run_dir, status, utc_now()))
    except Refused as error:
        show(error, file=sys.stderr)
        return 2
    return 0
