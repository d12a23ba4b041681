"""What is planned without torch is what diffusers will do."""

from __future__ import annotations

import inspect
import random

import pytest
from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import (
    HunyuanVideo15Pipeline,
    extract_glyph_texts,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hv15_batch.clip import glyph_texts
from hv15_batch.model.shapes import bucket_size
from hv15_batch.run._dry_run import MAX_PROMPT_TOKENS

USUAL = [(480, 832), (848, 480), (720, 1280), (1080, 1920), (1, 1), (3024, 4032), (4, 1), (1, 9)]


@pytest.mark.parametrize("target_size", [64, 128, 640, 960])
def test_an_image_gets_the_size_that_the_pipeline_gives_it(target_size: int) -> None:
    processor = HunyuanVideo15ImageProcessor(vae_scale_factor=16)
    dice = random.Random(0)
    sizes = [*USUAL, *((dice.randint(100, 400), dice.randint(100, 400)) for _ in range(150))]

    for height, width in sizes:
        expected = processor.calculate_default_height_width(height, width, target_size)
        assert bucket_size(height, width, target_size) == expected, (height, width)


def test_known_buckets_are_those_that_were_measured() -> None:
    assert bucket_size(480, 832, 640) == (480, 816)
    assert bucket_size(848, 480, 640) == (832, 480)


PROMPTS = [
    "no quotes",
    'a sign reads "OPEN"',
    "a sign reads “开门” and “关门”",
    'mixed "A" and “B” and "A" again',
    'an open " quote',
    'empty "" quotes',
    'over "two\nlines"',
    "'single' quotes",
    'nested “a "b" c”',
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_glyph_texts_are_those_of_the_pipeline(prompt: str) -> None:
    assert _formatted(glyph_texts(prompt)) == extract_glyph_texts(prompt)


@given(st.text(st.sampled_from('ab"“”\n 中.'), max_size=30))
@settings(max_examples=300, deadline=None)
def test_glyph_texts_of_any_text_are_those_of_the_pipeline(prompt: str) -> None:
    assert _formatted(glyph_texts(prompt)) == extract_glyph_texts(prompt)


def _formatted(texts: list[str]) -> str | None:
    """Texts as the pipeline hands them to its glyph encoder."""
    return "".join(f'Text "{text}". ' for text in texts) or None


def test_the_limit_on_tokens_is_the_pipelines() -> None:
    source = inspect.getsource(HunyuanVideo15Pipeline.__init__)

    assert f"self.tokenizer_max_length = {MAX_PROMPT_TOKENS}" in source
