"""JSON Lines and JSON arrays as records; each record is bounded before it is decoded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from hv15_batch.manifest._hints import meaning
from hv15_batch.manifest.cells import Faults
from hv15_batch.manifest.columns import KNOWN_COLUMNS, Columns, Unreadable
from hv15_batch.manifest.formats._lines import MAX_LINE_BYTES, Lines
from hv15_batch.manifest.rows import Record
from hv15_batch.units import MIB, format_value

MAX_INTEGER_DIGITS = 100
"""Longest integer taken from JSON: the time to read one grows with its square."""

MAX_DEPTH = 64
"""Deepest nesting of a record; a manifest needs two levels."""

ARRAY_RULE = (
    "JSON Lines has one object on each line, and this file is a JSON array; rename it to .json, or "
    "write one object on each line, without the list and the commas around them"
)
_OBJECT = 'one JSON object, such as {"prompt": "a cat"}'
_ARRAY = 'an array of objects, such as [{"prompt": "a cat"}], or of prompts'
_SPACE = re.compile(r"[ \t\r\n]*")


class _RefusedJson(ValueError):
    """JSON that is no record; the text says what is allowed."""


def read_json_lines(lines: Lines, columns: Columns, faults: Faults) -> Iterator[Record]:
    """Yield the object of each line; any other line is noted as a fault."""
    decoder = _decoder()
    is_first = True
    for line in lines:
        text = line.strip()
        if not text:
            continue
        if is_first and text.startswith("["):
            faults.add(lines.number, "line", text, ARRAY_RULE)
            raise Unreadable
        is_first = False
        try:
            _check_depth(text)
            record = decoder.decode(text)
            if not isinstance(record, dict):
                raise _RefusedJson(
                    f"a line is {_OBJECT}, and here is something else; write one object on each "
                    "line, without a list around them"
                )
        except (ValueError, RecursionError) as error:
            faults.add(lines.number, "line", text, _json_rule(error, "a line"))
            continue
        cells = columns.read_members(lines.number, record)
        if cells is not None:
            yield Record(lines.number, cells)
    columns.finish()


def read_json(lines: Lines, columns: Columns, faults: Faults) -> Iterator[Record]:
    """Yield the objects, or the prompts, of a JSON array; `line` is where each of them starts.

    Objects in a row without an array, and a single object, are read too.

    Raises:
        Unreadable: The file is something else, or breaks; the fault has been noted.
    """
    text = "".join(lines)
    place = _skip(text, 0)
    if not text[place:]:
        return
    is_array = text[place] == "["
    if not is_array and (rule := _no_record_rule(text, place, columns)):
        faults.add(_line_of(text, place), "line", _shown(text, place), rule)
        raise Unreadable
    place = _skip(text, place + is_array)
    line, counted = 1, 0
    # A comma before the end of the array is no fault.
    while place < len(text) and not (is_array and text[place] == "]"):
        line, counted = line + text.count("\n", counted, place), place
        value, place = _value(text, place, line, faults)
        yield from _item(value, line, columns, faults)
        place = _skip(text, place)
        if is_array and text[place : place + 1] == ",":
            place = _skip(text, place + 1)
        elif is_array and text[place : place + 1] != "]":
            break
    if is_array:
        _check_end(text, place, faults)
    columns.finish()


def _check_end(text: str, place: int, faults: Faults) -> None:
    """Check that an array ends there, and the file with it.

    Raises:
        Unreadable: It does not; the fault has been noted.
    """
    rule = "items are separated by commas, and the file ends with the ] of its one array"
    is_closed = text[place : place + 1] == "]"
    after = _skip(text, place + is_closed)
    if is_closed and not text[after:]:
        return
    found = "here is something else" if text[after:] else "it ends before"
    faults.add(
        _line_of(text, after), "item", _shown(text, after), f"{rule}, and {found}; correct it"
    )
    raise Unreadable


def _value(text: str, start: int, line: int, faults: Faults) -> tuple[Any, int]:
    """Return the value that starts there, and where it ends."""
    try:
        value, length = _decoder().raw_decode(text[start : _end_of_value(text, start)])
    except (ValueError, RecursionError) as error:
        rule = _json_rule(error, "an item")
        if isinstance(error, json.JSONDecodeError):
            where = f"in line {line + error.lineno - 1}" if error.lineno > 1 else "there"
            rule = f"an item is {_OBJECT}, and this one breaks {where} ({error.msg}); correct it"
        faults.add(line, "item", _shown(text, start), rule)
        raise Unreadable from error
    return value, start + length


def _item(value: Any, line: int, columns: Columns, faults: Faults) -> Iterator[Record]:
    if isinstance(value, str):
        value = {"prompt": value}
    if isinstance(value, dict):
        cells = columns.read_members(line, value)
        if cells is not None:
            yield Record(line, cells)
    else:
        rule = f"an item is {_OBJECT}, or a prompt, and here is something else; write one of these"
        faults.add(line, "item", value, rule)


def _no_record_rule(text: str, place: int, columns: Columns) -> str | None:
    """Return the fault of a .json file without an array; None for one or several objects.

    Many tools write a list below a name, and pandas by default writes whole columns.
    """
    rule = f"a .json manifest is {_ARRAY}, and this file is something else"
    try:
        value, _ = json.JSONDecoder().raw_decode(text[place : _end_of_value(text, place)])
    except (ValueError, RecursionError):
        return None if text[place] == "{" else f"{rule}; write it as one"
    if not isinstance(value, dict):
        return f"{rule}; write it as one"
    lists = [name for name, item in value.items() if isinstance(item, list)]
    known = {name: item for name, item in value.items() if columns.is_expected(name)}
    prompts = [item for name, item in known.items() if meaning(name, KNOWN_COLUMNS) == "prompt"]
    if any(isinstance(item, dict) for item in known.values()) or (
        any(isinstance(item, list) for item in prompts) and len(lists) > 1
    ):
        return f'{rule}: columns; in pandas write it with orient="records"'
    if known and not any(isinstance(item, list) for item in prompts):
        return None
    if lists:
        inside = f"the array is its member {format_value(lists[0])}"
        return f"{rule}: {inside}; write that array alone into a .json file"
    if value and all(isinstance(item, dict) for item in value.values()):
        return f"{rule}: an object of objects; write these as an array"
    return None


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant, parse_int=_bounded_int
    )


_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
"""Strings, closed or not, and the brackets outside of them."""


def _end_of_value(text: str, start: int) -> int:
    """Return the latest end of a value in an array, which need not be valid JSON.

    Raises:
        _RefusedJson: It is nested too deeply, or too long.
    """
    depth = 0
    limit = min(len(text), start + MAX_LINE_BYTES)
    for match in _STRUCTURE.finditer(text, start, limit):
        mark = match[0]
        if mark in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _TooDeep
        elif mark in "]}":
            depth -= 1
        if depth <= 0:
            return match.end() if depth == 0 else match.start()
    if limit < len(text):
        raise _RefusedJson(
            f"an item has at most {MAX_LINE_BYTES // MIB} MiB, and here is one with more; "
            "shorten it, or close its brackets"
        )
    return limit


class _TooDeep(_RefusedJson):
    """JSON that is nested too deeply."""


def _check_depth(text: str) -> None:
    """Check a text before it is decoded.

    Raises:
        _TooDeep: It is nested too deeply.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRUCTURE.finditer(text):
        depth += (match[0] in "[{") - (match[0] in "]}")
        if depth > MAX_DEPTH:
            raise _TooDeep


def _json_rule(error: Exception, what: str) -> str:
    if isinstance(error, (_TooDeep, RecursionError)):
        return f"{what} is one JSON object, and this one is nested too deeply; write plain values"
    if isinstance(error, _RefusedJson):
        return str(error)
    assert isinstance(error, json.JSONDecodeError)
    return (
        f"{what} is one JSON object, and this one breaks at character {error.colno} "
        f"({error.msg}); correct it"
    )


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                rule = f"a name stands once in an object, and {format_value(name)} stands twice"
                raise _RefusedJson(f"{rule}; remove one")
            seen.add(name)
    return record


def _refuse_constant(name: str) -> None:
    raise _RefusedJson(f"numbers are finite, and {name} is not; write null for the default")


def _bounded_int(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise _RefusedJson(
            f"an integer has at most {MAX_INTEGER_DIGITS} digits, and here is one of "
            f"{len(text):,}; put it in quotation marks if it is text"
        )
    return int(text)


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    assert match is not None
    return match.end()


def _line_of(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _shown(text: str, place: int) -> str:
    return text[place : place + 200].splitlines()[0] if text[place:] else ""
