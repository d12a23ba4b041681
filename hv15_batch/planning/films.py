"""`films/`: the clips of a chain as one file, built once all are done; and what there is."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hv15_batch.config.settings import VideoCodec
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.record import DONE_STATUSES
from hv15_batch.rundir.frames import film_path, saved_films
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing
from hv15_batch.rundir.store import fetched
from hv15_batch.units import counted

_USUAL_SUFFIX = ".mp4"


def build_films(planned: Sequence[PlannedClip], run_dir: RunDir) -> Iterator[str]:
    """Build the films whose clips are all done, and yield a line about each that is not there yet.

    One that was built of the very same files stays. One that cannot be built is told of.

    Args:
        planned: Every clip of the manifest, with its state.
        run_dir: Has the clips, and gets the films.
    """
    for name, members in films_of(planned).items():
        # A clip that began with a frame of earlier pixels no longer fits the one before.
        missing = [p for p in members if not p.is_done]
        path = film_file(run_dir, name, members)
        if missing:
            left = f"{len(missing)} of its {counted(len(members), 'clip')}"
            are = "is" if len(missing) == 1 else "are"
            old = f"; {path.name} has earlier clips" if path.exists() else ""
            yield f"Film {name}: not built, {left} {are} not done ({_some(missing)}){old}"
            continue
        try:
            if _is_built(path, members, run_dir):
                continue
            _build(path, members, run_dir)
        except (OSError, ValueError) as error:  # one film less; the others are built
            yield f"Film {name}: not built: {error}"
            continue
        yield f"Film: {run_dir.shown(path)} ({counted(len(members), 'clip')})"


def films_of(planned: Sequence[PlannedClip]) -> dict[str, list[PlannedClip]]:
    """Return the clips of each film, in order."""
    places: defaultdict[str, dict[int, PlannedClip]] = defaultdict(dict)
    for p in planned:
        for name, place in p.clip.films:
            places[name][place] = p
    return {name: [of[place] for place in sorted(of)] for name, of in places.items()}


def film_file(run_dir: RunDir, name: str, members: Sequence[PlannedClip]) -> Path:
    """Return where a film is; its container is that of its clips."""
    from hv15_batch.media.video import file_suffix

    return film_path(run_dir, f"{name}{file_suffix(_codec(members))}")


def _codec(members: Sequence[PlannedClip]) -> VideoCodec:
    # The official script has no such setting, and writes H.264.
    video = members[0].clip.settings.video or {}
    return VideoCodec[video.get("codec", VideoCodec.h264.name)]


def _sha256s(members: Sequence[PlannedClip]) -> list[str]:
    return [str(p.last["file_sha256"]) for p in members if p.last is not None]


def _is_built(path: Path, members: Sequence[PlannedClip], run_dir: RunDir) -> bool:
    from hv15_batch.media.film import film_members

    return film_members(fetched(run_dir, run_dir.relative(path))) == _sha256s(members)


def _build(path: Path, members: Sequence[PlannedClip], run_dir: RunDir) -> None:
    from hv15_batch.media.film import join_videos

    # A log is data: it names files of this folder alone.
    files = [str(p.last["file"]) for p in members if p.last is not None]
    names = [run_dir.relative(run_dir.clips / os.path.basename(file)) for file in files]
    here = {name for name in names if (run_dir.path / name).exists()}
    settings = [p.clip.settings for p in members]
    path.parent.mkdir(exist_ok=True)
    try:
        with publishing(path) as temporary:
            join_videos(
                [fetched(run_dir, name) for name in names],
                temporary,
                codec=_codec(members),
                size=(settings[0].height, settings[0].width),
                num_frames=sum(each.num_frames for each in settings),
                fps=settings[0].fps,
                sha256s=_sha256s(members),
            )
    finally:
        for name in set(names) - here:  # of object storage, and fetched for this alone
            (run_dir.path / name).unlink(missing_ok=True)


def _some(missing: Sequence[PlannedClip]) -> str:
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return f"{missing[0].clip.clip_id}{more}"


@dataclass(frozen=True)
class Film:
    """A film of the current manifest."""

    name: str
    is_built: bool
    """Whether there is a file, perhaps of earlier clips."""
    file: str | None
    """Path below the run directory; None where there is none to show."""
    thumb: str | None
    """Picture of one of its clips, as a path below the run directory."""
    num_clips: int
    num_done: int


def read_films(run_dir: RunDir, clips: Sequence[Mapping[str, Any]]) -> list[Film]:
    """Return the films that the plan names, in the order of their first clips.

    A film has the container of its clips. So an older one of another codec is not taken for it.

    Args:
        run_dir: The run directory.
        clips: Rows of the plan; with `status`, and `file` and `thumb` as paths below the run
            directory or None.
    """
    members: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for clip in clips:
        for name in (clip.get("film") or "").split():
            members[name].append(clip)
    saved = saved_films(run_dir) if members else set()
    return [_film(run_dir, name, of_it, saved) for name, of_it in members.items()]


def _film(run_dir: RunDir, name: str, clips: Sequence[Mapping[str, Any]], saved: set[str]) -> Film:
    suffix = next((PurePosixPath(c["file"]).suffix for c in clips if c["file"]), _USUAL_SUFFIX)
    path, is_built = film_path(run_dir, f"{name}{suffix}"), f"{name}{suffix}" in saved
    return Film(
        name=name,
        is_built=is_built,
        file=run_dir.relative(path) if is_built else None,
        thumb=next((clip["thumb"] for clip in clips if clip["thumb"]), None),
        num_clips=len(clips),
        num_done=sum(clip["status"] in DONE_STATUSES for clip in clips),
    )
