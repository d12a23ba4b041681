"""The mask-free processor, and which backend is taken or refused."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch
from diffusers import HunyuanVideo15Transformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from diffusers.models.transformers.transformer_hunyuan_video15 import (
    HunyuanVideo15AttnProcessor2_0,
)
from fakes.pipelines import small_transformer

from hv15_batch.engine.denoise.attention import (
    MaskFreeAttnProcessor,
    apply_attention,
    attention_backend_of,
    is_mask_free,
)
from hv15_batch.errors import Refused
from hv15_batch.model.attention import ATTENTION_BACKENDS, COMFY_INT8, auto_kernel


@pytest.fixture
def transformer() -> HunyuanVideo15Transformer3DModel:
    return small_transformer()


def inputs(num_text: int, num_glyph: int, padding: int) -> dict[str, torch.Tensor]:
    """Inputs of one clip; `padding` masked tokens behind each text, filled with noise."""
    generator = torch.Generator().manual_seed(1)

    def text(valid: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        states = torch.randn(1, valid, width, generator=generator)
        noise = torch.full((1, padding, width), 3.0)
        mask = torch.cat([torch.ones(1, valid), torch.zeros(1, padding)], dim=1)
        return torch.cat([states, noise], dim=1), mask

    states, mask = text(num_text, 24)
    states_2, mask_2 = text(num_glyph, 12)
    return {
        "hidden_states": torch.randn(1, 65, 2, 4, 6, generator=generator),
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": states,
        "encoder_attention_mask": mask,
        "encoder_hidden_states_2": states_2,
        "encoder_attention_mask_2": mask_2,
        "image_embeds": torch.zeros(1, padding, 20),
    }


@pytest.mark.parametrize("num_glyph", [0, 5])
@pytest.mark.parametrize("backend", ["auto", "native", "_native_math", "_native_flash"])
def test_without_padding_and_mask_the_output_is_that_of_the_stock_processor(
    transformer: HunyuanVideo15Transformer3DModel, backend: str, num_glyph: int
) -> None:
    with torch.no_grad():
        expected = transformer(**inputs(7, num_glyph, padding=9)).sample
        apply_attention(transformer, backend, mask_free=True)
        result = transformer(**inputs(7, num_glyph, padding=0)).sample

    assert torch.allclose(result, expected, atol=2e-6, rtol=0)


def test_a_masked_token_would_be_seen_without_the_mask(
    transformer: HunyuanVideo15Transformer3DModel,
) -> None:
    with torch.no_grad():
        expected = transformer(**inputs(7, 5, padding=9)).sample
        apply_attention(transformer, "native", mask_free=True)
        result = transformer(**inputs(7, 5, padding=9)).sample

    assert not torch.allclose(result, expected, atol=1e-4, rtol=0)


def test_only_the_transformer_blocks_change_and_no_global_backend_is_set(
    transformer: HunyuanVideo15Transformer3DModel,
) -> None:
    refiner = transformer.context_embedder.token_refiner.refiner_blocks[0].attn.processor
    active = _AttentionBackendRegistry.get_active_backend()

    apply_attention(transformer, "_native_math", mask_free=True)

    blocks = transformer.transformer_blocks
    assert all(type(b.attn.processor) is MaskFreeAttnProcessor for b in blocks)
    assert transformer.context_embedder.token_refiner.refiner_blocks[0].attn.processor is refiner
    assert _AttentionBackendRegistry.get_active_backend() == active


def test_the_backend_in_effect_is_read_back(
    transformer: HunyuanVideo15Transformer3DModel,
) -> None:
    assert attention_backend_of(transformer) == "native"
    assert not is_mask_free(transformer)

    assert apply_attention(transformer, "_NATIVE_MATH", mask_free=True) == "_native_math"

    assert attention_backend_of(transformer) == "_native_math"
    assert is_mask_free(transformer)


def test_with_the_mask_the_stock_processor_stays_with_the_backend_asked_for(
    transformer: HunyuanVideo15Transformer3DModel,
) -> None:
    apply_attention(transformer, "auto", mask_free=True)

    assert apply_attention(transformer, "_native_math", mask_free=False) == "_native_math"

    blocks = transformer.transformer_blocks
    assert all(type(b.attn.processor) is HunyuanVideo15AttnProcessor2_0 for b in blocks)


@pytest.mark.parametrize("mask_free", [True, False])
def test_auto_is_native_on_the_cpu(
    transformer: HunyuanVideo15Transformer3DModel, mask_free: bool
) -> None:
    assert apply_attention(transformer, "auto", mask_free) == "native"


@pytest.mark.parametrize(
    ("capability", "backend"),
    [
        ((7, 5), "native"),
        ((8, 0), "_native_flash"),
        ((8, 9), "_native_flash"),
        ((9, 0), "_native_cudnn"),
        ((10, 0), "_native_cudnn"),
        ((12, 0), "_native_flash"),
    ],
)
def test_auto_on_cuda_follows_the_compute_capability(
    capability: tuple[int, int], backend: str
) -> None:
    assert auto_kernel(capability) == backend


def test_an_unknown_backend_is_refused_with_those_that_exist(
    transformer: HunyuanVideo15Transformer3DModel,
) -> None:
    with pytest.raises(Refused) as refusal:
        apply_attention(transformer, "flash3", mask_free=True)

    assert str(refusal.value) == (
        "runtime.attention_backend=flash3: no such backend; allowed are auto, _flash_3, "
        "_flash_3_hub, _flash_3_varlen_hub, _flash_varlen_3, _native_cudnn, _native_efficient, "
        "_native_flash, _native_math, _native_npu, _native_xla, _sage_qk_int8_pv_fp16_cuda, "
        "_sage_qk_int8_pv_fp16_triton, _sage_qk_int8_pv_fp8_cuda, "
        "_sage_qk_int8_pv_fp8_cuda_sm90, aiter_fa2_hub, comfy_int8, flash, flash_4_hub, "
        "flash_hub, flash_varlen, flash_varlen_hub, flex, native, sage, sage_blackwell_hub, "
        "sage_hub, sage_varlen, xformers."
    )


@pytest.mark.parametrize(
    ("backend", "lack"),
    [
        (
            "sage",
            "needs sageattention 2.1.1 or later, which is not installed. Install it with "
            "`git clone https://github.com/thu-ml/SageAttention.git && cd SageAttention && "
            "python setup.py install`, or use",
        ),
        (
            "flash_hub",
            "needs kernels 0.12 or later, which is not installed. Install it with "
            "`pip install -U kernels`, or use",
        ),
    ],
)
def test_a_backend_whose_package_is_missing_is_refused_with_the_install_command(
    transformer: HunyuanVideo15Transformer3DModel, backend: str, lack: str
) -> None:
    with pytest.raises(Refused) as refusal:
        apply_attention(transformer, backend, mask_free=True)

    assert str(refusal.value) == (
        f"runtime.attention_backend={backend} cannot run here, on cpu in float32: {lack} "
        "one of auto, flex, native, _native_flash, _native_math."
    )


def test_a_package_that_is_there_but_does_not_run_is_to_be_built_again(
    transformer: HunyuanVideo15Transformer3DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _name: "2.2.0")

    with pytest.raises(Refused) as refusal:
        apply_attention(transformer, "sage", mask_free=True)

    assert (
        "Where it was built for another torch, `git clone https://github.com/thu-ml/"
        "SageAttention.git && cd SageAttention && python setup.py install` again, or use one of "
    ) in str(refusal.value)


def test_a_backend_for_cards_is_refused_on_the_cpu(
    transformer: HunyuanVideo15Transformer3DModel,
) -> None:
    with pytest.raises(Refused, match="_native_cudnn cannot run here, on cpu in float32"):
        apply_attention(transformer, "_native_cudnn", mask_free=True)


def test_a_backend_that_takes_no_mask_is_refused_with_one(
    transformer: HunyuanVideo15Transformer3DModel,
) -> None:
    with pytest.raises(Refused) as refusal:
        apply_attention(transformer, "_native_flash", mask_free=False)

    assert str(refusal.value) == (
        "runtime.attention_backend=_native_flash cannot run here, on cpu in float32 with a mask "
        "(runtime.mask_free=true drops it): ValueError: `attn_mask` is not supported for native "
        "flash attention. Use one of auto, flex, native, _native_math."
    )
    assert attention_backend_of(transformer) == "native"


def test_the_backends_that_the_command_line_knows_exist_in_diffusers() -> None:
    names = {member.value for member in AttentionBackendName}

    assert set(ATTENTION_BACKENDS) - {"auto", COMFY_INT8} <= names
