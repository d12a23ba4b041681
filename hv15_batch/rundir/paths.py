"""The run directory: its paths, its lock, and the folders of its shards.

Only this module knows the names inside a run directory.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from hv15_batch.config.run_names import new_run_id
from hv15_batch.config.shard import Shard
from hv15_batch.errors import Refused
from hv15_batch.files import SCRATCH, is_temporary, sweep
from hv15_batch.machine.machine import existing_parent
from hv15_batch.rundir._lock import (
    COUNT,
    HOLDER,
    LOCK,
    REWRITING_LOCK,
    SHARDS,
    check_no_link,
    count_of_shards,
    is_another_in_use,
    locked,
    missing_locks,
    moment,
    own_folder,
    rewriting,
    shards_in,
    whole_of,
)
from hv15_batch.rundir.remote.objects import NAMES, Stored, read_stored, read_url
from hv15_batch.units import GIB

MAX_LATENTS_BYTES = 4 * GIB
"""A clip of 4,096 x 4,096 pixels and 1,000 frames has 2 GiB of latents."""

ASSETS = "assets"
"""Folder beside a page with the files that it loads."""
REWRITES = "rewrites.jsonl"
"""Rewritten prompts, one a line, which the user may edit."""


@dataclass(frozen=True)
class RunDir:
    """Paths of one run directory, as one of its shards sees it, or a run of all clips.

    Shards share clips, latents, embeddings, tables and page. Each has a lock, a log, a status and
    runs of its own.
    """

    path: Path
    """Absolute; the directory itself, for shards too."""
    shard: Shard | None = None
    """None for a run of all clips, and for readers."""

    @property
    def own(self) -> Path:
        """The folder that only this shard writes; the directory itself without one."""
        return own_folder(self.path, self.shard)

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
        """Parquet segments of `ClipRecord`s; `rundir.log` reads those of all shards with it."""
        return self.path / "log"

    @property
    def own_log(self) -> Path:
        """The log that this run writes."""
        return self.own / "log"

    @property
    def embeddings(self) -> Path:
        """Cached prompt and image embeddings."""
        return self.path / "embeddings"

    @property
    def runs(self) -> Path:
        """One folder per run of this shard, or of all clips."""
        return self.own / "runs"

    @property
    def rows(self) -> Path:
        """The manifest if its rows came from a DataFrame; JSON Lines."""
        return self.path / "rows.jsonl"

    @property
    def status(self) -> Path:
        """Progress of the current or last run."""
        return self.own / "status.json"

    @property
    def decided(self) -> Path:
        """What was decided once for all runs."""
        return self.path / "decided.json"

    @property
    def pause(self) -> Path:
        """While this file exists no further clip starts."""
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
        """Timings of a benchmark's repetitions; the `.md` beside it has them as Markdown."""
        return self.path / "benchmark.csv"

    @property
    def page(self) -> Path:
        """The page."""
        return self.path / "index.html"

    @property
    def lock_holder(self) -> Path:
        """The note of who holds the lock, while it is held."""
        return self.own / HOLDER

    @property
    def url(self) -> str | None:
        """The URL of which this is the working folder; None for a run directory on a disk."""
        return read_url(self.path)

    def stored(self) -> Stored | None:
        """Return what object storage has of this run; None for a run directory on a disk."""
        return read_stored(self.path)

    def shown(self, path: Path | None = None) -> str:
        """Return how the user knows the run directory, or a path in it: by its path or URL."""
        url = self.url
        if url is None:
            return str(path or self.path)
        return url if path is None else f"{url}/{self.relative(path)}"

    def latents_file(self, denoise_sha256: str) -> Path:
        """Return where the latents of these denoise settings are kept."""
        return self.latents / f"{denoise_sha256}.safetensors"

    def saved_latents(self) -> set[str]:
        """Return the `denoise_sha256` of all saved latents."""
        suffix = ".safetensors"
        names: list[str] = []
        with suppress(OSError):  # none yet, or not readable: they are denoised again
            names = os.listdir(self.latents)
        found = {n.removesuffix(suffix) for n in names if n[0] != "." and n.endswith(suffix)}
        stored = self.stored()
        return found if stored is None else found | stored.latents.keys()

    def relative(self, path: Path) -> str:
        """Return a path as the log stores it."""
        return path.relative_to(self.path).as_posix()

    def create(self) -> None:
        """Create the folder tree.

        Raises:
            Refused: The disk does not allow it.
        """
        for folder in self.written_folders():
            self.create_folder(folder)

    def create_folder(self, folder: Path | None = None) -> None:
        """Create one folder, by default the run directory itself; raise like `create`."""
        try:
            (folder or self.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Refused(
                f"run_dir={self.path}: cannot be made ({error.strerror}); name a folder that can "
                "be written with run_dir=DIR."
            ) from error

    def check_usable(self) -> None:
        """Refuse a folder that holds other files than those of a run.

        Empty folders of a run are accepted: a run may have ended while it made them.

        Raises:
            Refused: The folder exists, is not empty and is no run directory.
        """
        if self.path.exists() and not self.path.is_dir():
            raise Refused(
                f"run_dir={self.path}: a file has that name; name a folder with run_dir=DIR."
            )
        self._check_whole()
        check_no_link(self.path, self.shard)
        if not self.path.exists():
            return
        ours = {SHARDS, *(folder.name for folder in self.written_folders()[1:])}
        names = {
            entry.name
            for entry in self.path.iterdir()
            if not is_temporary(entry.name) and not (entry.name in ours and _is_begun(entry))
        } - {self.plan.name, LOCK, HOLDER, REWRITING_LOCK, COUNT, *NAMES}
        if names and not self.is_run_dir():
            raise Refused(
                f"run_dir={self.path}: holds other files ({', '.join(sorted(names)[:3])}) and is "
                "no run directory; name an empty or new folder with run_dir=DIR."
            )

    def is_run_dir(self) -> bool:
        """Whether a run was started here before."""
        return RunDir(self.path).runs.is_dir() or self.log.is_dir() or bool(self.shard_dirs())

    def check_started(self) -> None:
        """Refuse a folder in which no run was started.

        Raises:
            Refused: It is no run directory, or the folder of a shard in one.
        """
        self._check_whole()
        if not self.is_run_dir():
            raise Refused(
                f"{self.shown()}: no run directory (it has no log); "
                "name the folder that a run prints in its first line."
            )

    def written_folders(self) -> tuple[Path, ...]:
        """Return the run directory and its folders that runs write to."""
        own = (self.own_log, self.runs)
        return (self.path, self.clips, self.latents, self.thumbs, *own, self.embeddings)

    def sweep_temporary(self) -> int:
        """Remove files of interrupted writes; return how many. Needs the lock.

        Only names in the form of `files.py` and in real folders are removed. Hidden files of a user
        and files behind a link stay. A shard leaves the folders that all shards write alone while
        another one renders. A run of all clips sweeps everything: no shard starts beside it.
        """
        if self.shard is None:
            each = (folder for d in self._each() for folder in d._own_folders())
            return sum(map(sweep, [*self._common_folders(), *each]))
        num_removed = sum(map(sweep, self._own_folders()))
        with self.moment():
            if not is_another_in_use(self.path, self.shard):
                num_removed += sum(map(sweep, self._common_folders()))
        return num_removed

    def _own_folders(self) -> list[Path]:
        own = [] if self.shard is None else [self.own]
        runs = () if self.runs.is_symlink() else sorted(self.runs.rglob("*"))
        return [*own, self.own_log, self.runs, *(path for path in runs if path.is_dir())]

    def _common_folders(self) -> list[Path]:
        # The run directory itself was typed, so it may be a link.
        names = ("clips", "latents", "thumbs", "embeddings", "inputs", "picks", "frames", "films")
        return [self.path.resolve(), *(self.path / name for name in (*names, ASSETS))]

    def linked_folders(self) -> list[tuple[str, Path]]:
        """Return the folders of this run that are links, and their targets."""
        return [(p.name, p.resolve()) for p in self.written_folders()[1:] if p.is_symlink()]

    @contextmanager
    def locked(self, run_id: str) -> Iterator[int | None]:
        """Hold the lock of the directory, or of this shard; yield its descriptor, if it has one.

        The kernel releases it when all processes that have the descriptor are gone.

        Raises:
            Refused: Another run holds it, or its clips (the message names that run), the file
                system has no locks, or the lock's file is a link.
        """
        if fault := self.lock_fault():
            raise Refused(fault)
        with locked(self.path, self.shard, run_id) as descriptor:
            yield descriptor

    @contextmanager
    def moment(self, seconds: float | None = None) -> Iterator[None]:
        """Keep other shards from starting and from writing tables and page, for a moment.

        A run of all clips holds that lock all the time, so it waits for nothing.

        Raises:
            Refused: The lock is not free within so many seconds; None means some minutes.
        """
        with nullcontext() if self.shard is None else moment(self.path, seconds):
            yield

    def rewriting(self, tell: Callable[[str], None]) -> AbstractContextManager[None]:
        """Return what keeps other shards from rewriting; it waits for them and says so."""
        return nullcontext() if self.shard is None else rewriting(self.path, tell)

    def lock_fault(self) -> str | None:
        """Return why the folder, or its nearest parent, cannot be locked; None if it can."""
        folder = existing_parent(self.path)
        reason = missing_locks(folder)
        if reason is None:
            return None
        return (
            f"run_dir={self.path}: the file system of {folder} has no file locks ({reason}), and "
            "two runs at once would spoil the folder; name one on a local disk with run_dir=DIR, "
            "or mount this one with locks (NFS without nolock, Lustre with flock)."
        )

    # -- shards -------------------------------------------------------------------------------

    def shard_dirs(self) -> list[RunDir]:
        """Return the directory as each shard sees it that was ever started, of any count."""
        return [RunDir(self.path, shard) for shard in shards_in(self.path)]

    def _each(self) -> list[RunDir]:
        return [RunDir(self.path), *self.shard_dirs()]

    def _check_whole(self) -> None:
        """Refuse the folder of a shard in the place of the run directory.

        Raises:
            Refused: The message names the directory.
        """
        whole = whole_of(self.path)
        if whole != self.path and count_of_shards(whole) is not None:
            raise Refused(f"{self.path}: is the folder of a shard; name {whole}.")

    # -- runs ---------------------------------------------------------------------------------

    def run_folder(self, run_id: str) -> Path:
        """Return the folder of one run; of a new one that of this shard."""
        folders = [d.runs / run_id for d in (self, *self._each())]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    def run_log(self, run_id: str) -> Path:
        """Return the text log of one run."""
        return self.run_folder(run_id) / "run.log"

    def run_folders(self) -> dict[str, Path]:
        """Return the folders of the runs that were started here, of all shards, oldest first."""
        found = [path.parent for d in self._each() for path in d.runs.glob("*/config.yaml")]
        return {folder.name: folder for folder in sorted(found, key=lambda folder: folder.name)}

    def run_ids(self) -> list[str]:
        """Return the ids of the same runs, oldest first."""
        return list(self.run_folders())

    def new_run_id(self) -> str:
        """Return an id for the next run, which sorts after all others."""
        folders = [folder for d in self._each() for folder in (d.runs, d.own_log)]
        return new_run_id(path.name for folder in folders for path in folder.glob("*"))


def _is_begun(folder: Path) -> bool:
    """Whether it is an empty folder, or a link to one, that a user made beforehand.

    What the pasted command of a dry run left in a folder of `SCRATCH` does not count.
    """
    names = () if folder.is_symlink() or not folder.is_dir() else os.listdir(folder)
    return folder.is_dir() and all(name.startswith(SCRATCH) for name in names)


def resume_command(path: Path, shard: Shard | None = None) -> str:
    """Return what to type to resume the run of a directory, or of a shard, quoted for a shell."""
    words = ["hv15-batch", f"resume={RunDir(path).shown()}"]
    return shlex.join([*words, *([f"shard={shard}"] if shard else [])])


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
