"""Several runs side by side: variant x profile x backend, as a page and as tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hv15_batch.clock import utc_now
from hv15_batch.figures.facts import KEY_FACTS, common_facts, group_facts, noise_notes
from hv15_batch.figures.groups import Group, group_rows
from hv15_batch.figures.summary import (
    ALWAYS_SHOWN,
    Facts,
    common_to_all,
    differing,
    fewest,
    labels,
    shown_value,
)
from hv15_batch.figures.tables import (
    TABLE_COLUMNS,
    TABLE_LEGEND,
    format_cells,
    format_csv,
    format_markdown,
)
from hv15_batch.record import DONE_STATUSES
from hv15_batch.report._gallery import Place, clip_views, other_ratings
from hv15_batch.report._plots import make_plot, with_values
from hv15_batch.report._read import NOT_RENDERED, RunData, read_run
from hv15_batch.report._tradeoff import tradeoff
from hv15_batch.report._view import film_views
from hv15_batch.report.render import (
    GALLERY_ASSETS,
    Live,
    finite,
    render,
    write_assets,
    write_data,
    write_library,
)
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publish_text
from hv15_batch.units import GIB, JOULES_PER_WATT_HOUR

PAGE, CSV, MARKDOWN, DATA = (
    *("comparison.html", "comparison.csv", "comparison.md"),
    "comparison-data.js",
)


_DOTS = "Each dot is a warm clip, the vertical line is the median; without encoding."


def write_comparison(run_dirs: Sequence[Path], folder: Path) -> Path:
    """Write the page that compares runs, and its tables beside it; return the page's path."""
    return publish_comparison(run_dirs, folder)[0]


def publish_comparison(run_dirs: Sequence[Path], folder: Path) -> tuple[Path, Compared]:
    """Write the page that compares runs, and its tables beside it; return its path and content.

    Args:
        run_dirs: Run directories.
        folder: Where it is written.

    Raises:
        Refused: a folder is no run directory.
        LogSchemaError: a log cannot be read.
    """
    directories = [RunDir(path.absolute()) for path in run_dirs]
    above = common_folder(run_dirs)
    runs = named_apart(map(read_run, directories), above)
    links = {run.folder: _link(run.directory, folder) for run in runs}
    places = [
        Place(f"{quote(os.path.relpath(run.directory.path, folder.absolute()))}/", n, run.folder)
        for n, run in enumerate(runs)
    ]
    page = comparison_of(runs, places, links)
    folder.mkdir(parents=True, exist_ok=True)
    publish_text(folder / CSV, format_csv(page.compared, page.numbers))
    table = format_markdown(page.named, page.common, page.shown)
    publish_text(folder / MARKDOWN, f"{table}\n{page.headline}.\n" if page.headline else table)
    write_assets(folder, GALLERY_ASSETS)
    write_data(folder, DATA, page.data)
    publish_text(folder / PAGE, page.html)
    write_library(folder)
    return folder / PAGE, page


