"""Several runs side by side: variant x profile x backend, as a page and as tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hv15_batch.records import DONE_STATUSES
from hv15_batch.report.facts import KEY_FACTS, noise_notes
from hv15_batch.report.figures import Group, group_figures
from hv15_batch.report.labels import (
    ALWAYS_SHOWN,
    common_to_all,
    differing,
    fewest,
    labels,
    shown_value,
)
from hv15_batch.report.page_files import (
    COMPARISON_ASSETS,
    write_assets,
    write_data,
    write_library,
)
from hv15_batch.report.read import RunData, read_run
from hv15_batch.report.render import render
from hv15_batch.report.tables import (
    LEGEND,
    TABLE_COLUMNS,
    format_cells,
    format_csv,
    format_markdown,
)
from hv15_batch.rundir import RunDir, publish_text, utc_now

PAGE, CSV, MARKDOWN, DATA = (
    *("comparison.html", "comparison.csv", "comparison.md"),
    "comparison-data.js",
)


_DOTS = "Every warm clip is a dot, the upright line is the median; without encoding."


def write_comparison(run_dirs: Sequence[Path], folder: Path) -> Path:
    """Write the page that compares runs, and its tables beside it; return the page's path.

    Args:
        run_dirs: Run directories.
        folder: Where it is written.

    Raises:
        ConfigError: a folder is no run directory.
        LogSchemaError: a log cannot be read.
    """
    directories = [RunDir(path.absolute()) for path in run_dirs]
    above = common_folder(run_dirs)
    runs = [
        replace(r, folder=os.path.relpath(r.directory.path, above))
        for r in map(read_run, directories)
    ]
    links = {run.folder: _link(run.directory, folder) for run in runs}
    numbers = {run.folder: number for number, run in enumerate(runs, 1)}
    compared = compare(runs)
    shown = _shown_facts(compared)
    common = common_to_all(compared) if compared else {}
    common = {name: value for name, value in common.items() if name not in shown}
    warned = list(zip(labels(compared, fewest(compared)), compared, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    publish_text(folder / CSV, format_csv(compared, numbers))
    publish_text(folder / MARKDOWN, format_markdown(warned, common, shown))
    write_assets(folder, COMPARISON_ASSETS)
    write_data(folder, DATA, {"plots": _plots(compared)})
    values = _values(runs, warned, common, shown, links) | {"numbers": numbers}
    publish_text(folder / PAGE, render("comparison.html.j2", values))
    write_library(folder)
    return folder / PAGE


def _values(
    runs: Sequence[RunData],
    named: Sequence[tuple[str, Group]],
    common: Mapping[str, str],
    shown: Sequence[str],
    links: Mapping[str, str],
) -> dict[str, Any]:
    """Return what the template shows."""
    return {
        "title": f"Comparison of {len(runs)} runs",
        "written_at": f"{utc_now().astimezone():%Y-%m-%d %H:%M %Z}",
        "groups": [group for _, group in named],
        "warnings": [(label, str(w)) for label, group in named for w in group.warnings],
        "common": common,
        "shown": shown,
        "columns": TABLE_COLUMNS,
        "cells": format_cells,
        "shown_value": shown_value,
        "links": links,
        "legend": LEGEND,
        "notes": noise_notes(group.columns["weights"] for _, group in named),
        "empty": [run.folder for run in runs if not _has_result(run)],
        "files": {"csv": CSV, "markdown": MARKDOWN, "data": DATA},
    }


def common_folder(run_dirs: Sequence[Path]) -> Path:
    """Return the folder above all these run directories; of a sweep its own."""
    return Path(os.path.commonpath([p.absolute().parent for p in run_dirs]))


def compare(runs: Sequence[RunData]) -> list[Group]:
    """Return the groups of all runs, in the order in which they come."""
    return group_figures({**a, "run": r.folder} for r in runs for a in r.attempts)


def _shown_facts(compared: Sequence[Group]) -> list[str]:
    """Return the facts that get a column: those that differ, and what one always asks for."""
    different = differing(compared)
    return [name for name in KEY_FACTS if name in ALWAYS_SHOWN or name in different]


def _has_result(run: RunData) -> bool:
    return any(a["status"] in DONE_STATUSES for a in run.attempts)


def _link(directory: RunDir, folder: Path) -> str:
    return quote(os.path.relpath(directory.page, folder.absolute()))


def _plots(compared: Sequence[Group]) -> list[dict[str, Any]]:
    names = labels(compared, fewest(compared))
    timed = [
        (f"{n}, n {g.seconds.n}", g) for n, g in zip(names, compared, strict=True) if g.samples
    ]
    dots: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "markers", "name": name, "x": group.samples,
         "y": [name] * len(group.samples)}
        for name, group in timed
    ]  # fmt: skip
    if timed:
        medians = [group.seconds.median for _, group in timed]
        dots.append(
            {"type": "scatter", "mode": "markers", "name": "median", "isMark": True, "x": medians,
             "y": [name for name, _ in timed]}
        )  # fmt: skip
    bars = {
        "Peak VRAM": ("GiB", 2**30, [g.peak_vram_bytes for g in compared], "Reserved by torch."),
        "Energy a clip": (
            *("Wh", 3600, [g.energy_joules.median for g in compared]),
            "Median of the warm clips, encoding of new texts included, writing not.",
        ),
    }
    plots = [_plot("seconds", "Seconds a clip", "seconds", dots, _DOTS)]
    for title, (unit, size, values, caption) in bars.items():
        known = [(n, v / size) for n, v in zip(names, values, strict=True) if v is not None]
        x, y = [v for _, v in known], [n for n, _ in known]
        traces = [{"type": "bar", "orientation": "h", "name": title, "x": x, "y": y}]
        plots.append(_plot(unit.lower(), title, unit, traces if known else [], caption))
    return plots


def _plot(name: str, title: str, unit: str, traces: list[Any], caption: str) -> dict[str, Any]:
    return {
        "id": name, "title": title, "unit": "", "over": unit, "isTime": False, "isStacked": False,
        "isByName": True, "traces": traces, "lines": [], "caption": caption,
    }  # fmt: skip
