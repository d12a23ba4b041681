"""The embedding cache, its keys, and what the encoders cut off."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.checkpoint import at
from fakes.command import tiny_model

from hv15_batch.clip import ClipSettings
from hv15_batch.config.settings import Config
from hv15_batch.engine.encode.cache import (
    Conditioning,
    EmbeddingCache,
    EncoderIdentity,
    ImageEmbedding,
    TextEmbedding,
    clip_texts,
    image_key,
    text_key,
)
from hv15_batch.engine.encode.encoders import Encoders, load_encoders
from hv15_batch.engine.load.components import load_component

torch.set_num_threads(1)

IDENTITY = EncoderIdentity(repo="org/name", revision="abc", weights="pretrained", dtype="bfloat16")
TEXT = TextEmbedding(
    prompt_embeds=torch.arange(12.0).reshape(1, 3, 4).to(torch.bfloat16),
    prompt_embeds_2=torch.ones(1, 2, 5),
    num_lost_tokens=4,
    num_lost_glyph_tokens=1,
)
IMAGE = ImageEmbedding(
    image_embeds=torch.ones(1, 3, 4),
    image_latents=torch.zeros(1, 32, 1, 2, 3),
    source_height=33,
    source_width=48,
)


def settings(**changes: Any) -> ClipSettings:
    values: dict[str, Any] = dict(
        prompt="a fox",
        negative_prompt="blurry",
        image_sha256=None,
        seed=0,
        height=32,
        width=48,
        num_frames=5,
        num_inference_steps=2,
        guidance_scale=6.0,
        flow_shift=5.0,
        fps=24.0,
        video={},
        model="m",
        revision=None,
        weights="tiny",
        dtype="float32",
        attention_backend="auto",
    )
    return ClipSettings(**{**values, **changes})


def assert_same(found: TextEmbedding | ImageEmbedding | None, expected: object) -> None:
    assert found is not None
    assert type(found) is type(expected)
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if isinstance(value, torch.Tensor):
            assert other.dtype is value.dtype
            assert torch.equal(other, value)
        else:
            assert other == value


def test_embeddings_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "new")
    no_glyphs = replace(TEXT, prompt_embeds_2=None)

    cache.write_text("a", TEXT)
    cache.write_text("b", no_glyphs)
    cache.write_image("c", IMAGE)

    assert_same(cache.read_text("a"), TEXT)
    assert_same(cache.read_text("b"), no_glyphs)
    assert_same(cache.read_image("c"), IMAGE)
    assert cache.read_text("d") is None
    assert (TEXT.num_text_tokens, TEXT.num_glyph_tokens) == (3, 2)
    assert no_glyphs.num_glyph_tokens == 0


def test_only_whole_entries_lie_in_the_folder(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)

    cache.write_text("a", TEXT)
    cache.write_text("a", TEXT)

    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_damaged_entry_counts_as_missing_and_is_made_again(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.write_text("a", TEXT)
    file = tmp_path / "a.safetensors"
    whole = file.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])

    for damaged in (b"", whole[:20], whole[:-1], flipped, b"\0" * len(whole), whole + b"x"):
        file.write_bytes(damaged)
        assert cache.read_text("a") is None
    file.unlink()
    os.mkfifo(file)
    assert cache.read_text("a") is None
    file.unlink()

    cache.write_text("a", TEXT)
    assert_same(cache.read_text("a"), TEXT)


@pytest.mark.parametrize("field", ["repo", "revision", "weights", "dtype"])
def test_each_part_of_the_encoders_identity_changes_the_keys(field: str) -> None:
    other = replace(IDENTITY, **{field: "other"})

    assert text_key("a fox", other) != text_key("a fox", IDENTITY)
    assert image_key("0" * 64, 32, 48, other) != image_key("0" * 64, 32, 48, IDENTITY)


def test_keys_differ_by_content_and_are_stable() -> None:
    keys = [
        text_key(text, IDENTITY) for text in ("", " ", "a fox", "a fox ", '"a fox"', "狐", "\ud800")
    ]
    keys += [
        image_key(sha256, *size, IDENTITY)
        for sha256 in ("0" * 64, "1" * 64)
        for size in ((32, 48), (48, 32))
    ]

    keys += [image_key("0" * 64, 32, 48, IDENTITY, name) for name in ("white.v1", "srgb.v1")]

    assert len(set(keys)) == len(keys)
    assert image_key("0" * 64, 32, 48, IDENTITY, None) == image_key("0" * 64, 32, 48, IDENTITY)
    assert all(len(key) == 64 for key in keys)
    assert keys[2] == text_key("a fox", replace(IDENTITY))


def test_a_clip_needs_a_negative_text_only_with_guidance() -> None:
    assert clip_texts(settings()) == ["a fox", "blurry"]
    assert clip_texts(settings(negative_prompt=None)) == ["a fox", ""]
    assert clip_texts(settings(guidance_scale=1.0)) == ["a fox"]


def test_conditioning_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    asked = settings(image_sha256="0" * 64)
    negative = replace(TEXT, num_lost_tokens=0)

    assert cache.read_conditioning(asked, IDENTITY) is None
    cache.write_text(text_key("a fox", IDENTITY), TEXT)
    assert cache.read_conditioning(asked, IDENTITY) is None
    cache.write_text(text_key("blurry", IDENTITY), negative)
    assert cache.read_conditioning(asked, IDENTITY) is None
    cache.write_image(image_key("0" * 64, 32, 48, IDENTITY), IMAGE)

    found = cache.read_conditioning(asked, IDENTITY)
    assert isinstance(found, Conditioning)
    assert_same(found.prompt, TEXT)
    assert_same(found.negative, negative)
    assert_same(found.image, IMAGE)
    without = cache.read_conditioning(settings(guidance_scale=1.0), IDENTITY)
    assert without is not None
    assert without.negative is None
    assert without.image is None


class CountingLoader:
    """Loads components of a tiny checkpoint and remembers which."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def __call__(self, name: str) -> Any:
        self.names.append(name)
        config = Config(model=tiny_model("tiny_t2v"))
        return load_component(name, config, at(self.folder), torch.device("cpu"))


