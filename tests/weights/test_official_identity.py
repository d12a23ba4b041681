"""The engine's name holds all of the official script that may change frames, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes.official import OfficialProject, official_project

from hv15_batch.config.settings import Config
from hv15_batch.weights.checkpoint import CheckpointKind, resolve_weights

COMMIT = "60783e704160023913bee78f0b47036d393d4dfa"


@pytest.fixture
def project(tmp_path: Path) -> OfficialProject:
    return official_project(tmp_path, "prompt", "a cat")


def engine(project: OfficialProject, **changes: Any) -> str:
    found = resolve_weights(project.config(**changes)).engine
    assert found is not None
    return found


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_checkout_has_its_commit_however_git_keeps_it(project: OfficialProject) -> None:
    without = engine(project)
    git = project.repo / ".git"
    write(git / "HEAD", "ref: refs/heads/main\n")
    write(git / "refs" / "heads" / "main", f"{COMMIT}\n")

    loose = engine(project)
    (git / "refs" / "heads" / "main").unlink()
    write(git / "packed-refs", f"# pack-refs\n{COMMIT} refs/heads/main\n")
    packed = engine(project)
    write(git / "HEAD", f"{COMMIT}\n")
    detached = engine(project)

    assert loose == packed == detached
    assert loose.startswith(f"official@{COMMIT} code=")
    assert without.split(" ", 1)[1] == loose.split(" ", 1)[1]
    assert without.split()[0].startswith("official@")
    assert len(without.split()[0]) == len(loose.split()[0])


def test_code_weights_and_flags_are_part_of_it(project: OfficialProject) -> None:
    seen = [engine(project)]
    ckpts = project.repo / "ckpts"
    changes = [
        lambda: write(project.repo / "hyvideo" / "a.py", "x = 1"),
        lambda: write(project.repo / "hyvideo" / "a.py", "x = 2"),
        lambda: write(ckpts / "transformer" / "480p_t2v" / "a.safetensors", "1"),
        lambda: write(ckpts / "vae" / "config.json", "{}"),
        lambda: write(ckpts / "text_encoder" / "llm" / "deep" / "a.json", "{}"),
        lambda: write(ckpts / "a.json", "{}"),
    ]
    for change in changes:
        change()
        seen.append(engine(project))
    write(ckpts / "notes.txt", "mine")
    assert engine(project) == seen[-1]
    seen.append(engine(project, official={"arguments": "--use_fp8_gemm"}))
    seen.append(
        engine(project, official={"arguments": "--use_fp8_gemm --quant_type fp8-per-tensor"})
    )

    assert len(set(seen)) == len(seen)
    assert seen[-1].endswith(" quant_type=fp8-per-tensor use_fp8_gemm=true")


def test_what_changes_no_frame_is_not(project: OfficialProject) -> None:
    before = engine(project)

    write(project.repo / "README.md", "new")
    write(project.repo / "ckpts" / "transformer" / "480p_t2v", "")
    (project.repo / "ckpts" / "transformer" / "480p_t2v").unlink()
    write(project.repo / "ckpts" / "transformer" / "720p_t2v" / "a.safetensors", "1")
    write(project.repo / "ckpts" / "README.md", "new")
    write(project.repo / "hyvideo" / "__pycache__" / "a.pyc", "new")

    same = [
        "--offloading true --overlap_group_offloading false",
        "--use_fp8_gemm false --use_sageattn 0 --sr false",
        "--cache_start_step 11",
    ]
    assert {engine(project, official={"arguments": words}) for words in same} == {before}
    assert engine(project, official={"load_once": True}) == before


def test_the_other_engine_has_none(project: OfficialProject) -> None:
    config = Config(model=project.config().model)

    found = resolve_weights(config)

    assert found.engine is None
    assert found.kind is CheckpointKind.hub
    ours = resolve_weights(project.config())
    assert (ours.kind, ours.revision) == (CheckpointKind.official, None)
    assert ours.folder == project.repo / "ckpts"
