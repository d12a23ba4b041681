"""The run directory: its paths and its lock.

The only module that knows names inside a run directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from hv15_batch.clock import utc_now
from hv15_batch.errors import Refused
from hv15_batch.files import is_temporary, sweep
from hv15_batch.machine.machine import existing_parent
from hv15_batch.rundir._lock import RunLock, held_message, holder_facts, missing_locks
from hv15_batch.rundir.publish import publish_text
from hv15_batch.units import GIB

MAX_LATENTS_BYTES = 4 * GIB
"""A clip of 4,096 x 4,096 pixels and 1,000 frames has 2 GiB of them."""

_LOCK_NAMES = (".lock", ".lock.json")
_MAX_FOLDER_NAME = 120
_RUN_ID = re.compile(r"([0-9]{8}T[0-9]{6})-([0-9]+)-")
ASSETS = "assets"
"""Folder beside a page for what it loads."""


@dataclass(frozen=True)
class RunDir:
    """Paths of one run directory."""

    path: Path
    """Absolute."""

    @property
    def clips(self) -> Path:
        """Finished videos."""
        return self.path / "clips"

    @property
    def latents(self) -> Path:
        """Denoised latents."""
        return self.path / "latents"

    @property
    def thumbs(self) -> Path:
        """One JPEG per clip."""
        return self.path / "thumbs"

    @property
    def log(self) -> Path:
        """Parquet segments of `ClipRecord`s."""
        return self.path / "log"

    @property
    def embeddings(self) -> Path:
        """Cached prompt and image embeddings."""
        return self.path / "embeddings"

    @property
    def runs(self) -> Path:
        """One folder per invocation."""
        return self.path / "runs"

    @property
    def rows(self) -> Path:
        """The manifest where its rows came from a DataFrame; JSON Lines."""
        return self.path / "rows.jsonl"

    @property
    def status(self) -> Path:
        """Progress of the current or last run."""
        return self.path / "status.json"

    @property
    def pause(self) -> Path:
        """While this file exists no further clip is begun."""
        return self.path / "pause"

    @property
    def plan(self) -> Path:
        """Every clip of the current manifest, its state and why."""
        return self.path / "plan.csv"

    @property
    def clips_table(self) -> Path:
        """One line per current clip, for spreadsheets."""
        return self.path / "clips.csv"

    @property
    def benchmark_table(self) -> Path:
        """Timings of a benchmark's repetitions; as Markdown in the `.md` beside it."""
        return self.path / "benchmark.csv"

    @property
    def page(self) -> Path:
        """The page."""
        return self.path / "index.html"

    @property
    def lock_holder(self) -> Path:
        """Who holds the directory's lock, while somebody does."""
        return self.path / ".lock.json"

    def latents_file(self, denoise_sha256: str) -> Path:
        """Return where the latents of these denoise settings are kept."""
        return self.latents / f"{denoise_sha256}.safetensors"

    def saved_latents(self) -> set[str]:
        """Return the `denoise_sha256` of all saved latents."""
        suffix = ".safetensors"
        names: list[str] = []
        with suppress(OSError):  # none yet, or not readable: they are denoised again
            names = os.listdir(self.latents)
        return {n.removesuffix(suffix) for n in names if n[0] != "." and n.endswith(suffix)}

    def relative(self, path: Path) -> str:
        """Return a path as the log stores it."""
        return path.relative_to(self.path).as_posix()

    def create(self) -> None:
        """Create the folder tree.

        Raises:
            Refused: the disk does not allow it.
        """
        for folder in self.written_folders():
            self.create_folder(folder)

    def create_folder(self, folder: Path | None = None) -> None:
        """Create one folder, by default the run directory itself; raises as `create` does."""
        try:
            (folder or self.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(
                f"run_dir={self.path}: cannot be made ({error.strerror}); name a folder that can "
                "be written with run_dir=DIR."
            ) from error

    def check_usable(self) -> None:
        """Refuse a folder that holds something else than a run.

        Empty folders of a run are what is left where it ended between making them.

        Raises:
            Refused: the folder exists, is not empty and is no run directory.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise Refused(
                f"run_dir={self.path}: a file has that name; name a folder with run_dir=DIR."
            )
        ours = {folder.name for folder in self.written_folders()[1:]}
        names = {
            entry.name
            for entry in self.path.iterdir()
            if not is_temporary(entry.name) and not (entry.name in ours and _is_begun(entry))
        } - {self.plan.name, *_LOCK_NAMES}
        if names and not self.is_run_dir():
            raise Refused(
                f"run_dir={self.path}: holds other files ({', '.join(sorted(names)[:3])}) and is "
                "no run directory; name an empty or new folder with run_dir=DIR."
            )

    def is_run_dir(self) -> bool:
        """Whether a run was started here before."""
        return self.runs.is_dir() or self.log.is_dir()

    def check_started(self) -> None:
        """Refuse a folder in which no run was started.

        Raises:
            Refused: it is no run directory.
        """
        if not self.is_run_dir():
            raise Refused(
                f"{self.path}: no run directory (it has no log); "
                "name the folder that a run has printed as its first line."
            )

    def written_folders(self) -> tuple[Path, ...]:
        """Return the run directory and its folders that runs write to."""
        parts = (self.clips, self.latents, self.thumbs, self.log, self.embeddings, self.runs)
        return (self.path, *parts)

    def sweep_temporary(self) -> int:
        """Remove what an interrupted write left behind; return how many files. Needs the lock.

        Only files with a name of the form of `files.py`, out of real folders: neither a hidden file
        of a user nor anything behind a link is touched.
        """
        parts = [*self.written_folders()[1:], self.path / ASSETS]
        if not self.runs.is_symlink():
            parts += sorted(self.runs.iterdir())
        # The run directory itself was typed, and may be a link.
        return sum(map(sweep, [self.path.resolve(), *parts]))

    def linked_folders(self) -> list[tuple[str, Path]]:
        """Return the folders of this run that are links, and where they lead."""
        parts = self.written_folders()[1:]
        return [(part.name, part.resolve()) for part in parts if part.is_symlink()]

    @contextmanager
    def locked(self, run_id: str) -> Iterator[int | None]:
        """Hold the directory's lock and yield its descriptor, if it has one.

        The kernel releases it when all processes that have the descriptor are gone.

        Raises:
            Refused: another run holds it, and the message says which; or its file system has no
                locks, or a link is in the place of the lock.
        """
        holder = self.lock_holder
        file = self.path / ".lock"
        if fault := self.lock_fault():
            raise Refused(fault)
        if file.is_symlink():  # not every version of the library minds
            raise Refused(f"{file}: is a link, where a run locks its folder; remove the link.")
        lock = RunLock(file, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise Refused(held_message(self.path, holder)) from None
        try:
            publish_text(holder, json.dumps(holder_facts(run_id, utc_now())))
            yield lock.descriptor
        finally:
            # How the run ended is told by what it did, not by these.
            with suppress(OSError):
                holder.unlink(missing_ok=True)
            with suppress(OSError):
                lock.release()

    def lock_fault(self) -> str | None:
        """Return why the folder, or where it would be made, cannot be locked; None where it can."""
        folder = existing_parent(self.path)
        reason = missing_locks(folder)
        if reason is None:
            return None
        return (
            f"run_dir={self.path}: the file system of {folder} has no file locks ({reason}), and "
            "two runs at once would spoil the folder; name one on a local disk with run_dir=DIR, "
            "or mount this one with locks (NFS without nolock, Lustre with flock)."
        )

    # -- runs ---------------------------------------------------------------------------------

    def run_folder(self, run_id: str) -> Path:
        """Return the folder of one invocation."""
        return self.runs / run_id

    def run_log(self, run_id: str) -> Path:
        """Return the text log of one invocation."""
        return self.run_folder(run_id) / "run.log"

    def run_ids(self) -> list[str]:
        """Return the invocations that were started here, oldest first."""
        return sorted(path.parent.name for path in self.runs.glob("*/config.yaml"))

    def new_run_id(self) -> str:
        """Return a name for the next invocation, which sorts after all others."""
        return new_run_id(path.name for path in (*self.runs.glob("*"), *self.log.glob("*")))


def _is_begun(folder: Path) -> bool:
    """Whether it is an empty folder, or a link to one that a user has made beforehand."""
    return folder.is_dir() and (folder.is_symlink() or not any(folder.iterdir()))


def resume_command(path: Path) -> str:
    """Return what to type to resume the run of a directory, quoted for a shell."""
    return shlex.join(["hv15-batch", f"resume={path}"])


def default_run_dir(manifest: Path, sweep: str | None) -> Path:
    """Return outputs/<manifest name>, or the folder of one sweep job below it."""
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
    return f"{stamp}-{number:04d}-{os.urandom(2).hex()}"


def find_runs(*folders: str | Path) -> list[RunDir]:
    """Return the run directories that are named, a sweep's folder meaning all its runs.

    Raises:
        Refused: one of them is neither.
    """
    found = [RunDir(path.absolute()) for folder in folders for path in expand(Path(folder))]
    for run_dir in found:
        run_dir.check_started()
    return found


def expand(folder: Path) -> list[Path]:
    """Return the run directories of a sweep's folder in the order of their names, else itself."""
    if RunDir(folder).is_run_dir() or not folder.is_dir():
        return [folder]
    jobs = sorted(p for p in folder.iterdir() if p.is_dir() and RunDir(p).is_run_dir())
    return jobs or [folder]


def sweep_folder_name(values: list[str]) -> str:
    """Return a folder name of swept values, joined with `-`, safe on every file system."""
    name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "_", value) for value in values).strip("._-")
    if len(name) > _MAX_FOLDER_NAME or name != "-".join(values) or "" in values:
        # Cut, replaced or empty: what tells the values apart may be gone.
        digest = hashlib.sha256("\0".join(values).encode()).hexdigest()[:8]
        name = f"{name[: _MAX_FOLDER_NAME - 9]}-{digest}".lstrip("-")
    return name
