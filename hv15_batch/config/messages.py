"""The message and the exit code of a refused command."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from contextlib import suppress
from typing import Any, NoReturn

from hv15_batch.errors import ADVICE, EXIT_REFUSED, EXIT_STOPPED, Refused, StoreError
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import STEP_DISTILLED_T2V
from hv15_batch.redaction import show, shown

WORDS = (
    *("report", "status", "view", "references", "compare", "recipe", "convert", "prefetch"),
    "doctor",
)
"""The subcommands. They are here so that the command line finds them without importing Hydra."""
_FULL_ERROR = ", set env var HYDRA_FULL_ERROR=1 to see chained exception."
"""Hydra prints this instead of the reason why a plugin cannot be loaded."""
# Messages of OmegaConf, and ours.
_VALUE_RULES = (
    (r"could not be converted to Integer", "must be a whole number"),
    (r"could not be converted to Float", "must be a number"),
    (r"type hint 'Union\[bool, str\]'", "must be auto, true or false"),
    (r"type hint 'Union\[int, str\]'", "must be auto, all or a whole number"),
    (r"is not a valid bool", "must be true or false"),
    (r"Invalid value .*expected one of \[(.*)\]", r"must be one of \1"),
    (r"is not Optional|Incompatible value 'None'", "must not be null; leave it out"),
    (r"Cannot convert '.*' to string", "must be text; put it in quotes of its own"),
    (r"has missing mandatory value", "must be set"),
)


class Parser(argparse.ArgumentParser):
    """Parses the words of a subcommand; its messages may quote file names."""

    def error(self, message: str) -> NoReturn:
        """Print the fault and exit."""
        super().error(shown(message))


def report_error(error: Exception, heading: str = "") -> int | None:
    """Print a user error and return its exit code; None for any other error.

    Args:
        error: The exception.
        heading: A line to print before it; empty for none.
    """
    refusal = refusal_of(error)
    if refusal is None:
        return None
    message, code = refusal
    with suppress(OSError):  # stderr is closed; the exit code remains
        text = f"{heading}\n{message}" if heading else message
        show(text, file=sys.stderr)
    return code


def refusal_of(error: Exception) -> tuple[str, int] | None:
    """Return the message and the exit code of a user error; None for any other error."""
    if isinstance(error, Refused):
        return str(error), error.exit_code
    if isinstance(error, StoreError):
        return str(error), EXIT_STOPPED
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return hydra_message(error), EXIT_REFUSED
    if isinstance(error, YAMLError):
        return _yaml_message(error), EXIT_REFUSED
    if isinstance(error, OSError) and error.filename is not None:
        advice = ADVICE.get(error.errno or 0)
        if advice is not None:
            return f"{error.filename}: {error.strerror}; {advice.text}.", advice.exit_code
    from hv15_batch.errors import LogSchemaError

    return (str(error), EXIT_REFUSED) if isinstance(error, LogSchemaError) else None


def hydra_message(error: Exception) -> str:
    """Return a message of Hydra or OmegaConf without their internals, and what to do."""
    from hydra.errors import MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing(error.missing_cfg_file, list(error.options or ()), str(error))
    if loras := _typed_loras(error):
        return f"{loras}: {LORAS_FORM}."
    in_file = re.match(r"In '(.+?)': \w+ raised while composing config", str(error))
    if in_file and isinstance(error.__context__, OmegaConfBaseException):
        return f"{in_file[1]}.yaml: {_fault_in_file(in_file[1], error.__context__)}"
    if unknown := re.match(r"Could not override '(.+?)'\.\nTo append", str(error)):
        return f"{unknown[1]}: there is no such setting."
    typed = re.match(r"Error merging override (.*)", str(error), re.DOTALL)
    if typed and error.__cause__ is not None:
        return f"{typed[1]}: {_value_rule(str(error.__cause__))}."
    text = str(error) or str(error.__cause__ or type(error).__name__)
    text = text.replace(_FULL_ERROR, f": {error.__cause__ or 'it cannot be imported'}.")
    kept = [line.strip() for line in text.partition("Config search path:")[0].splitlines()]
    internals = ("object_type=", "reference_type=", "full_key:")
    message = "\n".join(line for line in kept if line and not line.startswith(internals))
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {_value_rule(text)}."
    return message


LORAS = "model.loras"
LORAS_FORM = (
    "must be a list of files, each with its path and, if it is not 1, a scale: "
    "'model.loras=[{path: a.safetensors, scale: 0.8}]'"
)


def _typed_loras(error: Exception) -> str | None:
    """Return `model.loras`, as it was typed where that is known, if an error is about it."""
    text, key = str(error), str(getattr(error, "full_key", None) or "")
    typed = re.match(rf"Error merging override ({re.escape(LORAS)}[=\[.].*)", text, re.DOTALL)
    if typed:
        return typed[1]
    is_it = key.startswith(LORAS) or text.startswith(f"Could not override '{LORAS}")
    return LORAS if is_it else None


def not_understood(word: str) -> str:
    """Return that a word cannot be parsed, and what to do."""
    key = word.split("=", 1)[0]
    if key == LORAS:
        return f"{word}: {LORAS_FORM}."
    return (
        f"{word}: not understood; put a value with special characters in quotes of its own: "
        f"'{key}=\"...\"'."
    )


def _fault_in_file(name: str, error: Any) -> str:
    """Return the fault of a key in a YAML, from an error of OmegaConf."""
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    from hv15_batch.config.words import unknown_setting

    key = str(error.full_key or "")
    if not isinstance(error, (ConfigKeyError, ConfigAttributeError)):
        value = re.search(r"[Vv]alue '(.*?)'|value: (.*)", str(error))
        shown = f"={value[1] if value[1] is not None else value[2]}" if value else ""
        if re.search(r"NoneType|[Ii]ncompatible value 'None'|'None' is incompatible", str(error)):
            shown = "=null"  # as YAML has it
        if not key:  # OmegaConf does not name it
            return f"a section{shown}: a section has members; write them below it, indented."
        return f"{key}{shown}: {_value_rule(str(error))}."
    if key == "experiment" == name.partition("/")[0]:
        return (
            "a preset is a piece of the whole configuration; begin the file with "
            "# @package _global_"
        )
    return unknown_setting(key)


def _yaml_message(error: Any) -> str:
    """Return the place and the reason of a fault in YAML."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # a character that YAML forbids
        return f"{' '.join(str(error).split())}; take it out."
    context = f" ({error.context})" if error.context else ""
    return f"{mark.name}:{mark.line + 1}: {error.problem}{context}; correct the YAML there."


