"""The command line: words, Hydra entry, conversion to typed settings, errors to exit codes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hv15_batch import __version__
from hv15_batch.config import STEP_DISTILLED_T2V, Config, ConfigError
from hv15_batch.manifest import MANIFEST_SUFFIXES
from hv15_batch.rundir import RunDir, sweep_folder_name
from hv15_batch.runner import EXIT_OK, EXIT_REFUSED, EXIT_SIGINT
from hv15_batch.runlog import LogSchemaError

_TEXT_KEYS = ("manifest", "run_dir", "resume", "only")
"""Options whose value is text as typed, whatever Hydra's grammar would make of it."""
_SEED_KEYS = ("sampling.seeds", "override.seeds")
_GROUPS = ("model", "offload", "dispatch", "experiment")

_USER_ERRORS = (
    ConfigError,
    LogSchemaError,
    HydraException,
    OmegaConfBaseException,
    PermissionError,
)

HELP = """\
hv15-batch prompts.csv                    render every row; run it again to go on
hv15-batch prompts.csv --dry-run          check, resolve and predict; no weights, no device
hv15-batch prompts.csv limit=1            also only=id,id force=true order=rows run_dir=DIR
hv15-batch prompts.csv model=480p_t2v offload=model override.num_frames=61
hv15-batch resume=outputs/prompts         go on with the manifest and settings of a run
hv15-batch -m manifest=prompts.csv model=480p_t2v,480p_t2v_distilled     Hydra sweep
hv15-batch experiment=rtx4090_standard manifest=prompts.csv              a preset
hv15-batch report RUN_DIR [RUN_DIR ...]   build the page again
hv15-batch status [RUN_DIR]               progress and time left; without a name the latest run
hv15-batch prefetch model=480p_t2v        say size and folder, download, verify

Options and their defaults: hv15-batch --cfg job. Groups: model, offload, dispatch, experiment.
Exit codes: 0 all done, 2 refused, 3 some clips failed, 4 stopped early, 130/143 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; user errors are one message on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except _USER_ERRORS as error:
        return _refuse(_message(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_SIGINT


def conf_dir() -> Path:
    """Return `conf/`: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        from hv15_batch.overview import print_overview

        print_overview(print)
        return EXIT_OK
    word, rest = arguments[0], arguments[1:]
    if word in ("-h", "--help", "help"):
        print(HELP, end="")
        return EXIT_OK
    if word == "--version":
        print(__version__)
        return EXIT_OK
    if word == "report":
        from hv15_batch.report.__main__ import main as report

        return report(rest)
    if word == "status":
        from hv15_batch.status import main as status

        return status(rest)
    if word == "prefetch":
        return _run_hydra(rest, _prefetch_job)
    return _run_hydra(arguments, _render_job)


# -- one job ----------------------------------------------------------------------------------


def _render_job(composed: DictConfig, swept: Sequence[str]) -> int:
    from hv15_batch import session

    overrides = list(HydraConfig.get().overrides.task)
    if composed.resume is not None:
        config = _resumed(composed, overrides)
    else:
        config = to_config(composed)
    typed = tuple(k[len("sampling.") :] for k in map(_key, overrides) if k.startswith("sampling."))
    sweep = None
    if swept:
        values = {_key(o): o.split("=", 1)[1] for o in overrides}
        sweep = sweep_folder_name([_unquoted(values[k]) for k in swept if k in values])
    return session.run(config, typed, sweep, _say)


def _prefetch_job(composed: DictConfig, swept: Sequence[str]) -> int:
    from hv15_batch.prefetch import prefetch

    return prefetch(to_config(composed), _say)


def to_config(composed: DictConfig) -> Config:
    """Return the typed settings of a composed configuration.

    Raises:
        ConfigError: a value is of the wrong type or missing.
    """
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


def _resumed(composed: DictConfig, overrides: list[str]) -> Config:
    """Return the stored settings of a run with what was typed now on top."""
    from hv15_batch import session

    run_dir = RunDir(Path(str(composed.resume)).expanduser().absolute())
    stored = OmegaConf.structured(session.latest_config(run_dir))
    for key in map(_key, overrides):
        if key == "resume":
            continue
        if key in ("manifest", "run_dir", "experiment"):
            raise ConfigError(
                f"{key}= with resume={run_dir.path}: a run directory has its own; leave one out."
            )
        OmegaConf.update(stored, key, OmegaConf.select(composed, key), merge=False)
    config = to_config(stored)
    if config.manifest is not None and not Path(config.manifest).is_file():
        raise ConfigError(
            f"resume={run_dir.path}: its manifest {config.manifest} is gone; put it back (copies "
            f"are in {run_dir.runs}/*/manifest.*)."
        )
    return config


