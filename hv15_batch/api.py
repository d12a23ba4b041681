"""hv15_batch in Python: settings, a plan, a run as events, and the log as a DataFrame.

The command line does its jobs with the functions of this module.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import warnings
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from hv15_batch.clock import Clock
from hv15_batch.config.checks import check_config
from hv15_batch.config.compose import Job, compose_one
from hv15_batch.config.messages import refusal_of
from hv15_batch.config.run_names import sweep_folder_name
from hv15_batch.config.settings import CONFIG_DIR, Config
from hv15_batch.config.shard import parse_shard
from hv15_batch.dispatch.protocol import Stepped
from hv15_batch.errors import EXIT_OK, EXIT_REFUSED, LogSchemaError, Refused
from hv15_batch.figures.frame import read_frame
from hv15_batch.manifest.cells import ManifestError
from hv15_batch.manifest.columns import reading_of
from hv15_batch.manifest.frame import frame_content
from hv15_batch.planning.tables import median_of_clips
from hv15_batch.redaction import printable, shown
from hv15_batch.run import session
from hv15_batch.run.outcome import ClipFinished, Event, Finished, Message, Outcome, Started
from hv15_batch.run.outlook import Plan, make_plan
from hv15_batch.run.prepare import find_run_dir, prepare
from hv15_batch.run.schedule import read_rules
from hv15_batch.rundir.log import foreign_note
from hv15_batch.rundir.paths import RunDir, find_runs
from hv15_batch.rundir.store import below, is_url, place
from hv15_batch.rundir.stored import latest_settings
from hv15_batch.units import Say

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = (
    "ClipFinished",
    "Config",
    "Event",
    "Finished",
    "LogSchemaError",
    "ManifestError",
    "Message",
    "Outcome",
    "Plan",
    "Refused",
    "Started",
    "Stepped",
    "load_config",
    "plan",
    "read_log",
    "render",
)
DEFAULT_ROWS_DIR = Path("outputs") / "rows"
"""Default run directory of rows from a DataFrame."""
_PREPARATION_SECONDS = 10.0
"""Wait at most this long for a run that must end before it has started. A download ends first."""


def load_config(*overrides: str, config_dir: str | os.PathLike[str] | None = None) -> Config:
    """Return the settings of the same words on the command line.

    Args:
        overrides: `key=value` each, as text and with the same rules. A word with a manifest's
            suffix names the manifest. `resume=DIR` gives the stored settings of that run, and the
            other words replace some of them.
        config_dir: Folder with options of your own (`model/mine.yaml`), beside ours.

    Raises:
        Refused: A word, value or option is refused; the message says what to do.

    Example:
        >>> config = load_config("prompts.csv", "model=tiny_t2v", "override.num_frames=9")
        >>> config.override.num_frames
        9
    """
    folder = None if config_dir is None else os.fspath(config_dir)
    if folder is not None and not os.path.isdir(folder):
        raise Refused(f"config_dir={folder}: there is no such folder; correct the path.")
    try:
        config = _settings_of(compose_one(overrides, folder))
        check_config(config, is_rendering=False)
    except (Refused, LogSchemaError):
        raise
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None or refusal[1] != EXIT_REFUSED:
            raise  # no user error
        raise Refused(refusal[0]) from error
    return config


def plan(config: Config, rows: DataFrame | None = None) -> Plan:
    """Return what `render` would do now: states, reasons, profile, predicted seconds and bytes.

    Nothing is written; no weights, no network and no CUDA context are needed.

    Args:
        config: Of `load_config`, or a `Config` of your own.
        rows: The manifest's rows, see `render`.

    Raises:
        Refused: The run would be refused; `ManifestError` has every fault of every row.
        LogSchemaError: The log of the run directory cannot be read.

    Example:
        >>> config = load_config("prompts.csv", "model=tiny_t2v")
        >>> [clip.state.name for clip in plan(config).clips]
        ['new']
        >>> plan(config).to_frame()[["row_id", "seed", "num_frames"]].values.tolist()
        [['fox', 0, 9]]
    """
    config, content = _with_rows(config, rows)
    return make_plan(prepare(config, (), None, content), read_rules(config, Clock()))


def render(config: Config, rows: DataFrame | None = None) -> Generator[Event, None, None]:
    """Render the clips that are not done, and yield events; the last one is `Finished`.

    The run starts with the first `next`. It has its own thread, so it does not wait for the code
    that takes the events. It prints nothing. A generator that is closed early (`break`,
    `close()`) or interrupted ends the run in order: a clip that is only being written is finished,
    any other is logged as interrupted, and the next call resumes. A script needs no main guard.

    Args:
        config: Of `load_config`, or a `Config` of your own. A row's cell takes precedence over
            `sampling.*`, here without a message; `override.*` over both.
        rows: The manifest as a DataFrame, with the columns and rules of a file; missing values are
            empty cells, and paths in `image` and `loras` start at the working directory. A cell of
            `loras` may be a list of objects with `path` and `scale` too. It is stored as
            `rows.jsonl` in the run directory, by default `outputs/rows`, so that
            `hv15-batch resume=outputs/rows` works. The same rows make the same clips, whatever
            their order; finished ones are not rendered again.

    Raises:
        Refused: The run was refused before a clip was rendered. `ManifestError` has every fault
            of every row: `rows: row 3: num_frames=120: ...`, rows counted from 1.
        LogSchemaError: The log of the run directory cannot be read.

    Example:
        >>> config = load_config("prompts.csv", "model=tiny_t2v")
        >>> for event in render(config):
        ...     if isinstance(event, ClipFinished):
        ...         print(event.record.row_id, event.record.status)
        ...     elif isinstance(event, Finished):
        ...         print(event.outcome.state, event.outcome.exit_code)
        fox ok
        done 0
    """
    config, content = _with_rows(config, rows)
    return _events(partial(session.run, config, (), None, content=content))


def read_log(*run_dirs: str | os.PathLike[str], all_attempts: bool = False) -> DataFrame:
    """Return the logs of runs as one DataFrame, a row for each current clip.

    Args:
        run_dirs: Run directories; the folder of a sweep means all its runs.
        all_attempts: Every attempt instead, oldest first, repetitions of benchmarks included.

    Returns:
        The log's columns with their Arrow types (docs/log.md: bytes and seconds, null if not
        measured), then `run_dir` (absolute path), then a column for each setting in which the runs
        of these rows differ, by its dotted name: `runtime.compile`, `offload.kind`. A clip of the
        current manifest that was never tried has no row.

    Raises:
        Refused: A folder is no run directory, or none is named.
        LogSchemaError: A log cannot be read.

    Example:
        >>> log = read_log("outputs/prompts")
        >>> log[["row_id", "status", "num_frames"]].values.tolist()
        [['fox', 'ok', 9]]
    """
    if not run_dirs:
        raise Refused('read_log(): names no run; name one, for example "outputs/prompts".')
    found = find_runs(*map(place, run_dirs))
    for run_dir in found:
        if note := foreign_note(run_dir.log):
            warnings.warn(printable(note), stacklevel=2)
    return read_frame(found, all_attempts=all_attempts)


# -- rows and events --------------------------------------------------------------------------


def _with_rows(config: Config, rows: DataFrame | None) -> tuple[Config, bytes | None]:
    """Return the settings with the path of the rows' manifest, and its content."""
    if config.resume is not None:
        raise Refused(
            f'resume={config.resume}: load the settings of a run with load_config("resume=DIR").'
        )
    if rows is None:
        return config, None
    if config.manifest is not None:
        raise Refused(f"manifest={config.manifest}: rows are given too; leave one out.")
    typed = config.run_dir or str(DEFAULT_ROWS_DIR)
    path = Path(os.path.abspath(os.path.expanduser(place(typed))))
    manifest = RunDir(path).rows
    content = frame_content(rows, reading_of(config))
    return replace(config, manifest=str(manifest), run_dir=str(path)), content


