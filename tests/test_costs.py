"""The cost model against what was measured on one H200, and its calibration."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from hv15_batch.cards import CARDS, Card, card_names, find_card
from hv15_batch.clip import ClipSettings
from hv15_batch.costs import (
    GIB,
    calibration,
    forward_flop,
    num_video_tokens,
    predict_clip,
    predict_peaks,
)

H200 = find_card("NVIDIA H200")
assert H200 is not None
SETTINGS = ClipSettings(
    prompt="",
    negative_prompt=None,
    image_sha256=None,
    seed=0,
    height=480,
    width=848,
    num_frames=121,
    num_inference_steps=8,
    guidance_scale=1.0,
    flow_shift=5.0,
    fps=24.0,
    video={},
    model="480p_t2v",
    revision=None,
    weights="random",
    dtype="bfloat16",
    attention_backend="auto",
)


def test_tokens_and_flop_are_those_of_the_published_sizes() -> None:
    assert num_video_tokens(480, 848, 61) == 25_440
    assert num_video_tokens(480, 848, 121) == 49_290
    assert num_video_tokens(720, 1280, 121) == 111_600
    assert forward_flop(25_440, 60) / 1e15 == pytest.approx(0.43, abs=0.01)
    assert forward_flop(49_290, 60) / 1e15 == pytest.approx(1.35, abs=0.01)
    assert forward_flop(111_600, 60) / 1e15 == pytest.approx(6.1, abs=0.05)


@pytest.mark.parametrize(
    ("frames", "compiled", "seconds"),
    [(61, False, 1.06), (121, False, 3.0), (61, True, 0.825), (121, True, 2.49)],
)
def test_forward_on_the_h200_is_predicted_within_ten_percent(
    frames: int, compiled: bool, seconds: float
) -> None:
    one_step = replace(SETTINGS, num_frames=frames, num_inference_steps=1)

    cost = predict_clip(one_step, H200, compiled=compiled, offload="resident", scale=None)

    assert cost.denoise_seconds == pytest.approx(seconds, rel=0.1)
    assert not cost.is_calibrated


def test_guidance_doubles_denoising_and_leaves_decoding() -> None:
    plain = predict_clip(SETTINGS, H200, compiled=False, offload="resident", scale=None)
    guided = predict_clip(
        replace(SETTINGS, guidance_scale=6.0), H200, compiled=False, offload="resident", scale=None
    )

    assert guided.denoise_seconds == pytest.approx(2 * plain.denoise_seconds)
    assert guided.decode_seconds == plain.decode_seconds


def test_streaming_is_bounded_by_the_bus_for_short_clips() -> None:
    short = replace(SETTINGS, num_frames=5, num_inference_steps=1)
    card = find_card("rtx_4090")
    assert card is not None

    cost = predict_clip(short, card, compiled=False, offload="stream", scale=None)

    assert cost.denoise_seconds == pytest.approx(15.52 * GIB / 25e9, rel=0.01)


def row(**changes: Any) -> dict[str, Any]:
    predicted = predict_clip(SETTINGS, H200, compiled=False, offload="resident", scale=None)
    return {
        "gpu_name": "NVIDIA H200",
        "is_cold": False,
        "weights": "random",
        "compiled": False,
        "offload": "resident",
        "denoise_seconds": 1.2 * predicted.denoise_seconds,
        "decode_seconds": 1.2 * predicted.decode_seconds,
        "height": 480,
        "width": 848,
        "num_frames": 121,
        "num_inference_steps": 8,
        "guidance_scale": 1.0,
    } | changes


def test_one_warm_clip_calibrates_the_same_card() -> None:
    scales = calibration([row()], H200, "NVIDIA H200")

    assert scales == {(False, "resident"): pytest.approx(1.2)}


@pytest.mark.parametrize(
    "changes",
    [
        {"gpu_name": "NVIDIA GeForce RTX 4090"},
        {"is_cold": True},
        {"denoise_seconds": None},
        {"decode_seconds": None},
        {"weights": "tiny"},
    ],
)
def test_rows_of_other_cards_cold_or_tiny_ones_do_not_calibrate(changes: dict[str, Any]) -> None:
    assert calibration([row(**changes)], H200, "NVIDIA H200") == {}


def test_peaks_on_the_h200_are_those_measured() -> None:
    peaks = predict_peaks(SETTINGS, "resident", 139 * GIB, is_i2v=False)

    assert peaks is not None
    assert peaks.denoise_bytes / GIB == pytest.approx(20.23, rel=0.02)
    assert peaks.encode_bytes / GIB == pytest.approx(13.7, rel=0.02)


def test_a_clip_that_cannot_be_decoded_has_no_peaks() -> None:
    assert predict_peaks(SETTINGS, "stream", 2 * GIB, is_i2v=False) is None


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA GeForce RTX 3060", "rtx_3060"),
        ("NVIDIA GeForce RTX 3090", "rtx_3090"),
        ("NVIDIA GeForce RTX 4060 Ti", "rtx_4060_ti"),
        ("NVIDIA GeForce RTX 4070 Ti", "rtx_4070_ti"),
        ("NVIDIA GeForce RTX 4080", "rtx_4080"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("NVIDIA GeForce RTX 5090", "rtx_5090"),
        ("NVIDIA GeForce RTX 5090 D", "rtx_5090_d"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_product_names_find_their_card(product: str, name: str) -> None:
    card = find_card(product)

    assert card is not None
    assert card.name == name
    assert name in card_names()


@pytest.mark.parametrize(
    "product",
    ["NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 3060 Ti", "NVIDIA GeForce RTX 4080 SUPER",
     "NVIDIA H200 NVL", "NVIDIA A100-PCIE-40GB", "Tesla T4", "NVIDIA GeForce RTX 5090 D v2",
     "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H200 MIG 1g.18gb", "NVIDIA GH200 144G HBM3e"],
)  # fmt: skip
def test_similar_names_of_other_cards_find_none(product: str) -> None:
    assert find_card(product) is None


@pytest.mark.parametrize("card", CARDS, ids=card_names())
def test_every_card_names_the_page_of_its_figures(card: Card) -> None:
    page, _, _ = card.source.partition(" ")

    assert re.fullmatch(r"https://(www|images)\.nvidia\.com/\S+", page)


def test_memory_is_what_the_driver_reports() -> None:
    h100 = find_card("h100")

    assert h100 is not None
    assert h100.memory_gib == pytest.approx(81559 / 1024, abs=0.05)
