"""`report --grid`: the picks, or all clips, of some runs as one labelled video."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hv15_batch.errors import Refused, system_message
from hv15_batch.report._comparison import common_folder, named_apart
from hv15_batch.report._read import RunData, read_run
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing
from hv15_batch.rundir.store import fetched
from hv15_batch.units import counted

PICKS, ALL = "picks", "all"
LEAST_OF_PICKS = 4
"""Stars of a pick, as the page begins with."""


def check_grid(path: Path | None, which: str | None) -> None:
    """Refuse a file that a grid cannot be written to, before anything is touched.

    Raises:
        Refused: It is no `.mp4`, its folder is missing, or another file would be lost.
    """
    if path is None:
        if which is not None:
            raise Refused("--grid-of: chooses the clips of a grid; add --grid FILE.mp4.")
        return
    if path.suffix.lower() != ".mp4":
        raise Refused(f"--grid={path}: must end in .mp4, because a grid is an H.264 video.")
    if not path.parent.is_dir():
        raise Refused(f"--grid={path}: its folder must exist; make it: mkdir -p {path.parent}")
    if os.path.lexists(path):
        from hv15_batch.media.grid import is_grid

        if path.is_symlink() or not is_grid(path):
            raise Refused(f"--grid={path}: exists and is no grid; choose another name.")


def write_run_grid(run_dirs: Sequence[Path], path: Path, which: str | None) -> str:
    """Write the grid of some runs; return a line that says what it holds.

    Args:
        run_dirs: Run directories.
        path: File to write, whole or not at all; an earlier grid is replaced.
        which: `picks`, `all`, or None for the picks where there are any, else all.

    Raises:
        Refused: No clip is there to show, there are too many, or one cannot be read.
        LogSchemaError: A log cannot be read.
        OSError: The file cannot be written.
    """
    from hv15_batch.media.grid import MAX_CELLS, Cell, write_grid

    runs = [read_run(RunDir(each.absolute())) for each in run_dirs]
    if len(runs) > 1:
        runs = named_apart(runs, common_folder([run.directory.path for run in runs]))
    shown = [each for run in runs for each in _shown(run, len(runs) > 1)]
    picks = [each for each in shown if each.is_pick]
    if which == PICKS and not picks:
        raise Refused(
            f"--grid-of=picks: no clip has {LEAST_OF_PICKS} stars or more; rate some with "
            "hv15-batch view, or use --grid-of=all."
        )
    chosen = picks if which == PICKS or (which is None and picks) else shown
    if not chosen:
        raise Refused(f"--grid={path}: no finished clip with a file; render some first.")
    if len(chosen) > MAX_CELLS:
        raise Refused(
            f"--grid={path}: {len(chosen)} clips, and a grid holds {MAX_CELLS}; rate the best "
            f"with {LEAST_OF_PICKS} stars or more and use --grid-of=picks."
        )
    try:
        with publishing(path) as temporary:
            cells = [Cell(each.file(), each.label) for each in chosen]
            layout = write_grid(cells, temporary)
    except ValueError as error:
        raise Refused(f"--grid={path}: {error}; render that clip again.") from error
    except OSError as error:
        raise Refused(f"--grid={path}: {system_message(error)}.") from error
    kind = "picks" if chosen is picks else "clips"
    return (
        f"{os.path.abspath(path)} ({len(chosen)} of {counted(len(shown), 'clip')}, {kind}, "
        f"{layout.columns} across, {layout.rows} down)"
    )


@dataclass(frozen=True)
class _Shown:
    run: RunData
    clip: dict[str, Any]
    label: str
    is_pick: bool

    def file(self) -> Path:
        # A log is data: it names files of this folder alone.
        directory = self.run.directory
        name = os.path.basename(str(self.clip["file"]))
        return fetched(directory, directory.relative(directory.clips / name))


def _shown(run: RunData, is_named: bool) -> Iterator[_Shown]:
    for clip in run.clips:
        if clip["file"] is None:
            continue
        rating = run.ratings.get(clip["settings_sha256"])
        # A rating of a file that was rendered again is outdated.
        is_known = rating is not None and rating.file_sha256 in ("", clip["file_sha256"])
        stars = rating.rating if rating is not None and is_known else ""
        parts = [run.folder] if is_named else []
        parts += [str(clip["row_id"]), f"seed {clip['seed']}"]
        if stars:
            parts.append("rejected" if stars == "x" else f"{stars}/5")
        is_pick = stars.isdecimal() and int(stars) >= LEAST_OF_PICKS
        yield _Shown(run, clip, "  ".join(parts), is_pick)
