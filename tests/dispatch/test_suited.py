"""What a run's settings become on another machine of a cluster, and what is refused there."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.runs import Project
from fakes.worker import jobs, spec

from hv15_batch.clip import ClipLora
from hv15_batch.dispatch import _suited
from hv15_batch.dispatch._suited import suited, with_first_frame
from hv15_batch.dispatch.seats import Order, with_absolute_paths
from hv15_batch.errors import Refused
from hv15_batch.rundir.remote.shared import Inputs, Shared, answer, ask, check_answer
from hv15_batch.weights.checkpoint import CheckpointKind, resolve_checkpoint


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat")
    project.run_dir.create()
    return project


def order_of(project: Project, **changes: object) -> Order:
    checkpoint = resolve_checkpoint(project.config().model)
    order = Order(replace(spec(project), checkpoint=checkpoint), str(project.run_dir.path))
    return replace(order, **changes)


def test_a_machine_with_the_same_files_takes_the_order(project: Project) -> None:
    lora = project.folder / "a.safetensors"
    lora.write_bytes(b"weights")
    loras = (ClipLora(str(lora), hashlib.sha256(b"weights").hexdigest(), 1.0),)

    found = suited(order_of(project, loras=loras), print)
    assert found.run_dir == project.run_dir.path
    assert not found.shares_inputs, "embeddings are in the folder that all see"


def test_a_lora_that_is_missing_or_another_is_refused_with_its_path(project: Project) -> None:
    lora = project.folder / "a.safetensors"
    loras = (ClipLora(str(lora), "0" * 64, 1.0),)

    with pytest.raises(Refused, match=f"loras: {lora} is not on this machine"):
        suited(order_of(project, loras=loras), print)
    lora.write_bytes(b"other weights")
    with pytest.raises(Refused, match=f"the SHA-256 of {lora} is [0-9a-f]+ here and 0+ on the"):
        suited(order_of(project, loras=loras), print)


def test_weights_of_another_content_are_refused_with_their_place(project: Project) -> None:
    order = order_of(project)
    theirs = replace(order.spec.checkpoint, revision="f" * 64)

    order = replace(order, spec=replace(order.spec, checkpoint=theirs))
    with pytest.raises(Refused, match=r"model=tiny_t2v: the content of /.+ is \w+ here and f"):
        suited(order, print)


def test_weights_in_folders_are_under_the_drivers_paths_and_must_be_there(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    order = order_of(project)
    config = order.spec.config
    model = replace(config.model, repo="weights", transformer_file="a.safetensors")
    checkpoint = replace(order.spec.checkpoint, kind=CheckpointKind.local)
    spec = replace(order.spec, config=replace(config, model=model), checkpoint=checkpoint)
    order = replace(order, spec=with_absolute_paths(spec))
    weights = project.folder / "weights"
    monkeypatch.chdir("/")
    monkeypatch.setattr(_suited, "fetch", None)

    assert order.spec.config.model.repo == str(weights)
    with pytest.raises(Refused, match=f"model.repo={weights}: is not on this machine"):
        suited(order, print)
    weights.mkdir()
    file = project.folder / "a.safetensors"
    with pytest.raises(Refused, match=f"model.transformer_file={file}: is not on this machine"):
        suited(order, print)


def test_a_first_frame_is_read_by_its_hash_and_checked(project: Project) -> None:
    clip = jobs(project)["cat"].clip
    sha256 = hashlib.sha256(b"a picture").hexdigest()
    settings = replace(clip.settings, image_sha256=sha256)
    clip = replace(clip, settings=settings, image_path="/on/the/driver/cat.png")
    inputs = Inputs(project.run_dir)

    assert with_first_frame(clip, inputs).image_path == "/on/the/driver/cat.png", "not stored"
    inputs.put(sha256, b"a picture")
    stored = project.run_dir.path / "inputs" / sha256
    assert with_first_frame(clip, inputs).image_path == str(stored)
    stored.write_bytes(b"another picture")
    assert with_first_frame(clip, inputs).image_path == "/on/the/driver/cat.png"
    text = jobs(project)["cat"].clip
    assert with_first_frame(text, inputs) is text


def test_the_trial_of_a_store_finds_each_way_to_fail(project: Project, tmp_path: Path) -> None:
    here, there = Shared(str(project.run_dir.path)), Shared(str(tmp_path / "elsewhere"))
    question = ask(here)

    with pytest.raises(Refused, match="it cannot read "):
        answer(there, question)
    (tmp_path / "elsewhere").mkdir()
    there.put(question.asked, b"other bytes")
    with pytest.raises(Refused, match="it reads other bytes in "):
        answer(there, question)
    sha256 = answer(here, question)
    check_answer(here, question, sha256)
    with pytest.raises(Refused, match="the driver reads other bytes in "):
        check_answer(here, question, "0" * 64)
    with pytest.raises(Refused, match="the driver cannot read "):
        check_answer(there, question, sha256)
    here.delete(question.names)
    assert not (project.run_dir.path / "probe").exists()


def test_a_worker_that_may_not_write_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Shared(str(project.run_dir.path))
    question = ask(shared)

    def put(self: Shared, name: str, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Shared, "put", put)
    with pytest.raises(Refused, match=r"it cannot write .+ \(Permission denied\); give the user"):
        answer(shared, question)
