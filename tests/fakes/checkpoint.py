"""A small checkpoint, a hub that holds it, and what both need."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hv15_batch.errors import Refused
from hv15_batch.model.variant import ModelConfig, Task
from hv15_batch.weights.checkpoint import Checkpoint, CheckpointKind
from hv15_batch.weights.fetch import fetch

REPO = "owner/name"
COMMIT = "1" * 40
OTHER = "2" * 40
RANDOM = Checkpoint("", None, None, CheckpointKind.random)


def at(folder: Path) -> Checkpoint:
    """Return a checkpoint whose files are in a folder, as those of a local one are."""
    return Checkpoint(str(folder), None, folder, CheckpointKind.local)


def safetensors(data: bytes = b"abcd") -> bytes:
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + data


def layout(task: Task = Task.t2v, use_meanflow: bool = False) -> dict[str, bytes]:
    """Return the files of a small checkpoint: name -> content."""
    names = ["transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
    names += ["scheduler", "guider"]
    pipeline = "HunyuanVideo15Pipeline"
    if task is Task.i2v:
        names += ["image_encoder", "feature_extractor"]
        pipeline = "HunyuanVideo15ImageToVideoPipeline"
    index: dict[str, Any] = {
        "_class_name": pipeline,
        **{name: ["diffusers", "Class"] for name in names},
    }
    shards = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    files = {
        "model_index.json": json.dumps(index).encode(),
        "transformer/config.json": json.dumps({"use_meanflow": use_meanflow}).encode(),
        "transformer/diffusion_pytorch_model.safetensors": safetensors(),
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.safetensors": safetensors(),
        "text_encoder/config.json": b"{}",
        "text_encoder/model.safetensors.index.json": json.dumps(shards).encode(),
        "text_encoder/model-1-of-2.safetensors": safetensors(b"one"),
        "text_encoder/model-2-of-2.safetensors": safetensors(b"two"),
        "text_encoder_2/config.json": b"{}",
        "text_encoder_2/model.safetensors": safetensors(),
        "tokenizer/tokenizer_config.json": b"{}",
        "tokenizer/tokenizer.json": b"{}",
        "tokenizer/chat_template.jinja": b"{{ x }}",
        "tokenizer_2/tokenizer_config.json": b"{}",
        "scheduler/scheduler_config.json": b"{}",
        "guider/guider_config.json": b"{}",
    }
    if task is Task.i2v:
        files["image_encoder/config.json"] = b"{}"
        files["image_encoder/model.safetensors"] = safetensors()
        files["feature_extractor/preprocessor_config.json"] = b"{}"
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def snapshot(hub_cache: Path, commit: str = COMMIT, repo: str = REPO) -> Path:
    return hub_cache / f"models--{repo.replace('/', '--')}" / "snapshots" / commit


def hub_model(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"name": "480p_t2v", "repo": REPO, **changes})


class FakeHub:
    """A hub with one repository. `troubles` has what each call raises, or None."""

    def __init__(
        self,
        files: dict[str, bytes] | None = None,
        commit: str = COMMIT,
        troubles: tuple[Exception | None, ...] = (),
        listed_size: int | None = None,
        is_damaging: bool = False,
        repo: str = REPO,
    ) -> None:
        self.repo = repo
        self.files = layout() if files is None else files
        self.commit = commit
        self.troubles = list(troubles)
        self.listed_size = listed_size
        self.is_damaging = is_damaging
        self.calls: list[tuple[str, str | None]] = []

    def _call(self, name: str, revision: str | None) -> None:
        self.calls.append((name, revision))
        trouble = self.troubles.pop(0) if self.troubles else None
        if trouble is not None:
            raise trouble

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool) -> Any:
        self._call("model_info", revision)
        assert repo_id == self.repo
        assert files_metadata
        siblings = [
            SimpleNamespace(
                rfilename=name,
                size=self.listed_size or len(content),
                lfs=SimpleNamespace(sha256=hashlib.sha256(content).hexdigest())
                if name.endswith(".safetensors")
                else None,
            )
            for name, content in self.files.items()
        ]
        return SimpleNamespace(sha=self.commit, siblings=siblings)

    def snapshot_download(
        self, repo_id: str, *, revision: str, cache_dir: str, allow_patterns: list[str]
    ) -> str:
        self._call("snapshot_download", revision)
        folder = snapshot(Path(cache_dir), revision, repo_id)
        for name, content in self.files.items():
            if not any(fnmatch(name, pattern) for pattern in allow_patterns):
                continue
            blob = folder.parents[1] / "blobs" / hashlib.sha256(name.encode()).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content[:-1] if self.is_damaging else content)
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(blob)
        return str(folder)


class FakeHubs:
    """A hub with several repositories."""

    def __init__(self, *hubs: FakeHub) -> None:
        self.hubs = {hub.repo: hub for hub in hubs}

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool) -> Any:
        hub = self.hubs[repo_id]
        return hub.model_info(repo_id, revision=revision, files_metadata=files_metadata)

    def snapshot_download(
        self, repo_id: str, *, revision: str, cache_dir: str, allow_patterns: list[str]
    ) -> str:
        return self.hubs[repo_id].snapshot_download(
            repo_id, revision=revision, cache_dir=cache_dir, allow_patterns=allow_patterns
        )


class NoHub:
    """A hub that must not be asked."""

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool) -> Any:
        raise AssertionError("the network was used")

    def snapshot_download(
        self, repo_id: str, *, revision: str, cache_dir: str, allow_patterns: list[str]
    ) -> Any:
        raise AssertionError("the network was used")


class Fetcher:
    """Calls `fetch` and keeps what it says and how long it waits."""

    def __init__(self, hub_cache: Path) -> None:
        self.hub_cache = hub_cache
        self.lines: list[str] = []
        self.waits: list[float] = []

    def __call__(self, model: ModelConfig, hub: Any, **options: Any) -> Checkpoint:
        return fetch(
            model,
            say=self.lines.append,
            hub=hub,
            hub_cache=self.hub_cache,
            sleep=self.waits.append,
            **{"environ": {}, **options},
        )


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(Refused) as caught:
        call()
    return str(caught.value)
