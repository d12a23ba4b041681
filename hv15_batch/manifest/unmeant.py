"""Prompts that are surely not meant as they stand, and those that may not be.

Files of other tools hold comments, options, lists and marks of their own. Here every line of a
`.txt` and every prompt is text that the model reads, for minutes of rendering each: what is surely
meant otherwise is refused, what may be meant is reported, and prose is let alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from hv15_batch.manifest._hints import folded, meaning
from hv15_batch.manifest.cells import MAX_SHOWN_LINES, Faults, format_places
from hv15_batch.manifest.columns import KNOWN_COLUMNS, Unreadable
from hv15_batch.manifest.rows import Record
from hv15_batch.model.variant import QUOTED
from hv15_batch.units import shortened

LITERAL = "type manifest_literal=true if it is meant as it stands"

# No pattern here takes more than linear time: a prompt may have a million characters.
_WHOLE = re.compile(r'\s*(?:"[^"]*"|“[^”]*”)\s*\Z')

_COMMENT = re.compile(r"\s*(?:#(?![0-9])|//|;|<!--|/\*)")
"""A line that is a comment in one tool or another; `#1` is a number."""
_RULE = re.compile(r"\s*(?:([-=*_~#])\1{2,}|```.*)\s*")
"""A line that only separates."""
_INFOTEXT = re.compile(r"^Negative prompt:|^Steps: [0-9]+, [A-Z]", re.MULTILINE)
"""Lines that A1111 writes below a prompt."""
_LORA = re.compile(r"<(?:lora|lyco|locon|hypernet):[^<>]+>", re.IGNORECASE)
_WILDCARD = re.compile(r"(?<![\w_])__[A-Za-z][\w*/-]{1,60}?__(?![\w_])")

_NUMERIC_OPTIONS = (
    "w|h|d|s|l|g|f|fs|n|b|t|am|ar|aspect|v|q|c|iw|cw|sw|gs|cfg|cfg[_-]scale|fps|seed|steps|width|"
    "height|frames|num[_-]frames|length|scale|shift|flow[_-]shift|guidance|guidance[_-]scale|"
    "embedded[_-]cfg[_-]scale|infer[_-]steps|num[_-]inference[_-]steps|video[_-]length|"
    "video[_-]size|size|resolution|duration|stylize|chaos|weird|niji|motion|stop|quality"
)
_TEXT_OPTIONS = (
    "n|neg|negative[_-]prompt|image[_-]path|sref|cref|sampler|scheduler|lora|lora[_-]weight|"
    "output|save[_-]path"
)
_NUMBER = r"[ =][-+]?[0-9.]"
_OPTION = re.compile(
    rf"(?:^|(?<=\s))(?:--|[\u2013\u2014])(?:{_NUMERIC_OPTIONS}){_NUMBER}"
    rf"|(?:^|(?<=\s))--(?:(?:{_TEXT_OPTIONS})(?:[ =]\S|$)|style raw\b|[ect]?i[ =]\S*[./]\S)"
    rf"|(?<=\s)-(?:ar|gs|fps|seed|motion){_NUMBER}|(?<=\s)-neg \S"
)
"""`--w 832`, `--n blurry`, `--seed=5`, with the dash that an editor made of two, and `-ar 16:9`.

