"""`verify=true`: a clip rendered again, and what is said of its bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_fakes import FakeExecutor, FakeRenderer, Project

from hv15_batch.executor import ExecutorSpec
from hv15_batch.latents import DenoisedClip
from hv15_batch.render import ClipRenderer
from hv15_batch.runlog import read_records
from hv15_batch.status import main as status


def in_process(spec: ExecutorSpec) -> FakeExecutor:
    """The real renderer without a process of its own."""
    return FakeExecutor(spec, ClipRenderer)


class DriftingRenderer(ClipRenderer):
    """A card that does not repeat itself."""

    def _denoise(self, *arguments: Any) -> DenoisedClip:
        result = super()._denoise(*arguments)
        return replace(result, latents=result.latents + torch.tensor(1e-3))


class BrokenRenderer(ClipRenderer):
    """A card that fails the second time."""

    def _denoise(self, *arguments: Any) -> DenoisedClip:
        raise RuntimeError("no more of this")


def second_by(renderer: type[ClipRenderer]) -> Any:
    """The second rendering by another renderer than the first."""

    def make(spec: ExecutorSpec) -> FakeExecutor:
        return FakeExecutor(spec, renderer if spec.run_dir.name == "verify" else ClipRenderer)

    return make


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt,seed", "fox,a fox,0..1", "sign,a sign,7")
    return project


def files_of(project: Project) -> dict[Path, bytes]:
    """Everything of the run but what is said at its end."""
    run_dir = project.run_dir
    folders = (run_dir.clips, run_dir.log, run_dir.latents, run_dir.embeddings)
    return {path: path.read_bytes() for folder in folders for path in folder.iterdir()}


def test_a_clip_comes_out_the_same_and_the_run_stays_as_it_was(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.run(in_process) == 0
    before = files_of(project)

    assert project.run(in_process, verify=True) == 0

    smallest = min(project.records(), key=lambda r: r["settings_sha256"])
    line = f"verified: {smallest['clip_id']}: latents and file are the same bit for bit"
    assert project.said[-1] == line
    assert json.loads(project.run_dir.status.read_text())["verification"] == line
    capsys.readouterr()
    assert status([str(project.run_dir.path)]) == 0
    assert line in capsys.readouterr().out.splitlines()
    assert files_of(project) == before
    (second,) = read_records(project.run_dir.path / "verify" / "log").to_pylist()
    assert second["clip_id"] == smallest["clip_id"]
    assert second["denoise_attempt"] == second["attempt"]
    assert second["encode_cached"] is False

    assert project.run(in_process, verify=True) == 0
    assert read_records(project.run_dir.path / "verify" / "log").num_rows == 1


def test_a_run_that_renders_is_verified_at_its_end_and_in_its_log(project: Project) -> None:
    assert project.run(in_process, verify=True, limit=1) == 0

    (record,) = project.records()
    assert project.said[-1].startswith(f"verified: {record['clip_id']}: ")
    (run_log,) = project.run_dir.runs.glob("*/run.log")
    assert run_log.read_text(encoding="utf-8").rstrip().endswith(project.said[-1])


def test_other_bits_are_said_with_how_far_and_what_was_otherwise(project: Project) -> None:
    assert project.run(second_by(DriftingRenderer), verify=True) == 0

    line = project.said[-1]
    assert line.startswith("NOT the same bits: ")
    assert "latents differ (PSNR " in line
    assert "card, versions and everything else in effect are the same" in line
    assert f"hv15-batch compare {project.run_dir.path} " in line
    assert {record["status"] for record in project.records()} == {"ok"}


def test_a_file_of_other_bytes_beside_the_same_latents_is_told_apart(project: Project) -> None:
    def other_codec(spec: ExecutorSpec) -> FakeExecutor:
        if spec.run_dir.name == "verify":
            video = replace(spec.config.video, crf=45)
            spec = replace(spec, config=replace(spec.config, video=video))
        return in_process(spec)

    def other_tag(spec: ExecutorSpec) -> FakeExecutor:
        return in_process(
            replace(spec, repo="elsewhere") if "verify" in str(spec.run_dir) else spec
        )

    assert project.run(other_codec, verify=True) == 0
    assert "latents are the same bit for bit; frames differ (PSNR " in project.said[-1]

    assert project.run(other_tag, verify=True) == 0
    assert project.said[-1].endswith(
        "frames are the same, only the files' bytes differ (their tags)"
    )


def test_what_cannot_be_rendered_again_is_said_and_changes_no_exit_code(project: Project) -> None:
    assert project.run(second_by(BrokenRenderer), verify=True) == 0

    assert project.said[-1].startswith("not verified: ")
    assert project.said[-1].endswith("could not be rendered again (RuntimeError: no more of this)")


def test_a_run_without_a_finished_clip_is_not_verified(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.write("id,prompt", "fox,fail always")

    code = project.run(lambda spec: FakeExecutor(spec, FakeRenderer), verify=True)

    assert code == 3
    assert project.said[-1] == "not verified: no clip is finished"
