"""Running out of memory and bad frames: what the real renderer tries next, injected on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes.engine import InProcessExecutor
from fakes.runs import Project
from torch._dynamo.exc import InternalTorchDynamoError

from hv15_batch.config.settings import RetryConfig, RuntimeConfig
from hv15_batch.dispatch.protocol import Died, Event, ExecutorSpec, Finished
from hv15_batch.engine import _ladder as ladder

Fail = Callable[[int], bool]


def out_of_memory_at(real: Callable[..., Any], fails: Fail, calls: list[int]) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if fails(calls[-1]):
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")
        return real(*args, **kwargs)

    return wrapped


@pytest.fixture
def project(tmp_path: Any) -> Project:
    made = Project(tmp_path)
    made.write("id,prompt,height,width,num_frames,num_inference_steps", "cat,a cat,32,32,1,1")
    return made


def only_record(project: Project) -> dict[str, Any]:
    (record,) = project.records()
    return record


@pytest.mark.parametrize("failures", [1, 2])
def test_decoding_is_tried_with_less_and_then_alone(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failures: int,
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        ladder,
        "decode_frames",
        out_of_memory_at(ladder.decode_frames, lambda n: n < failures, calls),
    )

    assert project.run(InProcessExecutor) == 0

    assert len(calls) == failures + 1
    assert only_record(project)["status"] == "ok"
    # What leaves the card for good is said, and is the profile of later workers too.
    is_alone = (
        "decoding alone on the card: continuing with offload=model" in capsys.readouterr().out
    )
    assert is_alone == (failures == 2)


def test_a_decode_that_never_fits_fails_and_keeps_its_latents(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        ladder, "decode_frames", out_of_memory_at(ladder.decode_frames, lambda n: True, calls)
    )

    assert project.run(InProcessExecutor) == 3

    record = only_record(project)
    assert len(calls) == 3
    assert (record["status"], record["error_type"]) == ("failed", "OutOfMemoryError")
    assert (project.run_dir.path / record["latents_file"]).is_file()


def test_denoising_goes_on_with_the_next_smaller_profile(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(ladder, "denoise", out_of_memory_at(ladder.denoise, lambda n: n < 1, calls))

    assert project.run(InProcessExecutor) == 0

    record = only_record(project)
    assert (record["status"], record["offload"]) == ("ok", "stream")
    assert len(calls) == 2


@pytest.mark.parametrize("stage", ["denoise", "decode_frames"])
def test_without_the_ladder_the_first_shortage_is_a_failure(
    project: Project, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        ladder, stage, out_of_memory_at(getattr(ladder, stage), lambda n: True, calls)
    )

    assert project.run(InProcessExecutor, retry=RetryConfig(ladder=False)) == 3

    assert len(calls) == 1
    assert only_record(project)["error_type"] == "OutOfMemoryError"


def test_a_worker_that_takes_over_begins_with_the_smaller_profile(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(
        "id,prompt,height,width,num_frames,num_inference_steps",
        *("cat,a cat,32,32,1,1", "dog,a dog,32,32,1,1"),
    )
    calls: list[int] = []
    monkeypatch.setattr(ladder, "denoise", out_of_memory_at(ladder.denoise, lambda n: n < 1, calls))
    began_with: list[str] = []

    class DiesOnceAtDog(InProcessExecutor):
        def __init__(self, spec: ExecutorSpec) -> None:
            began_with.append(spec.offload.name)
            super().__init__(spec)

        def submit(self, job: Any) -> None:
            if job.clip.row_id == "dog" and len(began_with) == 1:
                self._events.append(Died("the worker was ended by SIGKILL"))
                return
            super().submit(job)

    assert project.run(DiesOnceAtDog) == 0

    assert began_with == ["resident", "stream"]
    found = [(r["row_id"], r["status"], r["offload"]) for r in project.records()]
    assert found[0] == ("cat", "ok", "stream")
    assert found[-1] == ("dog", "ok", "stream")


# -- suspects ---------------------------------------------------------------------------------


def test_a_suspect_clip_is_rendered_again_on_torchs_own_attention_and_logged_so(
    project: Project,
) -> None:
    """On the CPU `auto` is `native` too, so another of torch's backends is typed."""
    project.write(
        "id,prompt,height,width,num_frames,num_inference_steps",
        *("cat,a cat,32,32,1,1", "dog,a dog,32,32,1,1", "owl,an owl,32,32,1,1"),
    )
    runtime = RuntimeConfig(attention_backend="_native_math")

    class SeesBlackDog(InProcessExecutor):
        def poll(self, timeout_seconds: float) -> Event | None:
            event = super().poll(timeout_seconds)
            if isinstance(event, Finished) and event.job.clip.row_id == "dog":
                record = replace(event.record, status="suspect", quality_flag="black")
                return Finished(event.job, record)
            return event

    assert project.run(SeesBlackDog, runtime=runtime) == 0
    project.write(*project.manifest.read_text().splitlines(), "fox,a fox,32,32,1,1")

    retry = RetryConfig(suspect=True)
    assert project.run(InProcessExecutor, runtime=runtime, retry=retry) == 0

    again = project.records()[3:]
    assert [(r["row_id"], r["attempt"], r["attention_backend"]) for r in again] == [
        ("dog", 2, "native"),
        ("fox", 1, "_native_math"),
    ]
    assert [r["attention_backend_requested"] for r in again] == ["_native_math"] * 2
    assert again[0]["denoise_attempt"] == 2
    assert again[0]["settings_sha256"] == project.records()[1]["settings_sha256"]


def uncompilable(function: Any, **_: Any) -> Any:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise InternalTorchDynamoError("no ptxas (planted)")

    return fail


@pytest.mark.parametrize("is_auto", [True, False])
def test_what_cannot_be_compiled_is_rendered_without_unless_it_was_typed(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_auto: bool,
) -> None:
    project.write(
        "id,prompt,height,width,num_frames,num_inference_steps",
        *("cat,a cat,32,32,1,1", "dog,a dog,32,32,1,1"),
    )
    monkeypatch.setattr(torch, "compile", uncompilable)

    def make_executor(spec: ExecutorSpec) -> InProcessExecutor:
        runtime = replace(spec.config.runtime, compile=True)
        config = replace(spec.config, runtime=runtime)
        return InProcessExecutor(replace(spec, config=config, compile_is_auto=is_auto))

    code = project.run(make_executor)

    found = {(r["status"], r["compiled"], r["error_type"]) for r in project.records()}
    told = capsys.readouterr().out.count("the transformer cannot be compiled here: continuing ")
    if is_auto:
        assert (code, told, found) == (0, 1, {("ok", False, None)})
    else:
        assert (code, told, found) == (3, 0, {("failed", None, "InternalTorchDynamoError")})
