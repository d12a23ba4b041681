"""The example of a chain with the demonstration models, which continue a picture as prompts say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes.engine import InProcessExecutor
from fakes.runs import Project
from PIL import Image

from hv15_batch.config.options import with_models
from hv15_batch.config.settings import Config, VideoCodec, VideoConfig
from hv15_batch.manifest.clips import make_clips, read_rows
from hv15_batch.media.video import read_frames
from hv15_batch.model.options import model_options

EXAMPLE = Path(__file__).parents[2] / "manifests" / "demo_chain.csv"
T2V = model_options()["demo_t2v"]


def test_the_example_is_a_chain_and_a_film() -> None:
    config = Config(manifest=str(EXAMPLE), model=T2V)
    manifest = read_rows(EXAMPLE, config)
    config = with_models(config, (row.model for row in manifest.rows))
    clips = make_clips(manifest, config, "1")
    assert [(clip.row_id, clip.level) for clip in clips] == [("ball", 0), ("rise", 1), ("fall", 2)]
    assert [clip.films for clip in clips] == [(("journey", n),) for n in range(3)]
    assert {clip.settings.model for clip in clips} == {"demo_t2v", "demo_i2v"}


@pytest.mark.exhaustive
def test_a_clip_begins_with_the_picture_with_which_the_one_before_ended(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write(*EXAMPLE.read_text(encoding="utf-8").splitlines())
    video = VideoConfig(codec=VideoCodec.ffv1)  # so that the frames are those of the model
    assert project.run(InProcessExecutor, model=T2V, video=video) == 0
    records = {record["row_id"]: record for record in project.records()}
    frames = {
        name: np.array(list(read_frames(project.run_dir.path / record["file"])))
        for name, record in records.items()
    }
    for before, after in (("ball", "rise"), ("rise", "fall")):
        last = records[before]["denoise_sha256"] + "_24.png"
        kept = np.asarray(Image.open(project.run_dir.path / "frames" / last))
        np.testing.assert_array_equal(kept, frames[before][-1])
        error = np.square(kept.astype(float) - frames[after][0]).mean()
        assert 10 * np.log10(255**2 / error) >= 25
    film = np.array(list(read_frames(project.run_dir.path / "films" / "journey.mkv")))
    np.testing.assert_array_equal(film, np.concatenate([frames[n] for n in records]))
