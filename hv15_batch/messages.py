"""What a user is told when a command is refused: one message on stderr and an exit code."""

from __future__ import annotations

import difflib
import errno
import re
import sys
from contextlib import suppress

from hv15_batch.config import STEP_DISTILLED_T2V, ConfigError
from hv15_batch.exit_codes import EXIT_REFUSED, EXIT_STOPPED
from hv15_batch.redaction import redacted

_PATH_ERRORS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EINVAL,
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
# What OmegaConf says of a value, and what is said here.
_VALUE_RULES = (
    (r"could not be converted to Integer", "must be a whole number"),
    (r"could not be converted to Float", "must be a number"),
    (r"is not a valid bool", "must be true or false"),
    (r"Invalid value .*expected one of \[(.*)\]", r"must be one of \1"),
    (r"is not Optional|Incompatible value 'None'", "must not be null; leave it out"),
    (r"Cannot convert '.*' to string", "must be text; put it in quotes of its own"),
    (r"has missing mandatory value", "must be set"),
)


def report_error(error: Exception) -> int | None:
    """Print a user error and return its exit code; None for any other error."""
    if isinstance(error, ConfigError):
        return _report(str(error), EXIT_REFUSED)
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _report(hydra_message(error), EXIT_REFUSED)
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {error.strerror}"
        if error.errno in _PATH_ERRORS:
            return _report(f"{message}; correct the path or its permissions.", EXIT_REFUSED)
        if error.errno in _DISK_ERRORS:
            return _report(f"{message}; free some disk and run again.", EXIT_STOPPED)
    from hv15_batch.runlog import LogSchemaError

    return _report(str(error), EXIT_REFUSED) if isinstance(error, LogSchemaError) else None


def hydra_message(error: Exception) -> str:
    """Return what Hydra or OmegaConf refused, without their internals, and what to do."""
    from hydra.errors import MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return _unknown_option(group, option, list(error.options or ()))
    typed = re.match(r"Error merging override (.*)", str(error), re.DOTALL)
    if typed and error.__cause__ is not None:
        return f"{typed[1]}: {_value_rule(str(error.__cause__))}."
    text = str(error) or str(error.__cause__ or type(error).__name__)
    kept = [line.strip() for line in text.partition("Config search path:")[0].splitlines()]
    internals = ("object_type=", "reference_type=", "full_key:")
    message = "\n".join(line for line in kept if line and not line.startswith(internals))
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {_value_rule(text)}."
    return message


def _value_rule(cause: str) -> str:
    for pattern, rule in _VALUE_RULES:
        if match := re.search(pattern, cause):
            return match.expand(rule)
    return cause.strip().splitlines()[0]


def _unknown_option(group: str, option: str, options: list[str]) -> str:
    near = difflib.get_close_matches(option, options, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    message = f"{group}={option}: there is no such option.{hint} Options: {', '.join(options)}."
    if group == "model" and "step_distilled" in option and "t2v" in option:
        message += f"\n{STEP_DISTILLED_T2V[0].upper()}{STEP_DISTILLED_T2V[1:]}."
    return message


def _report(message: str, code: int) -> int:
    with suppress(OSError):  # nobody listens any more; the exit code still says it
        print(redacted(message), file=sys.stderr, flush=True)
    return code
