"""Films: which clips of a manifest are joined, in which order, by its column `join`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from hv15_batch.clip import Clip
from hv15_batch.manifest.cells import Faults
from hv15_batch.manifest.rows import Row
from hv15_batch.units import counted

Film = list[str]
"""The `settings_sha256` of its clips, in order."""


def films_of(rows: Iterable[Row], asked: Iterable[Clip], faults: Faults | None) -> dict[str, Film]:
    """Return the films of a manifest by the name of their file, without its suffix.

    A film has the clips of all rows that name it, in file order, each after those that it follows.
    Rows with several seeds make a film of each: `story_s0`, `story_s1`.

    Args:
        rows: Of the manifest, in file order.
        asked: The clips of each row, repeated ones included, in the order of its seeds.
        faults: Where rows are noted whose clips cannot be joined; None notes none.
    """
    by_name: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.join is not None:
            by_name[row.join].append(row)
    if not by_name:
        return {}
    of_row: defaultdict[int, list[Clip]] = defaultdict(list)
    by_sha256: dict[str, Clip] = {}
    for clip in asked:
        of_row[clip.row_index].append(clip)
        by_sha256.setdefault(clip.settings_sha256, clip)
    films: dict[str, Film] = {}
    taken: dict[str, str] = {}
    for name, joined in by_name.items():
        joined = [row for row in joined if of_row[row.index]]
        takes = max((len(of_row[row.index]) for row in joined), default=0)
        for take in range(takes):
            film = _film(joined, take, takes, of_row, by_sha256, faults)
            own = name if takes == 1 else f"{name}_s{_seed(joined, take, takes, of_row)}"
            other = taken.setdefault(own.casefold(), name)
            if other != name:
                rule = f"the film {other} has a file of that name; give one of them another name"
                _note(faults, joined[0], rule)
                break
            if films.get(own, film) != film:
                rule = (
                    f"two films would be named {own}, because a row has that seed twice; give it "
                    "each seed once"
                )
                _note(faults, _several(joined, takes, of_row), rule)
                break
            if film:
                films[own] = film
    return films


def _film(
    joined: Sequence[Row],
    take: int,
    takes: int,
    of_row: Mapping[int, Sequence[Clip]],
    by_sha256: Mapping[str, Clip],
    faults: Faults | None,
) -> Film:
    """Return one film; an empty one where its clips cannot be joined, which is then noted."""
    film: dict[str, None] = {}
    first: Clip | None = None
    for row in joined:
        clips = of_row[row.index]
        if len(clips) not in (1, takes):
            if not take:
                rule = (
                    f"this row has {counted(len(clips), 'seed')} and another row of the film "
                    f"{takes}, and each film has one clip of a row; give all rows as many, or one"
                )
                _note(faults, row, rule)
            return []
        clip = clips[take if len(clips) > 1 else 0]
        first = clip if first is None else first
        for each in _chain(clip, by_sha256):
            if _form(each) != _form(first):
                if not take:
                    rule = (
                        f"the clips of a film have one size and one frame rate, and it has "
                        f"{_form_text(first)} and {_form_text(each)}; give all its rows the same"
                    )
                    _note(faults, row, rule)
                return []
            film.setdefault(each.settings_sha256)
    return list(film)


def _chain(clip: Clip, by_sha256: Mapping[str, Clip]) -> list[Clip]:
    """Return a clip after all those that it follows."""
    chain = [clip]
    while (source := chain[-1].source) is not None and source.settings_sha256 in by_sha256:
        chain.append(by_sha256[source.settings_sha256])
    return chain[::-1]


def _form(clip: Clip) -> tuple[int, int, float]:
    return clip.settings.height, clip.settings.width, clip.settings.fps


def _form_text(clip: Clip) -> str:
    height, width, fps = _form(clip)
    return f"{height}x{width} at {fps:g} fps"


def _seed(
    joined: Sequence[Row], take: int, takes: int, of_row: Mapping[int, Sequence[Clip]]
) -> int:
    """Return the seed that tells a film from the others: of the first row with several."""
    return of_row[_several(joined, takes, of_row).index][take].settings.seed


def _several(joined: Sequence[Row], takes: int, of_row: Mapping[int, Sequence[Clip]]) -> Row:
    """Return the first row with as many seeds as there are films."""
    return next(row for row in joined if len(of_row[row.index]) == takes)


def _note(faults: Faults | None, row: Row, rule: str) -> None:
    if faults is not None:
        faults.add(row.line, "join", row.join, rule)


def with_films(clips: Iterable[Clip], films: Mapping[str, Film]) -> list[Clip]:
    """Return the clips of a manifest, each once, with their places in films."""
    places: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, film in films.items():
        for place, sha256 in enumerate(film):
            places[sha256].append((name, place))
    return [
        replace(clip, films=tuple(places[clip.settings_sha256]))
        if clip.settings_sha256 in places
        else clip
        for clip in clips
    ]
