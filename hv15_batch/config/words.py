"""Typed words: settings in Hydra's grammar, free texts, and words that are neither.

Hydra's grammar parses numbers, lists and sweeps. Free text does not go through it: the dataclass
gets the text as it was typed.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, OverrideType, Sweep
from hydra.errors import HydraException

from hv15_batch.config.files import MANIFEST_SUFFIXES, word_fault
from hv15_batch.config.messages import WORDS, not_understood
from hv15_batch.config.settings import NOT_TYPED, Config, ManifestColumns
from hv15_batch.errors import Refused
from hv15_batch.model.codec import VIDEO_SUFFIXES
from hv15_batch.model.variant import HubFile

_COLUMN_KEYS = tuple(f"manifest_columns.{column.name}" for column in fields(ManifestColumns))
_TEXT_OR_LIST_KEYS = ("notify.command", "official.arguments")
_TEXT_KEYS = ("run_dir", "resume", "only", "shard", *_TEXT_OR_LIST_KEYS, *_COLUMN_KEYS)
"""Settings that are text, commas included. A value in brackets is a list of Hydra's grammar."""
_SWEPT_TEXT_KEYS = (
    "manifest",
    "sampling.negative_prompt",
    "override.negative_prompt",
    *("model.repo", "model.revision", "official.repo", "official.python"),
    "model.transformer_file",
    *(f"model.transformer_hub.{part.name}" for part in fields(HubFile)),
)
"""The same, but commas separate values in a sweep."""
_SEED_KEYS = ("sampling.seeds", "override.seeds")
"""Text where commas separate seeds; in a sweep they separate values."""
_NO_PRESET = "[]"
"""Hydra's form of `experiment=null`."""

_HYDRA_GROUPS = (
    *("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler"),
    *("hydra/job_logging", "hydra/hydra_logging"),
)
_HYDRA_SETTINGS = (
    "hydra.verbose",
    "hydra.searchpath",
    "hydra.launcher.",
    "hydra.sweeper.",
    "hydra.job_logging.",
    "hydra.hydra_logging.",
)
"""Settings of Hydra that may be typed."""
_HYDRA_SPACE = tuple(
    f"hydra.sweeper.{name}" for name in ("params", "search_space", "custom_search_space")
)
"""Swept settings that would bypass the checks and the names of the runs' folders."""
_HYDRA_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir")
_HYDRA_OURS = (*_HYDRA_FOLDERS, "hydra.job.name")
"""May be typed, as scripts of Hydra's applications do, and are then replaced by ours."""
_LITERAL = re.compile(r'"(?:\\.|[^"\\])*"' + r"|'(?:\\.|[^'\\])*'", re.DOTALL)
_KEY_LIKE = re.compile(r"[+~]*[A-Za-z_][\w./@:]*=")


@dataclass(frozen=True)
class Typed:
    """The typed words, checked against the known settings."""

    overrides: tuple[str, ...]
    """Settings in Hydra's grammar."""
    texts: dict[str, str | None]
    """Free texts, as they were typed."""
    swept: tuple[str, ...]
    """Settings with several values; empty outside a sweep."""
    config_dir: str | None = None

    def values(self, overrides: Sequence[str]) -> dict[str, str]:
        """Return every typed setting as text, with these overrides instead of its own.

        Hydra's settings are left out.
        """
        texts = {key: "null" if text is None else text for key, text in self.texts.items()}
        ours = (word for word in overrides if not _parse(word).is_hydra_override())
        return texts | {key_of(word): value_of(word) for word in ours}


def read_words(words: Sequence[str], is_sweep: bool) -> Typed:
    """Return the typed settings; refuse all unknown words at once.

    A word with a manifest's suffix names the manifest; a leading `+` changes nothing.

    Raises:
        Refused: The message names each unknown word and the nearest setting.
    """
    overrides: list[str] = []
    texts: dict[str, str | None] = {}
    num_manifests = 0
    for number, word in enumerate(words):
        if _is_manifest(word, is_first=number == 0):
            key, value = "manifest", word
            texts[key] = word
        elif "=" in word.lstrip("+")[1:]:
            word = word.lstrip("+")
            key, _, value = word.partition("=")
            _check_one_folder(word, is_sweep)
            if _is_text(key, value, is_sweep):
                texts[key] = _as_text(key, value)
            else:
                overrides.append(word)
        else:
            raise Refused(unknown_word(word, iter(words[number + 1 :])))
        num_manifests += key == "manifest"
    if num_manifests > 1:
        raise Refused("one manifest at a time; name one, or join the files into one.")
    swept = _check_overrides(overrides, is_sweep)
    resumed = texts.get("resume")
    if swept and resumed is not None:
        raise Refused(
            f"resume={resumed}: resumes one run, and {', '.join(swept)} makes a sweep; "
            "leave resume= out and name the manifest: each run of a sweep has its own folder."
        )
    return Typed(tuple(map(_for_hydra, overrides)), texts, swept)


