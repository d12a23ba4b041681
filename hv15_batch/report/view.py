"""The view of one run: all that its page shows, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hv15_batch.records import DONE_STATUSES, FAILED, INTERRUPTED, SUSPECT
from hv15_batch.report.facts import common_facts
from hv15_batch.report.figures import clip_seconds, groups, summarise, timed, warnings_of
from hv15_batch.report.formats import (
    format_gib,
    format_seconds,
    format_share,
    format_watt_hours,
)
from hv15_batch.report.gallery import clip_views, problem
from hv15_batch.report.headline import Headline, headline
from hv15_batch.report.plots import plots
from hv15_batch.report.public import without_private
from hv15_batch.report.read import FILE_MISSING, RunData

MAX_LISTED = 50
"""Failed or suspect clips listed with their reasons; the gallery has them all."""

_PROBLEMS = {
    FAILED: "Failed",
    INTERRUPTED: "Interrupted",
    SUSPECT: "Suspect",
    FILE_MISSING: "File missing",
}
_NOISE_NOTES = {
    "tiny": (
        "These clips are noise on purpose: the tiny models are small instances of the real "
        "classes with random weights, made to try the whole way from manifest to page. "
        "Their times and memory say nothing about the full-size model."
    ),
    "random": (
        "These clips are noise on purpose: model.weights=random builds the full-size model "
        "without its published weights. Time and memory are as with the published weights; "
        "the pictures mean nothing."
    ),
}


@dataclass(frozen=True)
class Problems:
    """Clips of one bad status."""

    title: str
    status: str
    count: int
    listed: list[tuple[str, str]]
    """Clip and reason, at most `MAX_LISTED`."""


@dataclass(frozen=True)
class Page:
    """All that the page of one run shows."""

    headline: Headline
    folder: str
    written_at: str
    figures: dict[str, str]
    """The few numbers at the head."""
    notes: list[str]
    problems: list[Problems]
    common: dict[str, str]
    warnings: list[str]
    data: dict[str, Any]
    """What the scripts of the page read."""


def make_page(run: RunData, now: datetime, is_public: bool = False) -> Page:
    """Return the page of a run."""
    if is_public:
        run = without_private(run)
    clips = [*run.clips, *run.variants]
    common = common_facts(clips)
    weights = {clip["weights"] for clip in clips}
    figures = plots(run)
    return Page(
        headline=headline(run, now, is_public),
        folder=run.folder,
        written_at=f"{now.astimezone():%Y-%m-%d %H:%M %Z}",
        figures=_figures(run),
        notes=[note for name, note in _NOISE_NOTES.items() if name in weights],
        problems=_problems(run.clips),
        common=common,
        warnings=warnings_of(run.attempts) if run.attempts else [],
        data={
            "clips": clip_views(run, common, is_public),
            "plots": figures,
            "isPublic": is_public,
        },
    )


def _figures(run: RunData) -> dict[str, str]:
    """Return the numbers at the head; what was not measured is left out."""
    done = [a for a in run.attempts if a["status"] in DONE_STATUSES]
    shown: dict[str, str] = {}
    warm = timed(done)
    seconds = summarise(map(clip_seconds, warm))
    if seconds.median is not None:
        n = f"{seconds.n} warm clip{'' if seconds.n == 1 else 's'}"
        if (ways := len(groups(warm))) > 1:
            n += f" of {ways} settings"
        shown["Seconds a clip"] = f"{format_seconds(seconds.median)} (median of {n})"
        shown["p90"] = f"{format_seconds(seconds.p90)} s"
        if seconds.spread is not None:
            shown["Spread"] = format_share(seconds.spread)
    vram = [a["peak_vram_reserved_bytes"] for a in done if a["peak_vram_reserved_bytes"]]
    if vram:
        shown["Peak VRAM"] = f"{format_gib(max(vram))} GiB"
    energy = summarise(a["energy_joules"] for a in done)
    if energy.median is not None:
        shown["Energy a clip"] = f"{format_watt_hours(energy.median)} Wh (median)"
    cards = dict.fromkeys(a["gpu_name"] for a in done if a["gpu_name"])
    if cards:
        shown["Card"] = ", ".join(cards)
    return shown


def _problems(clips: Sequence[Mapping[str, Any]]) -> list[Problems]:
    groups = []
    for status, title in _PROBLEMS.items():
        bad = [clip for clip in clips if clip["status"] == status]
        if bad:
            listed = [(clip["clip_id"], problem(clip)) for clip in bad[:MAX_LISTED]]
            groups.append(Problems(title, status, len(bad), listed))
    return groups
