"""Hydra behind one function: from words to typed settings, once or for each job of a sweep."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from hv15_batch.config.messages import report_error
from hv15_batch.config.settings import Config
from hv15_batch.config.words import check_settings, for_hydra, key_of, translate, value_of
from hv15_batch.errors import EXIT_OK, EXIT_REFUSED, EXIT_SIGINT
from hv15_batch.model.options import conf_dir
from hv15_batch.rundir.paths import MAX_FOLDER_NAME


@dataclass(frozen=True)
class Job:
    """One composed configuration and what was typed to get it."""

    config: Config
    typed: dict[str, str]
    """Settings that were typed, with their values as text; in a sweep those of this job."""
    swept: tuple[str, ...]
    """Settings with several values; empty outside a sweep."""

    def sweep_folder(self) -> str:
        """Return the name of this job's folder: its swept values joined with `-`."""
        return sweep_folder_name([self.typed[key] for key in self.swept])


def run_jobs(arguments: Sequence[str], run: Callable[[Job], int]) -> int:
    """Compose the settings and run the job, or each job of a sweep; return the worst code.

    One job that fails does not end a sweep; an interrupted one does.

    Raises:
        ConfigError: words that are no settings.
        hydra.errors.HydraException: settings that cannot be composed.
    """
    flags, settings = translate(arguments)
    swept = check_settings(settings, is_sweep=bool({"-m", "--multirun"} & set(flags)))
    codes: list[int] = []

    def task(composed: DictConfig) -> None:
        overrides = HydraConfig.get().overrides.task
        typed = {key_of(override): value_of(override) for override in overrides}
        try:
            codes.append(run(Job(to_config(composed), typed, swept)))
        except Exception as error:
            values = " ".join(f"{key}={typed[key]}" for key in swept)
            code = report_error(error, f"In the job {values}:" if swept else "")
            if code is None:
                raise  # Hydra keeps it until the other jobs of a sweep have run
            codes.append(code)
        if codes[-1] >= EXIT_SIGINT:
            raise KeyboardInterrupt

    ConfigStore.instance().store(name="config_schema", node=Config)
    try:
        with _hydra_command_line([*flags, *map(for_hydra, settings)]):
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(
                task
            )()
    except KeyboardInterrupt:
        if not codes:
            raise
    except SystemExit as stop:  # of Hydra's own commands, for example an unknown --package
        return EXIT_REFUSED if stop.code else EXIT_OK
    return max(codes, default=EXIT_OK)


def to_config(composed: DictConfig) -> Config:
    """Return the typed settings of a composed configuration.

    Raises:
        omegaconf.errors.OmegaConfBaseException: a value is of the wrong type or missing.
    """
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    return config


@contextmanager
def _hydra_command_line(words: Sequence[str]) -> Iterator[None]:
    """Give Hydra its words, a folder for what it writes, and no say in how errors are shown."""
    saved_argv, saved_full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    with tempfile.TemporaryDirectory(prefix="hv15_batch-") as folder:
        # A sweep writes multirun.yaml into its directory, whatever is configured. What is typed
        # last wins: a folder typed by the user would be made beside the run directory.
        sys.argv = [
            "hv15-batch",
            *words,
            f"hydra.run.dir='{folder}'",
            f"hydra.sweep.dir='{folder}'",
            "hydra.sweep.subdir=job",
            "hydra.output_subdir=null",
            "hydra.job.name=hv15_batch",
        ]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises; else it prints and exits with 1
        try:
            yield
        finally:
            sys.argv = saved_argv
            if saved_full is None:
                del os.environ["HYDRA_FULL_ERROR"]
            else:
                os.environ["HYDRA_FULL_ERROR"] = saved_full


def sweep_folder_name(values: list[str]) -> str:
    """Return a folder name of swept values, joined with `-`, safe on every file system."""
    name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", value) for value in values).strip("._-")
    if len(name) > MAX_FOLDER_NAME or name != "-".join(values) or "" in values:
        # Cut, replaced or empty: what tells the values apart may be gone.
        digest = hashlib.sha256("\0".join(values).encode()).hexdigest()[:8]
        name = f"{name[: MAX_FOLDER_NAME - 9]}-{digest}".lstrip("-")
    return name
