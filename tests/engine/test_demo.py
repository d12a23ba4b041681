"""The demo models: weights of the package in ordinary checkpoints, and clips that obey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15ByT5TextProjection,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from hv15_batch.engine.load import demo
from hv15_batch.engine.load.demo import build_demo_component
from hv15_batch.engine.load.tiny import ensure_checkpoint
from hv15_batch.model.architectures import (
    DEMO_FOLDER,
    MODULES,
    checkpoint_folder,
    definition_sha256,
    read_architecture,
)
from hv15_batch.model.options import small_model
from training.drawing import render
from training.pixels import canvas
from training.prompts import plain_caption
from training.reading import read_clip
from training.world import sample_scenes

T2V, I2V = small_model("demo_t2v"), small_model("demo_i2v")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def rendered(pipeline: Any, prompt: str, **call: Any) -> torch.Tensor:
    """Frames in -1..1: [3, 25, 128, 192]."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    call = {"num_frames": 25, "num_inference_steps": 10, "output_type": "np", **call}
    frames = pipeline(prompt=prompt, generator=generator, **call).frames[0]
    return torch.from_numpy(np.asarray(frames)).permute(3, 0, 1, 2) * 2 - 1


def test_the_weights_of_both_models_take_at_most_18_mb() -> None:
    files = list(DEMO_FOLDER.glob("*.safetensors"))

    assert sorted(f.stem for f in files) == sorted(MODULES)
    assert sum(f.stat().st_size for f in files) <= 18_000_000


@pytest.mark.parametrize("name", MODULES)
def test_every_weight_of_the_package_is_in_the_component(name: str) -> None:
    component = build_demo_component(name, I2V, read_architecture("demo"))
    state, packed = component.state_dict(), load_file(DEMO_FOLDER / f"{name}.safetensors")

    for key, value in packed.items():
        if not key.endswith(".rows"):
            rows = packed.get(key + ".rows")
            found = state[key] if rows is None else state[key][rows.long()]
            found = found[tuple(slice(size) for size in value.shape)]
            assert torch.equal(found, value.float()), key
    assert all(torch.isfinite(value).all() for value in state.values())


def test_the_padded_glyph_projection_is_the_trained_one() -> None:
    transformer: Any = build_demo_component("transformer", T2V, read_architecture("demo"))
    packed = load_file(DEMO_FOLDER / "transformer.safetensors")
    prefix = "context_embedder_2."
    trained = HunyuanVideo15ByT5TextProjection(64, 128, 160)
    trained.load_state_dict(
        {k.removeprefix(prefix): v.float() for k, v in packed.items() if k.startswith(prefix)}
    )
    states = torch.randn(2, 7, 64)

    assert transformer.context_embedder_2.linear_2.weight.shape == (2048, 2048)
    torch.testing.assert_close(transformer.context_embedder_2(states), trained(states))


def test_a_weight_that_fits_nowhere_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = load_file(DEMO_FOLDER / "image_encoder.safetensors")
    save_file({**packed, "strange.weight": torch.ones(1)}, tmp_path / "image_encoder.safetensors")
    monkeypatch.setattr(demo, "DEMO_FOLDER", tmp_path)

    with pytest.raises(ValueError, match=r"image_encoder: no parameter is called strange\.weight"):
        build_demo_component("image_encoder", I2V, read_architecture("demo"))


def test_the_revision_is_that_of_task_and_weights() -> None:
    revisions = {definition_sha256("demo", model) for model in (T2V, I2V)}

    assert len(revisions) == 2
    assert definition_sha256("tiny", T2V) not in revisions


@pytest.mark.slow
def test_a_clip_of_the_stock_pipeline_shows_what_its_prompt_says(root: Path) -> None:
    folder = ensure_checkpoint(T2V, root)
    pipeline = HunyuanVideo15Pipeline.from_pretrained(folder)
    prompt = 'A red star moves from left to right in the desert, with the word "HELLO".'

    reading = read_clip(rendered(pipeline, prompt, height=128, width=192), letters=5)

    assert folder == checkpoint_folder(T2V, root)
    shown = (reading.color, reading.shape, reading.motion, reading.place, reading.word)
    assert shown == ("red", "star", "right", "desert", "HELLO")


@pytest.mark.slow
def test_a_clip_goes_on_from_its_first_frame(root: Path) -> None:
    pipeline = HunyuanVideo15ImageToVideoPipeline.from_pretrained(ensure_checkpoint(I2V, root))
    scene = sample_scenes(1, torch.Generator().manual_seed(4), words=0, two=0, places=(1,))
    frame, _, _ = render(scene, canvas(1, "cpu", frames=1))
    pixels = ((frame[0, :, 0] + 1) * 127.5).round().byte().permute(1, 2, 0)

    picture = Image.fromarray(pixels.numpy())
    video = rendered(pipeline, plain_caption(scene, 0), image=picture)

    error = (video[:, 0] - frame[0, :, 0]).square().mean() / 4
    assert video.shape == (3, 25, 128, 192)
    assert -10 * torch.log10(error) > 25
    assert (video[:, -1] - video[:, 0]).abs().mean() > 0.02
