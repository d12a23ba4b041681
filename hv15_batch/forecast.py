"""When a run will be over, what it needs, and what would be cheaper: the dry run's predictions.

Estimates say so; a log of the same card turns them into figures. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hv15_batch.cards import CARDS, Card, card_names, find_card
from hv15_batch.clip import ClipSettings
from hv15_batch.config import Config, ConfigError, Weights
from hv15_batch.costs import (
    CALIBRATION_COLUMNS,
    GIB,
    ClipCost,
    ClipShape,
    calibration,
    predict_clip,
)
from hv15_batch.executor import Job
from hv15_batch.machine import Gpu, Machine
from hv15_batch.offload_choice import OffloadChoice, choose_offload
from hv15_batch.pace import Pace
from hv15_batch.plan import PlannedClip
from hv15_batch.rundir import RunDir
from hv15_batch.runlog import LogSchemaError, read_records
from hv15_batch.schedule import Rules, check_window

MAX_SIBLING_LOGS = 20
"""Run directories beside this one whose logs are read for calibration, newest first."""


@dataclass(frozen=True)
class Forecast:
    """Predicted course of a run on one card."""

    card: Card
    gpu_name: str
    offload: OffloadChoice
    scale: float | None
    """Measured over predicted seconds on this card, or None without a log of it."""
    compiled: bool

    def clip_cost(self, settings: ClipShape) -> ClipCost:
        """Return the predicted seconds of a warm clip, by stage."""
        return predict_clip(
            settings,
            self.card,
            compiled=self.compiled,
            offload=self.offload.kind.name,
            scale=self.scale,
        )

    def clip_seconds(self, settings: ClipShape) -> float:
        """Return the predicted seconds of a warm clip."""
        return self.clip_cost(settings).seconds

    def total_seconds(self, clips: Sequence[ClipSettings]) -> float:
        """Return the predicted seconds of all clips, one after the other."""
        return sum(self.clip_seconds(settings) for settings in clips)

    @property
    def basis(self) -> str:
        """What the figures rest on."""
        if self.scale is not None:
            return f"calibrated by the log of this {self.gpu_name}"
        return f"an estimate from the {self.card.name}'s vendor figures"


def make_forecast(
    config: Config, todo: Sequence[ClipSettings], machine: Machine, log_folder: Path
) -> Forecast | None:
    """Return the forecast for `runtime.card` or for this machine's card; None without either.

    Raises:
        ConfigError: `runtime.card` is not in the table, or no offload profile fits the card.
    """
    if config.model.weights is Weights.tiny or not todo:
        return None
    name = config.runtime.card
    if name is not None and find_card(name) is None:
        raise ConfigError(f"runtime.card={name}: known cards are {', '.join(card_names())}.")
    gpu_name = name or (machine.gpus[0].name if machine.gpus else None)
    card = find_card(gpu_name) if gpu_name else None
    if card is None or gpu_name is None:
        return None
    offload = choose_offload(config, todo, _machine_with(card, machine) if name else machine)
    scales = calibration(_sibling_records(log_folder), card, gpu_name) if not name else {}
    scale = scales.get((config.runtime.compile, offload.kind.name))
    return Forecast(card, gpu_name, offload, scale, config.runtime.compile)


def make_pace(
    forecast: Forecast | None, todo: Sequence[PlannedClip], run_dir: RunDir, rules: Rules
) -> Pace:
    """Return what predicts the clips of a run.

    Raises:
        ConfigError: a clip is predicted to be longer than `window`.
    """

    def proportions(settings: ClipShape) -> ClipCost:
        return predict_clip(settings, CARDS[5], compiled=False, offload="resident", scale=None)

    def has_latents(job: Job) -> bool:
        return job.use_latents and run_dir.latents_file(job.clip.denoise_sha256).is_file()

    pace = Pace(
        forecast.clip_cost if forecast is not None else proportions,
        is_forecast=forecast is not None,
        has_latents=has_latents,
        clock=rules.clock,
    )
    if rules.window is not None:
        for p in todo:
            seconds = pace.clip_seconds(Job(p.clip, p.attempts + 1, p.use_latents, p.repeat))
            check_window(rules.window, seconds, p.clip.clip_id)
    return pace


def forecast_lines(
    config: Config,
    todo: Sequence[ClipSettings],
    machine: Machine,
    log_folder: Path,
    rules: Rules,
) -> list[str]:
    """Return what the dry run says of time and memory: at most six lines.

    Raises:
        ConfigError: `runtime.card` is unknown, or a clip is longer than `window`.
    """
    forecast = make_forecast(config, todo, machine, log_folder)
    if forecast is None:
        if config.model.weights is Weights.tiny or not todo:
            return []
        return [f"Time: no card here that is in the table; runtime.card={CARDS[5].name} predicts"]
    seconds = forecast.total_seconds(todo)
    lengths = [forecast.clip_seconds(settings) for settings in todo]
    check_window(rules.window, max(lengths), f"the longest of {len(todo)} clips")
    finishes = list(rules.finishes(lengths))
    lines = [
        f"Time: {_duration(seconds)} in all, {seconds / len(todo):.0f} s per warm clip, "
        f"done {finishes[-1]:%a %H:%M} ({forecast.basis})",
        f"Memory: {forecast.offload.reason}",
    ]
    lines += _rule_lines(rules, finishes)
    if any(finishes[-1] > end for end in rules.ends()):
        cheaper = _cheaper(config, forecast, todo, machine, log_folder)
        if cheaper:
            lines.append(cheaper)
    return lines


def _rule_lines(rules: Rules, finishes: Sequence[datetime]) -> list[str]:
    """Return how many clips will be finished by when, and when the last one."""
    now, total, lines = rules.clock.now(), len(finishes), []
    for deadline, end in zip(rules.deadlines, rules.ends(), strict=True):
        count = sum(finish <= end for finish in finishes)
        setting = "" if deadline.moment else f" ({deadline.setting})"
        lines.append(f"Until {end:%a %H:%M}{setting}: {count} of {total} clips")
    if rules.window is not None:
        closing = rules.window.current(now)[1]
        nights = len({rules.window.current(finish - timedelta(seconds=1)) for finish in finishes})
        first = sum(finish <= closing for finish in finishes)
        lines.append(
            f"Window {rules.window.setting.partition('=')[2]}: {first} of {total} clips by "
            f"{closing:%a %H:%M}, all {total} on {finishes[-1]:%a %d %b %H:%M} "
            f"({nights} {'window' if nights == 1 else 'windows'})"
        )
    return lines


def _cheaper(
    config: Config,
    forecast: Forecast,
    todo: Sequence[ClipSettings],
    machine: Machine,
    log_folder: Path,
) -> str | None:
    """Return one setting that would make the run shorter, the mildest first."""
    if not config.runtime.compile:
        faster = replace(forecast, compiled=True)
        return _cheaper_line("runtime.compile=true", faster.total_seconds(todo))
    frames = max(s.num_frames for s in todo)
    if frames > 61:
        shorter = [replace(s, num_frames=min(s.num_frames, 61)) for s in todo]
        return _cheaper_line("override.num_frames=61", forecast.total_seconds(shorter))
    return None


def _cheaper_line(option: str, seconds: float) -> str:
    return f"Cheaper: {option} would take {_duration(seconds)}"


def _sibling_records(log_folder: Path) -> list[dict[str, Any]]:
    """Return the rows of this run directory's log and of those beside it."""
    folders = [log_folder, *sorted(log_folder.parent.parent.glob("*/log"), reverse=True)]
    rows: list[dict[str, Any]] = []
    for folder in dict.fromkeys(folders[: MAX_SIBLING_LOGS + 1]):
        try:
            rows += read_records(folder, CALIBRATION_COLUMNS).to_pylist()
        except LogSchemaError:
            continue  # another directory's damage is not this run's
    return rows


def _machine_with(card: Card, machine: Machine) -> Machine:
    """Return this machine as if it had that card, all of its memory free."""
    size = int(card.memory_gib * GIB)
    gpu = Gpu(0, card.name, "", size, size, "", None)
    return replace(machine, gpus=(gpu,))


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes = rest // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{max(1, minutes)} min"
