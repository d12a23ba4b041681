"""Names of run directories and of runs."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from hv15_batch.clock import utc_now

_MAX_FOLDER_NAME = 120
_RUN_ID = re.compile(r"([0-9]{8}T[0-9]{6})-([0-9]+)-")


def default_run_dir(manifest: Path, sweep: str | None) -> Path:
    """Return outputs/<manifest name>, or the folder of one run of a sweep below it."""
    name = manifest.stem.lstrip(".") or "manifest"
    if sweep is None:
        return Path("outputs") / name
    return Path("outputs") / f"{name}.sweep" / sweep


def new_run_id(existing: Iterable[str]) -> str:
    """Return a name that sorts after all existing ones, also when the clock was set back."""
    matches = (_RUN_ID.match(name) for name in existing)
    newest, number = max(((m[1], int(m[2])) for m in matches if m), default=("", 0))
    stamp = utc_now().strftime("%Y%m%dT%H%M%S")
    stamp, number = (stamp, 0) if stamp > newest else (newest, number + 1)
    return f"{stamp}-{number:04d}-{os.urandom(8).hex()}"


def sweep_folder_name(values: list[str]) -> str:
    """Return a folder name of swept values, joined with `-`, safe on every file system."""
    name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", value) for value in values).strip("._-")
    if len(name) > _MAX_FOLDER_NAME or name != "-".join(values) or "" in values:
        # Cut, replaced or empty: what tells the values apart may be gone.
        digest = hashlib.sha256("\0".join(values).encode()).hexdigest()[:8]
        name = f"{name[: _MAX_FOLDER_NAME - 9]}-{digest}".lstrip("-")
    return name