def _value_rule(cause: str) -> str:
    for pattern, rule in _VALUE_RULES:
        if match := re.search(pattern, cause):
            return match.expand(rule)
    return cause.strip().splitlines()[0]


def _missing(name: str, options: list[str], text: str) -> str:
    """Return which option, or which entry of a defaults list, does not exist."""
    group, _, option = name.rpartition("/")
    if options:
        return _unknown_option(group, option, options)
    parent = re.match(r"In '(.+?)':", text)
    where = f"{parent[1]}.yaml: " if parent else ""
    rule = "and there is no such file; correct it or add the file"
    return f"{where}its defaults list names {name}, {rule}."


def _unknown_option(group: str, option: str, options: list[str]) -> str:
    by_lower = {name.lower(): name for name in options}
    near = difflib.get_close_matches(option.lower(), by_lower, n=1)
    hint = f" Did you mean {by_lower[near[0]]}?" if near else ""
    message = f"{group}={option}: there is no such option.{hint} Options: {', '.join(options)}."
    if group == "model" and near and _is_meanflow_of_another_task(by_lower[near[0]], option):
        message += f"\n{STEP_DISTILLED_T2V}."
    return message


def _is_meanflow_of_another_task(near: str, typed: str) -> bool:
    """Whether an unknown name has another task than the MeanFlow option that resembles it."""
    option = model_options().get(near)
    return option is not None and option.recipe.meanflow and option.task.value not in typed.lower()


def flag_fault(parser: argparse.ArgumentParser, error: argparse.ArgumentError) -> str:
    """Return which values a flag takes."""
    name = str(error.argument_name).partition("/")[0]
    action = parser._option_string_actions[name]
    if action.nargs == 0:
        return f"{name}: takes no value; leave it out."
    value = re.match(r"invalid choice: '(.*?)'", str(error.message), re.DOTALL)
    allowed = f"one of {', '.join(action.choices)}" if action.choices else "a name"
    return f"{name}={value[1] if value else ''}: takes {allowed}; write it after the {name}."
