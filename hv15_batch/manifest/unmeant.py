"""Finds prompts that look like something else: comments, options, lists, marks of other tools.

The model reads every prompt, and every line of a `.txt`, as text, and each clip takes minutes. A
prompt that is certainly a mistake is refused. One that may be a mistake is rendered and reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hv15_batch.manifest._hints import folded, meaning
from hv15_batch.manifest.cells import MAX_SHOWN_LINES, Faults, format_places
from hv15_batch.manifest.columns import KNOWN_COLUMNS, Reading, Unreadable
from hv15_batch.manifest.rows import Record, Row
from hv15_batch.model.variant import QUOTED
from hv15_batch.units import shortened

LITERAL = "type manifest_literal=true if it is meant as it stands"

# No pattern here takes more than linear time: a prompt may have a million characters.
_WHOLE = re.compile(r'\s*(?:"[^"]*"|“[^”]*”)\s*\Z')

_COMMENT = re.compile(r"\s*(?:#(?![0-9])|//|;|<!--|/\*)")
"""A line that some tool treats as a comment; `#1` is a number."""
_RULE = re.compile(r"\s*(?:([-=*_~#])\1{2,}|```.*)\s*")
"""A line that only separates other lines, such as `---`."""
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
"""Each form that `unmeant_rule` refuses contains one of these; few prompts do."""
_DASH = re.compile(r"--|[\u2013\u2014]|\s-")
"""Every option contains one and few prompts do. This search is ten times as fast as `_OPTION`."""
_ITEM = re.compile(r"\s*(?:([0-9]{1,6})[.)]|[-*+\u2022\u2023\u25aa\u2013\u2014])\s+\S")
MIN_LIST = 3
"""From this many prompts on, a file that has only items of a list is refused."""

MARKS = re.compile(
    r"[<({#:_'\"\u201c\u00ab\u2013\u2014]|--|\s-|BREAK|\A\s*[-0-9*+\u2022\u2023\u25aa]"
)
"""Each pattern of this module needs one of these, so for most prompts this one search is enough."""

_CHOICES = "prompts with choices such as {red|blue}, which are read as text without templates=all"
_NOTES: dict[str, Callable[[str], re.Match[str] | None]] = {
    "prompts wholly in quotation marks, which the model draws as lettering": (_WHOLE.match),
    "prompts wholly in quotation marks, which stay part of the text": re.compile(
        r"\s*(?:'[^']*'|«[^»]*»)\s*\Z"
    ).match,
    "prompts in quotation marks with a comma at the end, like a list in code": re.compile(
        r"\s*(?:\"[^\"]*\"|'[^']*')\s*,\s*\Z"
    ).match,
    "prompts with weights such as (word:1.3), which are read as text": re.compile(
        r"\([^()]{0,100}[^\d\s()][^()]{0,20}:\s?[0-9]?\.[0-9]{1,4}\)|\(\([^()]+\)\)"
    ).search,
    "prompts with BREAK, which is read as a word": re.compile(r"(?<!\w)BREAK(?!\w)").search,
    _CHOICES: re.compile(r"\{[^{}|]*\|[^{}]*\}").search,
    "prompts with embedding:name, which is read as text": re.compile(r"(?<!\w)embedding:\w").search,
    "prompts that begin with #, like comments": re.compile(r"\s*#(?![0-9])").match,
    "prompts that begin with a label such as Prompt:": re.compile(
        r"\s*(?:positive )?prompt\s*[0-9]*\s*:", re.IGNORECASE
    ).match,
}
"""What is reported, and the search that finds it. A prompt counts for the first one that fits."""
_KINDS = tuple(_NOTES.items())
_KINDS_OF_TEMPLATES = tuple((what, finds) for what, finds in _KINDS if what is not _CHOICES)
_NEEDLES = {
    what: needle
    for what in _NOTES
    for needle in ("(", "BREAK", "{", "embedding:")
    if needle in what
}
"""Text that must be in a prompt before a slow search of all of it; the others only match ends."""
_LIST_NOTE = "prompts that begin with a number or a bullet, like items of a list"
MAX_EXAMPLE_CHARACTERS = 50


@dataclass
class _Told:
    """The reported prompts of one kind: an example, their count, and the first line numbers."""

    example: str
    count: int = 0
    lines: list[int] = field(default_factory=list)


class Unmeant:
    """Checks the prompt of every record of one manifest, and collects what is to be reported."""

    def __init__(self, faults: Faults, *, is_text: bool, reading: Reading) -> None:
        """Start.

        Args:
            faults: Where faults are noted.
            is_text: The file is a `.txt`, in which each record is a line.
            reading: With `manifest_literal=true` nothing is refused or reported.
        """
        self._faults = faults
        self._is_text = is_text
        self._literal = reading.literal
        self._kinds = _KINDS_OF_TEMPLATES if reading.templates else _KINDS
        self._num_prompts = 0
        self._is_list = True
        """Whether the items of a list so far are all bullets, or numbers in order."""
        self._told: dict[str, _Told] = {}

    def check(self, record: Record) -> bool:
        """Check a record; return whether it is refused. The fault is then noted.

        Raises:
            Unreadable: The file is not a `.txt` of prompts; the fault has been noted.
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

    def accepted(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows of a template whose prompts are no mistake; note the faults of others.

        The template itself has been checked, but not what a choice or a file puts into it.
        """
        found = []
        for row in rows:
            rule = None
            if not self._literal and row.template_id is not None:
                rule = unmeant_rule(row.prompt)
            if rule is None:
                found.append(row)
            else:
                self._faults.add(row.line, "prompt", row.prompt, rule)
        return found

    def finish(self) -> None:
        """Check the prompts as a whole; to be called after the last record."""
        told = self._told.get(_LIST_NOTE)
        if told is None:
            return
        if self._is_list and told.count == self._num_prompts >= MIN_LIST:
            rule = "all prompts are items of a list, and the model would read number or bullet too"
            self._faults.add(
                told.lines[0], "prompt", told.example, f"{rule}; delete these, or {LITERAL}"
            )
        elif told.count == 1:
            del self._told[_LIST_NOTE]

    @property
    def notes(self) -> list[str]:
        """Prompts that are rendered as typed but may be a mistake, one line for each kind."""
        return [
            f"Taken as typed: {what} ({format_places(told.lines, told.count, self._faults.unit)}): "
            f"{shortened(told.example, MAX_EXAMPLE_CHARACTERS)}"
            for what, told in self._told.items()
        ]

    def _rule(self, prompt: str) -> str | None:
        """Return why a line or a prompt is refused, and what to do; None if it is accepted."""
        if self._is_text and _RULE.fullmatch(prompt):
            return f"every line is a prompt, and this one is a separator; delete it, or {LITERAL}"
        if self._is_text and _COMMENT.match(prompt):
            return f"every line is a prompt, and this one is a comment; delete it, or {LITERAL}"
        return unmeant_rule(prompt)

    def _take(self, line: int, prompt: str) -> None:
        """Remember what is to be reported of an accepted prompt."""
        item = _ITEM.match(prompt)
        if item is not None:
            done = self._told[_LIST_NOTE].count if _LIST_NOTE in self._told else 0
            self._is_list &= item[1] is None or int(item[1]) in (done, done + 1)
            self._tell(_LIST_NOTE, line, prompt)
        for what, finds in self._kinds:
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
            Unreadable: It holds one of them; the fault has been noted.
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
    """Return which part of a prompt is no text for the model, and what to do; None without one.

    Args:
        prompt: From a manifest of any format. Quoted text inside it is lettering, and not checked.
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
    """Whether a prompt in a cell is accepted only with `manifest_literal=true`."""
    return unmeant_rule(prompt) is not None


_SUFFIXES = {"JSON Lines": ".jsonl", "JSON": ".json"}


def _json_kind(line: str) -> str | None:
    """Return the kind of JSON that a file with this first line holds; None for other files."""
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
