"""Hydra behind one function: from words to typed settings, once or for each run of a sweep.

Only this module uses Hydra's internals: its argument parser and the methods of its `Hydra` object,
beside `compose`. So its sweepers, launchers and completion work unchanged.
`tests/config/test_hydra.py` tests these internals.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import configure_log
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hv15_batch.config._ends import Caller, End, Ends, codes_of, temporary_folder
from hv15_batch.config.checks import check_sweep_value
from hv15_batch.config.files import MANIFEST_SUFFIXES
from hv15_batch.config.folder import PROVIDER, conf_folder, limit_sources
from hv15_batch.config.messages import flag_fault, refusal_of, report_error
from hv15_batch.config.origin import note_origin
from hv15_batch.config.settings import Config
from hv15_batch.config.words import (
    REFUSED_FLAGS,
    Typed,
    key_of,
    read_words,
    unknown_flag,
)
from hv15_batch.errors import (
    EXIT_FAULT,
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_SIGINT,
    EXIT_STOPPED,
    Refused,
    reason_of,
)
from hv15_batch.model.options import conf_dir
from hv15_batch.redaction import redacted, show

_CONFIG = "config"
_NAME = "hv15_batch"
_MODES = ("--multirun", "--cfg", "--info", "--shell-completion", "--hydra-help")
_SHORT = {"--multirun": "-m"}


@dataclass(frozen=True)
class Job:
    """One composed configuration, and the words that were typed for it."""

    config: Config
    typed: dict[str, str]
    """Settings that were typed, with their values as text; in a sweep those of this run."""
    swept: tuple[str, ...]
    """Settings with several values; empty outside a sweep."""

    @property
    def swept_values(self) -> list[str]:
        """The values of the swept settings in this run."""
        return [self.typed[key] for key in self.swept]


Run = Callable[[Job], int]
"""Carries out a run and returns its exit code. Launchers may pickle it."""
Measure = Callable[[Job], float | None]
"""Returns the `sweep_value` of a finished run; None if it has none."""


def run_jobs(
    arguments: Sequence[str],
    run: Run,
    measure: Measure = lambda _: None,
    say: Callable[[str], None] = print,
) -> int:
    """Compose the settings and carry out the run, or each run of a sweep; return the worst code.

    A run that fails does not end a sweep; an interrupted one does.

    Raises:
        Refused: A word is no setting.
        hydra.errors.HydraException: The settings cannot be composed.
    """
    flags, parser = _read_flags(arguments)
    with _hydra(flags.config_dir) as hydra:
        if flags.shell_completion:
            return _complete(hydra, flags.overrides)
        typed = read_words(flags.overrides, is_sweep=flags.multirun)
        typed = replace(typed, config_dir=flags.config_dir)
        if flags.cfg or flags.info or flags.hydra_help:
            return _show(hydra, flags, parser, typed)
        if flags.multirun:
            return _sweep(hydra, typed, run, measure, say)
        return _run_once(typed, run)


# -- flags ------------------------------------------------------------------------------------


def _read_flags(arguments: Sequence[str]) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Return the flags, all other words as `overrides`, and Hydra's parser that read them.

    Raises:
        Refused: There is no such flag, or its value is not allowed.
    """
    parser = get_args_parser()
    parser.add_argument("--dry-run", action="store_true", help="Check, resolve and predict")
    parser.allow_abbrev = parser.exit_on_error = False
    parser.error = _refuse
    try:
        flags, unknown = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        raise Refused(flag_fault(parser, error)) from None
    is_given = {name: _value(flags, name) not in (None, False) for name in REFUSED_FLAGS}
    typed = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    for name in [*typed, *(name for name, given in is_given.items() if given)]:
        raise Refused(unknown_flag(name, arguments))
    modes = [name for name in _MODES if _value(flags, name)]
    if len(modes) > 1:
        shown = [_SHORT.get(n) or f"{n}={_value(flags, n)}".removesuffix("=True") for n in modes]
        raise Refused(f"{' '.join(shown)}: only one of -m, --cfg and --info at a time.")
    if flags.resolve and not flags.cfg:
        raise Refused("--resolve: works with --cfg job only; leave it out.")
    if flags.dry_run:
        flags.overrides.append("dry_run=true")
    return flags, parser


def _value(flags: argparse.Namespace, name: str) -> Any:
    return getattr(flags, name.lstrip("-").replace("-", "_"))


def _refuse(message: str) -> NoReturn:
    raise Refused(f"{message[:1].lower()}{message[1:]}; see hv15-batch --help.")


# -- Hydra ------------------------------------------------------------------------------------