def _say(text: str) -> None:
    print(text, flush=True)


# -- Hydra ------------------------------------------------------------------------------------


def _run_hydra(arguments: list[str], job: Callable[[DictConfig, Sequence[str]], int]) -> int:
    """Compose with Hydra, run the job once or for each combination of a sweep."""
    arguments = translate(arguments)
    swept = _swept_keys(arguments)
    codes: list[int] = []
    ConfigStore.instance().store(name="config_schema", node=Config)

    def task(composed: DictConfig) -> None:
        is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            codes.append(job(composed, swept if is_sweep else []))
        except _USER_ERRORS as error:  # here: Hydra would print its own line about the job
            codes.append(_refuse(_message(error)))
        if is_sweep and codes[-1] >= EXIT_SIGINT:
            raise KeyboardInterrupt  # ends the sweep

    saved_argv, saved_full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = ["hv15-batch", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises; else it prints and exits with 1
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except KeyboardInterrupt:
        if not codes:
            raise
    except SystemExit as stop:
        # argparse refuses an unknown flag with 2, and --help and friends end with 0
        return stop.code if isinstance(stop.code, int) else EXIT_REFUSED
    finally:
        sys.argv = saved_argv
        if saved_full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
    return max(codes, default=EXIT_OK)


def translate(arguments: Sequence[str]) -> list[str]:
    """Turn what a person types into Hydra's grammar.

    The first word may be a manifest; `--dry-run` is `dry_run=true`; `+experiment=` is
    `experiment=`; paths with spaces, brackets or commas are quoted.
    """
    is_sweep = any(a in ("-m", "--multirun") for a in arguments)
    translated = []
    for number, argument in enumerate(arguments):
        if number == 0 and _is_manifest(argument):
            argument = f"manifest={argument}"
        if argument == "--dry-run":
            argument = "dry_run=true"
        if argument.startswith("+experiment="):
            argument = argument[1:]
        key, equals, value = argument.partition("=")
        if equals and key in _TEXT_KEYS and _needs_quotes(key, value, is_sweep):
            argument = f"{key}={_quoted(value)}"
        elif equals and key in _SEED_KEYS and not is_sweep and "," in value and value[0] != "[":
            argument = f"{key}={_quoted(value.strip(chr(34) + chr(39)))}"
        translated.append(argument)
    return translated


def _is_manifest(word: str) -> bool:
    if word.startswith("-") or not word.lower().endswith(MANIFEST_SUFFIXES):
        return False
    return re.match(r"[+~]*[A-Za-z_][\w./@]*=", word) is None or Path(word).is_file()


def _needs_quotes(key: str, value: str, is_sweep: bool) -> bool:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return False
    if is_sweep and key == "manifest" and "," in value and not Path(value).exists():
        return False  # a sweep over manifests
    return True


def _quoted(value: str) -> str:
    """Return a Hydra string literal that means exactly this text, interpolation included."""
    text = value.replace("${", "\\${")
    text = re.sub(r"(\\*)(\"|$)", lambda m: m[1] * 2 + ("\\" if m[2] else "") + m[2], text)
    return f'"{text}"'


def _unquoted(value: str) -> str:
    return value.strip("'\"")


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")


def _swept_keys(arguments: Sequence[str]) -> list[str]:
    if not any(a in ("-m", "--multirun") for a in arguments):
        return []
    overrides = [a for a in arguments if "=" in a and not a.startswith("-")]
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [o.key_or_group for o in parsed if o.is_sweep_override()]


def _refuse(message: str) -> int:
    print(f"hv15-batch: {message}", file=sys.stderr)
    return EXIT_REFUSED


def _message(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{error.filename}: no permission ({error.strerror})."
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _hydra_message(error)
    return str(error)


def _hydra_message(error: Exception) -> str:
    """Return Hydra's message without its internals, with what to do."""
    message = str(error).strip()
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: not understood as key=value ({message.splitlines()[0]}); "
            "put a value with special characters in quotes: 'key=\"value\"'."
        )
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("object_type=", "full_key:"))]
    match = re.search(r"full_key: (\S+)", message)
    if match and not any(match[1] in line for line in lines):
        lines[0] = f"{match[1]}: {lines[0]}"
    text = "\n".join(lines)
    if "step_distilled" in text and "t2v" in text:
        text += f"\n{STEP_DISTILLED_T2V[0].upper()}{STEP_DISTILLED_T2V[1:]}."
    return text


def entry() -> Any:
    """Console script: exit with the code of `main`."""
    sys.exit(main())
