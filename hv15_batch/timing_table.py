"""A benchmark's figures as lines for the terminal, `benchmark.csv` and `benchmark.md`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

from hv15_batch.rundir import RunDir, publish_text, publishing
from hv15_batch.runlog import read_records
from hv15_batch.timings import (
    GROUP_COLUMNS,
    QUANTITIES,
    TIMING_COLUMNS,
    Distribution,
    TimingSummary,
    summarise,
    warnings_of,
)

_STATISTICS = ("n", "median", "p90", "spread", "minimum", "maximum")


def repetitions_of(run_dir: RunDir) -> list[dict[str, Any]]:
    """Return the log's rows of benchmarks, warm-ups included."""
    rows = read_records(run_dir.log, TIMING_COLUMNS).to_pylist()
    return [row for row in rows if row["repeat"] is not None]


def write_timing_tables(run_dir: RunDir) -> list[str]:
    """Write `benchmark.csv` and `benchmark.md` of all repetitions; return what they say."""
    rows = repetitions_of(run_dir)
    summaries = summarise(rows)
    warnings = [
        f"WARNING: {_name(w.group)}: {w.kind.about} ({w.detail}); {w.kind.remedy}"
        for w in warnings_of(rows)
    ]
    _write_csv(run_dir, summaries)
    text = "\n".join([*_markdown(summaries), *(f"\n{line}" for line in warnings)])
    publish_text(run_dir.benchmark_table.with_suffix(".md"), text + "\n")
    return [*(_line(summary) for summary in summaries), *warnings]


def _write_csv(run_dir: RunDir, summaries: Sequence[TimingSummary]) -> None:
    with (
        publishing(run_dir.benchmark_table) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as table,
    ):
        writer = csv.writer(table)
        writer.writerow([*GROUP_COLUMNS, "num_timed", "num_cold", "quantity", *_STATISTICS])
        for summary in summaries:
            counts = (summary.num_timed, summary.num_cold)
            for quantity, found in summary.seconds.items():
                figures = [getattr(found, name) for name in _STATISTICS]
                writer.writerow([*summary.group.values(), *counts, quantity, *figures])


def _markdown(summaries: Sequence[TimingSummary]) -> list[str]:
    lines = [
        f"| settings | quantity | {' | '.join(_STATISTICS)} |",
        f"|---|---|{'---:|' * len(_STATISTICS)}",
    ]
    for summary in summaries:
        name = f"{_name(summary.group)}; {summary.group['gpu_name'] or 'CPU'}"
        for quantity in QUANTITIES:
            if quantity in summary.seconds:
                lines.append(f"| {name} | {quantity} | {_cells(summary.seconds[quantity])} |")
    return lines


def _line(summary: TimingSummary) -> str:
    found = summary.seconds.get("clip_seconds")
    if found is None:
        return f"{_name(summary.group)}: no warm clip, {summary.num_cold} cold"
    return (
        f"{_name(summary.group)}: median {found.median:.3g} s a clip, p90 {_number(found.p90)} s, "
        f"spread {_percent(found.spread)}, {found.minimum:.3g} to {found.maximum:.3g} s, "
        f"n = {found.n} and {summary.num_cold} cold"
    )


def _cells(found: Distribution) -> str:
    figures = (found.median, found.p90)
    middle = " | ".join(_number(value) for value in figures)
    ends = f"{_number(found.minimum)} | {_number(found.maximum)}"
    return f"{found.n} | {middle} | {_percent(found.spread)} | {ends}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _name(group: dict[str, Any]) -> str:
    """Return the settings that a reader tells groups apart by."""
    parts = [
        f"{group['model']} {group['height']}x{group['width']}x{group['num_frames']}",
        f"{group['num_inference_steps']} steps",
        f"guidance {group['guidance_scale']:g}",
        f"offload {group['offload']}",
        f"attention {group['attention_backend']}",
    ]
    return ", ".join(parts + ["compiled"] * bool(group["compiled"]))
