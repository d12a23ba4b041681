"""Clips joined to a film keep every frame, in every codec."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hv15_batch.config.settings import VideoCodec, VideoConfig
from hv15_batch.media import film as films
from hv15_batch.media.film import film_members, join_videos
from hv15_batch.media.video import open_video, read_frames, write_video


@pytest.mark.parametrize("codec", list(VideoCodec), ids=lambda codec: str(codec.name))
def test_a_film_has_the_frames_of_its_clips_in_order(tmp_path: Path, codec: VideoCodec) -> None:
    clips = [tmp_path / f"{name}{codec.suffix}" for name in ("a", "b")]
    for number, clip in enumerate(clips):
        frames = np.random.default_rng(number).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
        write_video(frames, clip, fps=24, video=VideoConfig(codec=codec), comment=None)
    film = tmp_path / f"film{codec.suffix}"

    join_videos(
        clips, film, codec=codec, size=(32, 48), num_frames=10, fps=24, sha256s=["a" * 64] * 2
    )

    assert film_members(film) == ["a" * 64] * 2
    parts = [frame for clip in clips for frame in read_frames(clip)]
    assert np.array_equal(list(read_frames(film)), parts)


@pytest.mark.parametrize("fps", [24, 23.976])
@pytest.mark.parametrize("lengths", [(1, 25), (25, 1, 25), (1, 5, 1), (9, 33, 5)], ids=str)
@pytest.mark.parametrize("codec", [VideoCodec.h264, VideoCodec.ffv1], ids=lambda c: str(c.name))
def test_every_frame_of_a_film_is_shown_in_its_turn_and_equally_long(
    tmp_path: Path, codec: VideoCodec, lengths: tuple[int, ...], fps: float
) -> None:
    clips = [tmp_path / f"{number}{codec.suffix}" for number in range(len(lengths))]
    for number, (clip, length) in enumerate(zip(clips, lengths, strict=True)):
        # Pictures that move are stored out of order.
        picture = np.random.default_rng(number).integers(0, 256, (32, 48, 3), dtype=np.uint8)
        frames = np.stack([np.roll(picture, 3 * shift, axis=1) for shift in range(length)])
        write_video(frames, clip, fps=fps, video=VideoConfig(codec=codec), comment=None)
    film, total = tmp_path / f"film{codec.suffix}", sum(lengths)

    join_videos(
        clips, film, codec=codec, size=(32, 48), num_frames=total, fps=fps, sha256s=["a" * 64]
    )

    parts = [frame for clip in clips for frame in read_frames(clip)]
    assert np.array_equal(list(read_frames(film)), parts)
    with open_video(film) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        times = sorted(p.pts for p in container.demux(stream) if p.pts is not None)
        assert times[0] == 0
        steps = {after - before for before, after in pairwise(times)}
        frame = 1 / (fps * float(stream.time_base))
        assert max(abs(step - frame) for step in steps) < (0.01 if codec is VideoCodec.h264 else 1)
        assert abs(times[-1] - (total - 1) * frame) < 1


def test_a_film_whose_frames_are_not_equally_long_is_refused(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    frames = np.zeros((5, 32, 48, 3), dtype=np.uint8)
    write_video(frames, clip, fps=24, video=VideoConfig(), comment=None)
    films._check_times(clip, Fraction(24))
    with pytest.raises(ValueError, match=r"a\.mp4 shows frame 1 at 0\.042 s instead of 0\.040 s"):
        films._check_times(clip, Fraction(25))
