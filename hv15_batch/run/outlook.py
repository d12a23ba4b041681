"""What a run would do, with which profile and for how long: for the dry run and for Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hv15_batch.config.checks import linears_fault
from hv15_batch.config.settings import Config
from hv15_batch.errors import Refused
from hv15_batch.figures.frame import arrow_series
from hv15_batch.forecast.calibrate import read_log_rows
from hv15_batch.forecast.cheaper import Trial
from hv15_batch.forecast.compilation import compilation_lines, decide_compilations
from hv15_batch.forecast.disk import disk_need
from hv15_batch.forecast.forecast import (
    Forecast,
    by_model,
    lora_bytes,
    make_forecast,
    sharing_ram,
)
from hv15_batch.forecast.offload import OffloadChoice, choose_offload, workers_fault
from hv15_batch.forecast.wording import uncertainty, workers_lines
from hv15_batch.machine.cards import Card, typed_card
from hv15_batch.machine.machine import Machine, read_machine
from hv15_batch.manifest.templates.expand import shown_prompts
from hv15_batch.official.command import command_lines
from hv15_batch.official.limits import is_official
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.planning.tables import PLAN_COLUMNS, plan_rows, write_plan
from hv15_batch.planning.todo import Todo
from hv15_batch.redaction import printable
from hv15_batch.rewrite.client import missing_fault
from hv15_batch.rewrite.rows import rewriting_lines
from hv15_batch.run._dry_run import (
    count_prompt_tokens,
    format_moment,
    predict_run,
    print_dry_run,
)
from hv15_batch.run._preflight import find_hindrances, measuring_fault
from hv15_batch.run.prepare import (
    Asked,
    attention_fault,
    offline_fault,
    plan_against_log,
    plan_with,
)
from hv15_batch.run.schedule import Rules
from hv15_batch.rundir.log import foreign_note
from hv15_batch.rundir.paths import RunDir
from hv15_batch.units import Say, counted, format_duration

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Plan:
    """What a run would do now; made without weights, network and CUDA context."""

    run_dir: Path
    """Where the run would write; absolute. It need not exist."""
    clips: tuple[PlannedClip, ...]
    """Every clip of the manifest with state, reason and settings, in the order of rendering."""
    todo: tuple[PlannedClip, ...]
    """Clips that the run would render; in a benchmark each repetition of them."""
    lines: tuple[str, ...]
    """What the dry run prints."""
    refusals: tuple[str, ...]
    """Why a run would be refused here and now; empty if it would start."""
    offload: str | None
    """The profile: resident, stream, model or stream_disk; where models differ, each of them once,
    with commas. None without a known card."""
    peak_bytes: int | None
    """Predicted peak on the card, CUDA's own part included; None without a forecast."""
    seconds: float | None
    """Predicted seconds of the whole run; None without a forecast."""
    forecast: Forecast | None
    """The basis of seconds and peak; None for a tiny or demo model, and without a known card."""
    prompt_tokens: dict[str, int]
    """Tokens by prompt; empty if no tokenizer is on the disk."""

    def to_frame(self) -> DataFrame:
        """Return the columns of plan.csv, a row for each clip: seconds, pixels, hex hashes."""
        import pandas as pd

        predict = self.forecast.stage_seconds if self.forecast else None
        rows = plan_rows(self.clips, self.prompt_tokens, predict)
        cells = {name: [row[name] for row in rows] for name in PLAN_COLUMNS}
        frame: DataFrame = pd.DataFrame({n: arrow_series(values) for n, values in cells.items()})
        return frame

    def write(self) -> Path:
        """Write plan.csv into the run directory, and return its path.

        Raises:
            Refused: the folder cannot be made.
        """
        run_dir = RunDir(self.run_dir)
        run_dir.create_folder()
        predict = self.forecast.stage_seconds if self.forecast else None
        write_plan(self.clips, run_dir.plan, self.prompt_tokens, predict)
        return run_dir.plan


