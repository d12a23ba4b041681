from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from fakes.command import Answer, FakeRuns, tiny_model
from PIL import Image

_CACHE = "HV15_BATCH_TEST_CACHE"


def pytest_configure(config: pytest.Config) -> None:
    """Give all workers of this run one cache: tiny checkpoints are built once, none are found."""
    if _CACHE not in os.environ:
        os.environ[_CACHE] = tempfile.mkdtemp(prefix="hv15_batch-tests-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(_CACHE)))
    os.environ["XDG_CACHE_HOME"] = os.environ[_CACHE]
    os.environ["HF_HOME"] = str(Path(os.environ[_CACHE]) / "huggingface")
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a card where there is none."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA card"))


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory and disk of a machine with room: what is free on this one decides no test."""
    from fakes.roomy import make_room

    make_room(monkeypatch.setattr)


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """Run a command line in an empty folder of a machine without a card, in this process."""
    from hv15_batch import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*words: str | Path) -> Answer:
        capsys.readouterr()
        code = cli.main([str(word) for word in words])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a tiny checkpoint's folder by the name of its model option."""
    from hv15_batch.engine.load.tiny import ensure_checkpoint

    root = tmp_path_factory.mktemp("tiny")
    return lambda name: ensure_checkpoint(tiny_model(name), root)


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that lies on its side: stored 40x60, shown 60x40."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    image = Image.linear_gradient("L").resize((60, 40))
    image = Image.merge("RGB", (image, image.rotate(90), image.rotate(180)))
    orientation = Image.Exif()
    orientation[0x0112] = 6
    image.save(path, exif=orientation)
    return path


@pytest.fixture(scope="session")
def folder_of(
    tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Checkpoints of which those for images have small buckets, for fast tests."""

    @cache
    def folder(name: str) -> Path:
        if name == "tiny_t2v":
            return tiny_folder(name)
        copy = tmp_path_factory.mktemp("small_bucket") / name
        shutil.copytree(tiny_folder(name), copy)
        file = copy / "transformer" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "target_size": 64}))
        return copy

    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A manifest of two rows in the folder of the command."""
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,num_inference_steps\na cat,\na dog,50\n", encoding="utf-8")
    return path


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    """Runs that are only remembered."""
    from hv15_batch.run import session

    runs = FakeRuns()
    monkeypatch.setattr(session, "run", runs)
    return runs
