"""The writer marks clips that are faulty in a part, and noise is never marked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes.runs import Project
from fakes.worker import jobs

from hv15_batch.config.settings import QualityConfig
from hv15_batch.dispatch.attempt import Attempt
from hv15_batch.engine._write import ClipWriter
from hv15_batch.record import ClipRecord, asked_record
from hv15_batch.rundir.paths import RunDir


def written(tmp_path: Path, weights: str, quality: QualityConfig) -> ClipRecord:
    """Write a clip that stands still in its second half."""
    project = Project(tmp_path)
    project.write("id,prompt,height,width,num_frames", "cat,a cat,32,32,17")
    job = jobs(project)["cat"]
    job = replace(job, clip=replace(job.clip, settings=replace(job.clip.settings, weights=weights)))
    run_dir = RunDir(tmp_path / "run")
    run_dir.create()
    config = replace(project.config(), quality=quality)
    ramp = torch.arange(32).mul(4)[None, None, :, None]
    frames = (ramp + torch.arange(17).clamp(max=8).mul(9)[:, None, None, None]).expand(
        17, 32, 32, 3
    )
    attempt = Attempt(asked_record(job.clip, run_id="run", attempt=job.attempt))

    ClipWriter(config, run_dir, "a/b").write(
        job, attempt, frames.to(torch.uint8).contiguous(), print
    )

    return attempt.record()


@pytest.mark.parametrize(
    ("weights", "quality", "outcome"),
    [
        ("pretrained", QualityConfig(), ("suspect", "freeze")),
        ("pretrained", QualityConfig(parts=False), ("ok", None)),
        ("random", QualityConfig(), ("ok", None)),
    ],
)
def test_a_clip_that_stands_still_in_a_part_is_suspect(
    tmp_path: Path, weights: str, quality: QualityConfig, outcome: tuple[str, str | None]
) -> None:
    record = written(tmp_path, weights, quality)

    assert (record.status, record.quality_flag) == outcome
    assert record.file is not None
