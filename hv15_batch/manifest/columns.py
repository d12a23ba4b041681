"""A manifest's columns: the known ones, and the meaning of the names in a file."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hv15_batch.config.settings import Config, ManifestColumns, OtherColumns
from hv15_batch.errors import Refused
from hv15_batch.manifest._hints import advice, folded, meaning
from hv15_batch.manifest.cells import Faults
from hv15_batch.manifest.templates.asked import Templates, templates_of
from hv15_batch.units import shortened

KNOWN_COLUMNS = tuple(vars(ManifestColumns()))
"""`prompt`, `id`, `seed` and so on, as docs/manifest.md lists them."""

TAG_PREFIX = "tag_"
"""Prefix of columns that are labels of the user."""

MAX_COLUMNS = 1_000
MAX_NAMED = 8
"""A message names at most this many columns and counts the rest."""

_FOLDED = {folded(name): name for name in KNOWN_COLUMNS}
_TAG = re.compile(r"\s*tag[\s_-](.*)", re.IGNORECASE | re.DOTALL)

# Names of the row index of pandas: to_csv, read and written again, to_parquet.
_INDEX_COLUMN = re.compile(r"|Unnamed: 0(\.[0-9]+)*|__index_level_[0-9]+__")


class Unreadable(Exception):
    """The rest of the file cannot be read; the fault has been noted."""


@dataclass(frozen=True)
class Reading:
    """The settings for reading a manifest."""

    literal: bool = False
    """Prompts that look like comments, options or lists are taken as they are typed."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Names in the file, by known column."""
    other: OtherColumns = OtherColumns.refuse
    templates: Templates | None = None
    """How prompts are expanded; None takes braces as text."""


def reading_of(config: Config) -> Reading:
    """Return the settings for reading a manifest.

    Raises:
        Refused: One column of the file is named for two known ones, or `templates` is of no form.
    """
    names = {known: name for known, name in vars(config.manifest_columns).items() if name}
    taken: dict[str, str] = {}
    for known, name in names.items():
        other = taken.setdefault(name, known)
        if other != known:
            raise Refused(
                f"manifest_columns.{known}={name}: a column has one meaning, and "
                f"manifest_columns.{other} names the same; name another or leave one out."
            )
    templates = templates_of(config)
    return Reading(config.manifest_literal, names, config.manifest_other, templates)