def comparison_plots(run_dirs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the plots of the page that compares runs.

    Raises:
        Refused: a folder is no run directory.
        LogSchemaError: a log cannot be read.
    """
    directories = [RunDir(path.absolute()) for path in run_dirs]
    runs = named_apart(map(read_run, directories), common_folder(run_dirs))
    places = [Place("", n, run.folder) for n, run in enumerate(runs)]
    plots = comparison_of(runs, places, dict.fromkeys((run.folder for run in runs), "")).data
    return list(plots["plots"])


def named_apart(runs: Iterable[RunData], above: Path) -> list[RunData]:
    """Return runs named by their path below a folder, because names of folders may repeat."""
    return [replace(r, folder=os.path.relpath(r.directory.path, above)) for r in runs]


@dataclass(frozen=True)
class Compared:
    """A page that compares runs, and what its tables are made of."""

    html: str
    data: dict[str, Any]
    compared: list[Group]
    named: Sequence[tuple[str, Facts, Group]]
    common: Facts
    shown: Sequence[str]
    numbers: dict[str, int]
    headline: str | None


def comparison_of(
    runs: Sequence[RunData],
    places: Sequence[Place],
    links: Mapping[str, str],
    live: Live | None = None,
) -> Compared:
    """Return the page that compares runs.

    Args:
        runs: The runs, each with another name.
        places: Where the page finds the clips of each run.
        links: Addresses of the runs' own pages by name; a run without one is only named.
        live: What a served page needs; None for one on the disk.
    """
    numbers = {run.folder: number for number, run in enumerate(runs, 1)}
    compared = group_rows({**a, "run": r.folder} for r in runs for a in r.attempts)
    facts = [group_facts(group.columns) for group in compared]
    shown = _shown_facts(facts)
    common = common_to_all(facts) if facts else {}
    common = {name: value for name, value in common.items() if name not in shown}
    named = list(zip(labels(facts, fewest(facts)), facts, compared, strict=True))
    clips = clips_of_runs(runs, places)
    found = tradeoff(named, (a for run in runs for a in run.attempts))
    values = _values(runs, named, common, shown, links) | {
        "headline": found.headline,
        "numbers": numbers,
        "has_gallery": any(clip["status"] != NOT_RENDERED for clip in clips),
        "films": [
            film
            for run, place in zip(runs, places, strict=True)
            for film in film_views(run.films, place)
        ],
        "live": live,
    }
    data = {
        "clips": clips if values["has_gallery"] else [],
        "plots": with_values([found.plot, *_plots(named)]),
        "runs": [run.folder for run in runs],
        "otherRatings": [r for n, run in enumerate(runs) for r in other_ratings(run, n)],
    }
    html = render("comparison.html.j2", values)
    headline = found.headline
    return Compared(html, finite(data), compared, named, common, shown, numbers, headline)


def clips_of_runs(runs: Sequence[RunData], places: Sequence[Place]) -> list[dict[str, Any]]:
    """Return the clips of several runs: those of one prompt together, seed by seed, run by run.

    Rewritten texts of one prompt stand together too.
    """
    common = common_facts([clip for run in runs for clip in (*run.clips, *run.variants)])
    views = [
        view
        for run, place in zip(runs, places, strict=True)
        for view in clip_views(run, common, place)
    ]
    rows: dict[tuple[str, str], int] = {}
    for view in views:
        view["row"] = rows.setdefault(
            (view["promptOriginal"] or view["prompt"], view["image"]), len(rows)
        )
    return sorted(views, key=lambda view: (view["row"], int(view["seed"]), view["run"]))


def _values(
    runs: Sequence[RunData],
    named: Sequence[tuple[str, Facts, Group]],
    common: Facts,
    shown: Sequence[str],
    links: Mapping[str, str],
) -> dict[str, Any]:
    """Return what the template shows."""
    return {
        "title": f"Comparison of {len(runs)} runs",
        "written_at": f"{utc_now().astimezone():%Y-%m-%d %H:%M %Z}",
        "groups": [(facts, group) for _, facts, group in named],
        "warnings": [(label, str(w)) for label, _, group in named for w in group.warnings],
        "common": common,
        "shown": shown,
        "columns": TABLE_COLUMNS,
        "cells": format_cells,
        "shown_value": shown_value,
        "links": links,
        "legend": TABLE_LEGEND,
        "notes": noise_notes(group.columns["weights"] for *_, group in named),
        "empty": [run.folder for run in runs if not _has_result(run)],
        "files": {"csv": CSV, "markdown": MARKDOWN, "data": DATA},
    }


def common_folder(run_dirs: Sequence[Path]) -> Path:
    """Return the folder above all these run directories; of a sweep its own."""
    return Path(os.path.commonpath([p.absolute().parent for p in run_dirs]))


def _shown_facts(compared: Sequence[Facts]) -> list[str]:
    """Return the facts that get a column: those that differ, and what one always asks for."""
    different = differing(compared)
    return [name for name in KEY_FACTS if name in ALWAYS_SHOWN or name in different]


def _has_result(run: RunData) -> bool:
    return any(a["status"] in DONE_STATUSES for a in run.attempts)


def _link(directory: RunDir, folder: Path) -> str:
    return quote(os.path.relpath(directory.page, folder.absolute()))


def _plots(compared: Sequence[tuple[str, Facts, Group]]) -> list[dict[str, Any]]:
    timed = [(f"{name}, n {g.num_timed}", g) for name, _, g in compared if g.samples]
    dots: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "markers", "name": name, "x": group.samples,
         "y": [name] * len(group.samples)}
        for name, group in timed
    ]  # fmt: skip
    if timed:
        medians = [group.seconds["clip_seconds"].median for _, group in timed]
        dots.append(
            {"type": "scatter", "mode": "markers", "name": "median", "isMark": True, "x": medians,
             "y": [name for name, _ in timed]}
        )  # fmt: skip
    vram = [(name, group.peak("peak_vram_reserved_bytes")) for name, _, group in compared]
    energies = [(name, group.energy_joules) for name, _, group in compared]
    energy = [(name, joules.median if joules else None) for name, joules in energies]
    of_energy = "Median of the warm clips, with the encoding of new texts, without writing."
    return [
        make_plot("seconds", "Seconds a clip", "", "seconds", dots, _DOTS, by_name=True),
        _bars("Peak VRAM", "GiB", GIB, vram, "Reserved by torch."),
        _bars("Energy a clip", "Wh", JOULES_PER_WATT_HOUR, energy, of_energy),
    ]


def _bars(
    title: str, unit: str, size: int, values: Sequence[tuple[str, float | None]], caption: str
) -> dict[str, Any]:
    """Return a bar for each group of which the value is known, in `unit` of this size."""
    known = [(name, value / size) for name, value in values if value is not None]
    x, y = [value for _, value in known], [name for name, _ in known]
    traces = [{"type": "bar", "orientation": "h", "name": title, "x": x, "y": y}]
    return make_plot(unit.lower(), title, "", unit, traces if known else [], caption, by_name=True)
