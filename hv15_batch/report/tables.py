"""The comparison as tables fit to paste: CSV in the log's units, unrounded; Markdown to read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from hv15_batch.report.facts import noise_notes
from hv15_batch.report.formats import (
    format_gib,
    format_seconds,
    format_share,
    format_watt_hours,
)
from hv15_batch.report.labels import Facts, shown_value
from hv15_batch.timing_table import markdown
from hv15_batch.timings import GROUP_COLUMNS, MEMORY_COLUMNS, Group

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
    *MEMORY_COLUMNS,
    *("energy_joules_median", "energy_joules_n"),
)


def format_cells(group: Group) -> list[str]:
    """Return the figures of a group in the order of `TABLE_COLUMNS`."""
    median, p90, spread = _seconds(group)
    return [
        str(group.num_timed),
        format_seconds(median),
        format_seconds(p90),
        format_share(spread),
        format_gib(group.peak("peak_vram_reserved_bytes")),
        format_gib(group.peak("peak_vram_device_bytes")),
        _energy(group),
    ]


def _seconds(group: Group) -> tuple[float | None, float | None, float | None]:
    """Return median, p90 and spread of a clip's seconds."""
    found = group.clip_seconds
    return (None, None, None) if found is None else (found.median, found.p90, found.spread)


def _energy(group: Group) -> str:
    """Return the median, with its n where the card did not tell of every warm clip."""
    energy = group.energy_joules
    if energy is None:
        return format_watt_hours(None)
    text = format_watt_hours(energy.median)
    return text if energy.n == group.num_timed else f"{text} (n {energy.n})"


def format_csv(groups: Sequence[Group], numbers: Mapping[str, int]) -> str:
    """Return every group with all its settings and figures, in the log's columns and units.

    Runs go by their `numbers`: the table is for sharing, and folders have private names.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*GROUP_COLUMNS, *_CSV_FIGURES, "runs"])
    for group in groups:
        energy = group.energy_joules
        figures: list[Any] = [
            *(group.num_timed, *_seconds(group), group.num_cold, group.num_failed),
            *map(group.peak, MEMORY_COLUMNS),
            *((energy.median, energy.n) if energy else (None, 0)),
        ]
        runs = " ".join(str(numbers[run]) for run in group.runs)
        writer.writerow([*group.columns.values(), *figures, runs])
    return text.getvalue()


def format_markdown(
    named: Sequence[tuple[str, Facts, Group]], common: Facts, shown: Sequence[str]
) -> str:
    """Return a table of what differs and the figures, what is common above, warnings below.

    Args:
        named: Groups with the name that a warning calls them by, and their facts.
        common: Facts that all of them have alike.
        shown: Facts that get a column.
    """
    same = [f"{name}: {value}" for name, value in common.items()]
    rows = [
        [*(shown_value(name, facts, "") for name in shown), *format_cells(group)]
        for _, facts, group in named
    ]
    lines = [
        f"Same for all: {'; '.join(same)}." if same else "",
        "",
        *markdown([*shown, *TABLE_COLUMNS], rows, num_texts=len(shown)),
        "",
        LEGEND,
        *(f"\n{note}" for note in noise_notes(g.columns["weights"] for *_, g in named)),
        *(f"\nWARNING: {label}: {warning}" for label, _, g in named for warning in g.warnings),
    ]
    return "\n".join(lines).lstrip("\n") + "\n"
