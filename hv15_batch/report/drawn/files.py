"""Plots as files: a picture to scale, a picture of pixels, and the values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hv15_batch.figures.tables import csv_text
from hv15_batch.report.drawn.chart import draw
from hv15_batch.rundir.publish import publish_text, publishing


def write_plots(plots: Iterable[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write each plot as SVG, PNG and CSV under its title; return the paths.

    Args:
        plots: As `make_plot` of the report returns them.
        folder: Made if it is not there; files of the same names are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots:
        stem = folder / re.sub(r"[^a-z0-9]+", "-", plot["title"].lower()).strip("-")
        sheet = draw(plot)
        svg, png, table = (stem.with_suffix(suffix) for suffix in (".svg", ".png", ".csv"))
        publish_text(svg, sheet.svg())
        with publishing(png) as temporary:
            temporary.write_bytes(sheet.png())
        publish_text(table, format_values(plot))
        written += [svg, png, table]
    return written


def format_values(plot: Mapping[str, Any]) -> str:
    """Return the values of a plot as CSV, a line for each, as the page's button saves them."""
    has_clips = any("text" in trace for trace in plot["traces"])
    y = plot["unit"] or ("name" if plot["isByName"] else "y")
    headers = ["series", plot["over"] or "x", y, *(["clip"] if has_clips else [])]
    return csv_text(headers, _lines(plot, has_clips))


def _lines(plot: Mapping[str, Any], has_clips: bool) -> Iterator[list[Any]]:
    for trace in plot["traces"]:
        clips = trace.get("text") or [None] * len(trace["x"])
        for x, y, clip in zip(trace["x"], trace["y"], clips, strict=True):
            yield [trace["name"], x, y, *([clip] if has_clips else [])]
