from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo15

from hv15_batch.engine.decode import ops as vae_ops
from hv15_batch.engine.decode.decode import apply_fast_vae, decode_frames, decode_untiled, stream
from hv15_batch.model.tiles import make_plan, plan_tiles

WHOLE = 1 << 28
ONE_FRAME = 1
"""Chunk bytes that leave each stage one frame at a time."""


def small_vae(seed: int = 0) -> Any:
    """The real architecture with few channels: 16x in space, 4x in time, attention, upsamplers."""
    torch.manual_seed(seed)
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=8, block_out_channels=(8, 16, 16, 32, 32), layers_per_block=2
    )
    for name, parameter in vae.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae() -> Any:
    return small_vae()


def latents_of(frames: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames * 100 + height * 10 + width)
    return torch.randn(1, 8, frames, height, width, generator=generator)


def stock_video(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """[F, H, W, 3] in 0..255, not rounded, as the pipeline's post-processing has it."""
    video = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    return ((video * 0.5 + 0.5).clamp(0, 1) * 255)[0].permute(1, 2, 3, 0)


def assert_rounded(frames: torch.Tensor, video: torch.Tensor) -> None:
    assert frames.dtype is torch.uint8
    assert frames.shape == video.shape
    assert (frames.float() - video).abs().max() < 0.501


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 3, 4), (2, 5, 3), (3, 2, 5), (5, 3, 2)]
)
def test_a_streamed_decode_equals_stock_untiled(
    vae: Any, frames: int, height: int, width: int
) -> None:
    z = latents_of(frames, height, width)
    stock = vae.decoder(z)[0].permute(1, 2, 3, 0)

    for chunk_bytes in (WHOLE, 60_000, ONE_FRAME):
        x = z[0].permute(1, 2, 3, 0).contiguous()
        streamed = torch.cat(list(stream(vae.decoder, x, chunk_bytes)))
        torch.testing.assert_close(streamed, stock, rtol=0, atol=1e-5)


def test_a_small_chunk_really_cuts_the_clip_in_time(vae: Any) -> None:
    x = latents_of(3, 2, 2)[0].permute(1, 2, 3, 0).contiguous()

    assert [p.shape[0] for p in stream(vae.decoder, x, WHOLE)] == [9]
    assert [p.shape[0] for p in stream(vae.decoder, x, ONE_FRAME)] == [1] * 9


@pytest.mark.parametrize("frames", [1, 2])
def test_frames_are_stock_frames_rounded(vae: Any, frames: int) -> None:
    latents = latents_of(frames, 3, 4)

    result = decode_frames(vae, latents, plan_tiles(3, 4, frames, None, "cpu"))

    assert result.device.type == "cpu"
    assert_rounded(result, stock_video(vae, latents))


def test_tiles_give_the_frames_of_an_untiled_decode_only_with_their_margin(vae: Any) -> None:
    latents = latents_of(2, 2, 11)
    stock = stock_video(vae, latents)
    plan = make_plan(2, 11, 1, 2, WHOLE)

    assert_rounded(decode_frames(vae, latents, plan), stock)
    seams = decode_frames(vae, latents, replace(plan, overlap=0)).float() - stock
    assert seams.abs().max() > 1


@pytest.mark.parametrize("rows", [1, 2])
def test_frames_are_shown_in_order_while_they_are_made(vae: Any, rows: int) -> None:
    pieces: list[torch.Tensor] = []
    plan = make_plan(5, 7, rows, 1, ONE_FRAME)

    result = decode_frames(vae, latents_of(2, 5, 7), plan, lambda frames: pieces.append(frames))

    assert plan.is_tiled == (rows == 2)
    assert torch.equal(torch.cat(pieces), result)


def test_tiles_of_uneven_size_cover_the_frame(vae: Any) -> None:
    latents = latents_of(1, 5, 7)

    result = decode_frames(vae, latents, make_plan(5, 7, 2, 3, ONE_FRAME))

    assert_rounded(result, stock_video(vae, latents))


def test_bf16_is_no_further_from_float32_than_stock() -> None:
    exact, half = small_vae(), small_vae().to(torch.bfloat16)
    z = latents_of(3, 4, 4).to(torch.bfloat16)
    reference = exact.decoder(z.float())

    stock = (half.decoder(z).float() - reference).norm()
    ours = (decode_untiled(half.decoder, z).float() - reference).norm()

    assert 0 < ours <= 1.1 * stock


def test_bf16_stock_tiles_are_no_further_from_float32_than_stock() -> None:
    exact, half, patched = small_vae(), *(small_vae().to(torch.bfloat16) for _ in range(2))
    for vae in (exact, half, patched):
        vae.enable_tiling(64, 64, 4, 4, 0.25)
    apply_fast_vae(patched)
    z = latents_of(2, 5, 6).to(torch.bfloat16)
    reference = exact.decode(z.float(), return_dict=False)[0]

    stock = (half.decode(z, return_dict=False)[0].float() - reference).norm()
    ours = (patched.decode(z, return_dict=False)[0].float() - reference).norm()

    assert 0 < ours <= 1.1 * stock


