"""`experiment=rtx4090_200_clips`: how many of 200 clips a night has, and how sure that is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from fakes.command import Answer

from hv15_batch.machine import cards

PRESET = (
    *("manifests/rtx4090_200_clips.csv", "--dry-run", "runtime.card=rtx_4090"),
    "experiment=rtx4090_200_clips",
)


@pytest.fixture
def night(command: Callable[..., Answer]) -> Callable[..., tuple[int, int, float, str]]:
    """Clips until the deadline, the same at worst, seconds a clip, and all that was said."""

    def ask(*words: str) -> tuple[int, int, float, str]:
        answer = command(*PRESET, *words)
        assert answer.code == 0, answer.err
        until = re.search(r"^Until .*: (\d+) of 200 clips$", answer.out, re.MULTILINE)
        worst = re.search(r"^Uncertainty: .*, (\d+) of 200 clips", answer.out, re.MULTILINE)
        seconds = re.search(r"(\d+) s per warm clip", answer.out)
        assert until is not None, answer.out
        assert worst is not None
        assert seconds is not None
        return int(until[1]), int(worst[1]), float(seconds[1]), answer.out

    return ask


def halve_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = ("dense_bf16_tflops", "bandwidth_gb_per_second", "fp32_tflops", "host_gb_per_second")
    found = []
    for card in cards.CARDS:
        if card.name == "rtx_4090":
            card = replace(card, **{name: getattr(card, name) / 2 for name in rates})
        found.append(card)
    monkeypatch.setattr(cards, "CARDS", type(cards.CARDS)(found))


def test_all_200_clips_fit_into_nine_hours_with_basis_and_uncertainty(
    night: Callable[..., tuple[int, int, float, str]],
) -> None:
    clips, _, _, text = night("time_limit=9h")

    assert clips == 200
    assert "an estimate from the rtx_4090's vendor figures" in text
    assert "Uncertainty: rtx_4090 was never measured; twice as long is assumed at worst: " in text


def test_twice_the_steps_and_half_the_rate_change_the_number_accordingly(
    night: Callable[..., tuple[int, int, float, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = "time_limit=3h"
    clips, worst, seconds, _ = night(limit)
    eight, _, of_eight, told = night(limit, "override.num_inference_steps=8")
    halve_the_card(monkeypatch)
    half, _, of_half, _ = night(limit)

    # Denoising takes twice as long and decoding the same; with half the rate all does.
    assert 1.7 * seconds < of_eight < 1.95 * seconds
    assert of_half == pytest.approx(2 * seconds, rel=0.02)
    for count, each in ((clips, seconds), (eight, of_eight), (half, of_half)):
        assert count == pytest.approx(3 * 3600 / each, rel=0.05)
    assert worst == pytest.approx(half, abs=3)
    assert "off the recipe of 480p_t2v_4step in 200 clips: 8 steps: made for 4" in told
