"""Kernels from outside torch: how they are called, loaded, checked and passed over."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideo15Transformer3DModel
from fakes import kernels
from fakes.checkpoint import at
from fakes.command import tiny_model
from fakes.engine import InProcessExecutor
from fakes.packages import install
from fakes.pipelines import small_transformer
from fakes.planned import BASE
from fakes.runs import Project
from huggingface_hub import constants

from hv15_batch.config.settings import Config
from hv15_batch.engine._measure import work_columns
from hv15_batch.engine.denoise import attention
from hv15_batch.engine.denoise.attention import (
    apply_attention,
    attention_backend_of,
    check_backend,
)
from hv15_batch.engine.denoise.attention_check import judge_kernel, make_inputs
from hv15_batch.engine.denoise.attention_kernels import Heads, attend, load_kernel, probe
from hv15_batch.errors import Refused
from hv15_batch.model.attention import KERNELS, auto_kernel, auto_kernels, card_fault
from hv15_batch.weights.kernels.fetched import fetch_kernel

CPU = torch.device("cpu")
HEADS = Heads(2, 32, torch.float32)


@pytest.fixture
def transformer() -> HunyuanVideo15Transformer3DModel:
    return small_transformer()


def forward(transformer: HunyuanVideo15Transformer3DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        result: torch.Tensor = transformer(
            hidden_states=torch.randn(1, 65, 2, 4, 6, generator=generator),
            timestep=torch.tensor([900.0]),
            encoder_hidden_states=torch.randn(1, 7, 24, generator=generator),
            encoder_attention_mask=torch.ones(1, 7),
            encoder_hidden_states_2=torch.randn(1, 5, 12, generator=generator),
            encoder_attention_mask_2=torch.ones(1, 5),
            image_embeds=torch.zeros(1, 0, 20),
        ).sample
    return result


# -- comfy-kitchen ------------------------------------------------------------------------------


def test_comfy_kitchens_kernel_attends_in_every_block(
    transformer: HunyuanVideo15Transformer3DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        calls.append(query.shape)
        return kernels.exact(query, key, value)

    apply_attention(transformer, "native", mask_free=True)
    expected = forward(transformer)
    kernels.install_comfy_kitchen(monkeypatch, counted)

    assert apply_attention(transformer, "comfy_int8", mask_free=True) == "comfy_int8"
    calls.clear()  # of the trial
    result = forward(transformer)

    assert torch.allclose(result, expected, atol=2e-6, rtol=0)
    assert calls == [(1, 48 + 12, 2, 16)] * 2
    assert attention_backend_of(transformer) == "comfy_int8"


def test_without_comfy_kitchen_its_name_is_refused_with_the_command(
    transformer: HunyuanVideo15Transformer3DModel,
) -> None:
    with pytest.raises(Refused) as refusal:
        apply_attention(transformer, "comfy_int8", mask_free=True)

    assert (
        "needs comfy-kitchen 0.2.40 or later, which is not installed. Install it with `pip install "
        "'comfy-kitchen>=0.2.40'`, or use one of auto, flex, native, _native_flash, _native_math."
    ) in str(refusal.value)


def test_it_takes_no_mask(
    transformer: HunyuanVideo15Transformer3DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels.install_comfy_kitchen(monkeypatch)

    with pytest.raises(
        Refused, match=r"comfy_int8 cannot run here, .* with a mask .*: takes no mask"
    ):
        apply_attention(transformer, "comfy_int8", mask_free=False)


# -- calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sage", "flash", "_flash_3", "comfy_int8"])
def test_the_compiler_does_not_look_into_a_kernel(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def untraceable(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        float(query.detach().numpy().sum())  # breaks a full graph
        return kernels.exact(query, key, value)

    kernels.install_comfy_kitchen(monkeypatch, untraceable)
    if name != "comfy_int8":
        kernels.register(monkeypatch, name, untraceable)
    torch.compiler.reset()
    compiled = torch.compile(
        lambda q, k, v: 2 * attend(name, q + 1, k, v), fullgraph=True, backend="aot_eager"
    )
    query, key, value = make_inputs("normal", HEADS, 50, CPU)

    with torch.no_grad():
        found = compiled(query, key, value)

    expected = 2 * kernels.exact(query + 1, key, value)
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_kernel_of_sage_cannot_write_into_the_callers_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels.register(monkeypatch, "sage", kernels.writing_into_keys)
    query, key, value = make_inputs("outlier", HEADS, 100, CPU)
    before = key.clone()

    result = attend("sage", query, key, value)

    assert torch.equal(key, before)
    assert torch.allclose(result, kernels.exact(query, before, value), atol=1e-4)
    assert judge_kernel("sage", HEADS, 100, CPU)


def test_any_other_kernel_that_writes_into_its_inputs_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernels.register(monkeypatch, "flash", kernels.writing_into_keys)

    with pytest.raises(attention.KernelOff, match="writes into its inputs"):
        judge_kernel("flash", HEADS, 100, CPU)


@pytest.mark.parametrize("name", list(KERNELS))
def test_a_card_without_code_for_it_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = (6, 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: old)

    fault = card_fault(name, old)

    if KERNELS[name].cards is None:
        assert fault is None
    else:
        assert str(fault).endswith("and this card has 6.1")
        assert probe(name, HEADS, True, torch.device("cuda")) == fault


@pytest.mark.parametrize(
    ("name", "takes", "refuses"),
    [
        ("comfy_int8", [(7, 5), (8, 6), (8, 9), (9, 0), (12, 0)], [(7, 0)]),
        ("sage", [(8, 0), (8, 9), (9, 0), (12, 0)], [(7, 5)]),
        ("_sage_qk_int8_pv_fp8_cuda", [(8, 9), (12, 0)], [(8, 6)]),
        ("_flash_3", [(9, 0)], [(8, 9), (10, 0), (12, 0)]),
        ("flash_4_hub", [(9, 0), (10, 0), (12, 0)], [(8, 9), (11, 0)]),
        ("sage_blackwell_hub", [(12, 0)], [(9, 0), (10, 0)]),
    ],
)
def test_the_cards_of_a_kernel(
    name: str, takes: list[tuple[int, int]], refuses: list[tuple[int, int]]
) -> None:
    assert [card_fault(name, capability) for capability in takes] == [None] * len(takes)
    assert all(card_fault(name, capability) for capability in refuses)


# -- of the hub ---------------------------------------------------------------------------------


def test_a_fetched_kernel_is_loaded_by_its_commit_and_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "notes"))
    hub = kernels.Hub(monkeypatch)
    with pytest.raises(Refused, match="sage_hub: compiled code of the hub that is not on this"):
        load_kernel("sage_hub")
    assert hub.asked == []

    environ = kernels.fetching_environ(tmp_path)
    fetch_kernel("sage_hub", say=lambda _: None, environ=environ)
    load_kernel("sage_hub")
    load_kernel("sage_hub")

    (asked,) = hub.asked
    assert asked["repo"] == "SageAttention/sage-attention"
    assert (asked["revision"], asked["version"]) == (kernels.COMMIT, None)
    assert asked["offline"] is True
    assert not constants.HF_HUB_OFFLINE
    assert judge_kernel("sage_hub", HEADS, 100, CPU)


# -- what auto takes ----------------------------------------------------------------------------


def test_auto_takes_flash_attention_3_on_hopper_alone_and_only_if_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert auto_kernels((9, 0)) == ("_flash_3", "_native_cudnn")
    assert auto_kernel((9, 0)) == "_native_cudnn"

    install(monkeypatch, flash_attn_3="3.0.0b1", sageattention="2.2.0", kernels="0.17.2")

    assert auto_kernel((9, 0)) == "_flash_3"
    assert [auto_kernel(c) for c in ((8, 0), (8, 9), (12, 0))] == ["_native_flash"] * 3
    assert auto_kernel((10, 0)) == "_native_cudnn"


def test_auto_takes_neither_8_bits_nor_code_of_the_hub() -> None:
    for capability in ((7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)):
        for name in auto_kernels(capability):
            assert KERNELS[name].bits == 16
            assert KERNELS[name].hub is None


@pytest.fixture
def as_on_hopper(monkeypatch: pytest.MonkeyPatch) -> Callable[[kernels.Run], None]:
    """Let `auto` choose as on Hopper, with this function for FlashAttention 3."""

    def put(run: kernels.Run) -> None:
        install(monkeypatch, flash_attn_3="3.0.0b1")
        kernels.register(monkeypatch, "_flash_3", run)
        monkeypatch.setattr(attention, "_auto_candidates", lambda *_: ("_flash_3", "native"))

    return put


def choose(folder: Path, told: list[str]) -> str:
    config = Config(model=tiny_model("tiny_t2v"))
    return check_backend(config, at(folder), 200, CPU, tell=told.append)


def test_auto_takes_it_when_its_result_is_right(
    as_on_hopper: Callable[[kernels.Run], None],
    tiny_folder: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    as_on_hopper(kernels.exact)
    told: list[str] = []

    with caplog.at_level(logging.INFO):
        assert choose(tiny_folder("tiny_t2v"), told) == "_flash_3"

    assert told == []
    assert "_flash_3: differs from torch's by at most 0.00% on normal inputs, " in caplog.text
    assert "over 261 tokens (1% is allowed in 16 bits)" in caplog.text


def half_precise(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Within what 8 bits may lose, and outside of what 16 may."""
    return kernels.exact(query, key, value) * 1.04


