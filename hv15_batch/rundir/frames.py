"""`frames/`: the frames with which other clips begin, kept without loss; and `films/`."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hv15_batch.clip import Clip
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.remote.objects import FILMS, FRAME_SUFFIX, FRAMES


def frame_name(denoise_sha256: str, number: int) -> str:
    """Return what tells a frame from all others: its clip's latents, and its number from 0."""
    return f"{denoise_sha256}_{number}"


def frame_file(run_dir: RunDir, denoise_sha256: str, number: int) -> Path:
    """Return where a frame is kept on a disk, and made before it goes to object storage."""
    return run_dir.path / FRAMES / f"{frame_name(denoise_sha256, number)}{FRAME_SUFFIX}"


def frame_files(run_dir: RunDir, clip: Clip) -> list[Path]:
    """Return where each of a clip's `kept_frames` is kept."""
    return [frame_file(run_dir, clip.denoise_sha256, number) for number in clip.kept_frames]


def film_path(run_dir: RunDir, file_name: str) -> Path:
    """Return where a film is kept."""
    return films_folder(run_dir) / file_name


def saved_frames(run_dir: RunDir) -> set[str]:
    """Return the names of all frames that are kept; on object storage those of its listing."""
    stored = run_dir.stored()
    if stored is not None:
        return set(stored.frames)
    names: list[str] = []
    with suppress(OSError):  # none yet, or not readable: they are made again
        names = os.listdir(run_dir.path / FRAMES)
    return {n.removesuffix(FRAME_SUFFIX) for n in names if n[0] != "." and n.endswith(FRAME_SUFFIX)}


def films_folder(run_dir: RunDir) -> Path:
    """Return the folder of the films."""
    return run_dir.path / FILMS


def saved_films(run_dir: RunDir) -> set[str]:
    """Return the names of the films that there are; of object storage those of its listing too."""
    stored = run_dir.stored()
    names = set() if stored is None else set(stored.sizes(FILMS))
    with suppress(OSError):  # none yet, or not readable
        names.update(os.listdir(films_folder(run_dir)))
    return {name for name in names if name[0] != "."}


def frames_made_again(run_dir: RunDir) -> set[str] | None:
    """Return the names of frames that several attempts put into object storage; None on a disk.

    Names there are never reused, so nothing can have begun with another frame than one that was put
    once. On a disk the newest replaces the others.
    """
    stored = run_dir.stored()
    if stored is None:
        return None
    return {frame for frame, names in stored.attempts_at_frames.items() if len(names) > 1}
