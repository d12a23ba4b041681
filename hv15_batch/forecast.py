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
from hv15_batch.machine import Gpu, Machine
from hv15_batch.offload_choice import OffloadChoice, choose_offload
from hv15_batch.runlog import LogSchemaError, read_records

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


def parse_until(text: str | None, now: datetime) -> datetime | None:
    """Return the next moment at which the clock shows `HH:MM`.

    Raises:
        ConfigError: not a time of day.
    """
    if text is None:
        return None
    try:
        hour, minute = (int(part) for part in text.split(":"))
        moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    except ValueError:
        raise ConfigError(f"until={text}: must be a time of day, for example 07:00.") from None
    return moment if moment > now else moment + timedelta(days=1)


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


def forecast_lines(
    config: Config,
    todo: Sequence[ClipSettings],
    machine: Machine,
    log_folder: Path,
    now: datetime,
    until: datetime | None,
) -> list[str]:
    """Return what the dry run says of time and memory: at most four lines."""
    forecast = make_forecast(config, todo, machine, log_folder)
    if forecast is None:
        if config.model.weights is Weights.tiny or not todo:
            return []
        return [f"Time: no card here that is in the table; runtime.card={CARDS[5].name} predicts"]
    seconds = forecast.total_seconds(todo)
    end = now + timedelta(seconds=seconds)
    lines = [
        f"Time: {_duration(seconds)} in all, {seconds / len(todo):.0f} s per warm clip, "
        f"done {end:%a %H:%M} ({forecast.basis})",
        f"Memory: {forecast.offload.reason}",
    ]
    if until is not None:
        lines.append(_until_line(forecast, todo, now, until))
        if end > until:
            cheaper = _cheaper(config, forecast, todo, machine, log_folder)
            if cheaper:
                lines.append(cheaper)
    return lines


def _until_line(
    forecast: Forecast, todo: Sequence[ClipSettings], now: datetime, until: datetime
) -> str:
    left, count = (until - now).total_seconds(), 0
    for settings in todo:
        left -= forecast.clip_seconds(settings)
        if left < 0:
            break
        count += 1
    return f"Until {until:%a %H:%M}: {count} of {len(todo)} clips"


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
