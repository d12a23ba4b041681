from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.checkpoint import (
    COMMIT,
    OTHER,
    REPO,
    FakeHub,
    Fetcher,
    hub_model,
    layout,
    message,
    safetensors,
    snapshot,
    write,
)

from hv15_batch.model.architectures import definition_sha256
from hv15_batch.model.variant import (
    STEP_DISTILLED_T2V,
    Distillation,
    ModelConfig,
    Recipe,
    Task,
    Weights,
)
from hv15_batch.weights.checkpoint import Checkpoint, CheckpointKind, cache_root, resolve_checkpoint
from hv15_batch.weights.files import find_faults


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "hub")


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


def test_a_checkpoint_as_diffusers_writes_it_is_complete(
    tiny_folder: Callable[[str], Path],
) -> None:
    folder = tiny_folder("tiny_i2v_step_distilled")
    model = hub_model(
        repo=str(folder),
        task=Task.i2v,
        distillation=Distillation.step,
        recipe=Recipe(meanflow=True),
    )

    assert find_faults(folder) == []
    assert resolve_checkpoint(model).folder == folder


def test_weights_cut_short_are_not_complete(tmp_path: Path) -> None:
    folder = write(snapshot(tmp_path), layout())
    shard = folder / "text_encoder/model-2-of-2.safetensors"
    whole = shard.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"x" * 64, whole + b"x"):
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
    header = json.dumps(
        {"w": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}
    ).encode()
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
            hub_model(task=Task.i2v, distillation=Distillation.step, recipe=Recipe(meanflow=True)),
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


def test_looking_for_weights_imports_no_torch() -> None:
    code = (
        "import sys, hv15_batch.prefetch, hv15_batch.machine.machine, hv15_batch.references.data;"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'huggingface_hub.hf_api')"
        " if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
