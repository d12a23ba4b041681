"""Suffixes of manifests, and what to do with each other kind of file."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from itertools import islice
from pathlib import Path

from hv15_batch.model.codec import VIDEO_SUFFIXES

MANIFEST_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt")
"""Suffixes of manifests, in lower case; upper case is accepted."""

MAX_COMPARED_NAMES = 10_000
"""At most this many names of a folder are compared with a misspelt one."""
SIMILARITY = 0.7
"""Names less alike than this (difflib's ratio) are not suggested."""

_TEXT = "write its prompts into a .txt, one on a line without bullets or numbers, and name that"
_WAYS_OUT: dict[str, str] = {
    **dict.fromkeys(
        (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers"),
        'save this spreadsheet as "CSV UTF-8" (File, Save As) and name that',
    ),
    **dict.fromkeys(
        (".docx", ".doc", ".odt", ".rtf", ".pdf", ".md", ".markdown", ".rst", ".html", ".xml"),
        _TEXT,
    ),
    **dict.fromkeys(
        (".feather", ".arrow", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".orc", ".sqlite", ".db"),
        "write this table as .parquet or .csv and name that",
    ),
    **dict.fromkeys(
        (".yaml", ".yml", ".toml", ".ini"),
        "write its prompts as .jsonl or .csv and name that (settings of your own are experiment=)",
    ),
    **dict.fromkeys(
        (".zst", ".7z", ".rar", ".tar", ".tgz"), "unpack this file and name what was in it"
    ),
    **{
        suffix: f"unpack this file ({command} %s) and name what was in it"
        for suffix, command in {
            ".gz": "gunzip -k",
            ".zip": "unzip",
            ".bz2": "bunzip2 -k",
            ".xz": "unxz -k",
        }.items()
    },
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".heic"),
        "name this picture in the column image of one",
    ),
    ".tab": "rename this file to .tsv",
    **dict.fromkeys(
        (".text", ".prompt", ".prompts", ".list", ".lst"),
        "rename this file to .txt if each line is a prompt",
    ),
    "": "give this file the suffix of its format",
}
_STREAM = re.compile(r"-|/dev/(stdin|fd/[0-9]+)|/proc/[^/]+/fd/[0-9]+")


def stream_fault(path: str) -> str | None:
    """Return what to do instead of reading standard input or another stream, or None."""
    if _STREAM.fullmatch(path) is None:
        return None
    return (
        "a manifest is a file that the next run can read again, and this is a stream; write it "
        "into a file, for example prompts.txt, and name that"
    )


def suffix_fault(path: str) -> str:
    """Return what is allowed and what to do if a file has another suffix than a manifest."""
    way = _WAYS_OUT.get(Path(path).suffix.lower(), "rename it if it is one of these")
    way = way.replace("%s", shlex.quote(path))
    return f"a manifest ends in {', '.join(MANIFEST_SUFFIXES)}; {way}"


def word_fault(word: str) -> str | None:
    """Return why a word that may be meant as a manifest is none, or None.

    It is a stream, a file of another kind, or resembles the name of an existing manifest.
    """
    if fault := stream_fault(word):
        return fault
    path = Path(word)
    suffix = path.suffix.lower()
    if suffix in (*MANIFEST_SUFFIXES, *VIDEO_SUFFIXES):
        return None
    if not os.path.isfile(path):
        near = near_manifest(path)
        if near is not None and (suffix or Path(near).stem == path.name):
            return f"there is no such file; did you mean {near}?"
    is_known = suffix != "" and suffix in _WAYS_OUT
    return suffix_fault(word) if is_known or os.path.isfile(path) else None


def near_manifest(path: Path) -> str | None:
    """Return the path of the manifest with the nearest name in the same folder, or None."""
    names = manifests_in(path.parent)
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=SIMILARITY)
    near = near or [name for name in names if Path(name).stem == path.stem]  # another suffix
    return str(path.with_name(near[0])) if near else None


def manifests_in(folder: Path) -> list[str]:
    """Return the names in a folder with a manifest's suffix; empty if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in islice(entries, MAX_COMPARED_NAMES)]
    except (OSError, ValueError):
        return []  # the folder does not exist either, so there is nothing to suggest
    return sorted(name for name in found if Path(name).suffix.lower() in MANIFEST_SUFFIXES)
