"""The events of a run, how it ends, and its first and last lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hv15_batch.config.settings import Config
from hv15_batch.dispatch.protocol import Stepped
from hv15_batch.errors import EXIT_OK, EXIT_SIGINT, EXIT_SOME_FAILED
from hv15_batch.figures.workers import slow_lines, worker_figures
from hv15_batch.files import read_below
from hv15_batch.manifest.read import Manifest
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.planning.todo import Todo
from hv15_batch.record import FAILED, SUSPECT, ClipRecord
from hv15_batch.redaction import redacted
from hv15_batch.run.prepare import Asked
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import sha256_of_file
from hv15_batch.rundir.stored import to_type_again
from hv15_batch.status.show import left_out_line, resume_lines
from hv15_batch.units import counted, format_gib


@dataclass
class Outcome:
    """How a run ended."""

    exit_code: int
    state: str
    """done, failed, stopped or interrupted."""
    message: str = ""
    records: list[ClipRecord] = field(default_factory=list)
    """The last attempt of this run at each clip, without texts."""


@dataclass(frozen=True)
class Message:
    """A line for the user, as the command line prints it."""

    text: str


@dataclass(frozen=True)
class Started:
    """The run has its directory and its list of clips."""

    run_dir: Path
    """Absolute."""
    run_id: str
    num_clips: int
    """Clips of the manifest or of the shard; repetitions in a benchmark."""
    num_done: int
    """How many of them earlier runs have done."""
    num_todo: int
    """How many this run will render."""


@dataclass(frozen=True)
class ClipFinished:
    """An attempt at a clip has ended, well or not, and is in the log."""

    record: ClipRecord
    """The log's row: bytes and seconds; None if not measured."""
    number: int
    """Clips that this run has finished, this one included."""
    num_todo: int


@dataclass(frozen=True)
class Finished:
    """The run is over: always the last event."""

    outcome: Outcome


Event = Started | Stepped | ClipFinished | Message | Finished
Listen = Callable[[Event], None]


class StopRun(Exception):
    """Ends the loop; no error."""

    def __init__(self, exit_code: int, state: str, message: str) -> None:
        """Take how the run ends."""
        super().__init__(message)
        self.exit_code, self.state, self.message = exit_code, state, message


MAX_SHOWN_FAILURES = 5


def ended(
    records: list[ClipRecord], num_todo: int, num_given_up: int, num_skipped: int = 0
) -> Outcome:
    """Return the outcome of a run that tried all of its clips but those given up or skipped."""
    failed = sum(r.status == FAILED for r in records)
    message = f"{failed} of {counted(num_todo, 'clip')} failed"
    if num_given_up:
        message += f", {num_given_up} given up"
    if num_skipped:
        message += f", {num_skipped} skipped"
    if failed or num_given_up or num_skipped:
        return Outcome(EXIT_SOME_FAILED, "failed", message, records)
    return Outcome(EXIT_OK, "done", "", records)


def headline(run_dir: RunDir, todo: Todo) -> str:
    """Return the first line of a run: its directory, and `new` or how many clips are done."""
    share = ""
    if todo.shard is not None:
        share = f" (shard {todo.shard}: {len(todo.share)} of {counted(len(todo.clips), 'clip')})"
    if not run_dir.run_ids() and not todo.num_done:
        return f"{run_dir.shown()}: new{share}"
    if todo.repetitions is not None:
        total = todo.repetitions.num_clips * todo.repetitions.num_repeats
        return f"{run_dir.shown()}: {todo.num_done} of {total} repetitions measured"
    return f"{run_dir.shown()}: {todo.num_done} of {todo.num_total} done{share}"


def nothing_to_do(
    config: Config, run_dir: RunDir, manifest: Manifest, selected: Sequence[PlannedClip]
) -> Iterator[str]:
    """Yield the lines of a run that finds everything done."""
    which = f"the rows of only={config.only}" if config.only else manifest.name
    which = f"shard {run_dir.shard} of {which}" if run_dir.shard else which
    skipped = [p for p in selected if p.is_skipped]
    if skipped:
        yield f"Nothing to render: {counted(len(skipped), 'clip')} of {which} cannot begin."
        for p in skipped[:MAX_SHOWN_FAILURES]:
            yield f"  {p.clip.clip_id} is skipped: {p.reason}"
    else:
        yield f"Nothing to do: every clip of {which} is done. force=true renders again."
    suspects = sum(p.is_suspect for p in selected)
    if suspects:
        yield f"{suspects} of them suspect; retry.suspect=true renders those again."
    yield f"Page: {run_dir.shown(run_dir.page)}"


def closing_lines(
    asked: Asked, outcome: Outcome, seconds_per_clip: float | None, num_left_out: int
) -> Iterator[str]:
    """Yield the last lines of a run.

    Args:
        asked: The request.
        outcome: How the run ended.
        seconds_per_clip: From the run's `Pace`.
        num_left_out: `Todo.num_left_out`.
    """
    run_dir, manifest = asked.run_dir, asked.manifest
    failed = [r for r in outcome.records if r.status == FAILED]
    yield f"{outcome.state}: {_counts(outcome.records, len(failed), seconds_per_clip)}"
    for record in failed[:MAX_SHOWN_FAILURES]:
        yield f"  {record.clip_id}: {format_error(record)}"
    if len(failed) > MAX_SHOWN_FAILURES:
        yield f"  and {len(failed) - MAX_SHOWN_FAILURES} more, all of them on the page"
    if outcome.exit_code != EXIT_OK:
        how, *again = resume_lines(run_dir.path, to_type_again(asked.config), run_dir.shard)
        yield f"{outcome.message}; {how}"
        yield from again
        if asked.is_in_sweep and outcome.exit_code >= EXIT_SIGINT:
            yield "That resumes this run only; the same command again resumes the whole sweep."
    if num_left_out:
        yield left_out_line(num_left_out, run_dir.path, run_dir.shard)
    if _has_changed(manifest):
        yield (
            f"{manifest.path.name} has changed since the start; run again to render its new clips."
        )
    yield from slow_lines(worker_figures(map(vars, outcome.records)))
    yield f"Page: {run_dir.shown(run_dir.page)}"
    yield f"Clips: {run_dir.shown(run_dir.clips)}"


def _has_changed(manifest: Manifest) -> bool:
    """Whether the manifest, or a file of words, has changed since the start, or cannot be read."""
    try:
        if any(
            read_below(manifest.path.parent, PurePosixPath(name).parts, len(content)) != content
            for name, content in manifest.words
        ):
            return True
        return sha256_of_file(manifest.path) != manifest.sha256
    except OSError:
        return True


def _counts(records: Sequence[ClipRecord], failed: int, seconds: float | None) -> str:
    suspect = sum(r.status == SUSPECT for r in records)
    rendered = len(records) - failed
    parts = [
        f"{rendered} clip{'' if rendered == 1 else 's'} rendered",
        f"{failed} failed",
        f"{suspect} suspect",
    ]
    if seconds is not None:
        parts.append(f"{seconds:.1f} s per warm clip (median)")
    peaks = [r.peak_vram_reserved_bytes for r in records if r.peak_vram_reserved_bytes is not None]
    if peaks:
        parts.append(f"peak VRAM {format_gib(max(peaks))} GiB")
    return ", ".join(parts)


_ERROR_CHARACTERS = 200


def format_error(record: ClipRecord) -> str:
    """Return what went wrong, on one short line."""
    text = " ".join(redacted(f"{record.error_type}: {record.error_message}").split())
    return text if len(text) <= _ERROR_CHARACTERS else f"{text[: _ERROR_CHARACTERS - 1]}…"
