"""Clips joined to a film keep every frame, in every codec."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hv15_batch.config.settings import VideoCodec, VideoConfig
from hv15_batch.media.film import film_members, join_videos
from hv15_batch.media.video import read_frames, write_video


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
