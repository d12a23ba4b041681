"""Cells of a manifest: the parser of each kind of value, and the wording of faults.

Every parser takes a cell as text (CSV) or as a value of JSON or Parquet. It raises a `ValueError`
that reads `what is allowed; what to do`. The rules are the same for all formats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any, TypeVar

from hv15_batch.errors import Refused
from hv15_batch.units import format_value, printable

MAX_CELL_CHARACTERS = 1_000_000
"""Longest text of a cell. The encoder reads 1,000 tokens; beyond this a quote was left open."""

MAX_SEED = 2**63 - 1
"""Largest seed: the log stores seeds as signed 64-bit integers."""

MAX_SEEDS_PER_ROW = 10_000

MAX_EXACT_FLOAT = 2**53
"""Beyond this a float no longer tells neighbouring integers apart (IEEE 754 binary64)."""

SEED_RULE = "seeds are integers from 0 to 2^63-1"
SEED_FORMS = "write them like 7, like 1 2 5, like 1,2,5 or like 0..3"

_WHOLE = re.compile(r"([+-]?)0*([0-9]{1,19})(?:\.0+)?")
_REAL = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_SEED = re.compile(r"0*([0-9]{1,19})(?:\.0+)?")
_SEED_RANGE = re.compile(r"0*([0-9]{1,19})\.\.0*([0-9]{1,19})")
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SEPARATORS = re.compile(r"\s*,\s*|\s+")

ROWS = "rows"
"""Name of a manifest that is the rows of a DataFrame."""

Parsed = TypeVar("Parsed")

_NUMBERS = re.compile(r"[0-9]+")


MAX_SINGLE_FAULTS = 4
"""So many faults of one cause have a message each, with the value; more become one message."""

MAX_SHOWN_LINES = 5
"""Number of lines that such a message names."""


class _Cause:
    """Faults of one cause: the first few, and their number."""

    def __init__(self) -> None:
        self._first: list[tuple[int, int, str]] = []
        self._num_faults = 0

    def add(self, line: int, number: int, message: str) -> None:
        self._num_faults += 1
        if len(self._first) < MAX_SHOWN_LINES:
            self._first.append((line, number, "".join(map(printable, message))))

    def messages(self, unit: str) -> list[tuple[int, int, str]]:
        """Return line, number and text of each message."""
        if self._num_faults <= MAX_SINGLE_FAULTS:
            return self._first
        line, number, message = self._first[0]
        where = format_places([line for line, _, _ in self._first], self._num_faults, unit)
        return [(line, number, f"{message.removesuffix('.')} ({where}).")]


def format_places(lines: Sequence[int], count: int, unit: str = "line") -> str:
    """Return e.g. `527 rows: lines 2, 3, 4 and 524 more`, or `2 rows: lines 2, 3`.

    Args:
        lines: The first of them.
        count: How many there are.
        unit: `line` or `row`.
    """
    each = list(dict.fromkeys(lines[:MAX_SHOWN_LINES]))
    more = f" and {count - len(each):,} more" if count > len(each) else ""
    rows = "row" if count == 1 else "rows"
    return f"{count:,} {rows}: {unit}{'s' * (count > 1)} {', '.join(map(str, each))}{more}"


class Faults:
    """Everything that is wrong with one manifest."""

    def __init__(self, manifest: str) -> None:
        self.manifest = manifest
        """Path of the manifest as the user typed it, or `ROWS`."""
        self.unit = "row" if manifest == ROWS else "line"
        """The unit of line numbers, which start at 1."""
        self._causes: dict[tuple[str, str], _Cause] = {}
        self._num_found = 0

    def __len__(self) -> int:
        """Return how many there are."""
        return self._num_found

    @property
    def messages(self) -> list[str]:
        """A message for each fault or frequent cause, by line, then in the order of discovery."""
        found = [told for cause in self._causes.values() for told in cause.messages(self.unit)]
        return [message for _, _, message in sorted(found)]

    def add(self, line: int, column: str, value: Any, rule: str) -> None:
        """Note a fault; `rule` reads `what is allowed; what to do`."""
        place = f"{self.manifest}:" + (f" row {line}" if self.manifest == ROWS else str(line))
        message = f"{place}: {column}={format_value(value)}: {rule}."
        # Rules have one cause if they differ only in the cell and in numbers that follow from it.
        text = rule
        if isinstance(value, str) and value and value in rule:
            text = rule.replace(f" {value} ", " ")
            text = text.replace(value, "") if len(value) > 3 else text
        cause = self._causes.setdefault((column, _NUMBERS.sub("0", text)), _Cause())
        cause.add(line, self._num_found, message)
        self._num_found += 1

    def try_cell(
        self, line: int, column: str, value: Any, parse: Callable[[Any], Parsed]
    ) -> Parsed | None:
        """Return the parsed cell; None if it is empty, or refused and noted."""
        if is_empty(value):
            return None
        try:
            return parse(value)
        except ValueError as error:
            self.add(line, column, value, str(error))
            return None


def format_fault(
    manifest: str, line: int, column: str, value: Any, allowed: str, action: str
) -> str:
    """Return `file:line: column=value: what is allowed; what to do.` on one line.

    Args:
        manifest: Path of the manifest as the user typed it.
        line: Where the record starts, from 1; in Parquet, which has no lines, the row from 1.
        column: Name of the column.
        value: The cell; shortened, with characters that would break the line escaped.
        allowed: What the cell may be, without a full stop.
        action: What the user can do, without a full stop.
    """
    faults = Faults(manifest)
    faults.add(line, column, value, f"{allowed}; {action}")
    return faults.messages[0]


def is_empty(value: Any) -> bool:
    """Return whether a cell is null or nothing but white space: the default applies."""
    return value is None or (isinstance(value, str) and not value.strip())


def parse_text(value: Any) -> str:
    """Return the text of a cell, unchanged.

    Raises:
        ValueError: It is not text, holds a NUL or half a surrogate pair, or is too long.
    """
    if not isinstance(value, str):
        raise ValueError(
            "must be text; in JSON put it in quotation marks, in Parquet write the column as string"
        )
    if len(value) > MAX_CELL_CHARACTERS:
        raise ValueError(
            f"a cell holds at most {MAX_CELL_CHARACTERS:,} characters and this one has "
            f"{len(value):,}; shorten it"
        )
    if "\0" in value:
        raise ValueError("text holds no NUL characters; remove them")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            "text must be valid Unicode, and character "
            f"{error.start + 1} is half of a surrogate pair; write the character itself"
        ) from None
    return value


def parse_tag(value: Any) -> str:
    """Return the text of a label: any single value, as it would be written in JSON."""
    if isinstance(value, str):
        return parse_text(value)
    if isinstance(value, (list, dict, bytes)):
        raise ValueError("a label is a single value; write it as text")
    if isinstance(value, bool):
        return "true" if value else "false"
    return parse_text(str(value))


def parse_id(value: Any) -> str:
    """Return a row's id.

    Raises:
        ValueError: It is not allowed as a file name everywhere, or looks like a temporary file.
    """
    if isinstance(value, str):
        text = value.strip()
    else:
        number = _WHOLE.fullmatch(_number_text(value))  # pandas writes 7 as 7.0
        text = number[1] + number[2] if number else ""
    if not _ID.fullmatch(text):
        raise ValueError(
            "an id is 1 to 64 of A-Z a-z 0-9 . _ -; use only these, "
            "or leave it empty and it is made from the prompt"
        )
    if text.startswith("."):
        raise ValueError("an id must not begin with a full stop, as temporary files do; remove it")
    return text


def parse_whole(value: Any, allowed: str = "a whole number of 1 or more", usual: int = 50) -> int:
    """Return a whole number; `121.0`, as pandas writes it, is one.

    Args:
        value: The cell.
        allowed: The column's rule for the message; the caller checks it.
        usual: An example for the message.

    Raises:
        ValueError: It is anything else: a fraction, a boolean, `nan`, text.
    """
    match = _WHOLE.fullmatch(_number_text(value))
    if not match:
        raise ValueError(f"must be {allowed}; write it in digits, like {usual}")
    return int(match[1] + match[2])


def parse_real(value: Any) -> float:
    """Return a finite number.

    Raises:
        ValueError: It is anything else: a boolean, `nan`, `inf`, text, a decimal comma.
    """
    text = _number_text(value)
    number = float(text) if _REAL.fullmatch(text) else math.nan
    if not math.isfinite(number):
        raise ValueError("must be a finite number; write it like 6 or 5.5")
    return number


def _number_text(value: Any) -> str:
    """Return a number as text in decimal notation; anything else becomes `nan`."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "nan"
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_FLOAT:
        return str(int(value))
    if isinstance(value, (int, float, Decimal)):
        return str(value)
    return "nan"