def _events(run: Callable[..., int]) -> Generator[Event, None, None]:
    """Carry out a run in a thread, and yield its events."""
    told: SimpleQueue[Event | BaseException | None] = SimpleQueue()
    received: list[int] = []
    has_started = threading.Event()

    def listen(event: Event) -> None:
        if isinstance(event, Started):
            has_started.set()
        told.put(event)

    def work() -> None:
        try:
            say = lambda text: listen(Message(shown(text)))  # noqa: E731
            run(say, listener=session.Listener(listen, received))
        except BaseException as error:
            told.put(error)
        finally:
            told.put(None)

    def end() -> None:
        """End the run and wait for it. Interrupting the wait ends it at once."""
        while thread.is_alive():
            received.append(signal.SIGTERM)
            try:
                thread.join(None if has_started.is_set() else _PREPARATION_SECONDS)
                return
            except KeyboardInterrupt:
                continue

    thread = threading.Thread(target=work, name="hv15_batch-run", daemon=True)
    thread.start()
    atexit.register(end)  # for a generator that is still open when Python ends
    try:
        last = Finished(Outcome(EXIT_OK, "done"))
        while (event := told.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            if isinstance(event, Finished):
                last = event
            else:
                yield event
        thread.join()  # the run directory is free again
        yield last
    finally:
        end()
        atexit.unregister(end)


# -- runs of the command line -----------------------------------------------------------------


def carry_out(job: Job, say: Say, clock: Clock, typed_line: str) -> int:
    """Carry out one run, print its progress, and return the exit code.

    Args:
        job: Settings and typed words.
        say: Prints a line.
        clock: Shared by all runs of a sweep, and with it `until` and `time_limit`.
        typed_line: The command line without secrets; run.log begins with it.

    Raises:
        Refused: The run is refused.
        LogSchemaError: The log of the run directory cannot be read.
    """
    prefix = "sampling."
    sampling = (key[len(prefix) :] for key in job.typed if key.startswith(prefix))
    typed = (*sampling, *(key for key in job.typed if key.startswith("model.")))
    return session.run(
        _settings_of(job),
        typed,
        _sweep_of(job),
        say,
        clock=clock,
        typed_line=typed_line,
        swept=job.swept,
    )


def directory_of(job: Job) -> Path | None:
    """Return the directory of a run that has ended; None for one on object storage."""
    config = _settings_of(job)
    if config.run_dir is not None and is_url(config.run_dir):
        return None
    return find_run_dir(config, _sweep_of(job)).path


def measure(job: Job) -> float | None:
    """Return the median of `sweep_value` over the clips of a finished run."""
    config = _settings_of(job)
    assert config.sweep_value is not None
    run_dir = find_run_dir(config, _sweep_of(job))
    is_benchmark = config.benchmark.repeat is not None
    return median_of_clips(run_dir, config.sweep_value, is_benchmark=is_benchmark)


def _settings_of(job: Job) -> Config:
    """Return the settings of a run, with those of the run that it resumes and its own folder."""
    if job.config.shard is not None and "shard" not in job.typed:
        raise Refused(
            f"shard={job.config.shard} in an experiment: each command has its own share; type it, "
            "and leave it out of files."
        )
    config = job.config if job.config.resume is None else _resumed(job)
    sweep = _sweep_of(job)
    if sweep is not None and config.run_dir is not None:
        # One folder for all runs of a sweep would mix their settings.
        return replace(config, run_dir=below(config.run_dir, sweep))
    return config


def _sweep_of(job: Job) -> str | None:
    return sweep_folder_name(job.swept_values) if job.swept else None


def _resumed(job: Job) -> Config:
    """Return the stored settings of a run, with typed ones in their place.

    Raises:
        Refused: There is no such run, or a typed setting contradicts it.
    """
    typed = place(str(job.config.resume), "resume")
    path = Path(os.path.abspath(os.path.expanduser(typed)))
    run_dir = RunDir(path, parse_shard(job.config.shard))
    for key in ("manifest", "run_dir", "experiment"):
        if key in job.typed:
            raise Refused(
                f"{key}= with resume={run_dir.shown()}: a run directory has its own; leave one out."
            )
    folder = job.config.config_dir
    stored = latest_settings(run_dir, [*job.typed, *[CONFIG_DIR] * (folder is not None)])
    stored.config_dir = folder
    if "model" in job.typed:
        stored.model_option = job.config.model_option
    for key in job.typed:
        if key != "resume":
            _copy_setting(key, job.config, stored)
    if stored.manifest is not None and not Path(stored.manifest).is_file():
        raise Refused(
            f"resume={run_dir.shown()}: its manifest {stored.manifest} is gone; put it back "
            f"(copies are in {run_dir.run_folder(run_dir.run_ids()[-1]).parent}/*/manifest.*)."
        )
    return stored


def _copy_setting(key: str, source: Config, target: Config) -> None:
    """Copy one setting, or the option of a group, by its dotted name."""
    *path, name = key.split(".")
    for part in path:
        source, target = getattr(source, part), getattr(target, part)
    setattr(target, name, getattr(source, name))
