"""What the log does not have of how a clip was made, from the stored settings of its run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hv15_batch.run_facts import add_run_facts, run_settings
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
    add_run_facts(made, run_dir)
    stored = {run_id for run_id in {r["run_id"] or "" for r in made} if _is_stored(run_dir, run_id)}
    return [
        r | ({"video": r["video"] or NOT_KNOWN} if r["run_id"] in stored else _LOST) for r in made
    ]


_LOST = dict.fromkeys(OF_RUN, NOT_KNOWN)


def _is_stored(run_dir: RunDir, run_id: str) -> bool:
    return bool(run_id) and bool(run_settings(run_dir.run_folder(run_id)))
