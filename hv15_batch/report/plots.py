"""What the page plots, as traces: numbers only, drawn by assets/plots.js.

A figure without measured values keeps its place and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from hv15_batch.records import DONE_STATUSES
from hv15_batch.report.facts import FACTS
from hv15_batch.report.figures import summarise
from hv15_batch.report.formats import (
    GIB,
    JOULES_PER_WATT_HOUR,
    format_gib,
    format_seconds,
)
from hv15_batch.report.read import RunData
from hv15_batch.status_text import format_duration

Record = Mapping[str, Any]
Plot = dict[str, Any]

STAGES = ("load", "encode", "denoise", "decode", "write")
_STEP_FACTS = ("Variant", "Size", "Frames", "Guidance", "Offload", "Attention", "Type", "Card")
"""Steps are compared among clips that have these alike."""
MAX_STEP_GROUPS = 8
_THROTTLE_REASONS = {
    "throttle_power_seconds": "power",
    "throttle_thermal_seconds": "heat",
    "throttle_hardware_seconds": "hardware slowdown",
    "throttle_other_seconds": "other reasons",
}
_MAX_BUCKETS = 96
"""Stretches of equal length over which the rate is taken, of fewer clips one for each."""


def plots(run: RunData) -> list[Plot]:
    """Return all figures of a run's page, in their order."""
    done = [a for a in run.attempts if a["status"] in DONE_STATUSES]
    done.sort(key=lambda a: (a["finished_at"] is None, a["finished_at"] or 0))
    return [
        _stage_seconds(done),
        _step_seconds(done),
        _stage_vram(done, _vram_limit(run, done)),
        _ram(run, done),
        _clocks(done),
        _temperature(done),
        _clips_per_hour(done),
        _energy(run, done),
    ]


def _stage_seconds(done: Sequence[Record]) -> Plot:
    traces = []
    for stage in STAGES:
        values = [a[f"{stage}_seconds"] for a in done]
        if any(values):
            traces.append({"type": "bar", "name": stage, **_over_clips(done, values)})
    cold = sum(bool(a["is_cold"]) for a in done)
    caption = f"{len(done)} attempts, {cold} of them cold." if traces else ""
    return _plot("stages", "Seconds per stage", "seconds", "clips as rendered", traces, caption,
                 stacked=True)  # fmt: skip


def _step_seconds(done: Sequence[Record]) -> Plot:
    """Return the median and p90 of each denoising step over warm clips of equal settings."""
    groups: dict[str, list[list[float]]] = {}
    shared = {name: {FACTS[name](a) for a in done} for name in _STEP_FACTS}
    named = [name for name in _STEP_FACTS if len(shared[name]) > 1]
    for attempt in done:
        steps = attempt["step_seconds"]
        if steps and not attempt["is_cold"] and attempt["denoise_attempt"] == attempt["attempt"]:
            facts = [f"{fact} {FACTS[fact](attempt)}" for fact in named]
            groups.setdefault(", ".join([*facts, f"{len(steps)} steps"]), []).append(steps)
    traces = []
    for name, clips in list(groups.items())[:MAX_STEP_GROUPS]:
        each = [summarise(values) for values in zip(*clips, strict=True)]
        places = list(range(1, len(each) + 1))
        curves = {"median": [s.median for s in each], "p90": [s.p90 for s in each]}
        for word, values in curves.items():
            y = [_short(value) for value in values if value is not None]
            if not y:
                continue  # one clip has no p90
            traces.append(
                _line(places, y, f"{name}: {word}" if len(groups) > 1 else word, word == "p90")
            )
    left = len(groups) - MAX_STEP_GROUPS
    caption = f"Warm clips only; {sum(map(len, groups.values()))} of them." if groups else ""
    if left > 0:
        caption += f" {left} more settings are not drawn."
    return _plot("steps", "Seconds per step", "seconds", "denoising step", traces, caption)


def _stage_vram(done: Sequence[Record], limit: float | None) -> Plot:
    names = {
        f"{stage}_peak_vram_reserved_bytes": stage for stage in ("encode", "denoise", "decode")
    }
    names["peak_vram_device_bytes"] = "whole card"
    traces = _markers(done, names, GIB)
    peaks = [a["peak_vram_reserved_bytes"] for a in done if a["peak_vram_reserved_bytes"]]
    caption = f"Highest reserved peak {format_gib(max(peaks))} GiB" if peaks else ""
    if peaks and limit:
        caption += f" of {format_gib(limit)} GiB, the line."
    lines = [_limit(limit / GIB, "limit of the card")] if limit and traces else []
    return _plot("vram", "VRAM per stage", "GiB", "clips as rendered", traces, caption, lines=lines)


def _vram_limit(run: RunData, done: Sequence[Record]) -> float | None:
    """Return the bytes that the run could use: of the card, or as `runtime.vram_limit_gib` says."""
    set_gib = (run.last_settings.get("runtime") or {}).get("vram_limit_gib")
    if set_gib is not None:
        return float(set_gib) * GIB
    return next((a["gpu_total_bytes"] for a in reversed(done) if a["gpu_total_bytes"]), None)


def _ram(run: RunData, done: Sequence[Record]) -> Plot:
    traces = _markers(done, {"peak_ram_bytes": "executor"}, GIB)
    total = (run.last_system.get("hardware") or {}).get("ram_total_bytes")
    peaks = [a["peak_ram_bytes"] for a in done if a["peak_ram_bytes"]]
    caption = f"Highest {format_gib(max(peaks))} GiB" if peaks else ""
    if peaks and total:
        caption += f" of {format_gib(total)} GiB in this machine or its control group."
    return _plot("ram", "RAM", "GiB", "clips as rendered", traces, caption)


