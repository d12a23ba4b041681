"""The cost model against what was measured on one H200; the card table."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from fakes.forecasts import H200, PLAIN, SETTINGS
from fakes.packages import install

from hv15_batch.forecast._memory import predict_peaks
from hv15_batch.forecast.seconds import (
    COMPILE_SECONDS,
    ENCODE_SECONDS,
    CostBasis,
    attention_share,
    auto_backend,
    copy_seconds,
    default_execution,
    not_modelled,
    predict_clip,
    predict_start,
)
from hv15_batch.machine.cards import (
    ALLOCATOR_BYTES,
    CARDS,
    CONTEXT_BYTES,
    Card,
    card_names,
    find_card,
)
from hv15_batch.model.attention import auto_kernel
from hv15_batch.model.shapes import Shape, forward_flop, num_video_tokens
from hv15_batch.units import GIB

SHAPE = Shape.of(SETTINGS)


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

    cost = predict_clip(Shape.of(one_step), H200, replace(PLAIN, compiled=compiled), None)

    assert cost.denoise_seconds == pytest.approx(seconds, rel=0.1)
    assert cost.basis is CostBasis.estimated


def test_guidance_doubles_denoising_and_leaves_decoding() -> None:
    plain = predict_clip(SHAPE, H200, PLAIN, None)
    guided = predict_clip(Shape.of(replace(SETTINGS, guidance_scale=6.0)), H200, PLAIN, None)

    assert guided.denoise_seconds == pytest.approx(2 * plain.denoise_seconds)
    assert guided.decode_seconds == plain.decode_seconds


def test_streaming_is_bounded_by_the_bus_for_short_clips() -> None:
    short = replace(SETTINGS, num_frames=5, num_inference_steps=1)
    card = find_card("rtx_4090")
    assert card is not None

    cost = predict_clip(
        Shape.of(short), card, replace(default_execution(card), offload="stream"), None
    )

    assert cost.denoise_seconds == pytest.approx(15.52 * GIB / 25e9, rel=0.01)


def test_the_stock_mask_is_what_it_costs_on_the_h200() -> None:
    masked = replace(PLAIN, mask_free=False, attention_backend="native")
    seconds, peaks = [], []
    for frames in (61, 121):
        settings = replace(SETTINGS, num_frames=frames, num_inference_steps=1)
        seconds.append(predict_clip(Shape.of(settings), H200, masked, None).denoise_seconds)
        found = predict_peaks(Shape.of(settings), masked, 139 * GIB)
        peaks.append(found.denoise_bytes / GIB - 15.52 - 2.35)

    assert seconds == [pytest.approx(2.78, rel=0.05), pytest.approx(8.71, rel=0.05)]
    assert peaks == [pytest.approx(3.5, rel=0.1), pytest.approx(11.1, rel=0.05)]


@pytest.mark.parametrize(("compiled", "seconds"), [(False, 4.04), (True, 3.53)])
def test_torchs_flash_attention_is_slower_on_hopper(compiled: bool, seconds: float) -> None:
    flash = replace(PLAIN, attention_backend="_native_flash", compiled=compiled)

    cost = predict_clip(Shape.of(replace(SETTINGS, num_inference_steps=1)), H200, flash, None)

    assert cost.denoise_seconds == pytest.approx(seconds, rel=0.05)


def test_float32_takes_twice_the_memory_and_the_rate_of_the_ordinary_cores() -> None:
    exact = replace(PLAIN, dtype="float32", attention_backend="native")
    cost, peaks = (
        predict_clip(SHAPE, H200, exact, None),
        predict_peaks(SHAPE, exact, 139 * GIB),
    )
    plain = predict_clip(SHAPE, H200, PLAIN, None)

    assert cost.denoise_seconds > 10 * plain.denoise_seconds
    assert cost.decode_seconds == pytest.approx(2 * plain.decode_seconds)
    assert peaks.denoise_bytes == 2 * predict_peaks(SHAPE, PLAIN, 139 * GIB).denoise_bytes
    assert not_modelled(H200, exact) == "dtype=float32, never measured"


@pytest.mark.parametrize(
    ("linear", "compiled", "measured"),
    [
        ("fp8", True, 2.343 / 2.456),
        ("int8", True, 2.578 / 2.456),
        ("fp8", False, 3.41 / 2.963),
        ("int8", False, 4.35 / 2.963),
    ],
)
def test_forwards_with_8_bits_take_as_much_longer_as_on_the_measured_card(
    linear: str, compiled: bool, measured: float
) -> None:
    of_bf16 = replace(PLAIN, compiled=compiled)
    plain, other = (
        predict_clip(SHAPE, H200, execution, None).denoise_seconds
        for execution in (of_bf16, replace(of_bf16, linear=linear))
    )

    assert other / plain == pytest.approx(measured, rel=0.02)


def test_8_bit_weights_are_copied_in_half_the_time() -> None:
    streamed = replace(PLAIN, offload="stream")

    ratio = copy_seconds(H200, replace(streamed, linear="int8")) / copy_seconds(H200, streamed)

    assert ratio == pytest.approx(0.51, abs=0.01)


def test_the_rate_of_8_bit_products_is_the_cards_own_and_said_to_be_assumed() -> None:
    found = find_card("rtx_4090")
    assert found is not None
    slow = replace(found, fp8_tflops=330.3 / 2)
    fp8 = replace(PLAIN, linear="fp8")

    fast = predict_clip(SHAPE, found, fp8, None).denoise_seconds
    assert predict_clip(SHAPE, slow, fp8, None).denoise_seconds > fast
    assert not_modelled(found, fp8) == (
        "linear=fp8, taken at the share of the 8-bit rate that an H200 reached"
    )
    assert not_modelled(H200, fp8) is None
    assert not_modelled(H200, replace(PLAIN, linear="int8")) is None


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_every_card_has_the_8_bit_rates_of_its_generation(card: Card) -> None:
    assert (card.fp8_tflops is not None) == (card.capability >= (8, 9))
    if card.fp8_tflops is not None:
        assert card.fp8_tflops / card.dense_bf16_tflops == pytest.approx(2, rel=0.02)
    times = 4 if card.name.startswith("rtx_") else 2
    assert card.int8_tops / card.dense_bf16_tflops == pytest.approx(times, rel=0.02)


def test_a_kernel_without_figures_is_said_to_have_none() -> None:
    sage = replace(PLAIN, attention_backend="sage")

    assert not_modelled(H200, sage) == "attention_backend=sage, taken as _native_cudnn"
    assert not_modelled(H200, PLAIN) is None
    assert not_modelled(H200, replace(PLAIN, mask_free=False, attention_backend="native")) is None
    assert predict_clip(SHAPE, H200, sage, None) == predict_clip(SHAPE, H200, PLAIN, None)


def test_flash_attention_3_and_int8_are_predicted_on_hopper_alone() -> None:
    """49,350 tokens on one H200: 29.7 ms beside 34.2 to 35.0 of cuDNN, and 42.4 in INT8."""
    cudnn = attention_share(H200, replace(PLAIN, attention_backend="_native_cudnn"))
    ratios = {
        name: attention_share(H200, replace(PLAIN, attention_backend=name)) / cudnn
        for name in ("_flash_3", "_flash_3_hub", "comfy_int8", "sage")
    }

    assert 1.15 <= ratios["_flash_3"] == ratios["_flash_3_hub"] <= 1.18
    assert ratios["comfy_int8"] == pytest.approx(34.6 / 42.4, rel=0.02)
    assert ratios["sage"] == 1
    assert not_modelled(H200, replace(PLAIN, attention_backend="_flash_3")) is None
    assert not_modelled(H200, replace(PLAIN, attention_backend="comfy_int8")) is None
    card = find_card("rtx_4090")
    assert card is not None
    int8 = replace(default_execution(card), attention_backend="comfy_int8")
    assert not_modelled(card, int8) == "attention_backend=comfy_int8, taken as _native_flash"
    assert attention_share(card, int8) == attention_share(card, default_execution(card))


def test_auto_is_predicted_as_flash_attention_3_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = predict_clip(SHAPE, H200, default_execution(H200), None)
    install(monkeypatch, flash_attn_3="3.0.0b1")
    after = predict_clip(SHAPE, H200, default_execution(H200), None)

    assert default_execution(H200).attention_backend == "_flash_3"
    assert 1.05 < before.denoise_seconds / after.denoise_seconds < 1.15


@pytest.mark.parametrize("card", CARDS, ids=card_names())
def test_auto_is_predicted_as_what_the_renderer_takes(card: Card) -> None:
    fused = "_native_cudnn" if card.is_hopper else "_native_flash"
    assert auto_backend(card, True, "bfloat16") == auto_kernel(card.capability) == fused
    assert auto_backend(card, False, "bfloat16") == "native"
    assert auto_backend(card, True, "float32") == "native"


def test_the_tokens_of_a_first_frame_count() -> None:
    with_image = replace(SETTINGS, image_sha256="a" * 64)
    plain, more = (predict_clip(Shape.of(s), H200, PLAIN, None) for s in (SETTINGS, with_image))

    ratio = (49_290 + 100 + 729) ** 2 / (49_290 + 100) ** 2
    assert 1 < more.denoise_seconds / plain.denoise_seconds < ratio
    assert more.denoise_flop == pytest.approx(8 * forward_flop(49_290, 829))
    assert plain.decode_flop / 1e12 == pytest.approx(1240)


def test_what_comes_once_is_load_encode_and_at_most_two_compilations() -> None:
    compiled = replace(PLAIN, compiled=True)
    clips = [SHAPE, *(SHAPE._replace(num_frames=n) for n in (61, 33, 17))]

    start = predict_start(clips, 3, compiled, reads_weights=True)

    assert start.compile_seconds == sum(COMPILE_SECONDS)  # the second one's takes every size
    once = predict_start(clips[:1] * 2, 3, compiled, reads_weights=True)
    assert once.compile_seconds == COMPILE_SECONDS[0]
    assert start.encode_seconds == pytest.approx(3 * ENCODE_SECONDS)
    read = predict_start(clips, 3, PLAIN, reads_weights=False)
    assert start.load_seconds - read.load_seconds == pytest.approx(31.46 * GIB / 3e9, rel=0.01)
    assert read.compile_seconds == 0
    decoded = predict_start([], 0, compiled, reads_weights=True)
    assert decoded.load_seconds - read.load_seconds == pytest.approx(2.35 * GIB / 3e9, rel=0.01)
    assert decoded.compile_seconds == decoded.encode_seconds == 0


def test_peaks_on_the_h200_are_those_measured() -> None:
    peaks = predict_peaks(SHAPE, PLAIN, 139 * GIB)

    assert peaks.denoise_bytes / GIB == pytest.approx(20.23, rel=0.02)
    assert peaks.encode_bytes / GIB == pytest.approx(13.7, rel=0.02)


def test_a_streamed_clip_is_said_to_need_the_host_memory_that_was_found() -> None:
    """22.9 to 23.9 GiB were found; never less than that, and at most a tenth more."""
    peaks = predict_peaks(SHAPE, replace(PLAIN, offload="stream"), 8 * GIB)

    assert 23.9 <= peaks.host_bytes / GIB <= 22.9 * 1.1


def test_the_memory_of_8_bit_weights_is_that_which_was_found() -> None:
    """One H200, fp8: `stream` below 12 GiB and `resident` below 24, `BENCHMARKS.md`."""
    fp8 = replace(PLAIN, linear="fp8")
    stream, resident = (
        predict_peaks(
            SHAPE, replace(fp8, offload=kind), int((limit - 1.7) * GIB), reads_weights=False
        )
        for kind, limit in (("stream", 12), ("resident", 24))
    )

    assert 20.6 <= stream.host_bytes / GIB <= 20.6 * 1.1
    assert stream.device_bytes / GIB == pytest.approx(10.35, rel=0.03)
    assert resident.device_bytes / GIB == pytest.approx(20.55, rel=0.03)
    for short in (0.0, 0.5):  # what is short of memory is given back
        budget = resident.allocated_bytes + int(short * GIB)
        tight = predict_peaks(SHAPE, fp8, budget, reads_weights=False)
        assert tight.device_bytes <= budget + CONTEXT_BYTES + ALLOCATOR_BYTES


def test_streaming_from_disk_holds_random_weights_in_memory_first() -> None:
    """20.1 GiB were found with random weights."""
    disk = replace(PLAIN, offload="stream_disk")
    random = predict_peaks(SHAPE, disk, 8 * GIB, reads_weights=False)

    assert 20.1 <= random.host_bytes / GIB <= 20.1 * 1.1
    assert predict_peaks(SHAPE, disk, 8 * GIB).host_bytes < 8 * GIB


def test_a_clip_that_cannot_be_decoded_has_the_most_frugal_plans_peak() -> None:
    peaks = predict_peaks(SHAPE, replace(PLAIN, offload="stream"), 2 * GIB)

    assert 4 * GIB < peaks.decode_bytes < 5 * GIB


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
