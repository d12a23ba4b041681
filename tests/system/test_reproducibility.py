"""The same manifest rendered twice, into two run directories: `compare` says whether the bits are.

The tiny model and the real renderer, in this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.command import Answer
from fakes.engine import InProcessExecutor
from fakes.runs import FakeExecutor, Project

from hv15_batch.dispatch.protocol import ExecutorSpec
from hv15_batch.engine._latents import DenoisedClip
from hv15_batch.engine.render import ClipRenderer

Command = Callable[..., Answer]


def drifting(spec: ExecutorSpec) -> FakeExecutor:
    """A card that does not repeat itself."""
    return FakeExecutor(spec, DriftingRenderer)


class DriftingRenderer(ClipRenderer):
    def _denoise(self, *arguments: Any) -> DenoisedClip:
        result = super()._denoise(*arguments)
        return replace(result, latents=result.latents + torch.tensor(1e-3))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt,seed", "fox,a fox,0..1", "sign,a sign,7")
    return project


def compared(project: Project, command: Command, again: Callable[[ExecutorSpec], Any]) -> list[str]:
    """Render into two directories, the second time by another renderer; return what is said."""
    runs = [project.folder / name for name in ("a", "b")]
    assert project.run(InProcessExecutor, run_dir=str(runs[0])) == 0
    assert project.run(again, run_dir=str(runs[1])) == 0
    answer = command("compare", *runs, "--out", project.folder / "out")
    assert answer.code == 0, answer.err
    assert "3 of 3 pairs compared" in answer.out
    return answer.out.splitlines()


def test_the_same_manifest_rendered_twice_is_identical_in_latents_and_files(
    project: Project, command: Command
) -> None:
    lines = compared(project, command, InProcessExecutor)

    assert "Latents: 3 of 3 pairs bit-identical latents" in lines
    assert "Files: 3 of 3 pairs bit-identical files" in lines
    assert lines[0].startswith("[1/3] fox seed 0: bit-identical latents, bit-identical files, ")


def test_other_bits_are_counted_and_measured(project: Project, command: Command) -> None:
    lines = compared(project, command, drifting)

    (latents,) = (line for line in lines if line.startswith("Latents: "))
    assert latents.startswith("Latents: 0 of 3 pairs bit-identical latents, the others PSNR ")
    assert "Files: 0 of 3 pairs bit-identical files" in lines


def test_files_that_differ_by_their_codec_or_tag_alone_have_the_same_latents(
    project: Project, command: Command
) -> None:
    def other_codec(spec: ExecutorSpec) -> FakeExecutor:
        video = replace(spec.config.video, crf=45)
        return InProcessExecutor(replace(spec, config=replace(spec.config, video=video)))

    def elsewhere(spec: ExecutorSpec) -> FakeExecutor:
        return InProcessExecutor(
            replace(spec, checkpoint=replace(spec.checkpoint, repo="elsewhere"))
        )

    lines = compared(project, command, other_codec)
    frames = next(line for line in lines if line.startswith("Frames "))
    assert "Latents: 3 of 3 pairs bit-identical latents" in lines
    assert "Files: 0 of 3 pairs bit-identical files" in lines
    assert "identical" not in frames

    for record in ("a", "b"):  # a second time, from nothing
        (project.folder / record).rename(project.folder / f"{record}-before")
    lines = compared(project, command, elsewhere)
    frames = next(line for line in lines if line.startswith("Frames "))
    assert "Latents: 3 of 3 pairs bit-identical latents" in lines
    assert "Files: 0 of 3 pairs bit-identical files" in lines
    assert "infinite (identical)" in frames
