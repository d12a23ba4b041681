"""`model.transformer_hub`: one file of another repository is fetched, known by content and used."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fakes.checkpoint import (
    COMMIT,
    OTHER,
    REPO,
    FakeHub,
    FakeHubs,
    Fetcher,
    NoHub,
    layout,
    message,
    snapshot,
)
from fakes.command import Answer
from fakes.single_files import original, saved
from huggingface_hub import constants
from safetensors.torch import load_file

from hv15_batch.config.settings import Config
from hv15_batch.engine.load.tiny import ensure_checkpoint
from hv15_batch.manifest.clips import advice_notes, make_clips
from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import HubFile, ModelConfig, Task
from hv15_batch.prefetch import prefetch
from hv15_batch.weights import fetch as fetching
from hv15_batch.weights.checkpoint import cache_root, resolve_checkpoint, tiny_root

FILES, FILE = "owner/files", "four_step.safetensors"
SOURCE = HubFile(FILES, FILE)
SMALL = ("model=tiny_t2v", "override.num_frames=5", "override.num_inference_steps=2")
TYPED = (f"model.transformer_hub.repo={FILES}", f"model.transformer_hub.file={FILE}")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The transformer of the tiny checkpoint as Tencent names its tensors."""
    folder = ensure_checkpoint(model_options()["tiny_t2v"], tiny_root())
    tensors = load_file(next((folder / "transformer").glob("*.safetensors")))
    return saved(tmp_path_factory.mktemp("file") / FILE, original(tensors)).read_bytes()


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path / "hub")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache of the hub, and no record of what was fetched."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield
    for repo in (REPO, FILES):
        record_of(repo).unlink(missing_ok=True)


def record_of(repo: str) -> Path:
    return cache_root() / "checkpoints" / f"{repo.replace('/', '--')}.json"


def tiny(**changes: Any) -> ModelConfig:
    return replace(model_options()["tiny_t2v"], transformer_hub=SOURCE, **changes)


def of_files(content: bytes, **options: Any) -> FakeHub:
    files = {FILE: content, "LICENSE": b"text", "another.safetensors": b"x", "README.md": b"x"}
    return FakeHub(files, repo=FILES, **options)


def test_the_one_file_is_fetched_verified_and_known_by_its_content(
    content: bytes, fetcher: Fetcher
) -> None:
    hub = of_files(content)
    assert resolve_checkpoint(tiny(), hub_cache=fetcher.hub_cache).lacking == SOURCE

    found = fetcher(tiny(), hub)

    sha256 = hashlib.sha256(content).hexdigest()
    folder = snapshot(fetcher.hub_cache, repo=FILES)
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", FILE]
    assert found.transformer is not None
    assert (found.transformer.path, found.transformer_sha256) == (folder / FILE, sha256)
    assert not found.is_missing
    assert fetcher.lines == [
        f"{FILES} at 111111111111: 1 file, 0.0 GiB, 0.0 GiB to download",
        fetcher.lines[1],
        f"its licence is on https://huggingface.co/{FILES}, and that of HunyuanVideo-1.5 applies "
        "too",
        f"complete and verified: {folder / FILE}",
    ]
    assert hub.calls == [("model_info", None), ("snapshot_download", COMMIT)]
    # From now on without network, also when the branch has moved.
    assert fetcher(tiny(), NoHub(), environ={"HF_HUB_OFFLINE": "1"}) == found
    assert resolve_checkpoint(tiny(), hub_cache=fetcher.hub_cache) == found
    assert json.loads(record_of(FILES).read_text())["commit"] == COMMIT


def test_of_the_base_repository_the_transformer_is_left_out(
    content: bytes, fetcher: Fetcher
) -> None:
    base = FakeHub(layout())
    hubs = FakeHubs(base, of_files(content))
    model = ModelConfig(name="480p_t2v_4step", repo=REPO, transformer_hub=SOURCE)

    text = message(lambda: fetcher(model, hubs))

    assert "and model=480p_t2v_4step has" in text  # the file is the tiny model's
    folder = snapshot(fetcher.hub_cache)
    assert not (folder / "transformer/diffusion_pytorch_model.safetensors").exists()
    assert (folder / "transformer/config.json").exists()
    assert (folder / "vae/diffusion_pytorch_model.safetensors").exists()
    # The whole option that shares the repository is not taken for complete.
    plain = ModelConfig(name="480p_t2v", repo=REPO)
    assert resolve_checkpoint(plain, hub_cache=fetcher.hub_cache).is_missing
    assert not fetcher(plain, base).is_missing


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            replace(SOURCE, file="no.safetensors"),
            "model.transformer_hub.file=no.safetensors: owner/files has no such file at "
            "111111111111; its files are on https://huggingface.co/owner/files/tree/",
        ),
        (replace(SOURCE, sha256="0" * 64), "has the SHA-256 "),
        (replace(SOURCE, sha256="0"), "must be 64 digits of 0-9 a-f, or null"),
        (replace(SOURCE, repo="a/b/c"), "model.transformer_hub.repo=a/b/c: must be a hub id"),
        (replace(SOURCE, repo=None), "model.transformer_hub.repo=None: must be a hub id"),
        (replace(SOURCE, file=None), "model.transformer_hub.file=None: must name a .safetensors"),
        (replace(SOURCE, file="../x.safetensors"), "must name a .safetensors file of owner/files"),
        (replace(SOURCE, file="x.bin"), "must name a .safetensors file of owner/files"),
    ],
)
def test_what_names_no_file_or_another_content_is_refused_before_a_download(
    source: HubFile, words: str, content: bytes, fetcher: Fetcher
) -> None:
    hub = of_files(content)

    text = message(lambda: fetcher(replace(tiny(), transformer_hub=source), hub))

    assert words in text
    assert "snapshot_download" not in [name for name, _ in hub.calls]


