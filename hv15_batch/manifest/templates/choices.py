"""One template: its choices, all its combinations, and its draws.

A draw depends on the template, its words, a seed and its own number. It needs no random generator
of a library, so it is the same on every machine and in every version.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, groupby

from hv15_batch.manifest.templates.words import WORDS_FORM, Words

MAX_DEPTH = 16
MAX_COUNT = 10**15
"""A larger number of combinations is not told apart."""

_MARK = re.compile(r"\\[{}|@:\\]|[{}|]")
_WEIGHT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)::")
_LIKE_WEIGHT = re.compile(r"\s*[+-]?\.?[0-9][^\s{}|\\:]*\s*::")
_LIKE_FILE = re.compile(r"\s+@")
_ONE = Fraction(1)
_CHOICE_FORM = "write choices like {red|blue}, 3::red for a weight, {@colours.txt} for a file"
_LITERAL_FORM = r"and a brace of the text as \{ or \}"


@dataclass(frozen=True)
class Template:
    """A prompt whose choices are read."""

    text: str
    """As typed."""
    files: tuple[str, ...]
    """SHA-256 of each file of words, in the order of the text."""
    parts: tuple[_Part, ...]

    @property
    def has_choices(self) -> bool:
        """Whether it stands for other prompts than itself."""
        return any(isinstance(part, _Choice) for part in self.parts)

    @property
    def count(self) -> int:
        """The number of combinations, at most `MAX_COUNT`; equal ones count each."""
        return _count(self.parts)

    def combination(self, number: int) -> str:
        """Return one combination, from 0; the last choice changes first."""
        return _combination(self.parts, number)

    def draw(self, seed: int, number: int) -> str:
        """Return a prompt with one option of each choice, at random by weight.

        Args:
            seed: `templates_seed`.
            number: Of the draw, from 0.
        """
        return _draw(self.parts, _numbers([self.text, self.files, seed, number]))


def read_template(text: str, words: Words) -> Template:
    """Return the template of a prompt.

    Raises:
        ValueError: The message has what is allowed and what to do.
    """
    parser = _Parser(text, words)
    parts = parser.parse()
    return Template(text, tuple(parser.files), parts)


# -- parts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """Options of which one is taken, each a sequence of parts."""

    options: tuple[tuple[_Part, ...], ...]
    counts: tuple[int, ...]
    """Combinations of the options up to each one, added up."""
    weights: tuple[int, ...]
    """Weights of the options up to each one, added up."""


_Part = str | _Choice


def _choice(options: list[tuple[_Part, ...]], weights: list[Fraction]) -> _Choice:
    whole = math.lcm(*(weight.denominator for weight in weights))
    counts = accumulate(_count(option) for option in options)
    return _Choice(
        tuple(options), tuple(counts), tuple(accumulate(int(w * whole) for w in weights))
    )


def _count(parts: Iterable[_Part]) -> int:
    """Return the number of combinations, at most `MAX_COUNT`."""
    count = 1
    for part in parts:
        if isinstance(part, _Choice):
            count = min(count * part.counts[-1], MAX_COUNT)
    return count


def _combination(parts: tuple[_Part, ...], number: int) -> str:
    """Return one combination; the last choice changes first."""
    texts: list[str] = []
    for part in reversed(parts):
        if isinstance(part, _Choice):
            number, own = divmod(number, part.counts[-1])
            place = bisect_right(part.counts, own)
            before = part.counts[place - 1] if place else 0
            texts.append(_combination(part.options[place], own - before))
        else:
            texts.append(part)
    return "".join(reversed(texts))


def _draw(parts: tuple[_Part, ...], numbers: Iterator[int]) -> str:
    """Return a text with one option of each choice; `numbers` are of 64 bits."""
    texts: list[str] = []
    for part in parts:
        if isinstance(part, _Choice):
            own = next(numbers) * part.weights[-1] >> 64
            texts.append(_draw(part.options[bisect_right(part.weights, own)], numbers))
        else:
            texts.append(part)
    return "".join(texts)


def _numbers(key: Sequence[object]) -> Iterator[int]:
    """Yield numbers of 64 bits: SHA-256 of the key's SHA-256 and a counter."""
    seed = hashlib.sha256(json.dumps(key, separators=(",", ":")).encode()).digest()
    counter = 0
    while True:
        block = hashlib.sha256(seed + counter.to_bytes(8, "big")).digest()
        yield int.from_bytes(block[:8], "big")
        counter += 1


