from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, errors

from hv15_batch.architectures import definition_sha256
from hv15_batch.checkpoint import (
    LICENCE,
    Checkpoint,
    CheckpointKind,
    cache_root,
    fetch,
    resolve_checkpoint,
)
from hv15_batch.checkpoint_files import find_faults
from hv15_batch.config import (
    STEP_DISTILLED_T2V,
    Config,
    ConfigError,
    Distillation,
    ModelConfig,
    Task,
    Weights,
)
from hv15_batch.hub import RETRY_WAITS_SECONDS
from hv15_batch.prefetch import prefetch

REPO = "owner/name"
COMMIT = "1" * 40
OTHER = "2" * 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


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
    index: dict[str, Any] = {"_class_name": pipeline, **{name: ["lib", "Class"] for name in names}}
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


def snapshot(hub_cache: Path, commit: str = COMMIT) -> Path:
    return hub_cache / "models--owner--name" / "snapshots" / commit


def hub_model(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"name": "480p_t2v", "repo": REPO, **changes})


class FakeHub:
    """A hub with one repository. `troubles` are raised, one a call, before it answers."""

    def __init__(
        self,
        files: dict[str, bytes] | None = None,
        commit: str = COMMIT,
        troubles: tuple[Exception, ...] = (),
        listed_size: int | None = None,
        is_damaging: bool = False,
    ) -> None:
        self.files = layout() if files is None else files
        self.commit = commit
        self.troubles = list(troubles)
        self.listed_size = listed_size
        self.is_damaging = is_damaging
        self.calls: list[tuple[str, str | None]] = []

    def _call(self, name: str, revision: str | None) -> None:
        self.calls.append((name, revision))
        if self.troubles:
            raise self.troubles.pop(0)

    def model_info(self, repo_id: str, *, revision: str | None, files_metadata: bool) -> Any:
        self._call("model_info", revision)
        assert repo_id == REPO
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
        folder = snapshot(Path(cache_dir), revision)
        for name, content in self.files.items():
            if not any(fnmatch(name, pattern) for pattern in allow_patterns):
                continue
            blob = folder.parents[1] / "blobs" / hashlib.sha256(name.encode()).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content[:-1] if self.is_damaging else content)
            link = folder / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        return str(folder)


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


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "hub")


