"""Several runs side by side: variant x profile x backend, as a page and as tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hv15_batch.records import DONE_STATUSES, FAILED
from hv15_batch.report.facts import FACTS, KEY_FACTS
from hv15_batch.report.figures import Summary, clip_seconds, groups, summarise, timed
from hv15_batch.report.page_files import (
    COMPARISON_ASSETS,
    write_assets,
    write_data,
    write_library,
)
from hv15_batch.report.public import without_private
from hv15_batch.report.read import RunData, is_public_run, read_run
from hv15_batch.report.render import render
from hv15_batch.report.tables import (
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
_ALWAYS_SHOWN = ("Variant", "Offload", "Attention")


@dataclass(frozen=True)
class Group:
    """Clips of one way of rendering on one kind of machine, of one run or several."""

    facts: dict[str, str]
    """By the names on the page; what is not known is absent."""
    runs: list[str]
    """Names of the run directories."""
    seconds: Summary
    """Of warm clips."""
    samples: list[float]
    cold: int
    failed: int
    peak_vram_bytes: float | None
    """Reserved by torch; the highest."""
    device_vram_bytes: float | None
    """Of the whole card, as NVML reads it; the highest."""
    energy_joules: float | None
    """Median of warm clips."""


def write_comparison(run_dirs: Sequence[Path], folder: Path, is_public: bool | None = None) -> Path:
    """Write the page that compares runs, and its tables beside it; return the page's path.

    Args:
        run_dirs: Run directories.
        folder: Where it is written.
        is_public: Leave hostname, folders and prompts out; None means if any of the runs was set
            so.

    Raises:
        ConfigError: a folder is no run directory.
        LogSchemaError: a log cannot be read.
    """
    directories = [RunDir(path.absolute()) for path in run_dirs]
    if is_public is None:
        is_public = any(map(is_public_run, directories))
    above = common_folder(run_dirs)
    runs = [
        replace(r, folder=os.path.relpath(r.directory.path, above))
        for r in map(read_run, directories)
    ]
    if is_public:
        runs = [without_private(run, number) for number, run in enumerate(runs, 1)]
    links = {run.folder: _link(run.directory, folder) for run in runs} if not is_public else {}
    compared = compare(runs)
    common = {name: values[0] for name, values in _distinct(compared).items() if len(values) == 1}
    shown = _shown_facts(common)
    folder.mkdir(parents=True, exist_ok=True)
    publish_text(folder / CSV, format_csv(compared))
    publish_text(folder / MARKDOWN, format_markdown(compared, common, shown))
    write_assets(folder, COMPARISON_ASSETS)
    write_data(folder, DATA, {"plots": _plots(compared, shown)})
    publish_text(
        folder / PAGE, render("comparison.html.j2", _values(runs, compared, common, shown, links))
    )
    write_library(folder)
    return folder / PAGE


def _values(
    runs: Sequence[RunData],
    compared: Sequence[Group],
    common: Mapping[str, str | None],
    shown: Sequence[str],
    links: Mapping[str, str],
) -> dict[str, Any]:
    """Return what the template shows."""
    return {
        "title": f"Comparison of {len(runs)} runs",
        "written_at": f"{utc_now().astimezone():%Y-%m-%d %H:%M %Z}",
        "groups": compared,
        "common": {k: v for k, v in common.items() if k not in shown},
        "shown": shown,
        "columns": TABLE_COLUMNS,
        "cells": format_cells,
        "links": links,
        "empty": [run.folder for run in runs if not _has_result(run)],
        "files": {"csv": CSV, "markdown": MARKDOWN, "data": DATA},
    }


def common_folder(run_dirs: Sequence[Path]) -> Path:
    """Return the folder above all these run directories; of a sweep its own."""
    return Path(os.path.commonpath([p.absolute().parent for p in run_dirs]))


def compare(runs: Sequence[RunData]) -> list[Group]:
    """Return the groups of all runs, in the order in which they come.

    Other cards, machines, software or settings make another group, whatever the runs are called.
    """
    named = [{**a, "run": r.folder} for r in runs for a in r.attempts if a["model"] is not None]
    found = [_group(records) for records in groups(named)]
    # Attempts that failed before anything was in effect have no figures to compare.
    return [group for group in found if group.seconds.n or group.cold]


def _group(records: Sequence[Mapping[str, Any]]) -> Group:
    facts = {name: FACTS[name](records[0]) for name in KEY_FACTS}
    done = [r for r in records if r["status"] in DONE_STATUSES]
    warm = timed(done)
    samples = [s for s in map(clip_seconds, warm) if s is not None]
    return Group(
        facts={name: value for name, value in facts.items() if value is not None},
        runs=list(dict.fromkeys(r["run"] for r in records)),
        seconds=summarise(samples),
        samples=samples,
        cold=sum(bool(r["is_cold"]) for r in done),
        failed=sum(r["status"] == FAILED for r in records),
        peak_vram_bytes=_highest(done, "peak_vram_reserved_bytes"),
        device_vram_bytes=_highest(done, "peak_vram_device_bytes"),
        energy_joules=summarise(r["energy_joules"] for r in warm).median,
    )


def _highest(records: Sequence[Mapping[str, Any]], column: str) -> float | None:
    return max((r[column] for r in records if r[column] is not None), default=None)


def _distinct(compared: Sequence[Group]) -> dict[str, list[str | None]]:
    return {n: list(dict.fromkeys(g.facts.get(n) for g in compared)) for n in KEY_FACTS}


def _shown_facts(common: Mapping[str, Any]) -> list[str]:
    """Return the facts that get a column: those that differ, and what one always asks for."""
    return [name for name in KEY_FACTS if name in _ALWAYS_SHOWN or name not in common]


def _has_result(run: RunData) -> bool:
    return any(a["status"] in DONE_STATUSES for a in run.attempts)


def _link(directory: RunDir, folder: Path) -> str:
    return quote(os.path.relpath(directory.page, folder.absolute()))


def _plots(compared: Sequence[Group], shown: Sequence[str]) -> list[dict[str, Any]]:
    names = [", ".join(_said(name, g.facts.get(name)) for name in shown) for g in compared]
    dots = [
        {"type": "scatter", "mode": "markers", "name": name, "x": group.samples,
         "y": [name] * len(group.samples)}
        for name, group in zip(names, compared, strict=True) if group.samples
    ]  # fmt: skip
    bars = {"Peak VRAM": ("GiB", 2**30, [g.peak_vram_bytes for g in compared]),
            "Energy a clip": ("Wh", 3600, [g.energy_joules for g in compared])}  # fmt: skip
    plots = [_plot("seconds", "Seconds a clip", "seconds", dots, "Every warm clip is a dot.")]
    for title, (unit, size, values) in bars.items():
        known = [(n, v / size) for n, v in zip(names, values, strict=True) if v is not None]
        x, y = [v for _, v in known], [n for n, _ in known]
        traces = [{"type": "bar", "orientation": "h", "name": title, "x": x, "y": y}]
        plots.append(_plot(unit.lower(), title, unit, traces if known else [], ""))
    return plots


def _said(name: str, value: str | None) -> str:
    """Return a fact in a label, with its name where the value alone would not tell."""
    return (value or "?") if name in _ALWAYS_SHOWN else f"{name} {value or '?'}"


def _plot(name: str, title: str, unit: str, traces: list[Any], caption: str) -> dict[str, Any]:
    return {
        "id": name, "title": title, "unit": "", "over": unit, "isTime": False, "isStacked": False,
        "isByName": True, "traces": traces, "lines": [], "caption": caption,
    }  # fmt: skip