@pytest.mark.parametrize("run", [kernels.without_last_keys, half_precise])
def test_auto_passes_it_over_with_the_figure_when_it_is_off(
    as_on_hopper: Callable[[kernels.Run], None],
    tiny_folder: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
    run: kernels.Run,
) -> None:
    as_on_hopper(run)
    told: list[str] = []

    with caplog.at_level(logging.WARNING):
        assert choose(tiny_folder("tiny_t2v"), told) == "native"

    (text,) = told
    assert text.startswith(
        "runtime.attention_backend=auto passes over _flash_3: its result differs from torch's by "
    )
    assert text.endswith("(1% is allowed in 16 bits)")
    assert text in caplog.text


def test_auto_passes_it_over_when_it_does_not_run(
    as_on_hopper: Callable[[kernels.Run], None], tiny_folder: Callable[[str], Path]
) -> None:
    def fails(*_: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    as_on_hopper(fails)
    told: list[str] = []

    assert choose(tiny_folder("tiny_t2v"), told) == "native"
    assert told == [
        "runtime.attention_backend=auto passes over _flash_3: RuntimeError: no kernel image is "
        "available"
    ]


@pytest.mark.parametrize(
    ("run", "name"), [(kernels.exact, "_flash_3"), (kernels.without_last_keys, "native")]
)
def test_clips_are_rendered_and_logged_with_what_auto_took(
    as_on_hopper: Callable[[kernels.Run], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run: kernels.Run,
    name: str,
) -> None:
    as_on_hopper(run)
    project = Project(tmp_path)
    project.write(
        "id,prompt,height,width,num_frames,num_inference_steps",
        *("a,a cat,32,32,1,1", "b,a dog,64,64,5,1"),
    )

    assert project.run(InProcessExecutor) == 0

    rows = project.records()
    assert [r["attention_backend"] for r in rows] == [name] * 2
    assert [r["attention_backend_requested"] for r in rows] == ["auto"] * 2
    said = capsys.readouterr().out
    # Judged at the longest clip: 2 x 4 x 4 tokens of video, and text.
    assert ("passes over _flash_3" in said and " of 93, head" in said) == (name == "native")


# -- figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "has_mfu"),
    [("_native_cudnn", True), ("_flash_3", True), ("sage", False), ("comfy_int8", False)],
)
def test_the_share_of_the_16_bit_rate_is_null_with_8_bit_attention(
    backend: str, has_mfu: bool
) -> None:
    texts = SimpleNamespace(num_text_tokens=60, num_glyph_tokens=0)
    conditioning: Any = SimpleNamespace(prompt=texts, negative=None, image=None)

    columns = work_columns(BASE, conditioning, 20.0, "NVIDIA H200", backend)

    assert columns["tflops"] > 0
    assert (columns["mfu"] is not None) == has_mfu
