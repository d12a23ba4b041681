"""The static step cache: which steps are computed, what is reused, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.checkpoint import at
from fakes.pipelines import T2V, a_clip, cached_conditioning, ignore_steps, tiny_config

from hv15_batch.clip import Clip
from hv15_batch.engine.denoise.pipeline import Denoiser, denoise, load_denoiser
from hv15_batch.engine.encode.cache import Conditioning, EmbeddingCache
from hv15_batch.errors import Refused
from hv15_batch.model.shapes import Shape
from hv15_batch.model.step_cache import StepCache, computed_seconds, make_step_cache

STEPS = 10
CACHE = "3:2:8"
"""Computes 0, 1, 2, 5, 8 and 9."""


@pytest.fixture(scope="module")
def loaded(
    folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Denoiser, Clip, Conditioning]:
    folder = folder_of(T2V)
    clip = a_clip(T2V, guidance_scale=6.0, num_inference_steps=STEPS)
    cache = EmbeddingCache(tmp_path_factory.mktemp("embeddings"))
    conditioning = cached_conditioning(tiny_config(T2V), at(folder), clip, Path(), cache)
    return load_denoiser(tiny_config(T2V), at(folder)), clip, conditioning


def a_cached_clip(cache: str | None, **changes: Any) -> Clip:
    return a_clip(T2V, num_inference_steps=STEPS, cache=cache, **{"guidance_scale": 6.0, **changes})


# -- which steps ------------------------------------------------------------------------------


def test_the_list_for_50_steps_is_the_published_one() -> None:
    cache = make_step_cache(50, None, None, None)

    computed = [step for step in range(50) if cache.computes(step)]
    assert computed == [*range(11), *range(11, 45, 4), *range(45, 50)]
    assert cache.num_computed(50) == 25
    assert str(cache) == "4:11:45"


@pytest.mark.parametrize(
    ("steps", "bounds", "message"),
    [
        (9, (None, None, None), "needs at least 10 steps"),
        (20, (2, 0, 10), "must be 1 <= start < end <= 20"),
        (20, (2, 12, 12), "must be 1 <= start < end <= 20"),
        (20, (2, 4, 21), "must be 1 <= start < end <= 20"),
    ],
)
def test_what_fits_no_steps_is_refused(steps: int, bounds: tuple[Any, ...], message: str) -> None:
    with pytest.raises(Refused, match=message):
        make_step_cache(steps, *bounds)


def test_cost_counts_computed_steps_and_both_forwards() -> None:
    shape = Shape.of(a_cached_clip(CACHE).settings)

    assert (shape.num_computed_steps, shape.num_forwards) == (6, 12)
    assert computed_seconds([float(step) for step in range(STEPS)], CACHE) == [0, 1, 2, 5, 8, 9]
    assert computed_seconds([1.0, 2.0], None) == [1.0, 2.0]


# -- what is reused ---------------------------------------------------------------------------


def test_blocks_run_in_the_computed_steps_alone(
    loaded: tuple[Denoiser, Clip, Conditioning],
) -> None:
    pipe, _, conditioning = loaded
    ran: list[int] = []
    done = [0]
    block = pipe.transformer.transformer_blocks[0]
    hook = block.register_forward_pre_hook(lambda *_: ran.append(done[0]))

    def note(steps_done: int, _: int) -> None:
        done[0] = steps_done

    result = denoise(pipe, a_cached_clip(CACHE), conditioning, note)
    hook.remove()

    assert ran == [0, 0, 1, 1, 2, 2, 5, 5, 8, 8, 9, 9]
    assert result.num_computed_steps == 6
    assert len(result.step_seconds) == STEPS
    assert torch.isfinite(result.latents).all()


def test_what_does_not_change_from_step_to_step_is_reused_without_an_error(
    loaded: tuple[Denoiser, Clip, Conditioning], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks that add a value of the text alone: the residuals of both forwards must be apart."""
    pipe, _, conditioning = loaded
    for block in pipe.transformer.transformer_blocks:
        monkeypatch.setattr(
            block, "forward", lambda video, text, *_: (video + text.std(), text), raising=False
        )

    every = denoise(pipe, a_cached_clip(None), conditioning, ignore_steps)
    some = denoise(pipe, a_cached_clip(CACHE), conditioning, ignore_steps)

    assert every.num_computed_steps == STEPS
    torch.testing.assert_close(some.latents, every.latents, rtol=1e-4, atol=1e-4)


def test_real_blocks_give_other_latents_near_those_of_all_steps(
    loaded: tuple[Denoiser, Clip, Conditioning],
) -> None:
    pipe, _, conditioning = loaded

    every = denoise(pipe, a_cached_clip(None), conditioning, ignore_steps).latents
    some = denoise(pipe, a_cached_clip(CACHE), conditioning, ignore_steps).latents

    assert not torch.equal(some, every)
    assert (some - every).norm() < 0.5 * every.norm()


def test_nothing_is_left_behind(loaded: tuple[Denoiser, Clip, Conditioning]) -> None:
    pipe, clip, conditioning = loaded
    transformer = pipe.transformer
    blocks, context = transformer.transformer_blocks, transformer.cache_context
    plain = denoise(pipe, clip, conditioning, ignore_steps).latents

    def fail(done: int, steps: int) -> None:
        if done == 4:  # a step that is left out comes next
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(pipe, a_cached_clip(CACHE), conditioning, fail)

    assert transformer.transformer_blocks is blocks
    assert transformer.cache_context is context
    assert not blocks[0]._forward_pre_hooks
    assert not blocks[-1]._forward_hooks
    assert torch.equal(denoise(pipe, clip, conditioning, ignore_steps).latents, plain)


def test_a_cache_is_part_of_what_is_asked() -> None:
    plain, cached = a_cached_clip(None), a_cached_clip(CACHE)

    assert plain.settings_sha256 != cached.settings_sha256
    assert plain.denoise_sha256 != cached.denoise_sha256


def test_every_step_computed_is_the_plain_result(
    loaded: tuple[Denoiser, Clip, Conditioning],
) -> None:
    pipe, clip, conditioning = loaded
    cache = str(StepCache(1, 1, STEPS))

    plain = denoise(pipe, clip, conditioning, ignore_steps).latents
    assert torch.equal(
        denoise(pipe, a_cached_clip(cache), conditioning, ignore_steps).latents, plain
    )
