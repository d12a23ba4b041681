"""What the page plots, as traces: numbers that were measured, drawn by assets/plots.js."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from hv15_batch.figures.facts import FACTS, KEY_FACTS
from hv15_batch.figures.groups import distribution
from hv15_batch.figures.summary import shown_value
from hv15_batch.record import (
    DENOISE,
    DONE_STATUSES,
    LOAD,
    STAGES,
    STAGES_ON_CARD,
    is_denoised_here,
    peak_column,
    seconds_column,
)
from hv15_batch.report._read import RunData
from hv15_batch.units import GIB, JOULES_PER_WATT_HOUR, format_duration, format_gib, format_seconds

Record = Mapping[str, Any]
Plot = dict[str, Any]

_NOT_OF_A_STEP = ("Shift", "Steps", "Frames a second")
_STEP_FACTS = tuple(name for name in KEY_FACTS if name not in _NOT_OF_A_STEP)
"""Steps are compared only among clips that agree in these: those of the groups' table."""
MAX_STEP_GROUPS = 8
_THROTTLE_REASONS = {
    "throttle_power_seconds": "power",
    "throttle_thermal_seconds": "heat",
    "throttle_hardware_seconds": "hardware slowdown",
    "throttle_other_seconds": "other reasons",
}
_MAX_HEADROOM = 2.0
"""A limit further above the peaks would press them into the bottom of the plot."""


def plots(run: RunData) -> list[Plot]:
    """Return all plots of a run's page, in their order."""
    attempts = sorted(run.attempts, key=lambda a: (a["finished_at"] is None, a["finished_at"] or 0))
    done = [a for a in attempts if a["status"] in DONE_STATUSES]
    found = (
        _stage_seconds(done),
        _step_seconds(done),
        _stage_vram(done, _vram_limit(run, done)),
        _ram(run, done),
        _clocks(done),
        _temperature(done),
        _clips_per_hour(attempts),
        _energy(run, done),
    )
    return with_values(found)


def _stage_seconds(done: Sequence[Record]) -> Plot:
    traces = []
    for stage in (LOAD, *STAGES):
        values = [_seconds_of(stage, a) for a in done]
        if any(values):
            traces.append({"type": "bar", "name": stage, **_over_clips(done, values)})
    cold = sum(bool(a["is_cold"]) for a in done)
    caption = f"{len(done)} attempts, {cold} of them cold"
    if reused := sum(not is_denoised_here(a) for a in done):
        caption += f", {reused} from saved latents: denoised by an earlier attempt"
    return make_plot("stages", "Seconds per stage", "seconds", "clips as rendered", traces,
                     f"{caption}.", stacked=True)  # fmt: skip


def _seconds_of(stage: str, attempt: Record) -> float | None:
    """Return an attempt's seconds in a stage; None for denoising that another attempt did."""
    if stage == DENOISE and not is_denoised_here(attempt):
        return None
    seconds: float | None = attempt[seconds_column(stage)]
    return seconds


def _step_seconds(done: Sequence[Record]) -> Plot:
    """Return the median and p90 of each denoising step over warm clips of equal settings."""
    groups: dict[str, list[list[float]]] = {}
    warm = [a for a in done if a["step_seconds"] and not a["is_cold"] and is_denoised_here(a)]
    named = [name for name in _STEP_FACTS if len({FACTS[name](a) for a in warm}) > 1]
    for attempt in warm:
        facts = {name: value for name in named if (value := FACTS[name](attempt)) is not None}
        said = [f"{name} {shown_value(name, facts, 'not known')}" for name in named]
        steps = attempt["step_seconds"]
        groups.setdefault(", ".join([*said, f"{len(steps)} steps"]), []).append(steps)
    traces = []
    for name, clips in list(groups.items())[:MAX_STEP_GROUPS]:
        columns = (distribution(values) for values in zip(*clips, strict=True))
        each = [found for found in columns if found is not None]
        places = list(range(1, len(each) + 1))
        curves: dict[str, list[Any]] = {
            "median": [s.median for s in each],
            "p90": [s.p90 for s in each],
        }
        for word, values in curves.items():
            y = [_rounded(value) for value in values if value is not None]
            if not y:
                continue  # one clip has no p90
            traces.append(
                _line(places, y, f"{name}: {word}" if len(groups) > 1 else word, word == "p90")
            )
    left = len(groups) - MAX_STEP_GROUPS
    caption = f"Warm clips only; {sum(map(len, groups.values()))} of them." if groups else ""
    if left > 0:
        caption += f" {left} more settings are not drawn."
    return make_plot("steps", "Seconds per step", "seconds", "denoising step", traces, caption)


