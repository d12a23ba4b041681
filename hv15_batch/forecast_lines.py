"""What the dry run says of time and memory, and which milder settings would meet a deadline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from hv15_batch.calibration import read_log_rows
from hv15_batch.cards import EXAMPLE
from hv15_batch.cheaper import cheaper_ways
from hv15_batch.config import Config, ConfigError, Weights
from hv15_batch.forecast import Forecast, make_forecast, write_seconds
from hv15_batch.machine import Machine
from hv15_batch.plan import PlannedClip
from hv15_batch.schedule import Rules, check_window

_WEEK = timedelta(days=6)
"""A weekday names a moment up to so far ahead."""
Replan = Callable[[Config], Sequence[PlannedClip]]
"""Returns what the same command would render with other settings; ConfigError if it is refused."""


def predict_run(
    config: Config,
    todo: Sequence[PlannedClip],
    machine: Machine,
    log_folder: Path,
    rules: Rules,
    replan: Replan,
) -> tuple[Forecast | None, list[str]]:
    """Return the forecast, and what the dry run says of time and memory.

    These are three lines, one for each rule, and one where a deadline will be missed.

    Args:
        config: Settings.
        todo: What is to be rendered.
        machine: This one.
        log_folder: Where logs of the same card are looked for.
        rules: Deadlines and window.
        replan: Says what milder settings would render.

    Raises:
        ConfigError: `runtime.card` is unknown, or a clip is longer than `window`.
    """
    forecast = make_forecast(config, todo, machine, log_folder)
    if forecast is None:
        if config.model.weights is Weights.tiny or not todo:
            return None, []
        return None, [f"Time: no card here that is in the table; runtime.card={EXAMPLE} predicts"]
    longest = max(forecast.clip_seconds(p) + write_seconds(p.clip.settings) for p in todo)
    check_window(rules.window, [(f"the longest of {len(todo)} clips", longest)])
    finishes = list(rules.finishes(forecast.lengths(todo)))
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
        lines.append(
            _cheaper_line(config, todo, machine, log_folder, rules, replan, forecast.basis)
            or "Cheaper: no setting tried here is fast enough"
            + (f"; limit={fitting} fits" if fitting else ", and not one clip fits")
        )
    return forecast, lines


def format_moment(moment: datetime, rules: Rules) -> str:
    """Return a moment on the clock, with its date where the weekday alone would mislead."""
    is_near = moment - rules.clock.now() < _WEEK
    return f"{moment:%a %H:%M}" if is_near else f"{moment:%a %d %b %Y %H:%M}"


def _stages_line(forecast: Forecast, todo: Sequence[PlannedClip]) -> str:
    """Return the time by stage: of the mean clip, and of what comes once."""
    start = forecast.start
    costs = [forecast.clip_cost(p.clip.settings) for p in todo]
    denoised = [c for c, p in zip(costs, todo, strict=True) if not p.is_from_latents]
    denoise, denoise_flop = (
        sum(getattr(cost, name) for cost in denoised) / max(len(denoised), 1)
        for name in ("denoise_seconds", "denoise_flop")
    )
    decode, decode_flop = (
        sum(getattr(cost, name) for cost in costs) / len(costs)
        for name in ("decode_seconds", "decode_flop")
    )
    once = [f"start and load {start.load_seconds:.0f} s", f"encode {start.encode_seconds:.0f} s"]
    if start.compile_seconds:
        once.append(f"compile {start.compile_seconds:.0f} s")
    once.append(f"last write {write_seconds(todo[-1].clip.settings):.0f} s")
    num_decoded = len(todo) - len(denoised)
    saved = f"; {num_decoded} of {len(todo)} only decoded, from their latents" * bool(num_decoded)
    return (
        f"Stages: a clip denoise {denoise:.1f} s ({denoise_flop / 1e15:.1f} PFLOP) and decode "
        f"{decode:.1f} s ({decode_flop / 1e15:.1f}); once {', '.join(once)}{saved}"
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
    todo: Sequence[PlannedClip],
    machine: Machine,
    log_folder: Path,
    rules: Rules,
    replan: Replan,
    basis: str,
) -> str | None:
    """Return the mildest settings with which all will be done in time; None where none are found.

    Each is planned as if its words had been typed: what would be refused is not offered. What its
    time rests on is said where that is not the `basis` of what was asked.
    """
    end, rows = min(rules.ends()), read_log_rows(log_folder)
    for way in cheaper_ways(config, [p.clip.settings for p in todo]):
        try:
            clips = replan(way.config)
            forecast = make_forecast(way.config, clips, machine, log_folder, rows)
        except ConfigError:
            continue  # refused, or no profile fits
        if forecast is None:
            continue  # nothing would be left to do
        *_, last = rules.finishes(forecast.lengths(clips))
        if last <= end:
            other = "" if forecast.basis == basis else f" ({forecast.basis})"
            return (
                f"Cheaper: {way.words} would take {_duration(forecast.total_seconds(clips))}, "
                f"done {format_moment(last, rules)}{other}"
            )
    return None


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes = rest // 60
    return f"{hours} h {minutes:02d} min" if hours else f"{max(1, minutes)} min"