def _clocks(done: Sequence[Record]) -> Plot:
    names = {"sm_clock_mhz_mean": "mean", "sm_clock_mhz_min": "lowest"}
    throttled = sum(a["throttle_seconds"] or 0.0 for a in done)
    caption = f"Throttled for {format_seconds(throttled)} s in all" if throttled else ""
    by_reason = {
        reason: sum(a[column] or 0.0 for a in done) for column, reason in _THROTTLE_REASONS.items()
    }
    reasons = [f"{reason} {format_seconds(s)} s" for reason, s in by_reason.items() if s]
    if reasons:
        caption += f": {', '.join(reasons)}; reasons may overlap"
    caption += "." if caption else ""
    return _plot("clocks", "SM clock", "MHz", "time", _markers(done, names, 1, True), caption)


def _temperature(done: Sequence[Record]) -> Plot:
    traces = _markers(done, {"temperature_celsius_max": "highest in a clip"}, 1, True)
    return _plot("temperature", "Temperature of the card", "°C", "time", traces, "")


def _clips_per_hour(done: Sequence[Record]) -> Plot:
    """Return the rate from the first start to the last end, in stretches of equal length.

    A clip counts in each stretch by the part of its own time that lies there. Counting ends alone
    would make the rate of a stretch jump by whole clips, and fall where the last is cut short.
    """
    spans = [span for span in map(_span, done) if span is not None]
    first = min((start for start, _ in spans), default=0.0)
    last = max((end for _, end in spans), default=0.0)
    if last <= first:
        return _plot("rate", "Clips per hour", "clips per hour", "time", [], "")
    num = min(len(spans), _MAX_BUCKETS)
    width = (last - first) / num
    counts = [0.0] * num
    for start, end in spans:
        for place in range(int((start - first) / width), num):
            from_, to = first + place * width, first + (place + 1) * width
            if from_ >= end:
                break
            counts[place] += (min(end, to) - max(start, from_)) / (end - start)
    x = [_moment(first + (place + 0.5) * width) for place in range(num)]
    y = [_short(count * 3600 / width) for count in counts]
    trace = {"type": "bar", "name": "clips per hour", "x": x, "y": y, "width": width * 1000}
    clips = f"{len(spans)} clip{'' if len(spans) == 1 else 's'}"
    caption = (
        f"{clips} from the first start to the last end, {format_duration(last - first)}; "
        "each counts over its own time."
    )
    return _plot("rate", "Clips per hour", "clips per hour", "time", [trace], caption)


def _span(attempt: Record) -> tuple[float, float] | None:
    """Return when an attempt began and ended; None where that is not known."""
    start, end, seconds = (attempt[n] for n in ("started_at", "finished_at", "total_seconds"))
    if end is None or (start is None and seconds is None):
        return None
    began = end.timestamp() - seconds if start is None else start.timestamp()
    return (began, end.timestamp()) if began < end.timestamp() else None


def _energy(run: RunData, done: Sequence[Record]) -> Plot:
    values = [a["energy_joules"] for a in done]
    measured = [value for value in values if value is not None]
    price = (run.last_settings.get("report") or {}).get("price_per_kwh")
    title = "Energy" if price is None else "Energy and cost"
    if not measured:
        return _plot("energy", title, "Wh", "clips as rendered", [], "")
    per_clip = [None if v is None else v / JOULES_PER_WATT_HOUR for v in values]
    traces = [{"type": "bar", "name": "Wh a clip", **_over_clips(done, per_clip)}]
    kwh = sum(measured) / JOULES_PER_WATT_HOUR / 1000
    caption = f"{kwh:.3g} kWh in all {len(measured)} attempts, cold ones included"
    if price is not None:
        caption += f"; at {price:g} a kWh {kwh * price:.3g}"
    return _plot("energy", title, "Wh", "clips as rendered", traces, f"{caption}.")


# -- pieces ------------------------------------------------------------------------------------


def _plot(
    name: str,
    title: str,
    unit: str,
    over: str,
    traces: list[dict[str, Any]],
    caption: str,
    *,
    stacked: bool = False,
    lines: Iterable[dict[str, Any]] = (),
) -> Plot:
    return {
        "id": name,
        "title": title,
        "unit": unit,
        "over": over,
        "isTime": over == "time",
        "isStacked": stacked,
        "traces": traces,
        "lines": list(lines),
        "caption": caption,
    }


def _over_clips(done: Sequence[Record], values: Sequence[float | None]) -> dict[str, Any]:
    return {
        "x": list(range(1, len(done) + 1)),
        "y": [_short(v) for v in values],
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


def _line(x: list[int], y: list[float | None], name: str, is_dashed: bool) -> dict[str, Any]:
    mode = "lines+markers" if len(x) == 1 else "lines"
    trace: dict[str, Any] = {"type": "scatter", "mode": mode, "name": name, "x": x, "y": y}
    return {**trace, "line": {"dash": "dot"}} if is_dashed else trace


def _limit(value: float, name: str) -> dict[str, Any]:
    return {"y": _short(value), "name": name}


def _moment(time: datetime | float) -> str:
    """Return a moment in the local time of this machine, as Plotly reads it."""
    if not isinstance(time, datetime):
        time = datetime.fromtimestamp(time, timezone.utc)
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def _short(value: float | None) -> float | None:
    """Return a value with the six digits that a plot can show at most."""
    return None if value is None else float(f"{value:.6g}")