@contextmanager
def _hydra(config_dir: str | None) -> Iterator[Any]:
    """Yield the `Hydra` object of `compose`, with the user's folder searched after ours."""
    ConfigStore.instance().store(name="config_schema", node=Config)
    outer = GlobalHydra.instance().hydra  # of an application that calls this one
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), job_name=_NAME, version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            assert hydra is not None
            if config_dir is not None:
                _add_folder(hydra, config_dir)
            yield hydra
    finally:
        GlobalHydra.instance().hydra = outer


def _add_folder(hydra: Any, config_dir: str) -> None:
    folder = conf_folder(config_dir)
    path = hydra.config_loader.get_search_path()
    path.prepend(PROVIDER, f"file://{folder}", SearchPathQuery(provider="schema"))
    hydra.config_loader = ConfigLoaderImpl(path)  # it reads the path once
    limit_sources(hydra.config_loader.repository.get_sources(), folder)


def _complete(hydra: Any, words: Sequence[str]) -> int:
    """Print a script for completion, or the completions of a line; return the exit code.

    Raises:
        Refused: The call is not that of a shell.
    """
    if "COMP_LINE" in os.environ:  # Hydra's plugins read it and do not know our subcommands
        *before, last = os.environ["COMP_LINE"].split(" ")
        ours = (*MANIFEST_SUFFIXES, "--dry-run", "prefetch")
        line = [word for word in before if not word.lower().endswith(ours)]
        os.environ["COMP_LINE"] = " ".join([*line, last])
    try:
        hydra.shell_completion(config_name=_CONFIG, overrides=list(words))
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error.args[0]).split())
        raise Refused(
            f"--shell-completion: {reason}; for a shell type -sc install=bash, install=zsh or "
            "install=fish."
        ) from error
    return EXIT_OK


def _show(
    hydra: Any, flags: argparse.Namespace, parser: argparse.ArgumentParser, typed: Typed
) -> int:
    """Print the settings, or Hydra's information about itself; return the exit code."""
    overrides = [*typed.overrides, *(f"{key}={_quoted(text)}" for key, text in typed.texts.items())]
    try:
        if flags.cfg:
            hydra.show_cfg(_CONFIG, overrides, flags.cfg, flags.package, flags.resolve)
        elif flags.info:
            hydra.show_info(flags.info, _CONFIG, overrides)
        else:
            flags.overrides = overrides
            hydra.hydra_help(_CONFIG, parser, flags)
    except SystemExit as stop:  # after its own message, for example on an unknown --package
        return EXIT_REFUSED if stop.code else EXIT_OK
    return EXIT_OK


def _quoted(text: str | None) -> str:
    """Return a text in Hydra's grammar."""
    return "null" if text is None else str(QuotedString(text, Quote.double).with_quotes())


def _folder_settings(folder: str) -> list[str]:
    """Return settings that keep Hydra's files in a folder. They come last and take precedence."""
    quoted = _quoted(folder)
    return [
        f"hydra.run.dir={quoted}",
        f"hydra.sweep.dir={quoted}",
        "hydra.sweep.subdir=job",
        "hydra.output_subdir=null",
        f"hydra.job.name={_NAME}",
    ]


# -- one run ----------------------------------------------------------------------------------


def _run_once(typed: Typed, run: Run) -> int:
    with temporary_folder() as folder:  # for Hydra's log file
        overrides = [*typed.overrides, *_folder_settings(folder)]
        composed = compose(_CONFIG, overrides, return_hydra_config=True)
        with read_write(composed), open_dict(composed):
            composed.hydra.runtime.output_dir = folder
            configure_log(composed.hydra.job_logging, composed.hydra.verbose)
        config = _resolved(composed, typed.texts)
        return run(_job(config, typed, typed.values(typed.overrides), (), composed.hydra))


def compose_one(words: Sequence[str], config_dir: str | None) -> Job:
    """Return the configuration of one run from these words; raise like `run_jobs`."""
    typed = replace(read_words(words, is_sweep=False), config_dir=config_dir)
    with _hydra(config_dir):
        composed = compose(_CONFIG, list(typed.overrides), return_hydra_config=True)
        config = _resolved(composed, typed.texts)
    return _job(config, typed, typed.values(typed.overrides), (), composed.hydra)


def _job(
    config: Config, typed: Typed, values: dict[str, str], swept: tuple[str, ...], hydra: Any
) -> Job:
    """Return a run whose settings know what rows of other models need (`options`)."""
    note_origin(config, typed.config_dir, hydra.runtime.choices["model"], values)
    return Job(config, values, swept)


def _resolved(composed: DictConfig, texts: dict[str, str | None]) -> Config:
    """Return `to_config` of a composition with Hydra's node, for `${hydra:...}`."""
    hydra_config = HydraConfig.instance()
    outer = hydra_config.cfg  # of an application that calls this one
    hydra_config.set_config(composed)
    ours = composed.copy()
    with read_write(ours), open_dict(ours):
        del ours["hydra"]  # parts of it need a running application
    try:
        return to_config(ours, texts)
    finally:
        hydra_config.cfg = outer