# -- texts ------------------------------------------------------------------------------------


def _is_manifest(word: str, is_first: bool) -> bool:
    if not word.lower().endswith(MANIFEST_SUFFIXES):
        return False
    return _KEY_LIKE.match(word) is None or (is_first and Path(word).is_file())


def _is_text(key: str, value: str, is_sweep: bool) -> bool:
    """Whether a value is text that Hydra's grammar must not touch."""
    if key in _TEXT_KEYS:
        return key not in _TEXT_OR_LIST_KEYS or not value.startswith("[")
    if key in _SEED_KEYS:
        return "," in value and not is_sweep and not value.startswith("[")
    if key not in _SWEPT_TEXT_KEYS:
        return False
    has_values = is_sweep and "," in value and _LITERAL.fullmatch(value) is None
    return not has_values or (key == "manifest" and Path(value).is_file())


def _as_text(key: str, value: str) -> str | None:
    """Return a value without enclosing quotes; None for null."""
    if value == "null":
        return None
    if _LITERAL.fullmatch(value) is None:
        return value
    text = _parse(f"{key}={value}").value()
    assert isinstance(text, str)
    return text


def _check_one_folder(word: str, is_sweep: bool) -> None:
    key, _, value = word.partition("=")
    is_one = _LITERAL.fullmatch(value) is not None or Path(value).is_dir()
    if key == "run_dir" and is_sweep and "," in value and not is_one:
        raise Refused(
            f"{word}: the runs of a sweep have their own folders below one run_dir; name one "
            f"folder (with a comma in its name: run_dir='\"{value}\"')."
        )


# -- settings in Hydra's grammar --------------------------------------------------------------


def _check_overrides(words: Sequence[str], is_sweep: bool) -> tuple[str, ...]:
    """Return the swept settings.

    Raises:
        Refused: The message names each word that is no setting, and the nearest one.
    """
    faults, swept = [], []
    for word in words:
        override = _parse(word)
        is_hydra = override.is_hydra_override()
        fault = _hydra_fault(override) if is_hydra else _fault(override, is_sweep)
        if fault:
            faults.append(f"{word}: {fault}")
        elif override.is_sweep_override():
            swept.append(override.key_or_group)
    if faults:
        raise Refused("\n".join(faults))
    return tuple(swept)


def key_of(word: str) -> str:
    """Return the setting that a word sets."""
    return word.split("=", 1)[0]


def value_of(word: str) -> str:
    """Return the value that a word sets, as text without Hydra's quotes."""
    value = _parse(word).value()
    if isinstance(value, bool):
        return str(value).lower()  # a sweep writes True
    if isinstance(value, str):
        return value
    return "null" if word == f"experiment={_NO_PRESET}" else word.split("=", 1)[1]


def _for_hydra(word: str) -> str:
    """Return a setting in Hydra's form: no preset is an empty list."""
    if key_of(word) != "experiment":
        return word
    return re.sub(r"(?<=[=,])\s*null\s*(?=$|,)", _NO_PRESET, word, flags=re.IGNORECASE)