The names are those of musubi-tuner, kohya, Midjourney, Pika and the model's own script. A dash
before any other word is prose.
"""

_RULE_MARKS = ("-", "\u2013", "\u2014", "<", "__", "Negative prompt:", "Steps: ")
"""What is surely not meant holds one of these; a prompt seldom does."""
_DASH = re.compile(r"--|[\u2013\u2014]|\s-")
"""Every option has one; a prompt seldom does, and this is found ten times as fast."""
_ITEM = re.compile(r"\s*(?:([0-9]{1,6})[.)]|[-*+\u2022\u2023\u25aa\u2013\u2014])\s+\S")
MIN_LIST = 3
"""So many prompts that all are items of a list are one."""

MARKS = re.compile(
    r"[<({#:_'\"\u201c\u00ab\u2013\u2014]|--|\s-|BREAK|\A\s*[-0-9*+\u2022\u2023\u25aa]"
)
"""Every pattern above and below needs one of these, so most prompts are looked at once only."""

_NOTES: dict[str, Callable[[str], re.Match[str] | None]] = {
    "in quotation marks as a whole, all of which is text to be written into the picture": (
        _WHOLE.match
    ),
    "in quotation marks as a whole, which stay part of it": re.compile(
        r"\s*(?:'[^']*'|«[^»]*»)\s*\Z"
    ).match,
    "in quotation marks with a comma behind, like items of a list in code": re.compile(
        r"\s*(?:\"[^\"]*\"|'[^']*')\s*,\s*\Z"
    ).match,
    "with weights such as (word:1.3), which are read as text": re.compile(
        r"\([^()]{0,100}[^\d\s()][^()]{0,20}:\s?[0-9]?\.[0-9]{1,4}\)|\(\([^()]+\)\)"
    ).search,
    "with BREAK, which is read as a word": re.compile(r"(?<!\w)BREAK(?!\w)").search,
    "with choices such as {red|blue}, which are read as text": re.compile(
        r"\{[^{}|]*\|[^{}]*\}"
    ).search,
    "with embedding:name, which is read as text": re.compile(r"(?<!\w)embedding:\w").search,
    "like comments, with # in front": re.compile(r"\s*#(?![0-9])").match,
    "with a label such as Prompt: in front": re.compile(
        r"\s*(?:positive )?prompt\s*[0-9]*\s*:", re.IGNORECASE
    ).match,
}
"""What is reported, and how it is found; of several the first one that fits is told."""
_NEEDLES = {
    what: needle
    for what in _NOTES
    for needle in ("(", "BREAK", "{", "embedding:")
    if needle in what
}
"""What a pattern that looks everywhere needs; the others look at the ends alone."""
_LIST_NOTE = "like items of a list, with a number or a bullet in front"
MAX_EXAMPLE_CHARACTERS = 50


@dataclass
class _Told:
    """Prompts of one kind: an example, the first lines, and how many there are."""

    example: str
    count: int = 0
    lines: list[int] = field(default_factory=list)


class Unmeant:
    """Looks at every record of one manifest, and remembers what is to be told at the end."""

    def __init__(self, faults: Faults, *, is_text: bool, literal: bool) -> None:
        """Start.

        Args:
            faults: Where faults are noted.
            is_text: The file is a `.txt`: a record is a line, and nothing says what the line is.
            literal: Everything is meant as it stands.
        """
        self._faults = faults
        self._is_text = is_text
        self._literal = literal
        self._num_prompts = 0
        self._is_list = True
        """Whether the items of a list so far are all bullets, or numbers in order."""
        self._told: dict[str, _Told] = {}

    def check(self, record: Record) -> bool:
        """Look at a record; return whether it is refused, which then is noted.

        Raises:
            Unreadable: The file as a whole is another one than its name says.
        """
        prompt = record.cells.get("prompt")
        if self._literal or not isinstance(prompt, str):
            return False
        self._num_prompts += 1
        if not self._is_text and not MARKS.search(prompt):
            return False
        if self._is_text and self._num_prompts == 1:
            self._check_kind(record.line, prompt)
        found = self._rule(prompt)
        if found is not None:
            self._faults.add(record.line, "line" if self._is_text else "prompt", prompt, found)
            return True
        self._take(record.line, prompt)
        return False

    def finish(self) -> None:
        """Look at the prompts as a whole, once all of them have been seen."""
        told = self._told.get(_LIST_NOTE)
        if told is None:
            return
        if self._is_list and told.count == self._num_prompts >= MIN_LIST:
            rule = "all prompts are items of a list, and number or bullet would be part of each"
            self._faults.add(
                told.lines[0], "prompt", told.example, f"{rule}; delete these, or {LITERAL}"
            )
        elif told.count == 1:
            del self._told[_LIST_NOTE]

    @property
    def notes(self) -> list[str]:
        """What is taken as typed and may be meant otherwise, one line for each kind."""
        return [
            f"Taken as typed, {what} ({format_places(told.lines, told.count, self._faults.unit)}): "
            f"{shortened(told.example, MAX_EXAMPLE_CHARACTERS)}"
            for what, told in self._told.items()
        ]

    def _rule(self, prompt: str) -> str | None:
        """Return what a prompt surely is that is none, and what to do; None for a prompt."""
        if self._is_text and _RULE.fullmatch(prompt):
            return f"every line is a prompt, and this one only separates; delete it, or {LITERAL}"
        if self._is_text and _COMMENT.match(prompt):
            return f"every line is a prompt, and this one is a comment; delete it, or {LITERAL}"
        return unmeant_rule(prompt)

    def _take(self, line: int, prompt: str) -> None:
        """Remember what is to be told of a prompt that is taken."""
        item = _ITEM.match(prompt)
        if item is not None:
            done = self._told[_LIST_NOTE].count if _LIST_NOTE in self._told else 0
            self._is_list &= item[1] is None or int(item[1]) in (done, done + 1)
            self._tell(_LIST_NOTE, line, prompt)
        for what, finds in _NOTES.items():
            if _NEEDLES.get(what, "") in prompt and finds(prompt):
                self._tell(what, line, prompt)
                return

    def _tell(self, what: str, line: int, prompt: str) -> None:
        told = self._told.setdefault(what, _Told(prompt))
        told.count += 1
        if len(told.lines) < MAX_SHOWN_LINES:
            told.lines.append(line)

    def _check_kind(self, line: int, first: str) -> None:
        """Refuse a `.txt` whose first line shows that it holds JSON or a table.

        Raises:
            Unreadable: It does; the fault has been noted.
        """
        if kind := _json_kind(first):
            rule = f"each line of a .txt is a prompt, and this file holds {kind}"
            self._refuse_file(line, first, f"{rule}; rename it to {_SUFFIXES[kind]}")
        names = _header_names(first)
        if len(names) > 1:
            rule = "each line of a .txt is a prompt, and this file is a table with a header"
            suffix = ".tsv" if "\t" in first else ".csv"
            self._refuse_file(line, first, f"{rule}; rename it to {suffix}")
        if names:
            rule = "each line of a .txt is a prompt, and this one is the header of a table"
            self._refuse_file(line, first, f"{rule}; delete it, or rename the file to .csv")

    def _refuse_file(self, line: int, text: str, rule: str) -> None:
        self._faults.add(line, "line", text, f"{rule}, or {LITERAL}")
        raise Unreadable


def unmeant_rule(prompt: str) -> str | None:
    """Return what a prompt holds that is surely not meant as text, and what to do; else None.

    Args:
        prompt: Of any format; what stands in quotation marks inside it is text by intention.
    """
    if not any(mark in prompt for mark in _RULE_MARKS):
        return None
    text = prompt if _WHOLE.match(prompt) else QUOTED.sub(" ", prompt)
    if _DASH.search(text) and _OPTION.search(text):
        return (
            "a prompt is text, and options like --w 832 would be read as words; write them into "
            "columns (--w width, --h height, --d seed, --s num_inference_steps, --l "
            f"guidance_scale, --f num_frames, --fs flow_shift, --n negative_prompt), or {LITERAL}"
        )
    if "<" in text and _LORA.search(text):
        return f"a prompt is text, and <lora:...> would be read as words; take it out, or {LITERAL}"
    if "__" in text and _WILDCARD.search(text):
        return (
            "a prompt is text, and a wildcard like __animal__ would be read as words; write what "
            f"it stands for, or {LITERAL}"
        )
    if _INFOTEXT.search(text):
        return (
            "a prompt is text, and lines like Negative prompt: and Steps: would be read as words; "
            f"write them into columns, or {LITERAL}"
        )
    return None


def is_unmeant(prompt: str) -> bool:
    """Whether a prompt in a cell is taken with `manifest_literal=true` alone."""
    return unmeant_rule(prompt) is not None


_SUFFIXES = {"JSON Lines": ".jsonl", "JSON": ".json"}


def _json_kind(line: str) -> str | None:
    """Return what a file is whose first line is this one; None where it is no JSON."""
    text = line.strip()
    if text in ("[", "[{", "{"):
        return "JSON"
    if not text.startswith(("{", "[{", '["')):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return "JSON Lines" if isinstance(value, dict) else "JSON"


def _header_names(line: str) -> list[str]:
    """Return the names in a line that is the header of a table, `prompt` among them; else none."""
    for separator in ("\t", ";", ","):
        names = [name.strip(" \"'") for name in line.strip().split(separator)]
        if len(names) == 1 and separator != ",":
            continue
        known = [meaning(name, KNOWN_COLUMNS) for name in names]
        is_named = "prompt" in map(folded, names) and all(map(_NAME.fullmatch, names))
        if is_named or ("prompt" in known and all(known)):
            return names
    return []


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_ .-]{0,30}")