def parse_seeds(value: Any) -> tuple[int, ...]:
    """Return the seeds of a cell or of `sampling.seeds`, repeated ones included.

    Args:
        value: An integer, a list of integers, or text: `7`, `1 2 5`, `1,2,5`, `0..3` (inclusive).

    Raises:
        ValueError: A seed is no integer of 0..2^63-1, or there are none or over 10,000. A range is
            counted before it is expanded, so a huge one is refused at once.
    """
    if isinstance(value, str):
        parts: Sequence[Any] = _SEPARATORS.split(value.strip())
    else:
        parts = value if isinstance(value, (list, tuple)) else (value,)
    if not parts:
        raise ValueError(f"{SEED_RULE}, at least one; {SEED_FORMS}")
    _check_seed_count(len(parts))
    ranges = [_seed_range(part) for part in parts]
    _check_seed_count(sum(part.stop - part.start for part in ranges))
    seeds = tuple(chain.from_iterable(ranges))
    return seeds


def _check_seed_count(count: int) -> None:
    if count > MAX_SEEDS_PER_ROW:
        raise ValueError(
            f"a row has at most {MAX_SEEDS_PER_ROW:,} seeds, and this one has {count:,}; "
            "use fewer, or several rows"
        )


def _seed_range(part: Any) -> range:
    """Return one seed, or one `first..last`, as a range."""
    text = _number_text(part)
    if match := _SEED.fullmatch(text):
        first = last = int(match[1])
    elif match := _SEED_RANGE.fullmatch(text):
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise ValueError(
                f"a range of seeds goes up, and {text} goes down; write {last}..{first}"
            )
    else:
        raise ValueError(f"{SEED_RULE}, and {format_value(part)} is not one; {SEED_FORMS}")
    if last > MAX_SEED:
        raise ValueError(f"{SEED_RULE}, and {last} is larger; use a smaller one")
    return range(first, last + 1)