def to_config(composed: DictConfig, texts: dict[str, str | None]) -> Config:
    """Return the `Config` of a composed configuration, texts as they were typed.

    Raises:
        omegaconf.errors.OmegaConfBaseException: A value is of the wrong type or missing.
    """
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    for key, text in texts.items():
        *sections, name = key.split(".")
        section: Any = config
        for part in sections:
            section = getattr(section, part)
        setattr(section, name, text)
    return config


# -- a sweep ----------------------------------------------------------------------------------


def _sweep(hydra: Any, typed: Typed, run: Run, measure: Measure, say: Callable[[str], None]) -> int:
    with temporary_folder() as folder:
        # A sweep always writes multirun.yaml into its directory.
        overrides = [*typed.overrides, *_folder_settings(folder), "hydra.mode=MULTIRUN"]
        base = hydra.compose_config(
            _CONFIG, overrides, run_mode=RunMode.MULTIRUN, validate_sweep_overrides=False
        )
        if (column := base.sweep_value) is not None:
            check_sweep_value(column)
        (Path(folder) / "ends").mkdir()
        ends = Ends(f"{folder}/ends")
        is_measured = column is not None
        task = partial(
            _run_job,
            run=run,
            measure=measure if is_measured else None,
            typed=typed,
            ends=f"{folder}/ends",
            caller=Caller.here(),
        )
        returned: Any = None
        try:
            returned = hydra.multirun(_CONFIG, task, overrides)
        except KeyboardInterrupt:
            code = max((end.code for end in ends.read()), default=EXIT_OK)
            if code < EXIT_SIGINT:
                raise
            return code
        except Exception as error:
            told = ends.read()
            if refusal_of(error) is not None or any(end.code == EXIT_FAULT for end in told):
                raise
            if is_measured and told and not any(end.has_value for end in told):
                show(f"sweep_value={column}: no run gave a value ({error}).", file=sys.stderr)
                return max(end.code for end in told)
            if is_measured and told:
                raise
            launcher = base.hydra.runtime.choices["hydra/launcher"]
            why = f"hydra/launcher={launcher}: {reason_of(error)}"
            if not told:
                raise Refused(f"{why}; no run has started: use another launcher.") from error
            show(why, file=sys.stderr)
        told = ends.read()
        for line in dict.fromkeys(end.line for end in told if end.line):
            show(line, file=sys.stderr)
        codes = [end.code for end in told] + list(codes_of(returned))
        result = Path(folder) / "optimization_results.yaml"  # of Optuna, Ax and Nevergrad
        if result.is_file():
            say(f"Result of the sweep:\n{result.read_text(encoding='utf-8').rstrip()}")
    if not codes:
        print(
            "The runs were on a machine that does not see this machine's temporary folder, and "
            "the sweeper does not return how they ended; set TMPDIR to a folder that both see.",
            file=sys.stderr,
        )
        return EXIT_STOPPED
    return max(codes)


def _run_job(
    composed: DictConfig,
    run: Run,
    measure: Measure | None,
    typed: Typed,
    ends: str,
    caller: Caller,
) -> float | None:
    """Carry out one run of a sweep; a launcher may call this in another process.

    Returns:
        The exit code, or the run's `sweep_value`; None if it has none.
    """
    begun = Ends(ends).begin()
    value: float | None = None
    overrides = HydraConfig.get().overrides.task
    values = typed.values(overrides)
    # A sweeper may vary settings that were not typed, for example `hydra.sweeper.params`.
    known = {*map(key_of, typed.overrides), *typed.texts}
    swept = (*typed.swept, *(key for key in map(key_of, overrides) if key not in known))
    words = " ".join(f"{key}={values[key]}" for key in swept)
    line = ""
    try:
        caller.check_job()
        job = _job(to_config(composed, typed.texts), typed, values, swept, HydraConfig.get())
        code = run(job)
        if measure is not None and code == EXIT_OK:
            value = measure(job)
    except Exception as error:
        told = report_error(error, f"In the run {words}:" if words else "")
        if told is None:
            Ends(ends).tell(begun, End(EXIT_FAULT))
            raise  # Hydra keeps it until the other runs of the sweep have ended
        code, line = told, f": {redacted(str(error))}"
    line = "" if caller.sees_job else f"In the run {words}: exit code {code}{line}"
    Ends(ends).tell(begun, End(code, value is not None, line))
    if code >= EXIT_SIGINT:
        raise KeyboardInterrupt
    return code if measure is None else value
