"""What is typed: turned into Hydra's grammar, and checked against the settings that there are."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, OverrideType, Sweep
from hydra.errors import HydraException

from hv15_batch.config.settings import Config
from hv15_batch.errors import ConfigError

_TEXT_KEYS = ("run_dir", "resume", "only")
"""Settings whose value is text as typed, whatever Hydra's grammar would make of it."""
_TEXT_OR_LIST_KEYS = ("notify.command",)
_SWEPT_TEXT_KEYS = (
    "manifest",
    "sampling.negative_prompt",
    "override.negative_prompt",
    "model.repo",
    "model.revision",
)
"""The same, but commas separate values in a sweep."""
_NO_PRESET = "[]"
"""What Hydra takes for `experiment=null`."""
_SEED_KEYS = ("sampling.seeds", "override.seeds")

_SWEEP_FLAGS = {"-m", "--multirun"}
_PLAIN_FLAGS = {"--resolve", "--hydra-help"}
_VALUE_FLAGS = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--package": None,
    "--config-dir": None,
}
"""Flags with a value, and what it may be. Not among them: what replaces the configuration as a
whole, or reads a pickled one."""
_SHORT_FLAGS = {"-c": "--cfg", "-i": "--info", "-p": "--package", "-cd": "--config-dir"}
_HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra/hydra_logging")
_HYDRA_SETTINGS = (
    "hydra.verbose",
    "hydra.searchpath",
    "hydra.launcher.",
    "hydra.sweeper.max_batch_size",
    "hydra.job_logging.",
    "hydra.hydra_logging.",
)
"""Of Hydra's own those that change nothing that is decided here."""
_HYDRA_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir")
_HYDRA_OURS = (*_HYDRA_FOLDERS, "hydra.job.name")
"""May be typed, as scripts that call Hydra's applications do; what is set here wins."""
_LITERAL = re.compile(r'"(?:\\.|[^"\\])*"' + r"|'(?:\\.|[^'\\])*'", re.DOTALL)
_KEY_LIKE = re.compile(r"[+~]*[A-Za-z_][\w./@:]*=")


# -- words to Hydra's grammar -----------------------------------------------------------------


