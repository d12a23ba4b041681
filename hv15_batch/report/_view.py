"""The view of one run: all that its page shows, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from hv15_batch.figures.facts import common_facts, group_facts, noise_notes
from hv15_batch.figures.groups import Group, TimingWarning, WarningKind, group_rows
from hv15_batch.figures.summary import differing, labels
from hv15_batch.figures.tables import (
    STATISTICS,
    TABLE_COLUMNS,
    figures_of,
    format_cells,
    group_names,
)
from hv15_batch.figures.workers import (
    COLUMNS,
    WorkerFigures,
    format_worker,
    slow_lines,
    worker_figures,
)
from hv15_batch.model.options import conf_dir
from hv15_batch.planning.films import Film
from hv15_batch.planning.tables import SKIPPED
from hv15_batch.record import DONE_STATUSES, FAILED, INTERRUPTED, SUSPECT
from hv15_batch.references.check import MET, compare_with_references
from hv15_batch.references.data import read_references
from hv15_batch.references.text import (
    format_combination,
    format_implied,
    format_measured,
    format_utilisation,
    sentences,
)
from hv15_batch.report._gallery import (
    OWN_PAGE,
    PLAYABLE_SUFFIX,
    Place,
    clip_views,
    other_ratings,
    problem,
)
from hv15_batch.report._headline import Headline, headline
from hv15_batch.report._plots import plots
from hv15_batch.report._read import FILE_MISSING, NOT_RENDERED, RunData
from hv15_batch.units import (
    JOULES_PER_WATT_HOUR,
    NOT_MEASURED,
    counted,
    format_gib,
    format_seconds,
    format_share,
    format_watt_hours,
)

MAX_LISTED = 50
"""Failed or suspect clips listed with their reasons; the gallery has them all."""
MAX_GROUPS_AT_HEAD = 6
"""Settings with their figures at the head of the page; more are folded."""

_PROBLEMS = {
    FAILED: "Failed",
    SKIPPED: "Skipped",
    INTERRUPTED: "Interrupted",
    SUSPECT: "Suspect",
    FILE_MISSING: "File missing",
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
class FiguresTable:
    """Figures of several groups of settings, as text."""

    columns: list[str]
    rows: list[tuple[str, list[str]]]
    """What the group is called, and its figures."""


@dataclass(frozen=True)
class Benchmark:
    """What repeated measuring found, as text."""

    statistics: tuple[str, ...]
    rows: list[tuple[str, list[tuple[str, list[str]]]]]
    """What a group is called, and its quantities with their statistics."""
    files: list[str]
    """Tables beside the page."""


@dataclass(frozen=True)
class ReferenceRow:
    """A published number and its verdict from the log, as text."""

    name: str
    figure: str
    hardware: str
    verdict: str
    combination: str
    """With which settings that the source does not state; empty where not comparable."""
    measured: str
    utilisation: str
    """Of the card here while it denoised."""
    implied: str
    """Utilisation of its card that the number implies."""
    why: list[str]
    """What differs, what to do about it and what to know, in sentences."""


@dataclass(frozen=True)
class FilmView:
    """A film as a page shows it."""

    name: str
    state: str
    """Its clips, or what is missing."""
    address: str | None
    poster: str | None
    is_playable: bool


@dataclass(frozen=True)
class Page:
    """All that the page of one run shows."""

    headline: Headline
    folder: str
    written_at: str
    figures: dict[str, str]
    """The few numbers at the head."""
    groups: FiguresTable | None
    """Numbers of each group of settings; only where there are several groups."""
    workers: FiguresTable | None
    """Clips and idle share of each worker; only where there are several."""
    benchmark: Benchmark | None
    has_gallery: bool
    """Whether there is a clip to show: a benchmark keeps none."""
    films: list[FilmView]
    notes: list[str]
    problems: list[Problems]
    common: dict[str, str]
    warnings: list[str]
    references: list[ReferenceRow]
    is_benchmark: bool
    """Whether something was measured repeatedly: the references are then unfolded."""
    data: dict[str, Any]
    """What the scripts of the page read."""


def make_page(run: RunData, now: datetime, price: float | None, place: Place = OWN_PAGE) -> Page:
    """Return the page of a run; `price` is that of a kWh, None leaves costs out."""
    done = [a for a in run.attempts if a["status"] in DONE_STATUSES]
    repetitions = [a for a in done if a["repeat"] is not None]
    # Nothing of a benchmark is in clips/, so its attempts say what was in effect.
    seen = [*run.clips, *run.variants, *repetitions]
    common = common_facts(seen)
    groups = group_rows(run.attempts)
    facts = [group_facts(group.columns) for group in groups]
    names = labels(facts, differing(facts))
    has_gallery = not repetitions or any(c["status"] != NOT_RENDERED for c in run.clips)
    figures = plots(run)
    workers = worker_figures(run.attempts)
    return Page(
        headline=headline(run, now),
        folder=run.folder,
        written_at=f"{now.astimezone():%Y-%m-%d %H:%M %Z}",
        figures=_figures(done, groups, price),
        groups=_groups(groups, names, price) if len(groups) > 1 else None,
        workers=_workers(workers, now) if len(workers) > 1 else None,
        benchmark=_benchmark(run, repetitions) if repetitions else None,
        has_gallery=has_gallery,
        films=film_views(run.films, place),
        notes=[*noise_notes(clip["weights"] for clip in seen), *_unrated(run)],
        problems=_problems(run.clips),
        common=common,
        warnings=[*_warnings(groups, names), *slow_lines(workers)],
        references=_references(run),
        is_benchmark=any(attempt["repeat"] for attempt in run.attempts),
        data={
            "clips": clip_views(run, common, place) if has_gallery else [],
            "plots": figures,
            "runs": [run.folder],
            "otherRatings": other_ratings(run),
        },
    )


def film_views(films: Sequence[Film], place: Place) -> list[FilmView]:
    """Return the films of a run as a page shows them."""
    return [
        FilmView(
            name=f"{place.name}: {film.name}" if place.name else film.name,
            state=_film_state(film),
            address=place.address(film.file),
            poster=place.address(film.thumb),
            is_playable=(film.file or "").endswith(PLAYABLE_SUFFIX),
        )
        for film in films
    ]


def _film_state(film: Film) -> str:
    clips = counted(film.num_clips, "clip")
    if film.num_done < film.num_clips:
        clips = f"{film.num_done} of {clips} done"
    if not film.is_built:
        return f"{clips}, not built yet"
    return clips if film.num_done == film.num_clips else f"{clips}; the file has earlier clips"


def _unrated(run: RunData) -> list[str]:
    return [f"Ratings are not shown. {run.ratings_fault}"] if run.ratings_fault else []


def _references(run: RunData) -> list[ReferenceRow]:
    """Return the published numbers and this log's verdicts, those that it meets first."""
    verdicts = compare_with_references(run.attempts, read_references(conf_dir() / "reference"))
    verdicts = [v for v in verdicts if v.best is not None]
    return [
        ReferenceRow(
            name=v.reference.name,
            figure=v.reference.figure,
            hardware=v.reference.hardware,
            verdict=v.verdict.value,
            combination=format_combination(v.best),
            measured=format_measured(v.best),
            utilisation=format_utilisation(v.best),
            implied=format_implied(v.combinations),
            why=sentences(v),
        )
        for v in sorted(verdicts, key=lambda v: v.verdict not in MET)
    ]


