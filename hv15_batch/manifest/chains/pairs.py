"""Which clip of the row before a clip follows, and with which frame it begins."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hv15_batch.clip import Clip, Source
from hv15_batch.manifest.cells import Faults
from hv15_batch.manifest.rows import Row
from hv15_batch.media.image import MAX_ASPECT_RATIO
from hv15_batch.units import counted


def sources_of(
    row: Row, num_seeds: int, made: Sequence[Clip], faults: Faults | None = None
) -> list[Source]:
    """Return the frame with which each clip of a row begins; none if the row is refused.

    Args:
        row: Its `image_frame` names a frame of the row before.
        num_seeds: Clips of the row: as many as the row before has, or any number if that has one.
        made: Clips of the row before, in the order of its seeds; none if it was refused.
        faults: Where a fault of the row is noted; None notes none.
    """
    assert row.image_frame is not None
    if not made:
        return []
    first = made[0].settings
    number = row.image_frame.number(first.num_frames)
    rule = None
    if len(made) not in (1, num_seeds):
        rule = (
            f"{row.image_frame.row_id} has {counted(len(made), 'seed')} and this row {num_seeds}, "
            "and a clip follows the one in the same place; give both as many, or "
            f"{row.image_frame.row_id} one for all"
        )
    elif number >= first.num_frames:
        rule = (
            f"the frames of {row.image_frame.row_id} are 0 to {first.num_frames - 1}; name one of "
            "them, or last"
        )
    elif max(first.height, first.width) > MAX_ASPECT_RATIO * min(first.height, first.width):
        rule = (
            f"a first frame is at most {MAX_ASPECT_RATIO}:1, and the clips of "
            f"{row.image_frame.row_id} have {first.width}x{first.height} pixels; change their size"
        )
    if rule is not None:
        if faults is not None:
            faults.add(row.line, "image", row.image or "", rule)
        return []
    each = list(made) * (num_seeds if len(made) == 1 else 1)
    return [_source(clip, number) for clip in each]


def _source(clip: Clip, number: int) -> Source:
    return Source(
        settings_sha256=clip.settings_sha256,
        denoise_sha256=clip.denoise_sha256,
        clip_id=clip.clip_id,
        number=number,
        level=clip.level + 1,
        first=clip if clip.source is None else clip.source.first,
    )


def linked(clips: Iterable[Clip]) -> list[Clip]:
    """Return the clips of a manifest, each once, with the names of those that they follow.

    Those that others follow know which of their frames to keep. Clips that share their latents all
    keep them, since whichever is rendered first makes them.
    """
    clips = list(clips)
    if not any(clip.source for clip in clips):
        return clips
    names = {clip.settings_sha256: clip.clip_id for clip in clips}
    kept: defaultdict[str, set[int]] = defaultdict(set)
    for clip in clips:
        if clip.source is not None:
            kept[clip.source.denoise_sha256].add(clip.source.number)
    return [
        replace(
            clip,
            kept_frames=tuple(sorted(kept.get(clip.denoise_sha256, ()))),
            source=clip.source
            and replace(
                clip.source, clip_id=names.get(clip.source.settings_sha256, clip.source.clip_id)
            ),
        )
        for clip in clips
    ]
