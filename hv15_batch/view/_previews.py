"""Pictures of clips that denoise: which there are, and under which addresses a page gets them.

An address is made of numbers: those of the run, of its shard and of the worker. A picture whose
address is not in the list of now does not exist for a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hv15_batch.rundir.chosen.previews import found_previews
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.status import ACTIVE_STATES, Status, WorkerStatus, is_gone
from hv15_batch.status.overall import OverallStatus

PREVIEWS = "previews"
"""The addresses begin with this."""


def shown_previews(number: int, run_dir: RunDir, status: Status) -> list[dict[str, Any]]:
    """Return what a page shows of a run's clips that denoise, as JSON-able values.

    Args:
        number: Of the run on the page.
        run_dir: Its directory.
        status: How it stands; a run that has ended shows none.
    """
    by_folder = {0: status}
    if isinstance(status, OverallStatus):
        names = {str(own.shard): n for n, own in enumerate(run_dir.shard_dirs(), 1) if own.shard}
        by_folder |= {names[name]: part for name, part in status.shards if name in names}
    shown = []
    for (folder, worker), (name, written) in sorted(found_previews(run_dir).items()):
        part = by_folder.get(folder)
        if part is None or part.state not in ACTIVE_STATES or is_gone(part):
            continue
        at = _at_work(part, worker)
        if at is not None and at.clip_id:
            shown.append(
                {
                    "address": f"{PREVIEWS}/{number}/{folder}/{worker}",
                    "name": name,
                    "version": str(written),  # more digits than a number of JavaScript has
                    "clip": at.clip_id,
                    "step": at.step,
                    "steps": at.steps,
                }
            )
    return shown


def preview_files(statuses: Iterable[Mapping[str, Any]]) -> dict[str, tuple[int, str]]:
    """Return number of the run and path below it of each picture shown, by address."""
    return {
        f"/{preview['address']}": (number, preview["name"])
        for number, status in enumerate(statuses)
        for preview in status.get("previews", ())
    }


def _at_work(status: Status, worker: int) -> Status | WorkerStatus | None:
    """Return what says what a worker does; None for one that the run does not have."""
    if not status.workers:
        return status if worker == 0 else None
    return next((each for each in status.workers if each.worker == worker), None)
