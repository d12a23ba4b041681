"""What the renderer looks at before it encodes, and which clips it calls cold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from fakes.engine import InProcessExecutor, needs_compiler
from fakes.runs import Project

from hv15_batch.config.settings import Config, DispatchConfig, RetryConfig, RuntimeConfig
from hv15_batch.engine import render
from hv15_batch.errors import Refused


def without_last_keys(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **_: Any
) -> torch.Tensor:
    tokens = (x.transpose(1, 2) for x in (query, key[:, :-10], value[:, :-10]))
    return torch.nn.functional.scaled_dot_product_attention(*tokens).transpose(1, 2)


def test_a_kernel_that_is_off_is_refused_before_a_text_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    project.write("id,prompt,height,width,num_frames", "cat,a cat,64,64,5")
    backends = _AttentionBackendRegistry._backends
    monkeypatch.setitem(backends, AttentionBackendName.FLEX, without_last_keys)

    with pytest.raises(Refused, match=r"=flex: its result differs from torch's by .* of 93,"):
        project.run(InProcessExecutor, runtime=RuntimeConfig(attention_backend="flex"))

    assert not list(project.run_dir.embeddings.glob("*"))
    assert project.records() == []


def test_a_worker_that_replaces_another_one_chooses_and_checks_its_kernels_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    project.write(
        "id,prompt,height,width,num_frames,num_inference_steps",
        *("a,a cat,32,32,1,1", "b,a dog,32,32,1,1", "c,an owl,32,32,5,1"),
    )
    checked: list[int] = []

    def choose(_config: Config, _weights: object, num_tokens: int, *_: object, **__: object) -> str:
        checked.append(num_tokens)
        return "_native_math"

    monkeypatch.setattr(render, "check_backend", choose)

    assert project.run(InProcessExecutor, retry=RetryConfig(max_clips_per_worker=1)) == 0

    assert checked == [8, 8, 8], "at the length of the longest clip, also before shorter ones"
    assert {r["attention_backend"] for r in project.records()} == {"_native_math"}
    assert len({r["worker_id"] for r in project.records()}) == 3


def test_seconds_of_encoding_are_on_the_clip_that_caused_it_whoever_renders_it(
    tmp_path: Path,
) -> None:
    project = Project(tmp_path)
    project.write(
        "id,prompt,height,width,num_frames,num_inference_steps,seed",
        *("a,a cat,32,32,1,1,0..1", "b,a dog,32,32,1,1,0..1", "c,an owl,32,32,1,1,0..1"),
    )

    assert project.run(InProcessExecutor, dispatch=DispatchConfig(workers=2)) == 0

    records = project.records()
    assert len({r["worker_id"] for r in records}) == 2
    caused = {(r["row_id"], r["seed"]) for r in records if r["encode_seconds"] is not None}
    assert caused == {("a", 0), ("b", 0), ("c", 0)}
    for record in records:
        assert record["encode_cached"] == (record["seed"] == 1)
        stages = [record[f"{s}_seconds"] for s in ("encode", "denoise", "decode", "write")]
        assert record["total_seconds"] == sum(s for s in stages if s is not None)


@needs_compiler
@pytest.mark.slow
def test_clips_that_compile_are_cold_and_no_others(tmp_path: Path) -> None:
    torch.compiler.reset()
    project = Project(tmp_path)
    project.write(
        "id,prompt,height,width,num_frames,num_inference_steps",
        *("a,a cat,32,32,1,1", "b,a cat,32,32,1,2", "c,a cat,64,32,1,1"),
        *("d,a cat,64,64,5,1", "e,a cat,32,32,1,3"),
    )

    assert project.run(InProcessExecutor, runtime=RuntimeConfig(compile=True)) == 0

    found = [(r["row_id"], r["is_cold"], r["compiled"]) for r in project.records()]
    assert [(name, is_cold) for name, is_cold, _ in found] == [
        *(("a", True), ("b", False), ("c", True), ("d", False), ("e", False)),
    ]
    assert all(compiled for *_, compiled in found)