def translate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Turn what a person types into Hydra's flags and settings.

    A word that ends like a manifest is the manifest; `--dry-run` is `dry_run=true`; a leading `+`
    changes nothing; text with spaces, brackets, commas, quotes or `${` is quoted.

    Raises:
        ConfigError: an unknown flag, or a word that is none of these.
    """
    flags, settings = [], []
    is_sweep = bool(_SWEEP_FLAGS & set(arguments))
    words = iter(arguments)
    for number, word in enumerate(words):
        if word == "--dry-run":
            settings.append("dry_run=true")
        elif word.startswith("-"):
            flags.append(_flag(word, words))
        elif _is_manifest(word, is_first=number == 0):
            settings.append(f"manifest={_quoted(word)}")
        elif "=" in word.lstrip("+")[1:]:
            settings.append(_setting(word.lstrip("+"), is_sweep))
        else:
            raise ConfigError(unknown_word(word, words))
    _check_flags(flags)
    return flags, settings


def _check_flags(flags: Sequence[str]) -> None:
    """Refuse flags that exclude each other.

    Raises:
        ConfigError: naming them.
    """
    modes = [flag for flag in flags if flag in _SWEEP_FLAGS or flag.startswith(("--cfg", "--info"))]
    if len(modes) > 1:
        raise ConfigError(f"{' '.join(modes)}: only one of -m, --cfg and --info at a time.")
    if "--resolve" in flags and not any(flag.startswith("--cfg") for flag in flags):
        raise ConfigError("--resolve: goes with --cfg job; leave it out.")


def _flag(word: str, following: Iterator[str]) -> str:
    """Return a flag as one word, with the value that follows it.

    Raises:
        ConfigError: there is no such flag, or its value is missing or not one of those allowed.
    """
    name, equals, value = word.partition("=")
    name = _SHORT_FLAGS.get(name, name)
    if name not in _VALUE_FLAGS:
        if word in _SWEEP_FLAGS or word in _PLAIN_FLAGS:
            return word
        some = ("--dry-run", "--multirun", "--cfg", "--help", "--version")
        near = as_setting(word, following) or suggestion(name, some)
        raise ConfigError(
            f"{word}: there is no such flag.{near} The flags are --dry-run, "
            "-m (a sweep), --cfg job (the settings), --help and --version; all else is key=value."
        )
    allowed = _VALUE_FLAGS[name]
    if not equals:
        value = "all" if name == "--info" else next(following, "")
    if not value or (allowed is not None and value not in allowed):
        what = f"one of {', '.join(allowed)}" if allowed else "a name"
        raise ConfigError(f"{name}={value}: takes {what}; write it after the {name}.")
    return f"{name}={value}"


def _is_manifest(word: str, is_first: bool) -> bool:
    if not word.lower().endswith(MANIFEST_SUFFIXES):
        return False
    return _KEY_LIKE.match(word) is None or (is_first and Path(word).is_file())


def _setting(word: str, is_sweep: bool) -> str:
    key, _, value = word.partition("=")
    has_values = is_sweep and "," in value
    if key == "run_dir" and has_values and not (_is_literal(value) or Path(value).is_dir()):
        raise ConfigError(
            f"{word}: the jobs of a sweep have folders of their own below one run_dir; name one "
            f"folder (with a comma in its name: run_dir='\"{value}\"')."
        )
    is_text = key in _TEXT_KEYS or (key in _TEXT_OR_LIST_KEYS and not value.startswith("["))
    if is_text or (key in _SWEPT_TEXT_KEYS and not has_values):
        return word if _is_literal(value) else f"{key}={_quoted(value)}"
    if key == "manifest" and Path(value).is_file():
        return f"{key}={_quoted(value)}"  # a comma in its name, not a sweep
    if key in _SEED_KEYS and "," in value and not is_sweep and not value.startswith("["):
        return f"{key}={_quoted(value.strip(chr(34) + chr(39)))}"
    return word


def _is_literal(value: str) -> bool:
    """Whether Hydra reads the value as it should be already: a quoted text, or null."""
    return value == "null" or _LITERAL.fullmatch(value) is not None


def _quoted(value: str) -> str:
    """Return a Hydra string literal that means exactly this text, interpolation included."""
    text = re.sub(r"(\\*)\$\{", lambda m: m[1] * 2 + r"\${", value)
    text = re.sub(r"(\\*)(\"|$)", lambda m: m[1] * 2 + ("\\" if m[2] else "") + m[2], text)
    return f'"{text}"'


# -- words against settings -------------------------------------------------------------------


def check_settings(words: Sequence[str], is_sweep: bool) -> tuple[str, ...]:
    """Return the swept settings; refuse words that are no settings, all at once.

    Raises:
        ConfigError: naming each such word and the nearest setting.
    """
    faults, swept = [], []
    if sum(key_of(word) == "manifest" for word in words) > 1:
        raise ConfigError("one manifest at a time; name one, or join the files into one.")
    for word in words:
        override = _parse(word)
        is_hydra = override.is_hydra_override()
        fault = _hydra_fault(override) if is_hydra else _fault(override, is_sweep)
        if fault:
            faults.append(f"{word}: {fault}")
        elif override.is_sweep_override():
            swept.append(override.key_or_group)
    if faults:
        raise ConfigError("\n".join(faults))
    resumed = next((value_of(word) for word in words if key_of(word) == "resume"), "null")
    if swept and resumed != "null":
        raise ConfigError(
            f"resume={resumed}: resumes one run, and {', '.join(swept)} makes a sweep; "
            "leave resume= out and name the manifest: the jobs have folders of their own."
        )
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


def for_hydra(word: str) -> str:
    """Return a setting as Hydra takes it: no preset is an empty list of them."""
    if key_of(word) != "experiment":
        return word
    return re.sub(r"(?<=[=,])\s*null\s*(?=$|,)", _NO_PRESET, word, flags=re.IGNORECASE)


def _parse(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        raise ConfigError(
            f"{word}: not understood; put a value with special characters in quotes of its own: "
            f"'{key_of(word)}=\"...\"'."
        ) from None


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
    if override.is_sweep_override() and not is_sweep:
        return "several values are a sweep; add -m to run one after the other."
    return None


def _hydra_fault(override: Override) -> str | None:
    """Return why one of Hydra's own settings cannot be honoured, or None."""
    key, value = override.key_or_group, override.value()
    is_change = override.type is OverrideType.CHANGE and override.package is None
    is_known = key in (*_HYDRA_GROUPS, *_HYDRA_OURS) or key.startswith(_HYDRA_SETTINGS)
    if not is_change or not is_known:
        known = (*_HYDRA_GROUPS, *(f"{n}*" if n.endswith(".") else n for n in _HYDRA_SETTINGS))
        return (
            f"of Hydra's own settings only {', '.join(known)} may be typed; a folder is named with "
            "run_dir=DIR, and a sweep is -m."
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


MANIFEST_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet", ".txt")
"""Suffixes of manifests, in lower case; upper case is accepted."""