def make_plan(asked: Asked, rules: Rules, say: Say = lambda _: None) -> Plan:
    """Return what a run would do; nothing is written.

    Args:
        asked: The request.
        rules: When it may render.
        say: Takes each line of the dry run as it is known, before a refusal too.

    Raises:
        Refused: The settings would repeat finished work, a clip is longer than `window`, the
            card is unknown, or the profile does not fit.
        LogSchemaError: The log of the run directory cannot be read.
    """
    config, checkpoints = asked.config, asked.checkpoints
    todo = plan_against_log(asked)
    machine = read_machine()
    lines: list[str] = []

    def tell(*texts: str) -> None:
        for text in map(printable, texts):
            lines.append(text)
            say(text)

    plan_bytes = disk_need(todo.to_render, config).plan_bytes
    if todo.shard is not None:
        clips = counted(len(todo.clips), "clip")
        tell(f"Shard {todo.shard}: {len(todo.share)} of {clips}; the lines below are about them")
    print_dry_run(
        asked.manifest,
        todo.selected,
        checkpoints,
        asked.beaten,
        plan_bytes,
        tell,
    )
    tell(*command_lines(asked.config_of, todo.to_render, asked.run_dir.clips))
    tell(*shown_prompts(p.clip for p in todo.selected))
    tell(*rewriting_lines(p.clip for p in todo.selected))
    if foreign := foreign_note(asked.run_dir.log):
        tell(foreign)
    if todo.repetitions is not None:
        tell(todo.repetitions.describe())
    log = asked.run_dir.log
    compilations = decide_compilations(config, todo.clips, machine, asked.run_dir)
    compiled = {name: found.is_on for name, found in compilations.items()}
    trials = _Trials(asked, todo, machine)
    forecast, told = predict_run(config, todo.to_render, machine, log, rules, trials, compiled)
    if todo.to_render and is_official(config):
        told = ["Time: not predicted for the official script; its first clips show it"]
    elif todo.to_render:
        tell(*compilation_lines(compilations))
    tell(*told)
    if forecast is not None:
        tell(
            _uncertainty_line(forecast, todo.to_render, rules),
            *workers_lines(forecast, todo.to_render),
        )
    choices = (
        [own.offload for own in forecast.each]
        if forecast
        else _choices_on_cpu(asked, todo, machine)
    )
    peaks = [choice.peaks.device_bytes for choice in choices if choice.peaks]
    refusals: list[str] = []
    if todo.to_render:
        kinds = [own.offload.kind for own in forecast.each] if forecast else []
        num_here = sharing_ram(forecast.num_workers, machine) if forecast else 1
        findings = find_hindrances(asked, todo, kinds, num_here)
        typed = config.runtime.card
        gpu_name = typed_card(typed).name if typed else machine.gpu.name if machine.gpu else None
        # With `runtime.card` the lines are about another machine.
        if not typed and (fault := measuring_fault(asked, todo, machine)):
            refusals.append(fault)
        card = forecast.card if forecast else None
        if fault := missing_fault(config.rewrite, (p.clip for p in todo.to_render)):
            refusals.append(fault)
        if not typed and (fault := workers_fault(config, machine)):
            refusals.append(fault)
        refusals += [*_settings_faults(asked, todo, card, gpu_name), *findings.refusals]
        tell(*findings.notes, *(f"A run would be refused: {fault}" for fault in refusals))
    return Plan(
        run_dir=asked.run_dir.path,
        clips=tuple(todo.clips),
        todo=tuple(todo.to_render),
        lines=tuple(lines),
        refusals=tuple(refusals),
        offload=", ".join(dict.fromkeys(choice.kind.name for choice in choices)) or None,
        peak_bytes=max(peaks, default=None),
        seconds=forecast.total_seconds(todo.to_render) if forecast else None,
        forecast=forecast,
        prompt_tokens=count_prompt_tokens(todo.clips, checkpoints.values()) or {},
    )


