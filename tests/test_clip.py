"""A clip's identity: pinned for what exists, and free to grow."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hv15_batch.clip import ClipSettings, added, glyph_texts, hashed_values
from hv15_batch.config.settings import VideoConfig

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "golden_hashes.json").read_text(encoding="utf-8")
)
"""Twenty settings with the hashes that schema 1 gave them; never to be written again."""


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden["about"])
def test_settings_keep_the_hashes_that_they_were_published_with(golden: dict[str, Any]) -> None:
    settings = ClipSettings(**golden["settings"])

    assert settings.settings_sha256() == golden["settings_sha256"]
    assert settings.denoise_sha256() == golden["denoise_sha256"]


def test_twenty_hashes_are_pinned_and_differ() -> None:
    assert len({golden["settings_sha256"] for golden in GOLDEN}) == len(GOLDEN) == 20


@dataclass(frozen=True)
class _Grown(ClipSettings):
    """The settings with fields as a later version might add them."""

    linear: str | None = added(None)
    loras: list[str] = added(list)  # noqa: RUF009


@pytest.mark.parametrize("golden", GOLDEN[:3], ids=lambda golden: golden["about"])
def test_a_new_setting_at_its_default_changes_no_hash(golden: dict[str, Any]) -> None:
    grown = _Grown(**golden["settings"])

    assert grown.settings_sha256() == golden["settings_sha256"]
    assert grown.denoise_sha256() == golden["denoise_sha256"]


def test_a_new_setting_off_its_default_makes_another_clip() -> None:
    grown = _Grown(**GOLDEN[0]["settings"])

    hashes = {
        s.settings_sha256()
        for s in (grown, replace(grown, linear="fp8"), replace(grown, loras=["a"]))
    }

    assert len(hashes) == 3


@dataclass
class _GrownVideo(VideoConfig):
    """The section `video` with a field as a later version might add it."""

    pixel_format: str = added("yuv420p")


def test_a_new_video_setting_at_its_default_changes_no_hash() -> None:
    settings = ClipSettings(**GOLDEN[0]["settings"])
    assert settings.video == hashed_values(VideoConfig())

    same = replace(settings, video=hashed_values(_GrownVideo()))
    other = replace(settings, video=hashed_values(_GrownVideo(pixel_format="yuv444p")))

    assert same.settings_sha256() == settings.settings_sha256()
    assert other.settings_sha256() != settings.settings_sha256()
    assert other.denoise_sha256() == settings.denoise_sha256()


@given(st.text(alphabet='ab"“”\n ', max_size=30))
def test_glyph_texts_are_those_of_the_pipelines_expression(prompt: str) -> None:
    found = [a or b for a, b in re.findall(r'"(.*?)"|“(.*?)”', prompt)]
    assert glyph_texts(prompt) == list(dict.fromkeys(found))


def test_a_million_quotation_marks_take_no_time() -> None:
    assert glyph_texts("“" * 1_000_000) == []