def test_byt5_is_neither_loaded_nor_run_without_quoted_text(
    tiny_folder: Callable[[str], Path],
) -> None:
    load = CountingLoader(tiny_folder("tiny_t2v"))
    encoders = Encoders(load, torch.device("cpu"))

    plain = encoders.encode_text("a fox")
    encoders.encode_text("another fox")
    assert sorted(load.names) == ["text_encoder", "tokenizer"]
    quoted = encoders.encode_text('a fox says "hi"')

    assert sorted(load.names) == ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"]
    assert plain.prompt_embeds_2 is None
    # ByT5 reads `Text "hi". `: ten bytes and its end token.
    assert quoted.num_glyph_tokens == len('Text "hi". ') + 1


def test_released_encoders_load_again_when_needed(tiny_folder: Callable[[str], Path]) -> None:
    load = CountingLoader(tiny_folder("tiny_t2v"))
    encoders = Encoders(load, torch.device("cpu"))
    before = encoders.encode_text("a fox")

    encoders.release()
    after = encoders.encode_text("a fox")

    assert sorted(load.names) == ["text_encoder", "text_encoder", "tokenizer", "tokenizer"]
    assert_same(after, before)


def test_tokens_beyond_the_limit_are_counted(tiny_folder: Callable[[str], Path]) -> None:
    encoders = load_encoders(Config(model=tiny_model("tiny_t2v")), at(tiny_folder("tiny_t2v")))
    # In the tiny model a byte is a token.
    short = encoders.encode_text("x" * 10)
    suffix = short.num_text_tokens - 10

    whole = encoders.encode_text("x" * (1000 - suffix))
    cut = encoders.encode_text("x" * 1000)
    glyphs = encoders.encode_text('"' + "y" * 300 + '"')

    assert (whole.num_text_tokens, whole.num_lost_tokens) == (1000, 0)
    assert (cut.num_text_tokens, cut.num_lost_tokens) == (1000, suffix)
    assert glyphs.num_glyph_tokens == 256
    assert glyphs.num_lost_glyph_tokens == len(f'Text "{"y" * 300}". ') + 1 - 256