MAX_LORAS = 16
MAX_LORA_SCALE = 100.0
NO_LORAS = "none"
_LORA = re.compile(r'(?:"([^"]+)"|([^\s"]+?))(?::([^\s:"/\\]+))?(?:\s+|\Z)')
_LORA_FORM = (
    "name files as path or path:scale, with spaces between them and a path with spaces in double "
    'quotes, such as a.safetensors:0.8 "my b.safetensors"; or none'
)


def parse_loras(value: Any) -> tuple[tuple[str, float], ...]:
    """Return path and scale of each LoRA that a cell names; empty for `none`.

    Args:
        value: Text, or a list of objects with `path` and `scale` as JSON has them.

    Raises:
        ValueError: It is of another form, a scale is no number, or a path stands there twice.
    """
    if isinstance(value, list):
        found = [_lora_of(item) for item in value]
    else:
        text = parse_text(value).strip()
        found = [] if text.lower() == NO_LORAS else list(_loras_of(text))
    if len(found) > MAX_LORAS:
        raise ValueError(f"at most {MAX_LORAS} LoRAs work together; name fewer")
    paths = [path for path, _ in found]
    if twice := next((path for path in paths if paths.count(path) > 1), None):
        raise ValueError(f"a file counts once, and {twice} stands here twice; remove one")
    return tuple(found)


def _loras_of(text: str) -> Iterator[tuple[str, float]]:
    position = 0
    while position < len(text):
        match = _LORA.match(text, position)
        if match is None:
            raise ValueError(_LORA_FORM)
        yield match[1] or match[2], 1.0 if match[3] is None else _lora_scale(match[3])
        position = match.end()


def _lora_of(item: Any) -> tuple[str, float]:
    if not isinstance(item, dict) or not {"path"} <= item.keys() <= {"path", "scale"}:
        raise ValueError("a list of LoRAs has objects with path and scale; write them so")
    return parse_text(item["path"]), _lora_scale(item.get("scale", 1.0))


def _lora_scale(value: Any) -> float:
    try:
        scale = parse_real(value)
    except ValueError:
        raise ValueError(f"{format_value(value)} is no scale of a LoRA; {_LORA_FORM}") from None
    if abs(scale) > MAX_LORA_SCALE:
        raise ValueError(f"a scale is -{MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}; 1 is usual")
    return scale


MAX_SHOWN_FAULTS = 50


class ManifestError(Refused):
    """A manifest with faults; its text is the first 50, one a line, and how many more."""

    def __init__(self, faults: Sequence[str]) -> None:
        # As the only argument, so that the error survives pickling.
        super().__init__(tuple(faults))
        self.faults = tuple(faults)
        """Every fault: `file:line: column=value: what is allowed; what to do.`"""

    def __str__(self) -> str:
        """Return the printed text."""
        lines = list(self.faults[:MAX_SHOWN_FAULTS])
        rest = len(self.faults) - len(lines)
        return "\n".join([*lines, f"and {rest:,} more"] if rest else lines)