def _figures(
    done: Sequence[Mapping[str, Any]], groups: Sequence[Group], price: float | None
) -> dict[str, str]:
    """Return the numbers at the head; what was not measured is left out.

    Times and energy appear only for a single group: different settings are not averaged.
    """
    shown = _of_one_group(groups[0], price) if len(groups) == 1 else {}
    vram = [a["peak_vram_reserved_bytes"] for a in done if a["peak_vram_reserved_bytes"]]
    if vram:
        shown["Peak VRAM"] = f"{format_gib(max(vram))} GiB"
    cards = dict.fromkeys(a["gpu_name"] for a in done if a["gpu_name"])
    if cards:
        shown["Card"] = ", ".join(cards)
    return shown


def _of_one_group(group: Group, price: float | None) -> dict[str, str]:
    seconds, energy = group.clip_seconds, group.energy_joules
    if seconds is None:
        return {"Seconds a clip": f"no warm clip yet, {group.num_cold} cold"}
    shown = {
        "Seconds a clip": f"{format_seconds(seconds.median)} (median of {_warm(seconds.n, group)})"
    }
    if seconds.p90 is not None:
        shown["p90"] = f"{format_seconds(seconds.p90)} s"
    if seconds.spread is not None:
        shown["Spread"] = format_share(seconds.spread)
    if energy is not None:
        shown["Energy a clip"] = (
            f"{format_watt_hours(energy.median)} Wh (median of {_warm(energy.n, group)})"
        )
    cost = _cost(group, price)
    if cost is not None:
        shown["Cost a clip"] = f"{cost} (at {price:g} a kWh)"
    return shown