def _stage_vram(done: Sequence[Record], limit: tuple[str, float] | None) -> Plot:
    """Return the peaks; those of a stage without memory that earlier stages left reserved."""
    names = {peak_column(stage): stage for stage in STAGES_ON_CARD}
    names |= {"peak_vram_reserved_bytes": "reserved", "peak_vram_device_bytes": "whole card"}
    traces = _markers(done, names, GIB)
    highest = {name: _highest(done, column) for column, name in names.items()}
    said = [
        f"{format_gib(highest[name])} GiB {what}"
        for name, what in (("reserved", "reserved by torch"), ("whole card", "of the whole card"))
        if highest[name]
    ]
    caption = f"Highest: {', '.join(said)}. By stage: allocated by torch." if said else ""
    lines = []
    if limit is not None and traces:
        name, num_bytes = limit
        peak = max(value for value in highest.values() if value is not None)
        if num_bytes <= _MAX_HEADROOM * peak:
            lines.append({"y": _rounded(num_bytes / GIB), "name": name})
            caption += f" The line: {name}, {format_gib(num_bytes)} GiB."
        else:
            caption += f" {name[0].upper()}{name[1:]}, {format_gib(num_bytes)} GiB, is far above."
    return make_plot(
        "vram", "VRAM per stage", "GiB", "clips as rendered", traces, caption, lines=lines
    )


def _highest(done: Sequence[Record], column: str) -> float | None:
    return max((a[column] for a in done if a[column] is not None), default=None)


def _vram_limit(run: RunData, done: Sequence[Record]) -> tuple[str, float] | None:
    """Return the bytes that the run could use and what set them: a setting, or the card."""
    set_gib = (run.last_settings.get("runtime") or {}).get("vram_limit_gib")
    if set_gib is not None:
        return "runtime.vram_limit_gib", float(set_gib) * GIB
    total = next((a["gpu_total_bytes"] for a in reversed(done) if a["gpu_total_bytes"]), None)
    return None if total is None else ("memory of the card", total)


def _ram(run: RunData, done: Sequence[Record]) -> Plot:
    traces = _markers(done, {"peak_ram_bytes": "executor"}, GIB)
    total = (run.last_system.get("hardware") or {}).get("ram_total_bytes")
    peak = _highest(done, "peak_ram_bytes")
    caption = f"Of the process that renders; highest {format_gib(peak)} GiB" if peak else ""
    if peak and isinstance(total, int):
        caption += f" of {format_gib(total)} GiB in this machine or its control group"
    caption += "." if caption else ""
    return make_plot("ram", "RAM", "GiB", "clips as rendered", traces, caption)


def _clocks(done: Sequence[Record]) -> Plot:
    names = {"sm_clock_mhz_mean": "mean", "sm_clock_mhz_min": "lowest"}
    traces = _markers(done, names, 1, True)
    return make_plot("clocks", "SM clock", "MHz", "time", traces, _throttled(done))


def _throttled(done: Sequence[Record]) -> str:
    """Return for how long and why the card was throttled, of the time in which it was watched."""
    known = [a for a in done if a["throttle_seconds"] is not None]
    if not known:
        return ""
    throttled = sum(a["throttle_seconds"] for a in known)
    watched = sum(_seconds_of(stage, a) or 0.0 for a in known for stage in STAGES_ON_CARD)
    found = (
        f"{_attempts(known)}; throttled for {format_seconds(throttled)} s of the "
        f"{format_seconds(watched)} s that the card worked"
    )
    by_reason = {
        reason: sum(a[column] or 0.0 for a in known) for column, reason in _THROTTLE_REASONS.items()
    }
    reasons = [f"{reason} {format_seconds(s)} s" for reason, s in by_reason.items() if s]
    return f"{found}: {', '.join(reasons)}; reasons may overlap." if reasons else f"{found}."


