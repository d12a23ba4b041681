"""Which kernels of the hub are on this machine, for this torch; and how one is fetched.

A kernel is compiled code. Only a name that the user types is fetched, by `prefetch` alone, and a
run takes what was fetched, by its commit. No torch here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hv15_batch.errors import Refused
from hv15_batch.files import parse_json, read_json
from hv15_batch.machine.machine import package_version
from hv15_batch.model.attention import HubKernel, hub_of, package_fault, package_of
from hv15_batch.units import Say
from hv15_batch.weights.checkpoint import cache_root
from hv15_batch.weights.files import write_json

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CODE = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    f"from {__package__}._child import answer; answer()"
)
"""Of the process that downloads. Python puts the current folder first on the path, for `-m` too. A
`kernels.py` of the user there must not take the package's place."""
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class Fetched:
    """A kernel on this machine."""

    repo: str
    commit: str
    folder: Path
    """Of the build that was chosen."""
    torch_version: str
    """That it was chosen for."""


def find_fetched(backend: str) -> Fetched | None:
    """Return what `prefetch` fetched for a backend; None without, or where it is gone."""
    hub = hub_of(backend)
    if hub is None:
        return None
    try:
        stored = read_json(_record_file(hub))
        found = Fetched(
            hub.repo, str(stored["commit"]), Path(stored["folder"]), str(stored["torch_version"])
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged note counts as none
    return found if _COMMIT.fullmatch(found.commit) and found.folder.is_dir() else None


def hub_fault(backend: str) -> str | None:
    """Return that a kernel of the hub is not here and what to type, or None."""
    if hub_of(backend) is None:
        return None
    found, torch_version = find_fetched(backend), package_version("torch")
    where = f"runtime.attention_backend={backend}"
    fetch = f"fetch it with `hv15-batch prefetch {where}`, or leave it at auto."
    if found is None:
        return f"{where}: compiled code of the hub that is not on this machine; {fetch}"
    if found.torch_version != torch_version:
        return (
            f"{where}: was fetched for torch {found.torch_version}, and {torch_version} is "
            f"installed; {fetch}"
        )
    return None


def fetch_kernel(
    backend: str,
    *,
    say: Say,
    environ: Mapping[str, str] = os.environ,
) -> Fetched:
    """Download the build of a kernel that fits this torch, and note its commit.

    Args:
        backend: A name with a `hub`.
        say: Prints a line for the user.
        environ: Of the process that downloads; HF_HUB_OFFLINE is read.

    Raises:
        Refused: `kernels` is missing, offline, or refused by the hub or by `kernels`.
    """
    hub, where = hub_of(backend), f"runtime.attention_backend={backend}"
    assert hub is not None
    package = package_of(backend)
    if package is not None and (fault := package_fault(backend)):
        raise Refused(f"{where}: {fault}; install it with `{package.install}`.")
    found = find_fetched(backend)
    if found is not None and hub_fault(backend) is None:
        say(f"{where}: {hub.repo} at {found.commit[:12]} is in {found.folder}")
        return found
    for name in _OFFLINE:
        if environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise Refused(
                f"{where}: {hub.repo} is not on this machine, and {name}={environ[name]} forbids "
                f"fetching it; run once with network: {name}=0 hv15-batch prefetch {where}"
            )
    say(f"{where}: compiled code of {hub.repo}, {hub.revision}, is fetched; a run executes it")
    folder = Path(_download(hub, where, environ))
    commit = _commit_of(folder)
    if commit is None:
        raise Refused(f"{where}: {folder} is not in a snapshot of the hub's cache; use auto.")
    fetched = Fetched(hub.repo, commit, folder, str(package_version("torch")))
    stored = {"commit": commit, "folder": str(folder), "torch_version": fetched.torch_version}
    write_json(_record_file(hub), stored)
    say(f"complete: {hub.repo} at {commit[:12]} in {folder}")
    return fetched


def _download(hub: HubKernel, where: str, environ: Mapping[str, str]) -> str:
    """Return the folder that the child process names; its bars go to stderr."""
    package_root = str(Path(__file__).resolve().parents[3])
    # An empty part would be the current folder.
    paths = [package_root, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]
    ended = subprocess.run(
        [sys.executable, "-c", _CODE, hub.repo, hub.revision],
        env={**environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    told: Any = None
    with suppress(ValueError, IndexError):
        told = parse_json(ended.stdout.splitlines()[-1])
    told = told if isinstance(told, dict) else {}
    if ended.returncode != 0 or not isinstance(told.get("folder"), str):
        default = f"the download ended with exit code {ended.returncode} and named no folder"
        reason = str(told.get("error", default))
        raise Refused(f"{where}: {hub.repo} cannot be fetched: {reason.rstrip('.')}; use auto.")
    return str(told["folder"])


def _commit_of(folder: Path) -> str | None:
    """Return the commit in .../snapshots/COMMIT/build/VARIANT."""
    for part in folder.parts:
        if _COMMIT.fullmatch(part):
            return part
    return None


def _record_file(hub: HubKernel) -> Path:
    return cache_root() / "kernels" / f"{hub.repo.replace('/', '--')}--{hub.revision}.json"
