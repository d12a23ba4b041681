"""Loading, denoising step by step, refusals, placement."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from fakes.checkpoint import RANDOM, at
from fakes.command import tiny_model
from fakes.pipelines import (
    I2V,
    MEANFLOW,
    T2V,
    a_clip,
    cached_conditioning,
    ignore_steps,
    tiny_config,
)
from PIL import Image

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config
from hv15_batch.engine.denoise.pipeline import Denoiser, denoise, load_denoiser, load_vae
from hv15_batch.engine.encode.cache import (
    CROP_START,
    MAX_GLYPH_TOKENS,
    MAX_TEXT_TOKENS,
    SYSTEM_MESSAGE,
    Conditioning,
    EmbeddingCache,
)
from hv15_batch.engine.encode.encoders import load_encoders
from hv15_batch.engine.load import random_weights
from hv15_batch.engine.placement.placement import Placement
from hv15_batch.errors import Refused
from hv15_batch.media.conversion import open_upright
from hv15_batch.model.architectures import read_architecture
from hv15_batch.model.variant import STEP_DISTILLED_T2V, Dtype, OffloadKind, Task, Weights
from hv15_batch.weights.checkpoint import Checkpoint, CheckpointKind


def a_text_to_video(
    folder_of: Callable[[str], Path], tmp_path: Path, **changes: Any
) -> tuple[Denoiser, Clip, Conditioning]:
    clip, folder = a_clip(T2V, **changes), folder_of(T2V)
    cache = EmbeddingCache(tmp_path)
    conditioning = cached_conditioning(tiny_config(T2V), at(folder), clip, Path(), cache)
    return load_denoiser(tiny_config(T2V), at(folder)), clip, conditioning


def test_a_pipeline_gives_the_same_latents_again_after_a_clip_of_other_settings(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe, clip, conditioning = a_text_to_video(folder_of, tmp_path, guidance_scale=6.0)
    other = a_clip(T2V, flow_shift=3.0, num_frames=9, num_inference_steps=2)

    first = denoise(pipe, clip, conditioning, ignore_steps).latents
    denoise(pipe, other, conditioning, ignore_steps)
    again = denoise(pipe, clip, conditioning, ignore_steps).latents

    assert torch.equal(first, again)


def test_each_step_is_told_once_also_with_two_forwards_a_step(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe, clip, conditioning = a_text_to_video(folder_of, tmp_path, guidance_scale=6.0)
    told: list[tuple[int, int]] = []

    denoised = denoise(pipe, clip, conditioning, lambda done, steps: told.append((done, steps)))

    assert told == [(1, 3), (2, 3), (3, 3)]
    assert all(seconds > 0 for seconds in denoised.step_seconds)
    assert pipe.guider.config.guidance_scale == 6.0
    assert pipe.scheduler.config.shift == 7.0


def test_no_hook_is_left_when_a_step_fails(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe, clip, conditioning = a_text_to_video(folder_of, tmp_path)

    def fail(done: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(pipe, clip, conditioning, fail)

    assert not pipe.transformer._forward_pre_hooks


def test_a_disabled_guider_of_a_checkpoint_does_not_switch_off_what_is_asked(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe, clip, conditioning = a_text_to_video(folder_of, tmp_path, guidance_scale=6.0)
    expected = denoise(pipe, clip, conditioning, ignore_steps).latents
    pipe.guider = pipe.guider.new(enabled=False)

    assert torch.equal(denoise(pipe, clip, conditioning, ignore_steps).latents, expected)


def test_guidance_without_a_negative_embedding_is_an_error(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe, clip, conditioning = a_text_to_video(folder_of, tmp_path, guidance_scale=6.0)

    with pytest.raises(ValueError, match=r"guidance_scale=6\.0 needs a negative embedding"):
        denoise(pipe, clip, replace(conditioning, negative=None), ignore_steps)


def test_a_size_other_than_the_images_bucket_is_an_error(
    folder_of: Callable[[str], Path], photo: Path, tmp_path: Path
) -> None:
    clip, config, folder = a_clip(I2V, height=48), tiny_config(I2V), folder_of(I2V)
    cache = EmbeddingCache(tmp_path)
    conditioning = cached_conditioning(config, at(folder), clip, photo, cache)
    pipe = load_denoiser(config, at(folder))

    message = "the pipeline makes 64x48 of a 60x40 image, but the clip says 48x48"
    with pytest.raises(ValueError, match=message):
        denoise(pipe, clip, conditioning, ignore_steps)


def test_the_first_frame_is_encoded_untiled_with_a_vae_that_tiles(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    config, folder = tiny_config(I2V), folder_of(I2V)
    wide = tmp_path / "wide.png"
    Image.linear_gradient("L").resize((320, 320)).save(wide)
    vae = load_vae(config, at(folder))
    plain = load_encoders(config, at(folder), vae=vae).encode_image(wide.read_bytes(), 320, 320)
    vae.enable_tiling(128, 128, 8, 8)

    tiled = load_encoders(config, at(folder), vae=vae).encode_image(wide.read_bytes(), 320, 320)

    assert torch.equal(plain.image_latents, tiled.image_latents)
    assert vae.use_tiling


def test_an_image_lying_on_its_side_is_read_upright(photo: Path) -> None:
    image = open_upright(photo.read_bytes())

    assert (image.width, image.height, image.mode) == (40, 60, "RGB")


def test_a_meanflow_checkpoint_is_refused_for_text_to_video(
    folder_of: Callable[[str], Path],
) -> None:
    folder = folder_of(MEANFLOW)

    for load in (load_denoiser, load_encoders):
        with pytest.raises(Refused) as refusal:
            load(tiny_config(T2V), at(folder))

        assert str(refusal.value) == (
            f"model=tiny_t2v: {folder} holds a MeanFlow transformer: {STEP_DISTILLED_T2V}."
        )


def test_a_checkpoint_of_the_other_task_is_refused(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of(T2V)

    with pytest.raises(Refused) as refusal:
        load_denoiser(tiny_config(I2V), at(folder))

    assert str(refusal.value) == (
        f"model=tiny_i2v: {folder} is a checkpoint for HunyuanVideo15Pipeline, but "
        "model.task=i2v needs HunyuanVideo15ImageToVideoPipeline; use the model option of that "
        "checkpoint."
    )


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is no checkpoint in diffusers layout: model_index"):
        load_denoiser(tiny_config(T2V), at(tmp_path))


def test_a_vae_that_is_loaded_already_is_not_loaded_again(
    folder_of: Callable[[str], Path],
) -> None:
    config = tiny_config(T2V)
    vae = load_vae(config, at(folder_of(T2V)))

    assert load_denoiser(config, at(folder_of(T2V)), vae=vae).vae is vae


def test_missing_weights_are_refused_and_never_made_at_random() -> None:
    missing = Checkpoint("owner/name", None, None, CheckpointKind.hub)

    for load in (load_denoiser, load_encoders, load_vae):
        with pytest.raises(Refused) as refusal:
            load(tiny_config(T2V), missing)
        assert str(refusal.value) == (
            "the weights of owner/name are not on this machine; run `hv15-batch prefetch` for "
            "this model."
        )


@pytest.mark.parametrize("task", list(Task))
def test_random_weights_denoise_without_a_checkpoint(
    task: Task, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {**read_architecture("tiny")}
    monkeypatch.setattr(random_weights, "read_architecture", lambda size: tiny)
    name = T2V if task is Task.t2v else I2V
    model = replace(tiny_model(name), weights=Weights.random, dtype=Dtype.bfloat16, target_size=64)
    config, clip = Config(model=model), a_clip(name)

    conditioning = cached_conditioning(config, RANDOM, clip, photo, EmbeddingCache(tmp_path))
    denoised = denoise(load_denoiser(config, RANDOM), clip, conditioning, ignore_steps)

    assert denoised.latents.dtype is torch.bfloat16
    assert denoised.latents.isfinite().all()


def test_placement_leaves_everything_in_place_on_the_cpu(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    pipe = load_denoiser(tiny_config(T2V), at(folder_of(T2V)))

    for kind in set(OffloadKind) - {OffloadKind.auto}:
        placement = Placement(kind, torch.device("cpu"), tmp_path)
        placement.hold_transformer(pipe.transformer)
        placement.hold_vae(pipe.vae)
        with placement.denoising():
            assert pipe.transformer.device.type == "cpu"
        with placement.decoding():
            assert pipe.vae.device.type == "cpu"
        assert placement.describe() == kind.name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_profile_model_keeps_one_component_on_the_card_and_the_weights_unchanged(
    tmp_path: Path,
) -> None:
    transformer, vae = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)
    weights = transformer.weight.detach().clone()
    placement = Placement(OffloadKind.model, torch.device("cuda", 0), tmp_path)
    placement.hold_transformer(transformer)
    placement.hold_vae(vae)

    with placement.denoising():
        assert (transformer.weight.device.type, vae.weight.device.type) == ("cuda", "cpu")
    with placement.decoding():
        assert (transformer.weight.device.type, vae.weight.device.type) == ("cpu", "cuda")

    assert torch.equal(transformer.weight, weights)


@pytest.mark.parametrize("name", [T2V, I2V])
def test_what_is_taken_from_the_stock_pipeline_is_still_there(
    name: str, folder_of: Callable[[str], Path]
) -> None:
    pipe = load_denoiser(tiny_config(name), at(folder_of(name)))
    stock = HunyuanVideo15ImageToVideoPipeline if name == I2V else HunyuanVideo15Pipeline

    assert pipe.system_message == SYSTEM_MESSAGE
    assert pipe.prompt_template_encode_start_idx == CROP_START
    assert pipe.tokenizer_max_length == MAX_TEXT_TOKENS
    assert pipe.tokenizer_2_max_length == MAX_GLYPH_TOKENS
    parameters = inspect.signature(stock.encode_prompt).parameters
    assert list(inspect.signature(type(pipe).encode_prompt).parameters) == list(parameters)
    assert stock.__call__ is type(pipe).__call__