def test_a_batch_of_two_is_refused(vae: Any) -> None:
    with pytest.raises(ValueError, match=r"^latents of shape \(2, 8, 1, 2, 2\): must be \[1, C, T"):
        decode_frames(vae, torch.zeros(2, 8, 1, 2, 2), make_plan(2, 2, 1, 1, WHOLE))


def test_values_that_are_not_finite_are_an_error_and_no_black_clip(vae: Any) -> None:
    latents = latents_of(1, 2, 2)
    latents[0, 0, 0, 0, 0] = float("nan")

    with pytest.raises(FloatingPointError, match="not finite"):
        decode_frames(vae, latents, make_plan(2, 2, 1, 1, WHOLE))


def test_model_offloading_is_told_before_the_decode(vae: Any) -> None:
    class Hook:
        calls = 0

        def pre_forward(self, module: Any) -> None:
            self.calls += 1

    hook = Hook()
    vae._hf_hook = hook
    try:
        decode_frames(vae, latents_of(1, 2, 2), make_plan(2, 2, 1, 1, WHOLE))
    finally:
        del vae._hf_hook

    assert hook.calls == 1


def test_a_patched_vae_decodes_stock_tiles_alike_and_leaves_the_class_alone() -> None:
    stock, patched = small_vae(), small_vae()
    for vae in (stock, patched):
        vae.enable_tiling(64, 64, 4, 4, 0.25)
    z = latents_of(2, 5, 7)

    apply_fast_vae(patched)

    expected = stock.decode(z, return_dict=False)[0]
    torch.testing.assert_close(patched.decode(z, return_dict=False)[0], expected, rtol=0, atol=1e-5)
    assert "forward" in vars(patched.decoder)
    assert "forward" not in vars(small_vae().decoder)


def test_a_patched_vae_encodes_bit_for_bit_alike() -> None:
    stock, patched = small_vae(), small_vae()
    image = torch.rand(1, 3, 5, 32, 48) * 2 - 1

    apply_fast_vae(patched)

    assert torch.equal(patched.encode(image).latent_dist.mean, stock.encode(image).latent_dist.mean)
    attention = patched.encoder.mid_block.attentions[0]
    ours = attention.prepare_causal_attention_mask(3, 4, torch.bfloat16, "cpu", batch_size=2)
    theirs = type(attention).prepare_causal_attention_mask(3, 4, torch.bfloat16, "cpu", 2)
    assert torch.equal(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_operations_equal_the_plain_ones(dtype: torch.dtype) -> None:
    pytest.importorskip("triton")
    from hv15_batch.engine.decode import ops_triton as vae_triton

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, device="cuda").to(dtype)

    tolerance = (
        {"rtol": 2e-2, "atol": 2e-2} if dtype is torch.bfloat16 else {"rtol": 0, "atol": 1e-5}
    )
    for channels in (8, 24, 128, 1024):
        x, bias = random(3, 6, 9, channels)[:, 1:, 2:], random(channels)
        for gamma in (None, torch.rand(channels, device="cuda")):
            for added in (None, bias):
                plain = torch.full((3, 7, 9, channels), float("nan"), device="cuda", dtype=dtype)
                fused = plain.clone()
                vae_ops.pad_into(plain, x, gamma, added)
                vae_triton.pad_into(fused, x, gamma, added)
                torch.testing.assert_close(fused, plain, **tolerance)
        plain = random(2, 3, 5, channels)
        fused, residual = plain.clone(), random(2, 3, 5, channels)
        vae_ops.add_into(plain, residual, bias)
        vae_triton.add_into(fused, residual, bias)
        torch.testing.assert_close(fused, plain, **tolerance)
    for incoming, channels, factor, first in [
        (16, 16, 8, False), (16, 16, 8, True), (16, 8, 8, True), (32, 16, 4, False),
        (1024, 512, 8, False), (256, 128, 4, False),
    ]:  # fmt: skip
        frames, ratio = (1, 1) if first else (2, factor // 4)
        x, packed = (
            random(frames, 5, 6, incoming)[:, 1:, 2:],
            random(frames, 4, 4, factor * channels),
        )
        plain = torch.full(
            (frames * ratio, 8, 8, channels), float("nan"), device="cuda", dtype=dtype
        )
        fused, bias = plain.clone(), random(factor * channels)
        vae_ops.unpack_into(plain, packed, x, bias)
        vae_triton.unpack_into(fused, packed, x, bias)
        torch.testing.assert_close(fused, plain, **tolerance)


@pytest.mark.gpu
def test_a_cuda_decode_equals_stock_on_the_cpu_and_is_pinned(vae: Any) -> None:
    latents = latents_of(3, 3, 12)
    stock = stock_video(vae, latents)
    allow, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        on_card = small_vae().cuda()
        for plan in (make_plan(3, 12, 1, 1, WHOLE), make_plan(3, 12, 1, 2, ONE_FRAME)):
            frames = decode_frames(on_card, latents, plan)
            assert frames.is_pinned()
            assert (frames.float() - stock).abs().max() < 0.51
    finally:
        torch.backends.cudnn.allow_tf32 = allow
