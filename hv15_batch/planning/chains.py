"""What chains mean for a plan: frames that must be made again, and clips that cannot be rendered.

A clip follows another one if it begins with a frame of it (`Clip.source`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

from hv15_batch.clip import Clip, Source
from hv15_batch.errors import StoreError
from hv15_batch.planning.plan import FORCED, PlannedClip, State
from hv15_batch.record import FAILED, SUSPECT
from hv15_batch.rundir.frames import frame_file, frame_name, frames_made_again, saved_frames
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.store import frame_of
from hv15_batch.units import counted


def with_chains(
    planned: Sequence[PlannedClip], run_dir: RunDir, *, is_over: bool = False
) -> list[PlannedClip]:
    """Return the clips with the states that chains give them, in the same order.

    - A finished clip whose first frame is another one now is rendered again.
    - A finished clip of which a frame is needed and not kept makes it again, from its latents.
    - A clip that follows a suspect one, or a skipped one, is skipped. So is one that follows a
      failed one, once a run is over: at its start that one is tried again.

    Args:
        planned: Every clip of the manifest.
        run_dir: Has the frames.
        is_over: A run has tried what it could.
    """
    if not any(p.clip.source for p in planned):
        return list(planned)
    by_sha256 = {p.clip.settings_sha256: p for p in planned}
    followers = sorted((p for p in planned if p.clip.source), key=lambda p: p.clip.level)
    by_sha256 |= {p.clip.settings_sha256: p for p in outdated(followers, run_dir)}
    kept = saved_frames(run_dir)
    for p in reversed(followers):
        found, source = _with_source(p, by_sha256)
        needs_frame = not (found.is_done or _is_only_decoded(found) or found.clip.is_pending)
        if source is None or not needs_frame or source.is_suspect:
            continue
        if not (source.is_done or source.reason == FORCED):
            continue  # it is rendered for a reason of its own
        if not _is_kept(p.clip.source, kept, run_dir):
            by_sha256[source.clip.settings_sha256] = replace(
                source,
                state=State.retry,
                reason=f"{_described(p.clip.source)}, with which {p.clip.clip_id} begins, is lost",
            )
    for p in followers:
        found, source = _with_source(p, by_sha256)
        if source is not None and not found.is_done and (why := _hindrance(source, is_over)):
            by_sha256[p.clip.settings_sha256] = replace(
                found, state=State.skipped, reason=f"it follows {source.clip.clip_id}, which {why}"
            )
    return [by_sha256[p.clip.settings_sha256] for p in planned]


def outdated(planned: Iterable[PlannedClip], run_dir: RunDir) -> list[PlannedClip]:
    """Return the finished clips whose first frame is another one now, to be rendered again."""
    reason = "the frame that it begins with has changed"
    planned = [p for p in planned if p.is_done and p.clip.source]
    made_again = frames_made_again(run_dir) if planned else None
    return [
        replace(p, state=State.retry, reason=reason, use_latents=False)
        for p in planned
        if _begins_otherwise(p, run_dir, made_again)
    ]


def _with_source(
    p: PlannedClip, by_sha256: dict[str, PlannedClip]
) -> tuple[PlannedClip, PlannedClip | None]:
    """Return a clip and the one that it follows, with the states that they have by now."""
    assert p.clip.source is not None
    return by_sha256[p.clip.settings_sha256], by_sha256.get(p.clip.source.settings_sha256)


def _is_only_decoded(p: PlannedClip) -> bool:
    """Whether a clip needs no first frame. Where an attempt failed, its latents may be damaged."""
    return p.is_from_latents and (p.last is None or p.last["status"] != FAILED)


def _is_kept(source: Source | None, kept: set[str], run_dir: RunDir) -> bool:
    """Whether a frame is there and, on a disk, can be read."""
    assert source is not None
    if _name(source) not in kept or run_dir.url is not None:
        return _name(source) in kept
    from hv15_batch.media.frame import frame_sha256

    return frame_sha256(frame_file(run_dir, source.denoise_sha256, source.number)) is not None


def _begins_otherwise(p: PlannedClip, run_dir: RunDir, made_again: Container[str] | None) -> bool:
    """Whether the kept frame is another one than a finished clip began with.

    A frame that is lost is not looked at, nor one that the store does not give now.

    Args:
        p: The clip.
        run_dir: Has the frame.
        made_again: `frames_made_again`: other frames need not be looked at; None looks at all.
    """
    source, last = p.clip.source, p.last
    if (
        source is None
        or last is None
        or (made_again is not None and _name(source) not in made_again)
    ):
        return False
    try:
        path = frame_of(run_dir, source.denoise_sha256, source.number)
    except StoreError:
        return False
    if path is None:
        return False
    from hv15_batch.media.frame import frame_sha256

    return frame_sha256(path) not in (None, last["image_sha256"])


def _hindrance(source: PlannedClip, is_over: bool) -> str | None:
    """Return why no clip can follow this one, as a verb; None if one can."""
    if source.is_skipped:
        return "is skipped"
    if source.is_suspect and (source.is_done or is_over):
        return "is suspect"
    status = None if source.last is None else source.last["status"]
    return "failed" if is_over and status == FAILED and not source.is_done else None


def hindrance(status: str | None) -> str | None:
    """Return why no clip can follow one whose attempt ended so; None if one can.

    Args:
        status: Of the log; None for a clip that was not tried.
    """
    return {None: "was not rendered", FAILED: "failed", SUSPECT: "is suspect"}.get(status)


def _name(source: Source | None) -> str:
    assert source is not None
    return frame_name(source.denoise_sha256, source.number)


def _described(source: Source | None) -> str:
    assert source is not None
    return f"frame {source.number}"


def with_sources(
    chosen: Iterable[PlannedClip], planned: Sequence[PlannedClip]
) -> list[PlannedClip]:
    """Return the chosen clips and the missing ones that they follow, in the plan's order.

    Args:
        chosen: Some of the plan's clips.
        planned: All of them.
    """
    chosen = list(chosen)
    if not any(p.clip.source for p in chosen):
        return chosen
    by_sha256 = {p.clip.settings_sha256: p for p in planned}
    wanted = {p.clip.settings_sha256 for p in chosen}
    for p in chosen:
        step: PlannedClip | None = p
        while step is not None and step.is_left and step.clip.source is not None:
            step = by_sha256.get(step.clip.source.settings_sha256)
            if step is None or not step.is_left or step.clip.settings_sha256 in wanted:
                break
            if step.reason == FORCED and step.has_result and not step.is_suspect:
                break  # it is there: the command did not name it
            wanted.add(step.clip.settings_sha256)
    return [p for p in planned if p.clip.settings_sha256 in wanted]


def lost_frame(clips: Iterable[Clip], run_dir: RunDir) -> Clip | None:
    """Return the first clip whose first frame is not kept; None if all can begin."""
    clips = [clip for clip in clips if clip.source is not None]
    kept = saved_frames(run_dir) if clips else set()
    return next((c for c in clips if not _is_kept(c.source, kept, run_dir)), None)


def chains_line(clips: Sequence[Clip]) -> str | None:
    """Return a line about clips that follow others; None without any."""
    followers = [clip for clip in clips if clip.source is not None]
    if not followers:
        return None
    levels = max(clip.level for clip in followers)
    verb = "begins" if len(followers) == 1 else "begin"
    rounds = "once more" if levels == 1 else f"{levels} times more"
    return (
        f"Chains: {counted(len(followers), 'clip')} {verb} with a frame of another clip, at most "
        f"{counted(levels + 1, 'clip')} in a row; first frames are encoded {rounds}, each time "
        "after the clips before"
    )