def _uncertainty_line(forecast: Forecast, todo: Sequence[PlannedClip], rules: Rules) -> str:
    """Return how wrong the time may be, and how many clips are finished by when at worst."""
    found = uncertainty(forecast, todo)
    slow = [(of * found.factor, write * found.factor) for of, write in forecast.lengths(todo)]
    finishes = list(rules.finishes(slow))
    parts = [
        f"{found.words}: {format_duration(forecast.total_seconds(todo) * found.factor)} in all"
    ]
    for end in rules.ends():
        count = sum(finish <= end for finish in finishes)
        parts.append(f"{count} of {len(todo)} clips until {format_moment(end, rules)}")
    return f"Uncertainty: {', '.join(parts)}"


def _choices_on_cpu(asked: Asked, todo: Todo, machine: Machine) -> list[OffloadChoice]:
    """Return the profile of each tiny or demo model; none for others, which need a card."""
    models = by_model(asked.config, todo.to_render)
    if not models:  # nothing to render
        models = [(own, []) for own, _ in asked.models()]
    return [
        choose_offload(own, [p.clip.settings for p in clips], machine, lora_bytes(clips))
        for own, clips in models
        if own.model.weights.is_small
    ]


def _settings_faults(
    asked: Asked, todo: Todo, card: Card | None, gpu_name: str | None
) -> list[str]:
    """Return what the settings ask for that cannot run, and weights that cannot be fetched."""
    of_models = [
        fault
        for own, _ in asked.models(todo)
        if not is_official(own)
        for fault in (attention_fault(own, card), linears_fault(own, gpu_name))
    ]
    return [fault for fault in (*dict.fromkeys(of_models), offline_fault(asked, todo)) if fault]


class _Trials:
    """What the same command would do with other settings, as if they had been typed."""

    def __init__(self, asked: Asked, todo: Todo, machine: Machine) -> None:
        """Take what the command does as it is."""
        self._asked, self._todo, self._machine = asked, todo, machine

    def __call__(self, config: Config) -> Trial:
        """Return what it would do.

        Raises:
            Refused: The settings are refused, or no offload profile fits.
        """
        changed, todo = plan_with(self._asked, config)
        forecast = self._forecast(changed, todo)
        return Trial(todo.to_render, forecast, lambda: self._lack(changed, todo, forecast))

    def _forecast(self, asked: Asked, todo: Todo) -> Forecast | None:
        config, run_dir = asked.config, asked.run_dir
        found = decide_compilations(config, todo.clips, self._machine, run_dir, self._rows)
        compiled = {name: each.is_on for name, each in found.items()}
        return make_forecast(
            config, todo.to_render, self._machine, run_dir.log, self._rows, compiled
        )

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return read_log_rows(self._asked.run_dir.log)

    @cached_property
    def _own_faults(self) -> tuple[set[str], tuple[str, ...]]:
        forecast = self._forecast(self._asked, self._todo)
        return self._faults(self._asked, self._todo, forecast)

    def _faults(
        self, asked: Asked, todo: Todo, forecast: Forecast | None
    ) -> tuple[set[str], tuple[str, ...]]:
        """Return why a run would be refused, and for lack of which room."""
        kinds = [own.offload.kind for own in forecast.each] if forecast else []
        findings = find_hindrances(asked, todo, kinds)
        card = forecast.card if forecast else None
        faults = set(_settings_faults(asked, todo, card, card.name if card else None))
        is_here = asked.config.runtime.card is None  # else another machine is planned for
        if is_here and (fault := measuring_fault(asked, todo, self._machine)):
            faults.add(fault)
        return faults | set(findings.refusals) - set(findings.shortages), findings.shortages

    def _lack(self, asked: Asked, todo: Todo, forecast: Forecast | None) -> str:
        """Return what the disk lacks, unless it lacks room for the command as it is.

        Raises:
            Refused: A run would be refused for something else than the command as it is.
        """
        (known, is_short), (faults, shortages) = (
            self._own_faults,
            self._faults(asked, todo, forecast),
        )
        if new := faults - known:
            raise Refused("\n".join(sorted(new)))
        if is_short:
            return ""
        return ", ".join(fault.partition("; free some")[0] for fault in shortages)
