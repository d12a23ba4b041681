"""Compiled blocks: the same latents, streamed too, each size compiled once, and read back."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes.checkpoint import at
from fakes.engine import needs_compiler
from fakes.pipelines import (
    NEGATIVE,
    QUOTED,
    T2V,
    a_clip,
    cached_conditioning,
    ignore_steps,
    tiny_config,
)
from fakes.samples import sampled

from hv15_batch.clip import Clip
from hv15_batch.engine.denoise.compilation import is_compiled, num_compilations
from hv15_batch.engine.denoise.pipeline import Denoiser, denoise, load_denoiser
from hv15_batch.engine.encode.cache import EmbeddingCache
from hv15_batch.engine.placement.blocks import BlockStream

TOLERANCE = 2e-5
"""Compiled code fuses, so float32 rounds elsewhere; guidance multiplies the difference by 6."""
CPU = torch.device("cpu")


@pytest.fixture
def nothing_compiled() -> None:
    """Begin without compiled code, so that counts do not depend on other tests."""
    torch.compiler.reset()


def loaded(folder: Path, *, compiled: bool, mask_free: bool = True) -> Denoiser:
    config = tiny_config(T2V, mask_free)
    config.runtime.compile = compiled
    return load_denoiser(config, at(folder))


class Latents:
    """Denoises clips of the tiny model."""

    def __init__(self, folder: Path, cache: EmbeddingCache) -> None:
        self._folder, self._cache = folder, cache

    def of(self, pipe: Denoiser, clip: Clip) -> torch.Tensor:
        config = tiny_config(T2V)
        conditioning = cached_conditioning(config, at(self._folder), clip, Path(), self._cache)
        return denoise(pipe, clip, conditioning, ignore_steps).latents


@pytest.fixture
def latents(folder_of: Callable[[str], Path], tmp_path: Path) -> Latents:
    return Latents(folder_of(T2V), EmbeddingCache(tmp_path))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask_free", "streamed"), sampled([(True, False), (True, True), (False, False)], 1)
)
def test_compiled_blocks_give_the_same_latents_streamed_too(
    nothing_compiled: None,
    folder_of: Callable[[str], Path],
    latents: Latents,
    mask_free: bool,
    streamed: bool,
) -> None:
    plain = loaded(folder_of(T2V), compiled=False, mask_free=mask_free)
    pipe = loaded(folder_of(T2V), compiled=True, mask_free=mask_free)
    stream = BlockStream(pipe.transformer.transformer_blocks, CPU) if streamed else None
    before = num_compilations()

    for clip in (
        a_clip(T2V),
        a_clip(T2V, height=96, num_frames=9),
        a_clip(T2V, prompt=QUOTED, negative_prompt=NEGATIVE, guidance_scale=6.0),
    ):
        if stream is not None:
            stream.open()
        found = latents.of(pipe, clip)
        if stream is not None:
            stream.close()  # as a decode in between does
        expected = latents.of(plain, clip)
        assert expected.std() > 0.1
        assert (found - expected).abs().max() <= TOLERANCE

    assert num_compilations() > before
    assert is_compiled(pipe.transformer)
    assert not is_compiled(plain.transformer)


@needs_compiler
@pytest.mark.slow
def test_sizes_after_the_second_and_other_prompts_compile_nothing_in_any_order(
    nothing_compiled: None, folder_of: Callable[[str], Path], latents: Latents
) -> None:
    pipe = loaded(folder_of(T2V), compiled=True)
    first, second = a_clip(T2V), a_clip(T2V, height=96)
    clips = [
        first,
        a_clip(T2V, prompt=QUOTED),
        second,
        first,
        a_clip(T2V, height=96, seed=8),
        a_clip(T2V, num_frames=9),
        a_clip(T2V, height=128, width=128),
        replace(second, row_id="again"),
    ]

    compiled = []
    for clip in clips:
        before = num_compilations()
        latents.of(pipe, clip)
        compiled.append(num_compilations() - before)

    assert compiled[0] > 0
    assert compiled[2] > 0
    assert [n for n in compiled if n] == [compiled[0], compiled[2]], compiled


def test_compilation_is_read_back_from_the_blocks(folder_of: Callable[[str], Path]) -> None:
    pipe = loaded(folder_of(T2V), compiled=False)
    blocks = pipe.transformer.transformer_blocks
    assert not is_compiled(pipe.transformer)
    stream = BlockStream(blocks, CPU)
    assert not is_compiled(pipe.transformer)
    stream.free()

    pipe = loaded(folder_of(T2V), compiled=True)
    blocks = pipe.transformer.transformer_blocks
    assert is_compiled(pipe.transformer)
    stream = BlockStream(blocks, CPU)
    assert is_compiled(pipe.transformer)
    stream.free()
    del blocks[1].forward  # what an instance attribute hides comes back
    assert not is_compiled(pipe.transformer)


@pytest.mark.slow
def test_a_torch_that_is_told_to_compile_nothing_is_read_back_as_not_compiled() -> None:
    code = """
        import torch
        from hv15_batch.engine.denoise.compilation import (
            compile_blocks,
            is_compiled,
            num_compilations,
        )

        class Block(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.attn = torch.nn.Module()
                self.attn.processor = None

            def forward(self, video, text, temb, mask, rope):
                return video + text.sum()

        model = torch.nn.Module()
        model.transformer_blocks = torch.nn.ModuleList([Block()])
        compile_blocks(model)
        one = torch.ones(1, 3, 2)
        model.transformer_blocks[0](one, one, one, one, (one, one))
        print(is_compiled(model), num_compilations())
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TORCHDYNAMO_DISABLE": "1"},
    )

    assert answer.stdout.split() == ["False", "0"]
