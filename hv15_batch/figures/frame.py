"""The logs of runs as one pandas frame, with the settings in which the runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hv15_batch.config.settings import NOT_TYPED, OF_ONE_COMMAND, Config
from hv15_batch.planning.tables import read_plan
from hv15_batch.rundir.log import last_attempts, read_records
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.schema import arrow_schema
from hv15_batch.rundir.stored import run_settings

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_NOT_COMPARED = (*OF_ONE_COMMAND, "run_dir", "resume", "dry_run", "sweep_value")
"""Settings about a run's place or one command, which do not change how clips are made."""
_FROM_PLAN = ("clip_id", "row_id", "row_index")
"""Taken from today's manifest: a renamed row keeps its clip under the new name."""


def read_frame(run_dirs: Sequence[RunDir], *, all_attempts: bool) -> DataFrame:
    """Return the current clips of all these runs, or every attempt, a row each.

    Raises:
        LogSchemaError: a log cannot be read.
    """
    import pandas as pd
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    settings: list[dict[str, Any]] = []
    for run_dir in run_dirs:
        found = read_records(run_dir.log).to_pylist()
        chosen = found if all_attempts else _current_clips(run_dir, found)
        rows += [row | {"run_dir": run_dir.shown()} for row in chosen]
        folders = run_dir.run_folders()
        run_ids = {row["run_id"] for row in chosen}
        by_run = {run_id: _flat_settings(folders.get(run_id)) for run_id in run_ids}
        settings += [by_run[row["run_id"]] for row in chosen]
    schema = arrow_schema().append(pa.field("run_dir", pa.string()))
    table = pa.Table.from_pylist(rows, schema=schema)
    frame: DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    for name in _differing(settings):
        frame[name] = arrow_series([values.get(name) for values in settings])
    return frame


def arrow_series(values: Sequence[Any]) -> Series[Any]:
    """Return a column of Arrow's type for these values; of Python's where they are of several."""
    import pandas as pd
    import pyarrow as pa

    series: Series[Any]
    try:
        series = pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values)))
    except (pa.ArrowException, OverflowError):
        series = pd.Series(values, dtype="object")
    return series


def _current_clips(run_dir: RunDir, attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last attempt at each clip of the current manifest, in the plan's order."""
    last = {row["settings_sha256"]: row for row in last_attempts(attempts)}
    if not run_dir.plan.is_file():
        return list(last.values())
    return [
        last[line["settings_sha256"]] | {name: line[name] for name in _FROM_PLAN}
        for line in read_plan(run_dir)
        if line["settings_sha256"] in last
    ]


def _flat_settings(folder: Path | None) -> dict[str, Any]:
    """Return the settings in a run's folder by dotted name; empty where they cannot be read.

    What a version before did not have yet has its default.
    """
    stored = run_settings(folder) if folder is not None else {}
    if not stored:
        return {}
    flat = dict(_flatten(asdict(Config()))) | dict(_flatten(stored))
    kept = (name for name in flat if name.partition(".")[0] not in NOT_TYPED)
    return {name: flat[name] for name in kept if name not in _NOT_COMPARED}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value.name if isinstance(value, Enum) else value


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of settings that are not alike in all runs whose settings are known.

    What follows from the model option, for example its repository, is left out: the log's column
    `model` names the option.
    """
    distinct = {json.dumps(one, sort_keys=True, default=str): one for one in settings if one}
    runs = list(distinct.values())
    names = list(dict.fromkeys(name for run in runs for name in run))
    return [name for name in names if _differs(name, runs)]


def _differs(name: str, runs: Sequence[Mapping[str, Any]]) -> bool:
    values: dict[str, set[str]] = {}
    for run in runs:
        option = str(run.get("model.name")) if name.startswith("model.") else ""
        values.setdefault(option, set()).add(json.dumps(run.get(name), default=str))
    return any(len(found) > 1 for found in values.values())
