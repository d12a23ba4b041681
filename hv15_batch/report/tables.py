"""The comparison as tables fit to paste: CSV in the log's units, unrounded; Markdown to read."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hv15_batch.report.facts import KEY_FACTS
from hv15_batch.report.formats import (
    format_gib,
    format_seconds,
    format_share,
    format_watt_hours,
)

if TYPE_CHECKING:
    from hv15_batch.report.comparison import Group

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
_CSV_FIGURES = (
    *("n", "median_seconds", "p90_seconds", "spread", "cold_clips", "failed_attempts"),
    *("peak_vram_reserved_bytes", "peak_vram_device_bytes", "energy_joules_median"),
)
_CSV_NAMES = {
    "Variant": "model",
    "Frames": "num_frames",
    "Steps": "num_inference_steps",
    "Guidance": "guidance_scale",
    "Shift": "flow_shift",
    "Frames a second": "fps",
    "Type": "dtype",
    "Attention": "attention_backend",
    "Decode tiles": "vae_tile_size",
    "Decoded on": "decode_device",
    "Card": "gpu_name",
    "Card memory": "gpu_memory",
    "Driver": "driver_version",
    "PyTorch": "torch_version",
    "diffusers": "diffusers_version",
    "hv15_batch": "hv15_batch_version",
}
"""The log's names, where they are not the page's in lower case."""


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
        format_watt_hours(group.energy_joules),
    ]


def format_csv(groups: Sequence[Group]) -> str:
    """Return every group with all its settings and figures."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    settings = [_CSV_NAMES.get(n, n.lower().replace("-", "_").replace(" ", "_")) for n in KEY_FACTS]
    writer.writerow([*settings, *_CSV_FIGURES, "runs"])
    for group in groups:
        seconds = group.seconds
        figures: list[Any] = [
            *(seconds.n, seconds.median, seconds.p90, seconds.spread, group.cold, group.failed),
            *(group.peak_vram_bytes, group.device_vram_bytes, group.energy_joules),
        ]
        facts = [group.facts.get(name) for name in KEY_FACTS]
        writer.writerow([*facts, *figures, " ".join(group.runs)])
    return text.getvalue()


def format_markdown(
    groups: Sequence[Group], common: Mapping[str, str | None], shown: Sequence[str]
) -> str:
    """Return a table of what differs and the figures, with what is common in a line above it."""
    same = [f"{name}: {value}" for name, value in common.items() if value and name not in shown]
    head = [*shown, *TABLE_COLUMNS]
    lines = [
        f"Same for all: {_cell('; '.join(same))}." if same else "",
        "",
        _row(head),
        _row(["---"] * len(shown) + ["---:"] * len(TABLE_COLUMNS)),
        *(_row([*(g.facts.get(n, "") for n in shown), *format_cells(g)]) for g in groups),
        "",
        "n counts warm clips; spread is the interquartile range over the "
        "median; GiB is 1024³ bytes; a dash means not measured.",
    ]
    return "\n".join(lines).lstrip("\n") + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
