"""What the renderer looks at before it encodes, and which clips it calls cold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from fakes.engine import InProcessExecutor, needs_compiler
from fakes.runs import Project

from hv15_batch.config.settings import RuntimeConfig
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
