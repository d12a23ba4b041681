"""`model.transformer_file`: other layouts render to the same latents; what does not fit is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from fakes.command import Answer
from fakes.single_files import original, saved
from safetensors.torch import load_file

from hv15_batch.engine.load.tiny import ensure_checkpoint
from hv15_batch.errors import Refused
from hv15_batch.model.options import model_options
from hv15_batch.model.variant import ModelConfig
from hv15_batch.weights.checkpoint import resolve_checkpoint, tiny_root
from hv15_batch.weights.transformer import make_transformer

SMALL = ("model=tiny_t2v", "override.num_frames=5", "override.num_inference_steps=2")


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """The transformer of the tiny checkpoint that commands render with."""
    folder = ensure_checkpoint(model_options()["tiny_t2v"], tiny_root())
    return load_file(next((folder / "transformer").glob("*.safetensors")))


def latents(run_dir: Path) -> tuple[str, str | None]:
    log = pd.read_parquet(run_dir / "log", dtype_backend="pyarrow")
    assert list(log["status"]) == ["ok"]
    sha256 = log["transformer_sha256"][0]
    return log["latents_sha256"][0], None if pd.isna(sha256) else sha256


def test_files_of_other_layouts_render_to_the_latents_of_the_checkpoint(
    command: Callable[..., Answer], tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    (tmp_path / "one.txt").write_text("a cat\n")
    assert command("one.txt", *SMALL, "run_dir=plain").code == 0
    plain, none = latents(tmp_path / "plain")
    assert none is None

    for name, fused in (("tencent", False), ("comfy", True)):
        file = saved(tmp_path / f"{name}.safetensors", original(tensors, fused))
        words = ("one.txt", *SMALL, f"run_dir={name}", f"model.transformer_file={file.name}")
        dry = command(*words, "--dry-run")
        assert f"transformer {name}.safetensors" in dry.out
        assert command(*words).code == 0

        found, sha256 = latents(tmp_path / name)
        assert found == plain
        assert sha256 == resolve_checkpoint(option(file)).transformer_sha256

    log = pd.read_parquet(tmp_path / "plain" / "log")
    other = pd.read_parquet(tmp_path / "comfy" / "log")
    assert log["settings_sha256"][0] != other["settings_sha256"][0]
    resumed = command("resume=comfy")
    assert resumed.code == 2
    assert "model.transformer_file" in resumed.err
    again = command("resume=comfy", "model.transformer_file=comfy.safetensors")
    assert (again.code, "1 of 1 done" in again.out) == (0, True)
    for other_file in ((), ("model.transformer_file=tencent.safetensors",)):
        refused = command("one.txt", *SMALL, "run_dir=comfy", *other_file)
        assert refused.code == 2
        assert "clips are done here with other settings (transformer_sha256" in refused.err


def option(file: Path, name: str = "tiny_t2v") -> ModelConfig:
    return replace(model_options()[name], transformer_file=str(file))


def test_a_transformer_of_another_architecture_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    file = saved(tmp_path / "tiny.safetensors", original(tensors))

    with pytest.raises(Refused, match="and model=480p_t2v has"):
        resolve_checkpoint(option(file, "480p_t2v"))


def test_a_step_distilled_transformer_needs_its_option(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    distilled = dict(tensors)
    for leaf in ("1.weight", "1.bias", "2.weight", "2.bias"):
        name = f"time_embed.timestep_embedder.linear_{leaf}"
        distilled[name.replace("embedder.", "embedder_r.")] = tensors[name]
    file = saved(tmp_path / "tiny.safetensors", original(distilled))

    with pytest.raises(Refused, match="step-distilled"):
        resolve_checkpoint(option(file))


def test_random_weights_and_a_file_are_refused(
    command: Callable[..., Answer], tmp_path: Path, prompts: Path
) -> None:
    answer = command(
        prompts, "model=480p_t2v", "model.weights=random", "model.transformer_file=x", "--dry-run"
    )

    assert answer.code == 2
    assert "leave one of them out" in answer.err


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = saved(tmp_path / "tiny.safetensors", original(tensors))
    own = resolve_checkpoint(option(file)).transformer
    assert own is not None
    saved(file, original({name: tensor + 1 for name, tensor in tensors.items()}))

    with pytest.raises(Refused, match="was changed while it was read"):
        make_transformer(own, option(file), lambda _: None)

    assert not own.is_made
