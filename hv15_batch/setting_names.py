"""Names of settings, groups and words, and which one was meant where there is no such name."""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from hv15_batch.config import Config
from hv15_batch.manifest import MANIFEST_SUFFIXES

GROUPS = ("model", "offload", "dispatch", "experiment")
WORDS = ("report", "status", "references", "compare", "recipe", "prefetch")
_CLIP_SUFFIXES = (".mp4", ".mkv")


@cache
def setting_names() -> tuple[str, ...]:
    """Return the dotted name of every setting."""
    return tuple(_names(Config, ""))


def _names(cls: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(cls)
    for field in fields(cls):
        hint: Any = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _names(hint, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def unknown_setting(key: str) -> str:
    """Return that there is no such setting, and the nearest."""
    known = [*GROUPS, *(name for name in setting_names() if not name.startswith("model."))]
    return f"there is no setting {key}.{suggestion(key, known)} All of them: hv15-batch --cfg job."


def unknown_word(word: str, following: Iterator[str]) -> str:
    """Return that a word is none, and what may have been meant; `following` are those after it."""
    if word.startswith("~"):
        return f"{word}: a setting cannot be taken away; leave it out, or set it to null."
    return (
        f"{word!r}: neither a manifest ({', '.join(MANIFEST_SUFFIXES)}) nor key=value nor one of "
        f"the words {', '.join(WORDS)}.{_meant(word, following)} See hv15-batch --help."
    )


def _meant(word: str, following: Iterator[str]) -> str:
    """Return e.g. ` Did you mean resume=outputs/a?` for its folder, or nothing."""
    if word in WORDS:
        return f" {word} comes first: hv15-batch {word}."
    if word.lower().endswith(_CLIP_SUFFIXES):
        return f" Did you mean hv15-batch recipe {shlex.quote(word)}?"
    if os.path.isdir(word):
        return f" Did you mean {shlex.quote(f'resume={word}')}?"
    return as_setting(word, following) or suggestion(word, WORDS)


def as_setting(word: str, following: Iterator[str]) -> str:
    """Return e.g. ` Did you mean limit=1?` for `--limit=1` or `limit 1`, or nothing."""
    key, _, value = word.lstrip("-").partition("=")
    key = key.replace("-", "_")
    if key not in (*setting_names(), *GROUPS):
        return ""
    if not value and _is_switch(key):
        value = "true"
    value = value or next(following, "")
    if not value or "=" in value or value.startswith("-"):
        value = "VALUE"
    return f" Did you mean {shlex.quote(f'{key}={value}')}?"


def _is_switch(key: str) -> bool:
    default: Any = Config()
    for part in key.split("."):
        default = getattr(default, part, None)
    return isinstance(default, bool)


def suggestion(typed: str, known: Sequence[str]) -> str:
    """Return e.g. ` Did you mean override.num_frames?`, or nothing.

    Nearest first: in the typed section, a slip of the fingers; anywhere, the same last part
    (`num_frames`), a piece of it (`frames`), a slip in the whole name or in the last part.
    """
    typed = typed.lower()
    section, _, last = typed.rpartition(".")
    lasts = {name: name.rsplit(".", 1)[-1] for name in known}
    inside = [name for name in known if section and name.startswith(f"{section}.")]
    near = (
        difflib.get_close_matches(typed, inside, n=1, cutoff=0.8)
        or [name for name in known if lasts[name] == last]
        or [name for name in known if len(last) > 3 and last in lasts[name]]
        or difflib.get_close_matches(typed, known, n=1, cutoff=0.7)
    )
    if not near:
        close = difflib.get_close_matches(last, sorted(set(lasts.values())), n=1, cutoff=0.7)
        near = [name for name in known if lasts[name] in close]
    return f" Did you mean {' or '.join(near[:3])}?" if near else ""
