"""A streamed text encoder gives bit for bit what the whole one gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes.checkpoint import at

from hv15_batch.config.settings import Config
from hv15_batch.engine.encode import encoders as encoders_module
from hv15_batch.engine.encode.encoders import load_encoders
from hv15_batch.model.options import tiny_model

PROMPTS = ["a cat", 'a sign says "open" at night', "x" * 300, "", "雨后的花园"]


def test_streamed_encoder_gives_the_same_embeddings(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(model=tiny_model("tiny_t2v"))
    folder = tiny_folder("tiny_t2v")
    monkeypatch.setattr(encoders_module, "GROUP_SIZE", 2)  # several passes over the weights

    whole = list(load_encoders(config, at(folder)).encode_texts(PROMPTS))
    streamed = list(
        load_encoders(config, at(folder), streams_text_encoder=True).encode_texts(PROMPTS)
    )

    for one, other in zip(whole, streamed, strict=True):
        assert torch.equal(one.prompt_embeds, other.prompt_embeds)
        assert one.num_glyph_tokens == other.num_glyph_tokens
