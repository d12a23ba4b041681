"""Clips, checkpoints and embeddings of the tiny models for the pipeline tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideo15Transformer3DModel

from fakes.checkpoint import at
from fakes.command import tiny_model
from hv15_batch.clip import Clip, ClipSettings, make_clip
from hv15_batch.config.settings import Config, RuntimeConfig
from hv15_batch.engine.denoise.pipeline import Denoiser, denoise
from hv15_batch.engine.encode.cache import (
    Conditioning,
    EmbeddingCache,
    EncoderIdentity,
    clip_texts,
    image_key,
    text_key,
)
from hv15_batch.engine.encode.encoders import load_encoders
from hv15_batch.weights.checkpoint import Checkpoint

torch.set_num_threads(1)  # the tiny models are too small to gain from more

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
        width=96 if name == T2V else 48,
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


def cached_conditioning(
    config: Config, checkpoint: Checkpoint, clip: Clip, photo: Path, cache: EmbeddingCache
) -> Conditioning:
    """Encode what the clip needs, through the disk."""
    settings = clip.settings
    encoders = load_encoders(config, checkpoint)
    for text in clip_texts(settings):
        cache.write_text(text_key(text, IDENTITY), encoders.encode_text(text))
    if settings.image_sha256 is not None:
        size = (settings.height, settings.width)
        key = image_key(settings.image_sha256, *size, IDENTITY)
        cache.write_image(key, encoders.encode_image(photo.read_bytes(), *size))
    encoders.release()
    conditioning = cache.read_conditioning(settings, IDENTITY)
    assert conditioning is not None
    return conditioning


def ignore_steps(done: int, steps: int) -> None:
    pass


def small_transformer() -> HunyuanVideo15Transformer3DModel:
    """A transformer of the real class, smaller than the tiny model's, with seeded weights."""
    torch.manual_seed(0)
    return HunyuanVideo15Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=24,
        text_embed_2_dim=12,
        image_embed_dim=20,
        rope_axes_dim=(4, 6, 6),
    ).eval()


def denoise_with_guidance(folder: Path, embeddings: Path) -> Callable[[Denoiser], torch.Tensor]:
    """A function that denoises one clip of the tiny model; its texts are encoded once."""
    clip = a_clip(T2V, guidance_scale=6.0)
    cache = EmbeddingCache(embeddings)
    conditioning = cached_conditioning(tiny_config(T2V), at(folder), clip, Path(), cache)
    return lambda pipe: denoise(pipe, clip, conditioning, ignore_steps).latents
