"""Markdown tables; a benchmark's figures as lines, `benchmark.csv` and `benchmark.md`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hv15_batch.figures.facts import noise_notes
from hv15_batch.figures.groups import (
    GROUP_COLUMNS,
    MEMORY_COLUMNS,
    TIMING_COLUMNS,
    Distribution,
    Group,
    group_rows,
)
from hv15_batch.figures.summary import Facts, shown_value
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publish_text
from hv15_batch.rundir.stored import read_rows_of_runs
from hv15_batch.units import (
    format_gib,
    format_number,
    format_seconds,
    format_share,
    format_watt_hours,
)

TIMING_LEGEND = (
    "Seconds of warm repetitions, from noise to file. `clip_seconds` is without the encoding of "
    "texts. `step_seconds` is the median step of a clip. Spread is the interquartile range over "
    "the median. A dash means not measured."
)
STATISTICS = ("n", "median", "p90", "spread", "minimum", "maximum")
_NAMED_ALWAYS = (
    *("model", "height", "width", "num_frames", "num_inference_steps", "guidance_scale"),
    *("offload", "attention_backend"),
)
_NAMED_IF_DIFFERENT = tuple(name for name in GROUP_COLUMNS if name not in _NAMED_ALWAYS)


def markdown(
    headers: Sequence[str], rows: Iterable[Sequence[str]], num_texts: int | None = None
) -> list[str]:
    """Return the lines of a Markdown table; cells are one line each, and may hold markup.

    Args:
        headers: Names of the columns.
        rows: Cells, as many as there are headers.
        num_texts: Columns that hold texts; the others hold numbers and are aligned to the right.
            None means all.
    """
    num_numbers = 0 if num_texts is None else len(headers) - num_texts
    marks = ["---"] * (len(headers) - num_numbers) + ["---:"] * num_numbers
    return [_row(headers), f"|{'|'.join(marks)}|", *map(_row, rows)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def csv_text(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV (RFC 4180); None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(headers)
    writer.writerows(rows)
    return text.getvalue()


def repetitions_of(run_dir: RunDir) -> list[dict[str, Any]]:
    """Return the log's rows of benchmarks, warm-ups included."""
    rows = read_rows_of_runs(run_dir, TIMING_COLUMNS)
    return [row for row in rows if row["repeat"] is not None]


def write_timing_tables(run_dir: RunDir) -> list[str]:
    """Write `benchmark.csv` and `benchmark.md` of all repetitions; return what they say."""
    groups = group_rows(repetitions_of(run_dir))
    names = group_names([group.columns for group in groups])
    warnings = [
        f"WARNING: {name}: {warning.kind.about} ({warning.detail}); {warning.remedy}"
        for name, group in zip(names, groups, strict=True)
        for warning in group.warnings
    ]
    publish_text(run_dir.benchmark_table, _benchmark_csv(groups))
    text = "\n".join([*_markdown(groups, names), *(f"\n{line}" for line in warnings)])
    publish_text(run_dir.benchmark_table.with_suffix(".md"), text + "\n")
    return [*map(_line, groups, names), *warnings]


def group_names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader tells groups apart by: the usual settings, and all that differ.

    Args:
        groups: `GROUP_COLUMNS` of each.
    """
    columns = [n for n in _NAMED_IF_DIFFERENT if len({group[n] for group in groups}) > 1]
    return [_name(group, columns) for group in groups]


def figures_of(group: Group) -> list[tuple[str, list[str]]]:
    """Return the measured times of a group, each with its `STATISTICS` as text."""
    return [(name, _cells(found)) for name, found in group.seconds.items()]


def _benchmark_csv(groups: Sequence[Group]) -> str:
    rows = [
        (
            *(*group.columns.values(), group.num_timed, group.num_cold, quantity),
            *(getattr(found, name) for name in STATISTICS),
        )
        for group in groups
        for quantity, found in group.seconds.items()
    ]
    return csv_text([*GROUP_COLUMNS, "num_timed", "num_cold", "quantity", *STATISTICS], rows)


def _markdown(groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    rows = [
        (f"{name}; {group.columns['gpu_name'] or 'CPU'}", quantity, *cells)
        for name, group in zip(names, groups, strict=True)
        for quantity, cells in figures_of(group)
    ]
    return [*markdown(("settings", "quantity", *STATISTICS), rows, num_texts=2), "", TIMING_LEGEND]


def _line(group: Group, name: str) -> str:
    found = group.clip_seconds
    if found is None:
        return f"{name}: no warm clip, {group.num_cold} cold"
    return (
        f"{name}: median {found.median:.3g} s a clip, p90 {format_number(found.p90)} s, "
        f"spread {format_share(found.spread)}, {found.minimum:.3g} to {found.maximum:.3g} s, "
        f"n = {found.n} and {group.num_cold} cold"
    )


def _cells(found: Distribution) -> list[str]:
    middle = [format_number(found.median), format_number(found.p90), format_share(found.spread)]
    return [str(found.n), *middle, format_number(found.minimum), format_number(found.maximum)]


def _name(group: Mapping[str, Any], columns: Sequence[str]) -> str:
    parts = [
        f"{group['model']} {group['height']}x{group['width']}x{group['num_frames']}",
        f"{group['num_inference_steps']} steps",
        f"guidance {_value_text('guidance_scale', group['guidance_scale'])}",
        f"offload {_value_text('offload', group['offload'])}",
        f"attention {_value_text('attention_backend', group['attention_backend'])}",
    ]
    parts += ["compiled"] * bool(group["compiled"] and "compiled" not in columns)
    return ", ".join([*parts, *(f"{name} {_value_text(name, group[name])}" for name in columns)])


def _value_text(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)[:8] if name in ("system_sha256", "revision") else str(value)


TABLE_COLUMNS = (
    "n",
    "median, s",
    "p90, s",
    "spread",
    "peak VRAM, GiB",
    "card's peak, GiB",
    "Wh a clip",
)
"""Columns of the table of groups."""
TABLE_LEGEND = (
    "n counts warm clips from noise to file, or repetitions where there are some. Seconds are "
    "without the encoding of texts. Wh include the encoding of a new text, but no writing. Spread "
    "is the interquartile range over the median. Peak VRAM is torch's reserved memory. The card's "
    "peak is NVML's, over all processes. GiB is 1024\N{SUPERSCRIPT THREE} bytes. A dash means not "
    "measured."
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
    rows = []
    for group in groups:
        energy = group.energy_joules
        figures: list[Any] = [
            *(group.num_timed, *_seconds(group), group.num_cold, group.num_failed),
            *map(group.peak, MEMORY_COLUMNS),
            *((energy.median, energy.n) if energy else (None, 0)),
        ]
        runs = " ".join(str(numbers[run]) for run in group.runs)
        rows.append([*group.columns.values(), *figures, runs])
    return csv_text([*GROUP_COLUMNS, *_CSV_FIGURES, "runs"], rows)


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
        TABLE_LEGEND,
        *(f"\n{note}" for note in noise_notes(g.columns["weights"] for *_, g in named)),
        *(f"\nWARNING: {label}: {warning}" for label, _, g in named for warning in g.warnings),
    ]
    return "\n".join(lines).lstrip("\n") + "\n"