class Columns:
    """The columns of one file: which are read, and their known names."""

    def __init__(self, reading: Reading, faults: Faults) -> None:
        self.reading = reading
        self._faults = faults
        self._names: dict[str, str | None] = {}
        self._unknown: dict[str, int] = {}
        self._others: list[str] = []
        """Unknown names in the file that `manifest_other` allows."""
        self._labels: set[str] = set()
        """Labels that they became."""

    def is_expected(self, name: str) -> bool:
        """Whether a name is a known column, or clearly means one."""
        return self._known(name) is not None or meaning(name, KNOWN_COLUMNS) is not None

    def read_header(self, line: int, header: Sequence[str]) -> list[tuple[int, str]]:
        """Return (place, known name) of the columns to read, and note the faults of others.

        Raises:
            Unreadable: There is no `prompt`, so that no row can be checked.
        """
        self._check_count(line, header, len(header))
        for name in header:
            self._learn(line, name)
        places: dict[str, int] = {}
        for place, name in enumerate(header):
            known = self._names[name]
            if known is None:
                continue
            first = places.setdefault(_key(known), place)
            if first != place:
                self._note_twice(line, name, header[first], f"{first + 1} and {place + 1}")
        # Without a known name the first line is no header, so its words are not reported.
        has_header = bool(places) or any(map(self.is_expected, header))
        self.finish(line, header, has_header=has_header)
        if "prompt" not in places:
            is_told = "prompt" in self.reading.names or any(
                self._hint(name, places) == "prompt" for name in self._names
            )
            if not is_told:
                rule = "a manifest has a column prompt, and this one has none"
                shown = ",".join(header)
                self._faults.add(
                    line, "header", shown, f"{rule}; name the columns in the first line"
                )
            raise Unreadable
        return [(place, self._names[header[place]] or "") for place in places.values()]

    def read_members(self, line: int, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the cells of a JSON object under their known names; None if a fault is noted.

        Raises:
            Unreadable: All objects together have too many names.
        """
        cells: dict[str, Any] = {}
        seen: dict[str, str] = {}
        is_good = True
        for name, value in record.items():
            if name not in self._names:
                self._check_count(line, [name], len(self._names) + 1)
                self._learn(line, name)
            known = self._names[name]
            if known is None:
                continue
            first = seen.setdefault(_key(known), name)
            if first != name:
                self._note_twice(line, name, first, "two of them")
                is_good = False
            cells[known] = value
        if "prompt" not in cells and any(
            name in self._unknown and self._hint(name, cells) == "prompt" for name in record
        ):
            return None  # a fault of the column, reported once
        return self.with_labels(cells) if is_good else None

    def with_labels(self, cells: dict[str, Any]) -> dict[str, Any]:
        """Return cells under their known names; lists and objects in labels become text."""
        for name in self._labels & cells.keys():
            if isinstance(cells[name], (list, dict)):
                cells[name] = json.dumps(cells[name], ensure_ascii=False, default=str)
        return cells

    def finish(
        self, line: int = 1, header: Sequence[str] | None = None, *, has_header: bool = True
    ) -> None:
        """Note faults that need all names: unknown columns, and settings without a column."""
        present = {known for known in self._names.values() if known is not None}
        for column, name in self.reading.names.items():
            if column not in present:
                have = ", ".join(list(self._names if header is None else header)[:MAX_NAMED])
                rule = f"the file has no such column, and its columns are {have or 'none'}"
                key = f"manifest_columns.{column}"
                self._faults.add(line, key, name, f"{rule}; correct the name")
        for name in self._others:
            if "prompt" not in present and self._hint(name, present) == "prompt":
                self._faults.add(line, "column", name, _misnamed_rule(name, "prompt"))
        plain: dict[int, list[str]] = {}
        for name, at in self._unknown.items():
            hint = self._hint(name, present)
            known = _FOLDED.get(folded(name))
            if known is not None:  # unknown only because another column replaces it
                word = _mapping(known, self.reading.names[known])
                rule = f"{word} takes another column in its place"
                self._faults.add(at, "column", name, f"{rule}; remove or rename this one")
            elif hint is not None or advice(name) is not None:
                self._faults.add(at, "column", name, _misnamed_rule(name, hint))
            else:
                plain.setdefault(at, []).append(name)
        if plain and has_header:
            names = [name for group in plain.values() for name in group]
            word = "column" if len(names) == 1 else "columns"
            self._faults.add(min(plain), word, _listed(names), _unknown_rule(len(names)))

    @property
    def notes(self) -> list[str]:
        """A line about the effect of `manifest_other`; empty without one."""
        if not self._others:
            return []
        how = "Left out" if self.reading.other is OtherColumns.ignore else "Taken as labels"
        each = [
            f"{shortened(name, 40)} (meant as {hint}?)"
            if (hint := self._hint(name, self._names.values()))
            else shortened(name, 40)
            for name in self._others
        ]
        return [f"{how}, as manifest_other={self.reading.other.name} says: {_listed(each)}"]

    # -- one name -----------------------------------------------------------------------------

    def _learn(self, line: int, name: str) -> None:
        if name in self._names:
            return
        known = self._known(name)
        if known is None and not _INDEX_COLUMN.fullmatch(name.strip()):
            other = self.reading.other
            is_label = other is OtherColumns.tag
            if other is OtherColumns.refuse or (is_label and not name.isprintable()):
                self._unknown[name] = line
            else:
                self._others.append(name)
                known = f"{TAG_PREFIX}{name.strip()}" if is_label else None
                self._labels |= {known} if known else set()
        self._names[name] = known

    def _known(self, name: str) -> str | None:
        """Return the known column of a name, or None."""
        names = self.reading.names
        for column, given in names.items():
            if name == given or folded(name) == folded(given):
                return column
        known = _FOLDED.get(folded(name))
        if known is not None:
            return None if known in names else known
        label = _TAG.fullmatch(name)
        return f"{TAG_PREFIX}{label[1].strip()}" if label and name.isprintable() else None

    def _hint(self, name: str, present: Iterable[str | None]) -> str | None:
        hint = meaning(name, KNOWN_COLUMNS)
        return None if hint in present or hint in self.reading.names else hint

    def _note_twice(self, line: int, name: str, first: str, where: str) -> None:
        both = f", {first} and {name}" if first != name else ""
        rule = f"a name belongs to one column, and {where} share it{both}"
        self._faults.add(line, "column", name, f"{rule}; rename or remove one")

    def _check_count(self, line: int, header: Sequence[str], count: int) -> None:
        if count > MAX_COLUMNS:
            rule = f"a manifest has at most {MAX_COLUMNS:,} columns, and this one has {count:,}"
            self._faults.add(line, "header", header[0], f"{rule}; remove some")
            raise Unreadable


def _key(known: str) -> str:
    """Return a form that is equal for two names of one column; labels ignore case too."""
    return known.casefold() if known.startswith(TAG_PREFIX) else known


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


_OTHERS = "manifest_other=tag takes such columns as labels, manifest_other=ignore leaves them out"
_LABEL = f"or begin it with {TAG_PREFIX} if it is a label of your own"


def _misnamed_rule(name: str, hint: str | None) -> str:
    if hint is None:
        rule = f"a manifest has no such column, and {advice(name)}; write it there"
        return f"{rule}, {_LABEL}; {_OTHERS}"
    return (
        f"a manifest has no such column, and the nearest known name is {hint}; rename it, "
        f"type {_mapping(hint, name)}, {_LABEL}; {_OTHERS}"
    )


def _mapping(known: str, name: str) -> str:
    """Return the setting that names a column for a known one, quoted for a shell."""
    return shlex.quote(f"manifest_columns.{known}={name}")


def _unknown_rule(count: int) -> str:
    known = f"the known names are {', '.join(KNOWN_COLUMNS)}"
    if count == 1:
        rule = f"a manifest has no such column, and {known}; correct or remove it, {_LABEL}"
    else:
        label = f"or begin them with {TAG_PREFIX} if they are labels of your own"
        rule = f"a manifest has none of these {count}, and {known}; correct or remove them, {label}"
    return f"{rule}; {_OTHERS}"
