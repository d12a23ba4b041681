"""Rows of templates become the rows that they stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from hv15_batch.clip import Clip
from hv15_batch.manifest.cells import Faults, is_empty, parse_text
from hv15_batch.manifest.rows import MAX_CLIPS, Row
from hv15_batch.manifest.templates.asked import Templates
from hv15_batch.manifest.templates.choices import MAX_COUNT, Template, read_template
from hv15_batch.manifest.templates.words import Words
from hv15_batch.units import counted, shortened

MAX_CLIPS_OF_TEMPLATES = 10_000
"""Without `limit`, so that one brace too many does not fill a month."""
MAX_CHARACTERS = 100_000_000
"""Of all expanded prompts together, because they are held in memory."""
ID_ROOM = 57
"""An id of 64 characters, less a hyphen and six hex digits."""


class Expander:
    """Makes the rows of one manifest's templates, and counts their clips."""

    def __init__(
        self, settings: Templates, faults: Faults, manifest: Path, *, has_folder: bool
    ) -> None:
        """Start.

        Args:
            settings: What to make.
            faults: Where faults are noted.
            manifest: The manifest's path; files of words lie in its folder or below.
            has_folder: False for rows of a DataFrame.
        """
        self._settings = settings
        self._faults = faults
        self._words = Words(manifest.parent if has_folder else None, copy_name(manifest))
        self._max_clips = MAX_CLIPS if settings.has_limit else MAX_CLIPS_OF_TEMPLATES
        self._num_clips = 0
        self._num_characters = 0

    @property
    def words(self) -> tuple[tuple[str, bytes], ...]:
        """Path, relative to the manifest's folder, and content of each file of words."""
        return tuple(sorted(self._words.contents.items()))

    @property
    def is_full(self) -> bool:
        """Whether the rows so far make too much. Then the fault has been noted."""
        return self._num_clips > self._max_clips or self._num_characters > MAX_CHARACTERS

    def rows(self, row: Row) -> list[Row]:
        """Return the rows that a row stands for: itself if it has no choices.

        Their `index` counts on from the row's. Faults are noted, and then the list is empty.
        """
        try:
            template = read_template(row.prompt, self._words)
        except ValueError as error:
            self._faults.add(row.line, "prompt", row.prompt, str(error))
            return []
        if not template.has_choices:
            return [replace(row, prompt=template.combination(0))]
        if row.id_given and len(row.id) > ID_ROOM:
            rule = f"the id of a template has at most {ID_ROOM} characters, since six digits follow"
            self._faults.add(row.line, "id", row.id, f"{rule}; shorten it")
            return []
        if not self._has_room(row, template.count):
            return []
        return [
            made
            for place, (text, number) in enumerate(self._prompts(row, template).items())
            if (made := self._row(row, place, text, number)) is not None
        ]

    def _has_room(self, row: Row, count: int) -> bool:
        settings, most = self._settings, self._max_clips
        seeds = settings.own_seeds or len(row.seeds or ()) or settings.default_seeds
        count = count if settings.draws is None else min(count, settings.draws)
        self._num_clips += count * seeds
        if not self.is_full:
            return True
        found = f"{self._num_clips:,}" if self._num_clips < MAX_COUNT else "very many"
        without = "" if settings.has_limit else " without limit"
        more = "" if settings.has_limit else ", or type limit=N"
        rule = f"templates make at most {most:,} clips{without}, and up to here they make {found}"
        action = f"use fewer choices, draw some of them with templates=N{more}"
        self._faults.add(row.line, "prompt", row.prompt, f"{rule}; {action}")
        return False

    def _prompts(self, row: Row, template: Template) -> dict[str, int]:
        """Return each prompt once, with the number of its first combination or draw."""
        found: dict[str, int] = {}
        count, asked = template.count, self._settings.draws
        for number in range(count if asked is None else asked):
            if asked is None:
                text = template.combination(number)
            else:
                text = template.draw(self._settings.seed, number)
            if text not in found:
                found[text] = number
                self._num_characters += len(text)
            if len(found) == count:
                break
            if self.is_full:
                rule = f"templates make at most {MAX_CHARACTERS:,} characters of prompts"
                self._faults.add(row.line, "prompt", row.prompt, f"{rule}; use fewer choices")
                return {}
        return found

    def _row(self, row: Row, place: int, text: str, number: int) -> Row | None:
        """Return the row of one prompt; None if it is refused, which is then noted."""
        if is_empty(text):
            rule = "one of the prompts of this template is empty; write what that clip shows"
            self._faults.add(row.line, "prompt", row.prompt, rule)
            return None
        try:
            parse_text(text)
        except ValueError as error:
            self._faults.add(row.line, "prompt", text, str(error))
            return None
        return replace(
            row,
            index=row.index + place,
            id=f"{row.id}-{hashlib.sha256(text.encode()).hexdigest()[:6]}",
            prompt=text,
            template_id=row.id,
            template_draw=number,
        )


def copy_name(manifest: Path) -> str:
    """Return how a run names its copy of a manifest, which no file of words may be called."""
    name = f"manifest{manifest.suffix}"
    return "" if manifest.name == name else name  # else it is the same file


def templates_line(rows: Iterable[Row], asked: str | None) -> str | None:
    """Return a line about how many prompts the templates make; None without any."""
    made = [row for row in rows if row.template_id is not None]
    if not made:
        return None
    templates = len({(row.line, row.template_id) for row in made})
    verb = "makes" if templates == 1 else "make"
    prompts = counted(len(made), "prompt")
    return f"Templates: {counted(templates, 'row')} {verb} {prompts} (templates={asked})"


MAX_SHOWN = 10
MAX_SHOWN_CHARACTERS = 100


def shown_prompts(clips: Iterable[Clip]) -> Iterator[str]:
    """Yield lines with the first `MAX_SHOWN` prompts that templates made, and how many follow."""
    made: dict[str, str] = {}
    for clip in clips:
        if clip.template_draw is not None:
            made.setdefault(clip.settings.prompt, clip.row_id)
    for prompt, row_id in islice(made.items(), MAX_SHOWN):
        yield f"  {row_id}: {shortened(prompt, MAX_SHOWN_CHARACTERS)}"
    if len(made) > MAX_SHOWN:
        yield f"  and {len(made) - MAX_SHOWN:,} more prompts, all of them in plan.csv"
