"""What the log does not have of how a clip was made, from the stored settings of its run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hv15_batch.run_facts import run_columns, run_ids_of, run_settings
from hv15_batch.rundir import RunDir

OF_RUN = ("video", "vram_limit_gib")
"""Names that `with_run_settings` adds."""
NOT_KNOWN = "not known"
"""Of a run whose settings are gone."""


def with_run_settings(
    run_dir: RunDir, records: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return records of a log with how files were encoded and how much memory was to be used."""
    made = [dict(record) for record in records]
    found = {name: _of_run(run_settings(run_dir.run_folder(name))) for name in run_ids_of(made)}
    return [record | found.get(record["run_id"], _of_run({})) for record in made]


def _of_run(settings: Mapping[str, Any]) -> dict[str, Any]:
    if not settings:
        return dict.fromkeys(OF_RUN, NOT_KNOWN)
    columns = run_columns(settings, {})
    return {"video": columns["video"] or NOT_KNOWN, "vram_limit_gib": columns["vram_limit_gib"]}
