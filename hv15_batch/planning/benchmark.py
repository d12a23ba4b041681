"""The renderings of a benchmark: for each group warm-ups, then every clip N times, interleaved.

A group is a model with its LoRAs. Groups are not interleaved: the first clip of a model that was
just loaded is cold.

A repetition is rendered for its timings. Only its row in the log is kept, and it does not make a
clip done. `repeat` counts from 1; 0 is a warm-up, which is logged as cold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.machine.system import commit_text, system_facts, system_sha256
from hv15_batch.model.shapes import Shape
from hv15_batch.planning.chains import lost_frame
from hv15_batch.planning.plan import PlannedClip, State
from hv15_batch.planning.selection import select_alone
from hv15_batch.record import DONE_STATUSES, FAILED, WARM_UP
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.stored import FILE, read_rows_of_runs, read_settings

MadeOn = tuple[str | None, str | None]
"""Hash of the machine's facts, and the code's commit."""

_COLUMNS = ("settings_sha256", "repeat", "status", "is_cold", "run_id", "system_sha256", "commit")


@dataclass(frozen=True)
class Repetitions:
    """What a benchmark has to render, and what it has already."""

    todo: list[PlannedClip]
    """Group by group, its warm-ups first; each with its `repeat`."""
    num_measured: int
    """Repetitions that an earlier run has measured."""
    num_clips: int
    num_repeats: int

    @property
    def num_warm_ups(self) -> int:
        """Renderings that do not count."""
        return sum(p.repeat == WARM_UP for p in self.todo)

    def describe(self) -> str:
        """Return what will be rendered, on one line."""
        parts = [f"{self.num_clips} clips x {self.num_repeats} repetitions"]
        if self.num_measured:
            parts.append(f"- {self.num_measured} measured before")
        parts.append(f"+ {self.num_warm_ups} warm-ups = {len(self.todo)} renderings")
        return f"Benchmark: {' '.join(parts)}, of which no file is kept"


def plan_repetitions(clips: Sequence[PlannedClip], config: Config, run_dir: RunDir) -> Repetitions:
    """Return the renderings of `benchmark.repeat`, in each group the first of every clip first.

    In this order, a slow change of the machine affects all clips of a group alike. A warm
    repetition that the log has already is left out if its configuration and system are the same.
    `force=true` measures everything again.

    Args:
        clips: Every clip of the manifest; finished ones are measured too.
        config: `only` and `limit` choose clips.
        run_dir: Has the log.

    Raises:
        Refused: A clip begins with a frame of another one that is not kept.
    """
    repeats = config.benchmark.repeat
    assert repeats is not None
    chosen = select_alone([_unfinished(p) for p in clips], config)
    if (lost := lost_frame((p.clip for p in chosen), run_dir)) is not None and lost.source:
        raise Refused(
            f"benchmark.repeat={repeats}: {lost.clip_id} begins with a frame of "
            f"{lost.source.clip_id}, which is not kept; render the manifest without "
            "benchmark.repeat first, or choose other rows with only=."
        )
    rows = [] if config.force else read_rows_of_runs(run_dir, _COLUMNS)
    # The facts about this machine take a moment; they are not needed where nothing was measured.
    measured = measured_in(rows, config, run_dir, _here()) if rows else set()
    todo: list[PlannedClip] = []
    num_left = 0
    for _, of_group in groupby(chosen, lambda p: p.clip.settings.group):  # they lie together
        clips_of_group = list(of_group)
        left = [
            replace(p, repeat=number)
            for number in range(1, repeats + 1)
            for p in clips_of_group
            if (p.clip.settings_sha256, number) not in measured
        ]
        todo += [*_warm_ups(left), *left]
        num_left += len(left)
    return Repetitions(todo, len(chosen) * repeats - num_left, len(chosen), repeats)


def _unfinished(planned: PlannedClip) -> PlannedClip:
    return replace(planned, state=State.retry, reason="benchmark", use_latents=False)


def _warm_ups(todo: Sequence[PlannedClip]) -> list[PlannedClip]:
    """Return a first rendering of each size in a group: kernels are chosen and compiled by size."""
    first: dict[Shape, PlannedClip] = {}
    for planned in todo:
        first.setdefault(Shape.of(planned.clip.settings).of_one_step(), planned)
    return [replace(planned, repeat=WARM_UP) for planned in first.values()]


def measured_in(
    rows: Iterable[Mapping[str, Any]], config: Config, run_dir: RunDir, made_on: MadeOn
) -> set[tuple[str, int]]:
    """Return `(settings_sha256, repeat)` of the warm repetitions that a run with `config` can use.

    Args:
        rows: Rows of the log, with `settings_sha256`, `repeat`, `status`, `is_cold`, `run_id`,
            `system_sha256` and the run's `commit`.
        config: Settings of that run.
        run_dir: Has the settings of the runs that made the rows.
        made_on: Machine and code that count.
    """
    found = [r for r in rows if _counts(r) and _made_on(r) == made_on]
    runs = {run_id for run_id in {r["run_id"] for r in found} if _is_alike(run_id, config, run_dir)}
    return {(r["settings_sha256"], r["repeat"]) for r in found if r["run_id"] in runs}


@dataclass(frozen=True)
class Progress:
    """How far the last run of a directory has come, where it is a benchmark."""

    num_measured: int
    num_failed: int
    """Repetitions that failed and were not measured since."""
    num_clips: int
    num_repeats: int

    @property
    def total(self) -> int:
        """Repetitions in all."""
        return self.num_clips * self.num_repeats


def progress_of(
    clips: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], run_dir: RunDir
) -> Progress | None:
    """Return how many repetitions the last run has measured; None where it is no benchmark.

    Args:
        clips: Lines of the plan in its order, with `row_id` and `settings_sha256`.
        rows: Rows of the log, as for `measured_in`, oldest first.
        run_dir: Has the settings of the runs.
    """
    run_ids = run_dir.run_ids()
    try:
        config = read_settings(run_dir.run_folder(run_ids[-1]) / FILE) if run_ids else Config()
    except (Refused, OSError):  # stored by another version: the page counts clips instead
        return None
    if config.benchmark.repeat is None:
        return None
    only = {name.strip() for name in (config.only or "").split(",")} - {""}
    chosen = [c["settings_sha256"] for c in clips if not only or c["row_id"] in only]
    wanted = {(c, n) for c in chosen[: config.limit] for n in range(1, config.benchmark.repeat + 1)}
    made_on = next((_made_on(r) for r in reversed(rows) if r["system_sha256"]), (None, None))
    measured = measured_in(rows, config, run_dir, made_on) & wanted
    failed = {
        (r["settings_sha256"], r["repeat"])
        for r in rows
        if r["run_id"] == run_ids[-1] and r["status"] == FAILED
    } & wanted
    return Progress(
        num_measured=len(measured),
        num_failed=len(failed - measured),
        num_clips=len(set(chosen[: config.limit])),
        num_repeats=config.benchmark.repeat,
    )


def _here() -> MadeOn:
    facts = system_facts()
    return system_sha256(facts), commit_text(facts["project"])


def _made_on(row: Mapping[str, Any]) -> MadeOn:
    return row["system_sha256"], row["commit"]


def _counts(row: Mapping[str, Any]) -> bool:
    return bool(row["repeat"]) and row["status"] in DONE_STATUSES and not row["is_cold"]


def _is_alike(run_id: str, config: Config, run_dir: RunDir) -> bool:
    """Whether a run had the same settings that change timings, also those that change no frame."""
    try:
        stored = read_settings(run_dir.run_folder(run_id) / FILE)
    except (Refused, OSError):
        return False
    return _way_of_running(stored) == _way_of_running(config)


def _way_of_running(config: Config) -> tuple[Any, ...]:
    runtime = replace(config.runtime, card=None, allow_off_recipe=False)
    return runtime, config.offload, config.dispatch, config.retry.ladder
