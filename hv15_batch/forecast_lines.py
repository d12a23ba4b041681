"""What the dry run says of time and memory, and which milder settings would meet a deadline."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from hv15_batch.calibration import read_log_rows
from hv15_batch.cards import EXAMPLE
from hv15_batch.cheaper import cheaper_ways
from hv15_batch.clip import ClipSettings
from hv15_batch.config import Config, ConfigError, Weights
from hv15_batch.forecast import Forecast, make_forecast, write_seconds
from hv15_batch.machine import Machine
from hv15_batch.schedule import Rules, check_window

_WEEK = timedelta(days=6)
"""A weekday names a moment up to so far ahead."""


def predict_run(
    config: Config,
    todo: Sequence[ClipSettings],
    machine: Machine,
    log_folder: Path,
    rules: Rules,
) -> tuple[Forecast | None, list[str]]:
    """Return the forecast, and what the dry run says of time and memory.

    These are three lines, one for each rule, and one where a deadline will be missed.

    Raises:
        ConfigError: `runtime.card` is unknown, or a clip is longer than `window`.
    """
    forecast = make_forecast(config, todo, machine, log_folder)
    if forecast is None:
        if config.model.weights is Weights.tiny or not todo:
            return None, []
        return None, [f"Time: no card here that is in the table; runtime.card={EXAMPLE} predicts"]
    longest = max(map(forecast.clip_seconds, todo))
    check_window(rules.window, longest, f"the longest of {len(todo)} clips")
    finishes = list(forecast.finishes(todo, rules))
    seconds = forecast.total_seconds(todo)
    warm = sum(map(forecast.clip_seconds, todo)) / len(todo)
    lines = [
        f"Time: {_duration(seconds)} in all, {warm:.0f} s per warm clip, "
        f"done {format_moment(finishes[-1], rules)} ({forecast.basis})",
        _stages_line(forecast, todo),
        f"Memory: {forecast.offload.reason}",
        *_rule_lines(rules, finishes),
    ]
    ends = rules.ends()
    if ends and finishes[-1] > min(ends):
        fitting = sum(finish <= min(ends) for finish in finishes)
        lines.append(_cheaper_line(config, todo, machine, log_folder, rules, fitting))
    return forecast, lines


def format_moment(moment: datetime, rules: Rules) -> str:
    """Return a moment on the clock, with its date where the weekday alone would mislead."""
    is_near = moment - rules.clock.now() < _WEEK
    return f"{moment:%a %H:%M}" if is_near else f"{moment:%a %d %b %Y %H:%M}"


def _stages_line(forecast: Forecast, todo: Sequence[ClipSettings]) -> str:
    """Return the time by stage: of the mean clip, and of what comes once."""
    costs, start = [forecast.clip_cost(settings) for settings in todo], forecast.start
    denoise, decode, denoise_flop, decode_flop = (
        sum(getattr(cost, name) for cost in costs) / len(costs)
        for name in ("denoise_seconds", "decode_seconds", "denoise_flop", "decode_flop")
    )
    once = [f"start and load {start.load_seconds:.0f} s", f"encode {start.encode_seconds:.0f} s"]
    if start.compile_seconds:
        once.append(f"compile {start.compile_seconds:.0f} s")
    once.append(f"last write {write_seconds(todo[-1]):.0f} s")
    return (
        f"Stages: a clip denoise {denoise:.1f} s ({denoise_flop / 1e15:.1f} PFLOP) and decode "
        f"{decode:.1f} s ({decode_flop / 1e15:.1f}); once {', '.join(once)}"
    )


def _rule_lines(rules: Rules, finishes: Sequence[datetime]) -> list[str]:
    """Return how many clips will be finished by when, and when the last one."""
    now, total, lines = rules.clock.now(), len(finishes), []
    for deadline, end in zip(rules.deadlines, rules.ends(), strict=True):
        count = sum(finish <= end for finish in finishes)
        setting = "" if deadline.moment else f" ({deadline.setting})"
        lines.append(f"Until {format_moment(end, rules)}{setting}: {count} of {total} clips")
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


def _cheaper_line(
    config: Config,
    todo: Sequence[ClipSettings],
    machine: Machine,
    log_folder: Path,
    rules: Rules,
    fitting: int,
) -> str:
    """Return the mildest settings with which all will be done in time, or that none are."""
    end, rows = min(rules.ends()), read_log_rows(log_folder)
    for way in cheaper_ways(config, todo):
        try:
            forecast = make_forecast(way.config, way.todo, machine, log_folder, rows)
        except ConfigError:
            continue  # no profile fits
        assert forecast is not None
        *_, last = forecast.finishes(way.todo, rules)
        if last <= end:
            duration = _duration(forecast.total_seconds(way.todo))
            return f"Cheaper: {way.words} would take {duration}, done {format_moment(last, rules)}"
    if fitting == 0:
        return "Cheaper: no setting tried here is fast enough, and not one clip fits"
    return f"Cheaper: no setting tried here is fast enough; limit={fitting} fits"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes = rest // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{max(1, minutes)} min"