def _temperature(done: Sequence[Record]) -> Plot:
    traces = _markers(done, {"temperature_celsius_max": "highest in a clip"}, 1, True)
    known = [a for a in done if a["temperature_celsius_max"] is not None]
    caption = f"Highest in each attempt; {_attempts(known)}."
    return make_plot("temperature", "Temperature of the card", "°C", "time", traces, caption)


def _clips_per_hour(attempts: Sequence[Record]) -> Plot:
    found, caption = rate_of_work(attempts)
    trace = {
        "type": "bar",
        "name": "clips per hour",
        "x": [_moment(stretch.middle) for stretch in found],
        "y": [_rounded(stretch.clips_per_hour) for stretch in found],
        "width": [stretch.seconds * 1000 for stretch in found],
    }
    traces = [trace] * bool(found)
    return make_plot("rate", "Clips per hour", "clips per hour", "time", traces, caption)


def _energy(run: RunData, done: Sequence[Record]) -> Plot:
    values = [a["energy_joules"] for a in done]
    measured = [value for value in values if value is not None]
    price = (run.last_settings.get("report") or {}).get("price_per_kwh")
    title = "Energy" if price is None else "Energy and cost"
    if not measured:
        return make_plot("energy", title, "Wh", "clips as rendered", [], "")
    per_clip = [None if v is None else v / JOULES_PER_WATT_HOUR for v in values]
    traces = [{"type": "bar", "name": "Wh a clip", **_over_clips(done, per_clip)}]
    kwh = sum(measured) / JOULES_PER_WATT_HOUR / 1000
    caption = f"{kwh:.3g} kWh in all {len(measured)} attempts, cold ones included"
    if price is not None:
        caption += f"; at {price:g} a kWh {kwh * price:.3g}"
    return make_plot("energy", title, "Wh", "clips as rendered", traces, f"{caption}.")


# -- pieces ------------------------------------------------------------------------------------


def with_values(found: Iterable[Plot]) -> list[Plot]:
    """Return the plots that have something to show."""
    return [plot for plot in found if plot["traces"]]


def make_plot(
    name: str,
    title: str,
    unit: str,
    over: str,
    traces: list[dict[str, Any]],
    caption: str,
    *,
    stacked: bool = False,
    by_name: bool = False,
    is_free: bool = False,
    lines: Iterable[dict[str, Any]] = (),
) -> Plot:
    """Return a figure as assets/plots.js reads it.

    Args:
        name: Of its place on the page.
        title: Above it.
        unit: Of the values, and of the upright axis.
        over: What the level axis has, with `time` as moments.
        traces: Plotly's; none where nothing was measured.
        caption: Below it.
        stacked: Whether bars stand on each other.
        by_name: Whether the upright axis has names, so that the level one has the values.
        is_free: Whether the level axis has measured values from 0 on, not places in an order.
        lines: Level lines, by `y` and `name`.
    """
    return {
        "id": name, "title": title, "unit": unit, "over": over, "isTime": over == "time",
        "isStacked": stacked, "isByName": by_name, "isFree": is_free, "traces": traces,
        "lines": list(lines), "caption": caption,
    }  # fmt: skip


def _over_clips(done: Sequence[Record], values: Sequence[float | None]) -> dict[str, Any]:
    return {
        "x": list(range(1, len(done) + 1)),
        "y": [_rounded(v) for v in values],
        "text": [a["clip_id"] for a in done],
    }


def _markers(
    done: Sequence[Record], names: Mapping[str, str], unit: float, is_time: bool = False
) -> list[dict[str, Any]]:
    """Return a trace of dots for each of the columns that has a value."""
    traces = []
    for column, name in names.items():
        values = [None if a[column] is None else a[column] / unit for a in done]
        if any(v is not None for v in values):
            trace: dict[str, Any] = {"type": "scatter", "mode": "markers", "name": name}
            trace |= _over_clips(done, values)
            if is_time:
                trace["x"] = [_moment(a["finished_at"]) if a["finished_at"] else None for a in done]
            traces.append(trace)
    return traces


def _attempts(attempts: Sequence[Record]) -> str:
    return f"{len(attempts)} attempt{'' if len(attempts) == 1 else 's'}"


def _line(x: list[int], y: list[float | None], name: str, is_dashed: bool) -> dict[str, Any]:
    mode = "lines+markers" if len(x) == 1 else "lines"
    trace: dict[str, Any] = {"type": "scatter", "mode": mode, "name": name, "x": x, "y": y}
    return {**trace, "line": {"dash": "dot"}} if is_dashed else trace