def _groups(groups: Sequence[Group], names: Sequence[str], price: float | None) -> FiguresTable:
    rows = [(name, format_cells(group)) for name, group in zip(names, groups, strict=True)]
    if price is None:
        return FiguresTable([*TABLE_COLUMNS], rows)
    costs = [_cost(group, price) or NOT_MEASURED for group in groups]
    return FiguresTable(
        [*TABLE_COLUMNS, f"cost at {price:g} a kWh"],
        [(name, [*cells, cost]) for (name, cells), cost in zip(rows, costs, strict=True)],
    )


def _workers(workers: Sequence[WorkerFigures], now: datetime) -> FiguresTable:
    return FiguresTable([*COLUMNS], [(each.worker, format_worker(each, now)) for each in workers])


def _cost(group: Group, price: float | None) -> str | None:
    """Return what the energy of a warm clip costs; None where one of the two is not known."""
    if group.energy_joules is None or price is None:
        return None
    return f"{group.energy_joules.median / JOULES_PER_WATT_HOUR / 1000 * price:.3g}"


def _warm(n: int, group: Group) -> str:
    word = "repetition" if group.is_benchmark else "clip"
    return f"{n} warm {word}{'' if n == 1 else 's'}"


def _warnings(groups: Sequence[Group], names: Sequence[str]) -> list[str]:
    """Return why these numbers are not fit to quote: each kind of fault once, with its remedy."""
    found: dict[WarningKind, list[tuple[str, TimingWarning]]] = {}
    for group, name in zip(groups, names, strict=True):
        for warning in group.warnings:
            found.setdefault(warning.kind, []).append((name, warning))
    return [_warning(*warned[0], len(warned) - 1, len(groups) > 1) for warned in found.values()]


def _warning(name: str, warning: TimingWarning, others: int, is_named: bool) -> str:
    detail = f"{name}: {warning.detail}" if is_named else warning.detail
    if others:
        detail += f"; also in {others} more {'group' if others == 1 else 'groups'} of settings"
    return str(replace(warning, detail=detail))


def _benchmark(run: RunData, repetitions: Sequence[Mapping[str, Any]]) -> Benchmark:
    """Return the table of `benchmark.md`, and the files that have it where they are written."""
    groups = group_rows(repetitions)
    names = group_names([group.columns for group in groups])
    table = run.directory.benchmark_table
    return Benchmark(
        statistics=STATISTICS,
        rows=[(n, figures_of(g)) for n, g in zip(names, groups, strict=True) if g.seconds],
        files=[path.name for path in (table, table.with_suffix(".md")) if path.is_file()],
    )


def _problems(clips: Sequence[Mapping[str, Any]]) -> list[Problems]:
    groups = []
    for status, title in _PROBLEMS.items():
        bad = [clip for clip in clips if clip["status"] == status]
        if bad:
            listed = [(clip["clip_id"], problem(clip)) for clip in bad[:MAX_LISTED]]
            groups.append(Problems(title, status, len(bad), listed))
    return groups
