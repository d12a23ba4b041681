"""A page for a server: made in memory, of the package's own templates, from what runs logged.

Nothing that lies in a run directory as a page or a script is read. Of the clips only those files
are named that a server may hand out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hv15_batch.planning.films import Film
from hv15_batch.report._comparison import DATA as COMPARISON_DATA
from hv15_batch.report._comparison import common_folder, comparison_of, named_apart
from hv15_batch.report._gallery import Place, rating_view
from hv15_batch.report._read import RunData, read_rated, read_run
from hv15_batch.report.render import DATA, LIVE_ASSETS, Live, asset, page_of, plotly_file
from hv15_batch.rundir.chosen.beneath import served_type
from hv15_batch.rundir.chosen.ratings import Rating
from hv15_batch.rundir.paths import ASSETS, RunDir

MEDIA = "media"
"""The addresses of clips begin with this, and continue with the number of the run."""


@dataclass(frozen=True)
class Served:
    """A page and what belongs to it."""

    html: str
    data_name: str
    """Of the script with the data, in `assets/`."""
    data: dict[str, Any]
    """`clips` are all clips of the runs, in the page's order."""
    files: dict[str, tuple[int, str]]
    """Number of the run and path below it, by address."""
    ratings: list[dict[str, Rating]]
    """Of each run; the last that could be read."""
    rating_faults: list[str | None]
    """Of each run: why those of now cannot be read."""


def serve_page(run_dirs: Sequence[RunDir], token: str, before: Served | None = None) -> Served:
    """Return the live page of some runs.

    Args:
        run_dirs: The runs.
        token: What the page's scripts send with a change.
        before: The page as it was; its ratings are kept where those of now cannot be read.

    Raises:
        Refused: a folder is no run directory.
        LogSchemaError: a log cannot be read.
    """
    runs = [_served(read_run(run_dir)) for run_dir in run_dirs]
    faults = [run.ratings_fault for run in runs]
    ratings = _known([(run.ratings, run.ratings_fault) for run in runs], before)
    # The fault stands in the box of the run, which is kept up to date.
    runs = [
        replace(run, ratings=known, ratings_fault=None)
        for run, known in zip(runs, ratings, strict=True)
    ]
    files = {address: file for n, run in enumerate(runs) for address, file in _files(n, run)}
    if len(runs) == 1:
        html, data = page_of(runs[0], place=Place(f"{MEDIA}/0/"), live=Live(token))
        return Served(html, DATA, data, files, ratings, faults)
    runs = named_apart(runs, common_folder([run_dir.path for run_dir in run_dirs]))
    places = [Place(f"{MEDIA}/{n}/", n, run.folder) for n, run in enumerate(runs)]
    page = comparison_of(runs, places, dict.fromkeys((run.folder for run in runs), ""), Live(token))
    return Served(page.html, COMPARISON_DATA, page.data, files, ratings, faults)


def rate_again(served: Served, run_dirs: Sequence[RunDir]) -> Served:
    """Return a page with the ratings of now; nothing else is read."""
    read = [read_rated(run_dir) for run_dir in run_dirs]
    rated = _known(read, served)
    clips = [
        {**clip, "rating": rating_view(rated[clip["run"]], clip["settings"])}
        for clip in served.data["clips"]
    ]
    faults = [fault for _, fault in read]
    data = {**served.data, "clips": clips}
    return replace(served, data=data, ratings=rated, rating_faults=faults)


def _known(
    read: Sequence[tuple[dict[str, Rating], str | None]], before: Served | None
) -> list[dict[str, Rating]]:
    """Return the ratings of each run; those of before where they cannot be read now."""
    return [
        before.ratings[n] if fault and before else ratings
        for n, (ratings, fault) in enumerate(read)
    ]


def _served(run: RunData) -> RunData:
    """Return a run whose clips name only files that may be handed out."""
    for clip in (*run.clips, *run.variants):
        for name in ("file", "thumb"):
            if served_type(clip[name]) is None:
                clip[name] = None
    return replace(run, films=[_handed_out(film) for film in run.films])


def _handed_out(film: Film) -> Film:
    file, thumb = (name if served_type(name) else None for name in (film.file, film.thumb))
    return replace(film, file=file, thumb=thumb)


def _files(number: int, run: RunData) -> Iterator[tuple[str, tuple[int, str]]]:
    shown = (*run.clips, *run.variants)
    names = [name for clip in shown for name in (clip["file"], clip["thumb"])]
    for name in (*names, *(film.file for film in run.films)):
        if name is not None:
            yield f"/{MEDIA}/{number}/{name}", (number, name)


def served_assets() -> dict[str, Path]:
    """Return the scripts and styles of live pages, by address; all lie in packages."""
    named = {f"/{ASSETS}/{name}": asset(name) for name in LIVE_ASSETS}
    return {**named, f"/{ASSETS}/{plotly_file().name}": plotly_file()}