def _moment(time: datetime | float) -> str:
    """Return a moment in the local time of this machine, as Plotly reads it."""
    if not isinstance(time, datetime):
        time = datetime.fromtimestamp(time, timezone.utc)
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _rounded(value: float | None) -> float | None:
    """Return a value with the six digits that a plot can show at most."""
    return None if value is None else float(f"{value:.6g}")


_MAX_STRETCHES = 96
"""With fewer clips there is one stretch for each."""
_PAUSE_SECONDS = 300
"""A longer time without an attempt ends a spell of work: a closed window, or a pause."""


@dataclass(frozen=True)
class Stretch:
    """A piece of work and how fast it went."""

    middle: float
    """Seconds since the epoch."""
    seconds: float
    clips_per_hour: float


def rate_of_work(attempts: Sequence[Record]) -> tuple[list[Stretch], str]:
    """Return the rate, each spell of work cut into equal stretches, and what it rests on.

    A clip counts in each stretch by the part of its own time that lies there. Counting ends alone
    would make the rate of a stretch jump by whole clips, and fall where the last is cut short.
    """
    spells = [_done_spans(spell) for spell in _spells(attempts)]
    spells = [(begin, end, spans) for begin, end, spans in spells if spans]
    num_clips = sum(len(spans) for *_, spans in spells)
    if not num_clips:
        return [], ""
    found = []
    for begin, end, spans in spells:
        num = max(1, min(len(spans), round(len(spans) / num_clips * _MAX_STRETCHES)))
        width = (end - begin) / num
        for place, count in enumerate(_counts(begin, width, num, spans)):
            found.append(Stretch(begin + (place + 0.5) * width, width, count * 3600 / width))
    worked = format_duration(sum(end - begin for begin, end, _ in spells))
    caption = f"{num_clips} clip{'' if num_clips == 1 else 's'} in {worked} of work"
    if len(spells) > 1:
        caption += f", {len(spells)} spells of it; the time between them does not count"
    warm_ups = sum(a["repeat"] == 0 and a["status"] in DONE_STATUSES for a in attempts)
    if warm_ups:
        caption += f"; {warm_ups} of them warmed up"
    return found, f"{caption}. The start of a run, before its first clip, does not count."


def _spells(attempts: Sequence[Record]) -> list[list[Record]]:
    """Return attempts that followed each other: those of one run, without a pause between them."""
    spells: list[list[Record]] = []
    started = sorted((a for a in attempts if _span(a)), key=lambda a: _span(a) or (0.0, 0.0))
    ended = 0.0
    for attempt in started:
        begin, end = _span(attempt) or (0.0, 0.0)
        is_next = spells and attempt["run_id"] == spells[-1][-1]["run_id"]
        if not is_next or begin - ended > _PAUSE_SECONDS:
            spells.append([])
            ended = 0.0
        spells[-1].append(attempt)
        ended = max(ended, end)
    return spells


def _done_spans(spell: Sequence[Record]) -> tuple[float, float, list[tuple[float, float]]]:
    """Return when a spell began and ended, and the spans of its finished clips."""
    spans = [(_span(a) or (0.0, 0.0), a["status"] in DONE_STATUSES) for a in spell]
    begin, end = min(s for (s, _), _ in spans), max(e for (_, e), _ in spans)
    return begin, end, [span for span, is_done in spans if is_done]


def _counts(
    begin: float, width: float, num: int, spans: Iterable[tuple[float, float]]
) -> list[float]:
    """Return how many clips lie in each of `num` stretches, by parts of their own time."""
    counts = [0.0] * num
    for start, end in spans:
        for place in range(min(int((start - begin) / width), num - 1), num):
            from_, to = begin + place * width, begin + (place + 1) * width
            if from_ >= end:
                break
            counts[place] += (min(end, to) - max(start, from_)) / (end - start)
    return counts


def _span(attempt: Record) -> tuple[float, float] | None:
    """Return when an attempt began and ended; None where that is not known."""
    start, end, seconds = (attempt[n] for n in ("started_at", "finished_at", "total_seconds"))
    if end is None or (start is None and seconds is None):
        return None
    began = end.timestamp() - seconds if start is None else start.timestamp()
    return (began, end.timestamp()) if began < end.timestamp() else None