def message(call: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        call()
    return str(caught.value)


# Looking, without network


def test_a_model_that_was_never_fetched_has_no_folder(tmp_path: Path) -> None:
    assert resolve_checkpoint(hub_model(), hub_cache=tmp_path) == Checkpoint(
        REPO, None, None, CheckpointKind.hub
    )
    assert resolve_checkpoint(hub_model(revision=COMMIT), hub_cache=tmp_path) == Checkpoint(
        REPO, COMMIT, None, CheckpointKind.hub
    )


def test_a_model_is_found_at_the_pinned_commit(tmp_path: Path) -> None:
    folder = write(snapshot(tmp_path), layout())

    found = resolve_checkpoint(hub_model(revision=COMMIT), hub_cache=tmp_path)

    assert found == Checkpoint(REPO, COMMIT, folder, CheckpointKind.hub)
    assert resolve_checkpoint(hub_model(revision=OTHER), hub_cache=tmp_path).folder is None


def test_without_a_pin_the_branch_that_was_downloaded_counts(tmp_path: Path) -> None:
    folder = write(snapshot(tmp_path), layout())
    write(folder.parents[1] / "refs", {"main": COMMIT.encode(), "v2": OTHER.encode()})

    assert resolve_checkpoint(hub_model(), hub_cache=tmp_path).folder == folder
    assert resolve_checkpoint(hub_model(revision="v2"), hub_cache=tmp_path).revision == OTHER


def test_what_prefetch_recorded_beats_a_branch_that_has_moved_on(fetcher: Fetcher) -> None:
    fetcher(hub_model(), FakeHub())
    write(snapshot(fetcher.hub_cache, OTHER), layout())
    write(snapshot(fetcher.hub_cache).parents[1] / "refs", {"main": OTHER.encode()})

    found = resolve_checkpoint(hub_model(), hub_cache=fetcher.hub_cache)

    assert found.revision == COMMIT


@pytest.mark.parametrize("name", [name for name in layout(Task.i2v) if "chat_" not in name])
def test_a_checkpoint_that_lacks_a_file_is_not_complete(name: str, tmp_path: Path) -> None:
    files = layout(Task.i2v)
    folder = write(snapshot(tmp_path), files)
    model = hub_model(revision=COMMIT, task=Task.i2v)
    assert resolve_checkpoint(model, hub_cache=tmp_path).folder == folder

    (folder / name).unlink()

    assert resolve_checkpoint(model, hub_cache=tmp_path).folder is None


def test_weights_cut_short_are_not_complete(tmp_path: Path) -> None:
    folder = write(snapshot(tmp_path), layout())
    shard = folder / "text_encoder/model-2-of-2.safetensors"
    for content in (shard.read_bytes()[:-1], shard.read_bytes()[:20], b"", b"x" * 64):
        shard.write_bytes(content)

        assert find_faults(folder) == [
            "text_encoder/model-2-of-2.safetensors is cut short or not safetensors"
        ]
        assert resolve_checkpoint(hub_model(revision=COMMIT), hub_cache=tmp_path).folder is None


def test_a_link_of_the_hub_cache_to_nothing_is_not_complete(fetcher: Fetcher) -> None:
    found = fetcher(hub_model(), FakeHub())
    assert found.folder is not None

    (found.folder / "vae/config.json").resolve().unlink()

    assert resolve_checkpoint(hub_model(), hub_cache=fetcher.hub_cache).folder is None


def test_a_recorded_file_of_another_size_is_not_complete(fetcher: Fetcher) -> None:
    found = fetcher(hub_model(), FakeHub())
    assert found.folder is not None

    (found.folder / "tokenizer/chat_template.jinja").resolve().write_bytes(b"")

    assert resolve_checkpoint(hub_model(), hub_cache=fetcher.hub_cache).folder is None


def test_a_record_that_is_not_json_counts_as_none(fetcher: Fetcher) -> None:
    fetcher(hub_model(), FakeHub())
    (cache_root() / "checkpoints/owner--name.json").write_text("{")

    found = resolve_checkpoint(hub_model(revision=COMMIT), hub_cache=fetcher.hub_cache)

    assert found.folder == snapshot(fetcher.hub_cache)


def test_a_local_folder_is_known_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    one = resolve_checkpoint(hub_model(repo=str(write(tmp_path / "one", layout()))))
    write(tmp_path / "one", {"README.md": b"x", "vae/notes.md": b"x", "extra/big.safetensors": b""})
    again = resolve_checkpoint(hub_model(repo=str(tmp_path / "one")))
    two = resolve_checkpoint(hub_model(repo=str(write(tmp_path / "two", layout()))))

    assert one == Checkpoint(
        str(tmp_path / "one"), one.revision, tmp_path / "one", CheckpointKind.local
    )
    assert len(one.revision or "") == 64
    assert one.revision == again.revision == two.revision


@pytest.mark.parametrize(
    "change",
    [
        {"vae/diffusion_pytorch_model.safetensors": safetensors(b"abce")},
        {"scheduler/scheduler_config.json": b"{ }"},
        {"tokenizer/merges.txt": b""},
    ],
)
def test_another_content_of_a_local_folder_is_another_revision(
    change: dict[str, bytes], tmp_path: Path
) -> None:
    model = hub_model(repo=str(write(tmp_path / "one", layout())))
    before = resolve_checkpoint(model).revision

    write(tmp_path / "one", change)

    assert resolve_checkpoint(model).revision != before


def test_an_unchanged_file_of_a_local_folder_is_not_hashed_again(tmp_path: Path) -> None:
    model = hub_model(repo=str(write(tmp_path / "one", layout())))
    before = resolve_checkpoint(model).revision
    path = tmp_path / "one/vae/diffusion_pytorch_model.safetensors"
    status = path.stat()

    # The same size and time of change: only reading it would show the difference.
    path.write_bytes(safetensors(b"abce"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert resolve_checkpoint(model).revision == before


def test_a_large_local_folder_says_what_is_hashed_and_does_it_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "one", layout())
    num_bytes = 300 * 1024**2
    header = json.dumps({"w": {"data_offsets": [0, num_bytes]}}).encode()
    with (folder / "vae/diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + num_bytes)
    lines: list[str] = []

    for _ in range(2):
        resolve_checkpoint(hub_model(repo=str(folder)), say=lines.append)

    assert lines == [
        f"hashing 0.3 GiB in 17 files under {folder}, once, to know which weights these are"
    ]


def test_a_local_folder_that_is_no_checkpoint_says_what_is_missing(tmp_path: Path) -> None:
    files = layout()
    for name in ("vae/config.json", "text_encoder/model-1-of-2.safetensors"):
        del files[name]
    folder = write(tmp_path / "one", files)

    assert message(lambda: resolve_checkpoint(hub_model(repo=str(folder)))) == (
        f"model.repo={folder} is not a complete checkpoint in diffusers layout: "
        "vae/config.json is missing; text_encoder/model-1-of-2.safetensors is missing; "
        "name the folder that holds model_index.json."
    )
    assert message(lambda: resolve_checkpoint(hub_model(repo=str(tmp_path)))) == (
        f"model.repo={tmp_path} is not a complete checkpoint in diffusers layout: "
        "model_index.json is missing; name the folder that holds model_index.json."
    )


def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    repo = str(tmp_path / "none")

    assert message(lambda: resolve_checkpoint(hub_model(repo=repo))) == (
        f"model.repo={repo!r}: no such folder, and not a hub id of the form owner/name."
    )


@pytest.mark.parametrize(
    ("files", "model", "text"),
    [
        (
            layout(Task.i2v, use_meanflow=True),
            hub_model(),
            f"is step-distilled: {STEP_DISTILLED_T2V}.",
        ),
        (
            layout(Task.i2v),
            hub_model(),
            "is an image-to-video checkpoint and model=480p_t2v is t2v; choose a model option of "
            "the other task.",
        ),
        (
            layout(),
            hub_model(task=Task.i2v),
            "is a text-to-video checkpoint and model=480p_t2v is i2v; choose a model option of "
            "the other task.",
        ),
        (
            layout(Task.i2v, use_meanflow=True),
            hub_model(task=Task.i2v),
            "is step-distilled (use_meanflow=True) and model=480p_t2v has distillation none; "
            "choose the model option made for it.",
        ),
        (
            layout(Task.i2v),
            hub_model(task=Task.i2v, distillation=Distillation.step),
            "is not step-distilled (use_meanflow=False) and model=480p_t2v has distillation step; "
            "choose the model option made for it.",
        ),
    ],
)
def test_a_checkpoint_for_another_use_is_refused(
    files: dict[str, bytes], model: ModelConfig, text: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "one", files)
    model.repo = str(folder)

    assert message(lambda: resolve_checkpoint(model)) == f"model.repo={folder} {text}"


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    index = {"_class_name": "HunyuanVideoPipeline", "transformer": ["diffusers", "T"]}
    files = {**layout(), "model_index.json": json.dumps(index).encode()}
    folder = write(tmp_path / "one", files)

    assert message(lambda: resolve_checkpoint(hub_model(repo=str(folder)))) == (
        f"model.repo={folder} holds a HunyuanVideoPipeline, not HunyuanVideo-1.5; name a "
        "checkpoint whose model_index.json says HunyuanVideo15Pipeline or "
        "HunyuanVideo15ImageToVideoPipeline."
    )


def test_weights_made_in_code_are_known_by_their_definition() -> None:
    tiny = ModelConfig(name="tiny_t2v", weights=Weights.tiny)
    full = hub_model(weights=Weights.random)

    found = resolve_checkpoint(tiny)
    assert (found.revision, found.folder) == (definition_sha256("tiny", tiny), None)
    Path(found.repo).mkdir(parents=True)
    assert resolve_checkpoint(tiny).folder == Path(found.repo)
    assert Path(found.repo).is_relative_to(cache_root() / "tiny")
    assert resolve_checkpoint(full) == Checkpoint(
        REPO, definition_sha256("full", full), None, CheckpointKind.random
    )


# Fetching


def test_a_fetch_says_what_and_where_to_downloads_and_records_the_commit(fetcher: Fetcher) -> None:
    files = {**layout(), "README.md": b"x", "vae/diffusion_pytorch_model.bin": b"pickle"}
    hub = FakeHub(files)

    found = fetcher(hub_model(), hub)

    folder = snapshot(fetcher.hub_cache)
    assert found == Checkpoint(REPO, COMMIT, folder, CheckpointKind.hub)
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*")) == sorted(layout())
    assert fetcher.lines[0] == (
        "owner/name at 111111111111: 17 files, 0.0 GiB, 0.0 GiB to download"
    )
    assert fetcher.lines[1].startswith(f"into {fetcher.hub_cache} (")
    assert fetcher.lines[2:] == [LICENCE, f"complete and verified: {folder}"]
    assert hub.calls == [("model_info", None), ("snapshot_download", COMMIT)]
    record = json.loads((cache_root() / "checkpoints/owner--name.json").read_text())
    assert record["commit"] == COMMIT
    assert record["snapshots"][COMMIT] == {name: len(text) for name, text in layout().items()}


def test_after_a_fetch_neither_looking_nor_fetching_uses_the_network(fetcher: Fetcher) -> None:
    first = fetcher(hub_model(), FakeHub())

    assert fetcher(hub_model(), NoHub(), environ={"HF_HUB_OFFLINE": "1"}) == first
    assert resolve_checkpoint(hub_model(), hub_cache=fetcher.hub_cache) == first


def test_weights_that_another_tool_downloaded_are_recorded(fetcher: Fetcher) -> None:
    folder = write(snapshot(fetcher.hub_cache), layout())
    write(folder.parents[1] / "refs", {"main": COMMIT.encode()})

    fetcher(hub_model(), NoHub())
    (folder.parents[1] / "refs/main").write_text(OTHER)

    assert resolve_checkpoint(hub_model(), hub_cache=fetcher.hub_cache).folder == folder


def test_the_pinned_commit_is_what_is_fetched(fetcher: Fetcher) -> None:
    hub = FakeHub()

    fetcher(hub_model(revision=COMMIT), hub)

    assert hub.calls[0] == ("model_info", COMMIT)
    assert resolve_checkpoint(hub_model(), hub_cache=fetcher.hub_cache).revision is None


def test_a_branch_that_is_typed_becomes_the_recorded_commit(fetcher: Fetcher) -> None:
    fetcher(hub_model(), FakeHub())

    fetcher(hub_model(revision="main"), FakeHub(commit=OTHER))

    assert resolve_checkpoint(hub_model(), hub_cache=fetcher.hub_cache).revision == OTHER


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_a_fetch_is_refused_and_prefetch_named(name: str, fetcher: Fetcher) -> None:
    assert message(lambda: fetcher(hub_model(), NoHub(), environ={name: "1"})) == (
        f"the weights of model=480p_t2v are not complete on this machine and {name}=1 forbids "
        f"fetching them; run once with network: {name}=0 hv15-batch prefetch model=480p_t2v"
    )


def test_a_disk_that_is_too_small_is_refused_before_the_download(fetcher: Fetcher) -> None:
    hub = FakeHub(listed_size=10**17)

    text = message(lambda: fetcher(hub_model(), hub))

    assert text.startswith(f"the disk of {fetcher.hub_cache.parent} has ")
    assert text.endswith(
        " GiB free and owner/name needs 1583248376.8 GiB and 1.0 GiB to spare; free some, or set "
        "HF_HUB_CACHE to a folder on a larger disk."
    )
    assert [call for call, _ in hub.calls] == ["model_info"]


def answered(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=SimpleNamespace())
    return kind(f"{status} from the hub\nwith details", response=response)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            answered(errors.GatedRepoError, 403),
            "the hub does not let you have owner/name yet: accept its licence at "
            "https://huggingface.co/owner/name with your account, log in here with "
            "`hf auth login`, then run the same command again.",
        ),
        (
            answered(errors.HfHubHTTPError, 401),
            "the hub refused your login (401): the token has expired or is wrong; log in again "
            "with `hf auth login`, or unset HF_TOKEN.",
        ),
        (
            answered(errors.RepositoryNotFoundError, 404),
            "the hub knows no repository owner/name: check model.repo; if it is private, log in "
            "with `hf auth login` first.",
        ),
        (
            answered(errors.RevisionNotFoundError, 404),
            "model.revision=v9 does not exist in owner/name; see "
            "https://huggingface.co/owner/name/commits/main.",
        ),
        (
            errors.OfflineModeIsEnabled("offline"),
            "cannot reach the hub for owner/name (OfflineModeIsEnabled: offline): check the "
            "network, a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT); what is downloaded is "
            "kept, and the same command goes on.",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "cannot write the weights of owner/name: OSError: [Errno 28] No space left on device; "
            "free some disk, or set HF_HUB_CACHE to a folder that can be written; what is "
            "downloaded is kept, and the same command goes on.",
        ),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do_and_is_not_repeated(
    error: Exception, text: str, fetcher: Fetcher
) -> None:
    assert message(lambda: fetcher(hub_model(revision="v9"), FakeHub(troubles=(error,)))) == text
    assert fetcher.waits == []


def test_a_download_that_breaks_off_goes_on(fetcher: Fetcher) -> None:
    troubles = (ConnectionError("reset"), answered(errors.HfHubHTTPError, 503))

    found = fetcher(hub_model(), FakeHub(troubles=troubles))

    assert found.folder is not None
    assert fetcher.waits == list(RETRY_WAITS_SECONDS[:2])
    assert fetcher.lines[:2] == [
        "ConnectionError: reset; trying again in 5 s, what is downloaded is kept",
        "HfHubHTTPError: 503 from the hub; trying again in 15 s, what is downloaded is kept",
    ]


def test_without_network_a_fetch_ends_after_its_attempts(fetcher: Fetcher) -> None:
    hub = FakeHub(troubles=tuple(ConnectionError("no route") for _ in range(9)))

    assert message(lambda: fetcher(hub_model(), hub)) == (
        "cannot reach the hub for owner/name (ConnectionError: no route): check the network, a "
        "proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT); what is downloaded is kept, and the same "
        "command goes on."
    )
    assert fetcher.waits == list(RETRY_WAITS_SECONDS)


def test_an_error_of_the_http_library_is_one_readable_message(fetcher: Fetcher) -> None:
    transport = errors.HfHubHTTPError.__bases__[0]
    hub = FakeHub(troubles=tuple(transport("name resolution") for _ in range(9)))

    assert message(lambda: fetcher(hub_model(), hub)).startswith(
        "cannot reach the hub for owner/name (HTTPError: name resolution): check the network"
    )


def test_damaged_files_are_named_where_they_can_be_deleted(fetcher: Fetcher) -> None:
    files = {**layout(), "vae/config.json": b"{} "}
    text = message(lambda: fetcher(hub_model(), FakeHub(files, is_damaging=True)))

    blobs = snapshot(fetcher.hub_cache).parents[1] / "blobs"
    assert text.startswith(f"17 of the files of owner/name are not what the hub has: {blobs}/")
    assert text.endswith(" and 14 more; delete them and run again.")


def test_hashes_are_compared_when_asked(fetcher: Fetcher) -> None:
    hub = FakeHub()
    found = fetcher(hub_model(), hub, check_sha256=True)
    assert found.folder is not None
    blob = (found.folder / "vae/diffusion_pytorch_model.safetensors").resolve()

    blob.write_bytes(safetensors(b"abce"))

    assert fetcher(hub_model(), NoHub()).folder == found.folder
    hub.snapshot_download = lambda *_, **__: None  # type: ignore[method-assign]
    assert message(lambda: fetcher(hub_model(), hub, check_sha256=True)) == (
        f"1 of the files of owner/name are not what the hub has: {blob}; delete them and run again."
    )


def test_a_repository_that_is_no_checkpoint_is_refused(fetcher: Fetcher) -> None:
    files = layout()
    del files["guider/guider_config.json"]

    assert message(lambda: fetcher(hub_model(), FakeHub(files))) == (
        "owner/name is not a complete checkpoint: guider/guider_config.json is missing."
    )
    assert not (cache_root() / "checkpoints").exists()


@pytest.mark.parametrize(
    "model",
    [ModelConfig(name="tiny_t2v", weights=Weights.tiny), hub_model(weights=Weights.random)],
)
def test_weights_made_in_code_are_never_downloaded(model: ModelConfig, fetcher: Fetcher) -> None:
    assert fetcher(model, NoHub(), environ={"HF_HUB_OFFLINE": "1"}) == resolve_checkpoint(model)


# The word `prefetch`


def said(model: ModelConfig, hub: Any, hub_cache: Path) -> list[str]:
    lines: list[str] = []
    assert prefetch(Config(model=model), lines.append, hub=hub, hub_cache=hub_cache) == 0
    return lines


def test_prefetch_ends_by_saying_that_runs_need_no_network(tmp_path: Path) -> None:
    lines = said(hub_model(), FakeHub(), tmp_path)

    assert lines[-2:] == [
        f"17 files, 0.0 GiB in {snapshot(tmp_path)}, revision {COMMIT}",
        "Runs with model=480p_t2v need no network from now on.",
    ]
    assert said(hub_model(), NoHub(), tmp_path) == lines[-2:]


def test_prefetch_says_when_nothing_needs_downloading(tmp_path: Path) -> None:
    tiny = ModelConfig(name="tiny_t2v", weights=Weights.tiny)

    assert said(tiny, NoHub(), tmp_path) == [
        "model=tiny_t2v is built on this machine in seconds: nothing needs downloading."
    ]
    assert said(hub_model(weights=Weights.random), NoHub(), tmp_path) == [
        "model=480p_t2v model.weights=random is built on the device: nothing needs downloading."
    ]


# What this relies on


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("model_info", {"repo_id", "revision", "files_metadata"}),
        ("snapshot_download", {"repo_id", "revision", "cache_dir", "allow_patterns"}),
    ],
)
def test_every_argument_passed_to_the_hub_exists_there(method: str, arguments: set[str]) -> None:
    assert arguments <= set(inspect.signature(getattr(HfApi, method)).parameters)


def test_looking_for_weights_imports_no_torch() -> None:
    code = (
        "import sys, hv15_batch.prefetch, hv15_batch.machine, hv15_batch.references;"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'huggingface_hub.hf_api')"
        " if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