# -- reading ----------------------------------------------------------------------------------


class _Parser:
    """Reads one template, in linear time."""

    def __init__(self, text: str, words: Words) -> None:
        self._text = text
        self._words = words
        self._marks = list(_MARK.finditer(text))
        self._next = 0
        self.files: list[str] = []
        """SHA-256 of each file of words, in the order of the text."""

    def parse(self) -> tuple[_Part, ...]:
        """Return the parts of the whole text.

        Raises:
            ValueError: The message has what is allowed and what to do.
        """
        parts, _, _ = self._sequence(0, 0)
        return parts

    def _sequence(self, start: int, depth: int) -> tuple[tuple[_Part, ...], int, str]:
        """Return the parts from `start`, where they end, and the mark there; empty at the end."""
        parts: list[_Part] = []
        while self._next < len(self._marks):
            mark = self._marks[self._next]
            self._next += 1
            parts.append(self._text[start : mark.start()])
            start = mark.end()
            if mark[0][0] == "\\":
                parts.append(mark[0][1])
            elif mark[0] == "{":
                choice, start = self._choice(mark.start(), start, depth + 1)
                parts.append(choice)
            elif depth:
                return _joined(parts), start, mark[0]
            elif mark[0] == "|":
                parts.append("|")
            else:
                raise ValueError(
                    f"character {mark.start() + 1} closes a choice that was never opened; "
                    f"{_CHOICE_FORM}, {_LITERAL_FORM}"
                )
        parts.append(self._text[start:])
        return _joined(parts), len(self._text), ""

    def _choice(self, opened: int, start: int, depth: int) -> tuple[_Choice, int]:
        if depth > MAX_DEPTH:
            raise ValueError(f"choices are nested at most {MAX_DEPTH} deep; write them flatter")
        options: list[tuple[_Part, ...]] = []
        weights: list[Fraction] = []
        has_file, mark = False, "|"
        while mark == "|":
            weight = _WEIGHT.match(self._text, start)
            weights.append(Fraction(weight[1]) if weight else _ONE)
            start = weight.end() if weight else start
            if not weights[-1]:
                raise ValueError("a weight is over 0; leave that option out, or write 1::")
            self._check_start(start, has_weight=weight is not None)
            is_file = self._text.startswith("@", start)
            parts, start, mark = self._sequence(start, depth)
            options.append((self._file(parts),) if is_file else parts)
            has_file |= is_file
        if not mark:
            raise ValueError(
                f"character {opened + 1} opens a choice that never ends; {_CHOICE_FORM}, "
                f"{_LITERAL_FORM}"
            )
        if len(options) == 1 and not has_file:
            raise ValueError(
                f"character {opened + 1} opens a choice with one option only; {_CHOICE_FORM}, "
                f"{_LITERAL_FORM}"
            )
        return _choice(options, weights), start

    def _check_start(self, start: int, has_weight: bool) -> None:
        """Refuse an option that nearly begins with a weight, or with a file: it would be text."""
        if not has_weight and (found := _LIKE_WEIGHT.match(self._text, start)):
            raise ValueError(
                f"{found[0].strip()} is no weight: one is a number such as 3 or 1.5, of at most 9 "
                r"digits, at the very start of its option; for the text write \: for each colon"
            )
        if _LIKE_FILE.match(self._text, start):
            raise ValueError(
                f"a space stands before @; {WORDS_FORM}, " r"or write \@ for the character"
            )

    def _file(self, parts: tuple[_Part, ...]) -> _Choice:
        """Return the choice between the lines of the file that `@name` names."""
        if len(parts) != 1 or not isinstance(parts[0], str):
            raise ValueError(f"the name of a file of words has no choices in it; {WORDS_FORM}")
        lines, sha256 = self._words.read(parts[0].removeprefix("@").strip())
        self.files.append(sha256)
        return _choice([(line,) for line in lines], [_ONE] * len(lines))


def _joined(parts: Iterable[_Part]) -> tuple[_Part, ...]:
    """Return parts with neighbouring texts as one."""
    found: list[_Part] = []
    for is_text, group in groupby(parts, lambda part: isinstance(part, str)):
        each = list(group)
        found += ["".join(map(str, each))] if is_text else each
    return tuple(part for part in found if part != "")
