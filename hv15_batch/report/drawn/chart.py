"""A plot of the pages drawn on a sheet: axes from zero, dots, lines, bars, legend and text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import pairwise
from math import floor, log10
from typing import Any

from hv15_batch.report.drawn.sheet import GRID, INK, QUIET, Box, Dot, Line, Sheet, Text

WIDTH = 960
_COLOURS = (
    *("#0b62c4", "#c2410c", "#0f766e", "#7c3aed"),
    *("#a16207", "#be185d", "#4d7c0f", "#475569"),
)
_LIMIT_COLOUR = "#b42318"
_CHARACTER = 6.4
"""Pixels of a character of 12 pixels, on average."""
_AREA_HEIGHT, _ROW_HEIGHT = 300.0, 36.0
_LEFT, _RIGHT, _LINE = 70.0, 24.0, 17.0
_MAX_NAMES = 380.0
"""Pixels for names beside bars; longer ones are cut."""
_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
_DAY = 86400


class Axis:
    """Values from 0, or moments or places in an order from the first, along so many pixels."""

    def __init__(
        self,
        values: Sequence[float],
        begin: float,
        end: float,
        is_time: bool = False,
        is_order: bool = False,
    ) -> None:
        """Take the values that must fit, the pixels of both ends, and what the values are."""
        self._begin, self._end, self._is_time = begin, end, is_time
        high = max(values, default=1.0)
        is_tight = is_time or is_order
        low = min(values, default=0.0) if is_tight else min([0.0, *values])
        if high <= low:
            high = low + 1
        self._step = _time_step((high - low) / 6) if is_time else _nice((high - low) / 6)
        if is_order:
            self._step = max(1.0, self._step)
        self._low = low
        self._high = high if is_tight else self._step * -(-high // self._step)

    def place(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield the pixel of each tick and its text."""
        number = -(-self._low // self._step)
        while number * self._step <= self._high * (1 + 1e-12):
            value = number * self._step
            yield self.place(value), self._text(value)
            number += 1

    def _text(self, value: float) -> str:
        if not self._is_time:
            return f"{value:.10g}"
        form = "%m-%d %H:%M" if self._high - self._low > _DAY else "%H:%M:%S"
        return f"{datetime.fromtimestamp(value, timezone.utc):{form}}"


def _nice(least: float) -> float:
    """Return 1, 2 or 5 times a power of ten that is at least this."""
    power = 10.0 ** floor(log10(least))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= least * (1 - 1e-9))