def test_a_damaged_download_is_refused_and_told_what_to_delete(
    content: bytes, fetcher: Fetcher
) -> None:
    text = message(lambda: fetcher(tiny(), of_files(content, is_damaging=True)))

    assert text.startswith("1 of the files of owner/files are not what the hub has: ")
    assert text.endswith("; delete them and run again.")


def test_offline_the_missing_file_is_refused_and_prefetch_named(fetcher: Fetcher) -> None:
    text = message(lambda: fetcher(tiny(), NoHub(), environ={"HF_HUB_OFFLINE": "1"}))

    assert text.endswith("HF_HUB_OFFLINE=0 hv15-batch prefetch model=tiny_t2v")


def test_prefetch_converts_the_file_so_that_a_run_needs_nothing(
    content: bytes, tmp_path: Path
) -> None:
    lines: list[str] = []
    hub_cache = tmp_path / "hub"

    code = prefetch(
        Config(model=tiny()), lines.append, hub=of_files(content), hub_cache=hub_cache, environ={}
    )

    own = resolve_checkpoint(tiny(), hub_cache=hub_cache).transformer
    assert own is not None
    assert (code, own.is_made) == (0, True)
    assert lines[-2:] == [
        f"transformer {own.path} (original (Tencent) layout, f32), SHA-256 {own.sha256}, "
        f"converted: {own.folder}",
        "model=tiny_t2v is built on this machine in seconds: nothing else to download.",
    ]


def test_a_run_fetches_the_file_and_renders_the_latents_of_the_checkpoint(
    command: Callable[..., Answer],
    tmp_path: Path,
    content: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = of_files(content, commit=OTHER)
    monkeypatch.setattr(fetching, "open_hub", lambda: hub)
    (tmp_path / "one.txt").write_text("a cat\n")
    assert command("one.txt", *SMALL, "run_dir=plain").code == 0
    words = ("one.txt", *SMALL, "run_dir=four", *TYPED)

    dry = command(*words, "--dry-run")
    assert f"; transformer {FILES}/{FILE}, not on disk: fetched at the start" in dry.out
    assert command(*words).code == 0

    logs = {name: pd.read_parquet(tmp_path / name / "log").iloc[0] for name in ("plain", "four")}
    assert logs["four"]["latents_sha256"] == logs["plain"]["latents_sha256"]
    sha256 = hashlib.sha256(content).hexdigest()
    assert logs["four"]["transformer_sha256"] == sha256
    assert logs["four"]["settings_sha256"] != logs["plain"]["settings_sha256"]

    # Once the file has gone, the run directory still knows which clips they are.
    shutil.rmtree(tmp_path / "hub")
    record_of(FILES).unlink()
    gone = command(*words, "--dry-run")
    assert (gone.code, "1 done" in gone.out) == (0, True), gone.out + gone.err

    # Which repository is fetched from is typed, and what it had is stored.
    refused = command("resume=four")
    assert "model.transformer_hub.repo" in refused.err
    again = command("resume=four", *TYPED)
    assert (again.code, "1 of 1 done" in again.out) == (0, True), again.err

    hub.files[FILE] = content.replace(b'"F32"', b'"F32"  ', 1)
    other = command("resume=four", *TYPED, "force=true")
    assert other.code == 2
    assert f"model.transformer_hub.sha256={sha256}: " in other.err


def test_a_clip_beyond_the_recipe_is_told_and_not_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "p.csv"
    manifest.write_text(
        "prompt,num_frames,flow_shift,num_inference_steps\na,121,5,4\nb,81,9,4\nc,81,5,8\nd,81,5,4\n"
    )
    config = Config(model=model_options()["480p_t2v_4step"])

    clips = make_clips(read_manifest(manifest, Task.t2v), config, None)

    assert [clip.off_recipe for clip in clips] == [True, True, True, False]
    assert advice_notes(clips, config.model) == [
        "WARNING: off the recipe of 480p_t2v_4step in 1 clip: 121 frames: trained on up to 81, and "
        "this is 1.5 times as long",
        "WARNING: off the recipe of 480p_t2v_4step in 1 clip: flow_shift 9: made for 5",
        "WARNING: off the recipe of 480p_t2v_4step in 1 clip: 8 steps: made for 4",
    ]


def test_guidance_is_refused_as_for_every_distilled_model(
    command: Callable[..., Answer], prompts: Path
) -> None:
    words = (prompts, "model=480p_t2v_4step", "override.num_inference_steps=4", "--dry-run")

    refused = command(*words, "override.guidance_scale=6", "model.weights=random")

    assert refused.code == 2
    assert "480p_t2v_4step is distilled for guidance_scale 1" in refused.err


def test_random_weights_need_no_file(command: Callable[..., Answer], prompts: Path) -> None:
    answer = command(prompts, "model=480p_t2v_4step", "model.weights=random", "--dry-run")

    assert answer.code == 0
    assert "Model: 480p_t2v_4step, random weights: nothing is downloaded" in answer.out
    assert "4 steps, guidance 1, shift 5" in answer.out
