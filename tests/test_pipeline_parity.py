"""Latents equal those of the stock diffusers pipeline; what may be replaced of it stays true."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from diffusers.utils import load_image
from PIL import Image

from hv15_batch.clip import Clip, ClipSettings, make_clip
from hv15_batch.config import STEP_DISTILLED_T2V, Config, ConfigError, RuntimeConfig, Task
from hv15_batch.embeddings import (
    CROP_START,
    MAX_GLYPH_TOKENS,
    MAX_TEXT_TOKENS,
    SYSTEM_MESSAGE,
    Conditioning,
    EmbeddingCache,
    EncoderIdentity,
    clip_texts,
    image_key,
    text_key,
)
from hv15_batch.encoders import load_encoders, open_upright
from hv15_batch.pipeline import Denoised, Denoiser, denoise, load_denoiser, load_vae
from hv15_batch.placement import Placement

TOLERANCE = 1e-5
PLAIN = "A red fox, in the snow"
QUOTED = 'A neon sign says "OPEN" and “24/7”'
NEGATIVE = 'blurry, "watermark"'
IDENTITY = EncoderIdentity(repo="tiny", revision="1", weights="tiny", dtype="float32")
T2V, I2V, MEANFLOW = "tiny_t2v", "tiny_i2v", "tiny_i2v_step_distilled"


def tiny_config(name: str, mask_free: bool = True) -> Config:
    return Config(model=tiny_model(name), runtime=RuntimeConfig(mask_free=mask_free))


def a_clip(name: str, **changes: Any) -> Clip:
    values: dict[str, Any] = dict(
        prompt=PLAIN,
        negative_prompt=None,
        image_sha256=None if name == T2V else "0" * 64,
        seed=7,
        height=64,
        width=96,
        num_frames=5,
        num_inference_steps=3,
        guidance_scale=1.0,
        flow_shift=7.0,
        fps=24.0,
        video={},
        model=name,
        revision="1",
        weights="tiny",
        dtype="float32",
        attention_backend="auto",
    )
    settings = ClipSettings(**{**values, **changes})
    return make_clip(
        row_id="row",
        row_index=0,
        line=2,
        settings=settings,
        image=None,
        image_path=None,
        tags={},
        off_recipe=False,
    )


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


def small_bucket(config: Config, folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint whose buckets are small, for a fast test."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    file = copy / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "target_size": 64}))
    return copy


def stock_latents(folder: Path, clip: Clip, photo: Path) -> torch.Tensor:
    settings = clip.settings
    arguments: dict[str, Any] = {"height": settings.height, "width": settings.width}
    stock_class = HunyuanVideo15Pipeline
    if settings.image_sha256 is not None:
        stock_class = HunyuanVideo15ImageToVideoPipeline
        arguments = {"image": load_image(str(photo))}
    pipe = stock_class.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.guider = pipe.guider.new(guidance_scale=settings.guidance_scale)
    pipe.scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, shift=settings.flow_shift
    )
    return pipe(
        prompt=settings.prompt,
        negative_prompt=settings.negative_prompt,
        num_frames=settings.num_frames,
        num_inference_steps=settings.num_inference_steps,
        generator=torch.Generator("cpu").manual_seed(settings.seed),
        output_type="latent",
        **arguments,
    ).frames


def cached_conditioning(
    config: Config, folder: Path, clip: Clip, photo: Path, cache: EmbeddingCache
) -> Conditioning:
    """Encode what the clip needs, through the disk."""
    settings = clip.settings
    encoders = load_encoders(config, folder)
    for text in clip_texts(settings):
        cache.write_text(text_key(text, IDENTITY), encoders.encode_text(text))
    if settings.image_sha256 is not None:
        size = (settings.height, settings.width)
        key = image_key(settings.image_sha256, *size, IDENTITY)
        cache.write_image(key, encoders.encode_image(photo, *size))
    encoders.release()
    conditioning = cache.read_conditioning(settings, IDENTITY)
    assert conditioning is not None
    return conditioning


def our_latents(
    config: Config, folder: Path, clip: Clip, photo: Path, tmp_path: Path
) -> Denoised:
    cache = EmbeddingCache(tmp_path / "embeddings")
    conditioning = cached_conditioning(config, folder, clip, photo, cache)
    pipe = load_denoiser(config, folder)
    return denoise(pipe, clip, conditioning, lambda done, steps: None)


@pytest.mark.parametrize("mask_free", [True, False], ids=["mask_free", "masked"])
@pytest.mark.parametrize("prompt", [PLAIN, QUOTED], ids=["plain", "quoted"])
@pytest.mark.parametrize(
    ("guidance_scale", "negative_prompt"),
    [(1.0, None), (6.0, ""), (6.0, NEGATIVE)],
    ids=["no_cfg", "cfg_empty", "cfg_negative"],
)
@pytest.mark.parametrize("name", [T2V, I2V, MEANFLOW])
def test_latents_equal_those_of_the_stock_pipeline(
    name: str,
    guidance_scale: float,
    negative_prompt: str | None,
    prompt: str,
    mask_free: bool,
    tiny_folder: Callable[[str], Path],
    photo: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    config = tiny_config(name, mask_free)
    folder = tiny_folder(name)
    size = {}
    if name != T2V:
        folder = small_bucket(config, folder, tmp_path)
        size = {"height": 80, "width": 48}
    clip = a_clip(
        name,
        prompt=prompt,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        **size,
    )

    expected = stock_latents(folder, clip, photo)
    denoised = our_latents(config, folder, clip, photo, tmp_path)

    difference = (denoised.latents - expected).abs().max().item()
    record_property("max_difference", difference)
    assert denoised.latents.shape == expected.shape
    assert expected.std() > 0.1
    assert difference <= TOLERANCE
    assert len(denoised.step_seconds) == clip.settings.num_inference_steps