def _time_step(least: float) -> float:
    return next((float(s) for s in _SECONDS if s >= least), _DAY * float(-(-least // _DAY)))


def draw(plot: Mapping[str, Any]) -> Sheet:
    """Return a plot, as `make_plot` of the report returns it, drawn on a sheet."""
    legend = [] if plot["isByName"] or len(plot["traces"]) < 2 else _legend(plot)
    top = 56.0 + _LINE * len({y for _, y, _ in legend})
    names = list(dict.fromkeys(name for t in plot["traces"] for name in t["y"]))
    height = _ROW_HEIGHT * len(names) if plot["isByName"] else _AREA_HEIGHT
    longest = max(map(len, names)) * _CHARACTER if plot["isByName"] else 0.0
    left = max(_LEFT, min(longest, _MAX_NAMES) + 24)
    caption = textwrap.wrap(plot["caption"], int((WIDTH - 32) / _CHARACTER))
    bottom = top + height + (48 if plot["over"] else 28)
    sheet = Sheet(WIDTH, bottom + _LINE * len(caption) + 14)
    sheet.items.append(Text(16, 24, plot["title"], 15))
    for x, y, (name, colour) in legend:
        sheet.items += [Box(x, y - 9, 10, 10, colour), Text(x + 15, y, name)]
    area = (left, top, WIDTH - _RIGHT, top + height)
    if plot["isByName"]:
        _draw_by_name(sheet, plot, names, area)
    else:
        _draw_free(sheet, plot, area)
    sheet.items.append(Text((left + WIDTH - _RIGHT) / 2, top + height + 36, plot["over"],
                            anchor="middle"))  # fmt: skip
    sheet.items += [
        Text(16, bottom + 12 + _LINE * n, line, colour=QUIET) for n, line in enumerate(caption)
    ]
    return sheet


def _legend(plot: Mapping[str, Any]) -> list[tuple[float, float, tuple[str, str]]]:
    """Return place, name and colour of each trace, in as many lines as they need."""
    found, x, y = [], 16.0, 46.0
    for number, trace in enumerate(plot["traces"]):
        width = 32 + len(trace["name"]) * _CHARACTER
        if x > 16 and x + width > WIDTH - _RIGHT:
            x, y = 16.0, y + _LINE
        found.append((x, y, (trace["name"], _colour(number))))
        x += width
    return found


def _draw_by_name(
    sheet: Sheet,
    plot: Mapping[str, Any],
    names: Sequence[str],
    area: tuple[float, float, float, float],
) -> None:
    left, top, right, bottom = area
    axis = Axis([x for t in plot["traces"] for x in t["x"]], left, right)
    for pixel, text in axis.ticks():
        sheet.items += [Line(pixel, top, pixel, bottom), _below(pixel, bottom, text)]
    middles = {name: top + _ROW_HEIGHT * (n + 0.5) for n, name in enumerate(names)}
    most = int(_MAX_NAMES / _CHARACTER)
    for name, y in middles.items():
        short = name if len(name) <= most else f"{name[: most - 1]}…"
        sheet.items.append(Text(left - 8, y + 4, short, anchor="end"))
    for number, trace in enumerate(plot["traces"]):
        for value, name in zip(trace["x"], trace["y"], strict=True):
            x, y = axis.place(value), middles[name]
            if trace["type"] == "bar":
                sheet.items.append(Box(left, y - 9, x - left, 18, _colour(number)))
            elif trace.get("isMark"):
                sheet.items.append(Line(x, y - 11, x, y + 11, INK, 2))
            else:
                sheet.items.append(Dot(x, y, _colour(number)))


def _draw_free(
    sheet: Sheet, plot: Mapping[str, Any], area: tuple[float, float, float, float]
) -> None:
    left, top, right, bottom = area
    bars = [t for t in plot["traces"] if t["type"] == "bar"]
    places = {id(t): [_number(x, plot["isTime"]) for x in t["x"]] for t in plot["traces"]}
    sums: dict[float, float] = {}
    for trace in bars:
        for x, y in _points(trace, places):
            sums[x] = sums.get(x, 0.0) + y
    dots = [y for t in plot["traces"] if t not in bars for _, y in _points(t, places)]
    upright = Axis([*sums.values(), *dots, *(n["y"] for n in plot["lines"])], bottom, top)
    xs = [x for t in plot["traces"] for x in places[id(t)] if x is not None]
    ends = xs if plot["isFree"] else [*_outer(bars, places), *xs]
    is_free, is_time = plot["isFree"], plot["isTime"]
    begin = left + 10 * (not is_free)
    level = Axis(ends, begin, right - 10, is_time, not is_time and not is_free)
    for pixel, text in upright.ticks():
        sheet.items += [
            Line(left, pixel, right, pixel),
            Text(left - 8, pixel + 4, text, anchor="end"),
        ]
    sheet.items += [_below(pixel, bottom, text) for pixel, text in level.ticks()]
    sheet.items.append(Text(left, top - 8, plot["unit"], colour=QUIET))
    below: dict[float, float] = {}
    for number, trace in enumerate(plot["traces"]):
        colour, points = _colour(number), list(_points(trace, places))
        if trace["type"] == "bar":
            widths = [w / 1000 for w in trace.get("width", [])] or [0.85] * len(points)
            for (x, y), width in zip(points, widths, strict=False):
                start = below.get(x, 0.0)
                below[x] = start + y
                a, b = level.place(x - width / 2), level.place(x + width / 2)
                high, low = upright.place(start + y), upright.place(start)
                sheet.items.append(Box(a, high, max(b - a, 0.5), low - high, colour))
            continue
        pixels = [(level.place(x), upright.place(y)) for x, y in points]
        if "lines" in trace["mode"]:
            sheet.items += [
                Line(*one, *other, colour, 1.8, "line" in trace) for one, other in pairwise(pixels)
            ]
        if "markers" in trace["mode"]:
            sheet.items += [Dot(x, y, colour) for x, y in pixels]
    for line in plot["lines"]:
        y = upright.place(line["y"])
        sheet.items += [
            Line(left, y, right, y, _LIMIT_COLOUR, 1.5, True),
            Text(right, y - 5, line["name"], anchor="end", colour=_LIMIT_COLOUR),
        ]
    sheet.items.append(Line(left, bottom, right, bottom, GRID))


def _outer(bars: Sequence[Mapping[str, Any]], places: Mapping[int, Any]) -> Iterator[float]:
    """Yield the ends of bars, which are wider than their places."""
    for trace in bars:
        widths = [w / 1000 for w in trace.get("width", [])] or [0.85] * len(trace["x"])
        for x, width in zip(places[id(trace)], widths, strict=True):
            yield from (x - width / 2, x + width / 2)


def _points(trace: Mapping[str, Any], places: Mapping[int, Any]) -> Iterator[tuple[float, float]]:
    """Yield the values of a trace that were measured."""
    for x, y in zip(places[id(trace)], trace["y"], strict=True):
        if x is not None and y is not None:
            yield x, y


def _number(x: Any, is_time: bool) -> float | None:
    """Return a place as a number; that of a moment as seconds, by the clock of this machine."""
    if x is None or not is_time:
        return None if x is None else float(x)
    return datetime.fromisoformat(x).replace(tzinfo=timezone.utc).timestamp()


def _below(x: float, bottom: float, text: str) -> Text:
    return Text(x, bottom + 17, text, anchor="middle")


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]
