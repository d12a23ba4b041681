"""Latents equal those of the stock diffusers pipeline."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from diffusers.utils import load_image
from fakes.checkpoint import at
from fakes.pipelines import (
    I2V,
    MEANFLOW,
    NEGATIVE,
    PLAIN,
    QUOTED,
    T2V,
    a_clip,
    cached_conditioning,
    ignore_steps,
    tiny_config,
)
from fakes.samples import sampled

from hv15_batch.clip import Clip
from hv15_batch.engine.denoise.pipeline import denoise, load_denoiser
from hv15_batch.engine.encode.cache import EmbeddingCache

TOLERANCE = 1e-5


def stock_latents(folder: Path, clip: Clip, photo: Path) -> torch.Tensor:
    settings = clip.settings
    arguments: dict[str, Any] = {"height": settings.height, "width": settings.width}
    stock_class = HunyuanVideo15Pipeline
    if settings.image_sha256 is not None:
        stock_class = HunyuanVideo15ImageToVideoPipeline
        arguments = {"image": load_image(str(photo))}
    pipe = stock_class.from_pretrained(folder, dtype=torch.float32)
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


MODELS = (T2V, I2V, MEANFLOW)
GUIDANCE = {"no_cfg": (1.0, None), "cfg_empty": (6.0, ""), "cfg_negative": (6.0, NEGATIVE)}
PROMPTS = {"plain": PLAIN, "quoted": QUOTED}


def cases_of(model: str) -> list[Any]:
    """Every guidance with every prompt, for one model."""
    return [
        pytest.param(model, *GUIDANCE[guidance], PROMPTS[prompt], id=f"{model}-{guidance}-{prompt}")
        for guidance, prompt in itertools.product(GUIDANCE, PROMPTS)
    ]


@pytest.mark.parametrize(
    ("name", "guidance_scale", "negative_prompt", "prompt"),
    [case for n, model in enumerate(MODELS) for case in sampled(cases_of(model), 3, seed=n)],
)
def test_latents_equal_those_of_the_stock_pipeline(
    name: str,
    guidance_scale: float,
    negative_prompt: str | None,
    prompt: str,
    folder_of: Callable[[str], Path],
    photo: Path,
    tmp_path: Path,
) -> None:
    clip = a_clip(
        name, prompt=prompt, guidance_scale=guidance_scale, negative_prompt=negative_prompt
    )
    folder = folder_of(name)
    expected = stock_latents(folder, clip, photo)
    cache = EmbeddingCache(tmp_path)
    conditioning = cached_conditioning(tiny_config(name), at(folder), clip, photo, cache)

    for mask_free in (True, False):
        pipe = load_denoiser(tiny_config(name, mask_free), at(folder))
        denoised = denoise(pipe, clip, conditioning, ignore_steps)

        difference = (denoised.latents - expected).abs().max().item()
        print(f"mask_free={mask_free}: largest difference {difference:.2e}")
        assert denoised.latents.shape == expected.shape
        assert expected.std() > 0.1
        assert difference <= TOLERANCE
        assert len(denoised.step_seconds) == clip.settings.num_inference_steps