def _parse(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        raise Refused(not_understood(word)) from None


def _fault(override: Override, is_sweep: bool) -> str | None:
    """Return what is wrong with a word and what to do, or None."""
    key, value = override.key_or_group, override.value()
    known = setting_names()
    members = [name for name in known if name.startswith(f"{key}.")]
    if override.type is not OverrideType.CHANGE or override.package is not None:
        return "settings are set with key=value."
    if key in GROUPS:
        values = value.list if isinstance(value, ChoiceSweep) else [value]
        faults = [fault for one in values if (fault := _option_fault(key, one))]
        if faults:
            return faults[0]
    elif members:
        return f"{key} is a section; set its members, for example {members[0]}=VALUE."
    elif key not in known:
        return unknown_setting(key)
    if key == "sweep_value" and value is not None and not is_sweep:
        return "works in a sweep only; add -m, or leave it out."
    if key == "sweep_value" and isinstance(value, Sweep):
        return "must be one column of the log."
    if override.is_sweep_override() and not is_sweep:
        return "several values are a sweep; add -m to run one after the other."
    return None


def _hydra_fault(override: Override) -> str | None:
    """Return why a setting of Hydra is refused, or None."""
    key, value = override.key_or_group, override.value()
    is_change = override.type is OverrideType.CHANGE and override.package is None
    if key.startswith(_HYDRA_SPACE):
        return "type swept settings directly, for example override.flow_shift=5,7."
    is_known = key in (*_HYDRA_GROUPS, *_HYDRA_OURS) or key.startswith(_HYDRA_SETTINGS)
    if not is_change or not is_known:
        known = (*_HYDRA_GROUPS, *(f"{n}*" if n.endswith(".") else n for n in _HYDRA_SETTINGS))
        return (
            f"of Hydra's own settings only {', '.join(known)} may be typed; name a folder with "
            "run_dir=DIR, and type -m for a sweep."
        )
    if isinstance(value, Sweep):
        return "must be one value."
    return _option_fault(key, value) if key in _HYDRA_GROUPS else None


def _option_fault(group: str, value: Any) -> str | None:
    if group != "experiment" and value in (None, ""):
        return "must name an option; leave it out for the default."
    if isinstance(value, (dict, list, bool, int, float, Sweep)) and not isinstance(value, Glob):
        return "must name one option."
    return None


GROUPS = ("model", "offload", "dispatch", "experiment")


@cache
def setting_names() -> tuple[str, ...]:
    """Return the dotted name of every setting."""
    return tuple(name for name in _names(Config, "") if name not in NOT_TYPED)


def _names(cls: type, prefix: str) -> Iterator[str]:
    hints = get_type_hints(cls)
    for field in fields(cls):
        hint: Any = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _names(hint, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


_REMOVED = {
    "from": "hv15-batch recipe FILE writes a manifest and prints the command for that clip",
    "image": "name the first frame in the manifest's column image",
    "verify": "render into a second run_dir= and run hv15-batch compare RUN_A RUN_B",
    "report.public": "the .md and .csv of benchmark, comparison and compare hold nothing private",
}
"""Settings of earlier versions, and what to type instead."""


def unknown_setting(key: str) -> str:
    """Return that there is no such setting, and the nearest one or its replacement."""
    if key in _REMOVED:
        return f"this setting is gone; {_REMOVED[key]}."
    hidden = ("model.",) if key.startswith("manifest") else ("model.", "manifest_columns.")
    known = [*GROUPS, *(name for name in setting_names() if not name.startswith(hidden))]
    return f"there is no setting {key}.{suggestion(key, known)} All of them: hv15-batch --cfg job."


def unknown_word(word: str, following: Iterator[str]) -> str:
    """Return that a word is unknown, and what may be meant; `following` are the words after it."""
    if word.startswith("~") and not word.startswith("~/"):
        return f"{word}: a setting cannot be removed; leave it out, or set it to null."
    if fault := word_fault(word):
        return f"manifest={word}: {fault}{'' if fault.endswith('?') else '.'}"
    return (
        f"{word!r}: neither a manifest ({', '.join(MANIFEST_SUFFIXES)}) nor key=value nor one of "
        f"the words {', '.join(WORDS)}.{_meant(word, following)} See hv15-batch --help."
    )


def _meant(word: str, following: Iterator[str]) -> str:
    """Return e.g. ` Did you mean resume=outputs/a?` for its folder, or nothing."""
    if word in WORDS:
        return f" {word} comes first: hv15-batch {word}."
    if word.lower().endswith(VIDEO_SUFFIXES):
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

    The nearest come first: a typing error in the same section; then, in any section, the same last
    part (`num_frames`), a piece of it (`frames`), a typing error in the name or its last part.
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


REFUSED_FLAGS = ("--run", "--config-path", "--config-name", "--experimental-rerun")
"""They replace the whole configuration, read a pickled one, or change nothing."""


def unknown_flag(name: str, arguments: Sequence[str]) -> str:
    """Return that there is no such flag, and what may be meant."""
    names = [word.partition("=")[0] for word in arguments]
    place = names.index(name) if name in names else len(names)  # typed as its short form
    word = "".join(arguments[place : place + 1]) or name
    some = ("--dry-run", "--multirun", "--cfg", "--help", "--version")
    near = as_setting(word, iter(arguments[place + 1 :]))
    if not near and name not in REFUSED_FLAGS:
        near = suggestion(name, some)
    return (
        f"{word}: there is no such flag.{near} The flags are --dry-run, "
        "-m (a sweep), --cfg job (the settings), --help and --version; all else is key=value."
    )
