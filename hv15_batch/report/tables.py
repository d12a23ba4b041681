"""The comparison as tables fit to paste: CSV in the log's units, unrounded; Markdown to read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from hv15_batch.report.facts import KEY_COLUMNS, noise_notes
from hv15_batch.report.figures import Group
from hv15_batch.report.formats import (
    format_gib,
    format_seconds,
    format_share,
    format_watt_hours,
)
from hv15_batch.report.labels import shown_value

TABLE_COLUMNS = (
    "n",
    "median, s",
    "p90, s",
    "spread",
    "peak VRAM, GiB",
    "card's peak, GiB",
    "Wh a clip",
)
"""Figures of a group, as a person reads them."""
LEGEND = (
    "n counts warm clips from noise to file, or repetitions where there are some. Seconds leave "
    "the encoding of texts out; Wh have it where a clip's text was new, and leave writing out. "
    "Spread is the interquartile range over the median. Peak VRAM is what torch reserved, the "
    "card's peak what NVML saw of all processes; GiB is 1024\N{SUPERSCRIPT THREE} bytes. A dash "
    "means not measured."
)
_CSV_FIGURES = (
    *("n", "median_seconds", "p90_seconds", "spread", "cold_clips", "failed_attempts"),
    *("peak_vram_reserved_bytes", "peak_vram_device_bytes", "energy_joules_median"),
    "energy_joules_n",
)


def format_cells(group: Group) -> list[str]:
    """Return the figures of a group in the order of `TABLE_COLUMNS`."""
    seconds = group.seconds
    return [
        str(seconds.n),
        format_seconds(seconds.median),
        format_seconds(seconds.p90),
        format_share(seconds.spread),
        format_gib(group.peak_vram_bytes),
        format_gib(group.device_vram_bytes),
        _energy(group),
    ]


def _energy(group: Group) -> str:
    """Return the median, with its n where the card did not tell of every warm clip."""
    energy = group.energy_joules
    text = format_watt_hours(energy.median)
    return text if energy.n in (0, group.seconds.n) else f"{text} (n {energy.n})"


def format_csv(groups: Sequence[Group], numbers: Mapping[str, int]) -> str:
    """Return every group with all its settings and figures, in the log's columns and units.

    Runs go by their `numbers`: the table is for sharing, and folders have private names.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*KEY_COLUMNS, *_CSV_FIGURES, "runs"])
    for group in groups:
        seconds, energy = group.seconds, group.energy_joules
        figures: list[Any] = [
            *(seconds.n, seconds.median, seconds.p90, seconds.spread, group.cold, group.failed),
            *(group.peak_vram_bytes, group.device_vram_bytes, energy.median, energy.n),
        ]
        settings = [group.columns[name] for name in KEY_COLUMNS]
        writer.writerow([*settings, *figures, " ".join(str(numbers[run]) for run in group.runs)])
    return text.getvalue()


def format_markdown(
    named: Sequence[tuple[str, Group]], common: Mapping[str, str], shown: Sequence[str]
) -> str:
    """Return a table of what differs and the figures, what is common above, warnings below.

    Args:
        named: Groups with the name that a warning calls them by.
        common: Facts that all of them have alike.
        shown: Facts that get a column.
    """
    same = [f"{name}: {value}" for name, value in common.items()]
    lines = [
        f"Same for all: {_cell('; '.join(same))}." if same else "",
        "",
        _row([*shown, *TABLE_COLUMNS]),
        _row(["---"] * len(shown) + ["---:"] * len(TABLE_COLUMNS)),
        *(
            _row([*(shown_value(n, g.facts, "") for n in shown), *format_cells(g)])
            for _, g in named
        ),
        "",
        LEGEND,
        *(f"\n{note}" for note in noise_notes(g.columns["weights"] for _, g in named)),
        *(f"\nWARNING: {label}: {warning}" for label, g in named for warning in g.warnings),
    ]
    return "\n".join(lines).lstrip("\n") + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
