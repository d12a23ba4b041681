"""A benchmark's figures as lines for the terminal, `benchmark.csv` and `benchmark.md`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any

from hv15_batch.run_facts import read_rows_of_runs
from hv15_batch.rundir import RunDir, publish_text, publishing
from hv15_batch.timings import (
    GROUP_COLUMNS,
    QUANTITIES,
    TIMING_COLUMNS,
    Distribution,
    TimingSummary,
    summarise,
    warnings_of,
)

LEGEND = (
    "Seconds of warm repetitions from noise to file. `clip_seconds` leaves the encoding of texts "
    "out, `step_seconds` is the median step of a clip. Spread is the interquartile range over the "
    "median; a dash means not measured."
)
STATISTICS = ("n", "median", "p90", "spread", "minimum", "maximum")
_NAMED_ALWAYS = (
    *("model", "height", "width", "num_frames", "num_inference_steps", "guidance_scale"),
    *("offload", "attention_backend"),
)
_NAMED_IF_DIFFERENT = tuple(name for name in GROUP_COLUMNS if name not in _NAMED_ALWAYS)


def repetitions_of(run_dir: RunDir) -> list[dict[str, Any]]:
    """Return the log's rows of benchmarks, warm-ups included."""
    rows = read_rows_of_runs(run_dir, TIMING_COLUMNS)
    return [row for row in rows if row["repeat"] is not None]


def write_timing_tables(run_dir: RunDir) -> list[str]:
    """Write `benchmark.csv` and `benchmark.md` of all repetitions; return what they say."""
    rows = repetitions_of(run_dir)
    summaries = summarise(rows)
    groups = [summary.group for summary in summaries]
    names = group_names(groups)
    warnings = [
        f"WARNING: {names[groups.index(w.group)]}: {w.kind.about} ({w.detail}); {w.remedy}"
        for w in warnings_of(rows)
    ]
    _write_csv(run_dir, summaries)
    text = "\n".join([*_markdown(summaries, names), *(f"\n{line}" for line in warnings)])
    publish_text(run_dir.benchmark_table.with_suffix(".md"), text + "\n")
    return [*map(_line, summaries, names), *warnings]


def group_names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a reader tells groups apart by: the usual settings, and all that differ.

    Args:
        groups: `GROUP_COLUMNS` of each.
    """
    columns = [n for n in _NAMED_IF_DIFFERENT if len({group[n] for group in groups}) > 1]
    return [_name(group, columns) for group in groups]


def figures_of(summary: TimingSummary) -> list[tuple[str, list[str]]]:
    """Return the measured quantities of a group, each with its `STATISTICS` as text."""
    return [(name, _cells(summary.seconds[name])) for name in QUANTITIES if name in summary.seconds]


def _write_csv(run_dir: RunDir, summaries: Sequence[TimingSummary]) -> None:
    with (
        publishing(run_dir.benchmark_table) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as table,
    ):
        writer = csv.writer(table)
        writer.writerow([*GROUP_COLUMNS, "num_timed", "num_cold", "quantity", *STATISTICS])
        for summary in summaries:
            counts = (summary.num_timed, summary.num_cold)
            for quantity, found in summary.seconds.items():
                figures = [getattr(found, name) for name in STATISTICS]
                writer.writerow([*summary.group.values(), *counts, quantity, *figures])


def _markdown(summaries: Sequence[TimingSummary], names: Sequence[str]) -> list[str]:
    lines = [
        f"| settings | quantity | {' | '.join(STATISTICS)} |",
        f"|---|---|{'---:|' * len(STATISTICS)}",
    ]
    for summary, settings in zip(summaries, names, strict=True):
        name = f"{settings}; {summary.group['gpu_name'] or 'CPU'}"
        for quantity, cells in figures_of(summary):
            lines.append(f"| {name} | {quantity} | {' | '.join(cells)} |")
    return [*lines, "", LEGEND]


def _line(summary: TimingSummary, name: str) -> str:
    found = summary.seconds.get("clip_seconds")
    if found is None:
        return f"{name}: no warm clip, {summary.num_cold} cold"
    return (
        f"{name}: median {found.median:.3g} s a clip, p90 {_number(found.p90)} s, "
        f"spread {_percent(found.spread)}, {found.minimum:.3g} to {found.maximum:.3g} s, "
        f"n = {found.n} and {summary.num_cold} cold"
    )


def _cells(found: Distribution) -> list[str]:
    middle = [_number(found.median), _number(found.p90), _percent(found.spread)]
    return [str(found.n), *middle, _number(found.minimum), _number(found.maximum)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _name(group: Mapping[str, Any], columns: Sequence[str]) -> str:
    parts = [
        f"{group['model']} {group['height']}x{group['width']}x{group['num_frames']}",
        f"{group['num_inference_steps']} steps",
        f"guidance {_said('guidance_scale', group['guidance_scale'])}",
        f"offload {_said('offload', group['offload'])}",
        f"attention {_said('attention_backend', group['attention_backend'])}",
    ]
    parts += ["compiled"] * bool(group["compiled"] and "compiled" not in columns)
    return ", ".join([*parts, *(f"{name} {_said(name, group[name])}" for name in columns)])


def _said(name: str, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)[:8] if name in ("system_sha256", "revision") else str(value)
