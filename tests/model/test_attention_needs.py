"""What a backend needs is known without torch, and is what diffusers asks for."""

from __future__ import annotations

import inspect
from importlib import metadata

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from hv15_batch.engine.denoise.attention_kernels import Heads, probe
from hv15_batch.model.attention import (
    ATTENTION_BACKENDS,
    COMFY_INT8,
    KERNELS,
    backend_fault,
    package_fault,
    package_of,
)
from hv15_batch.model.variant import Dtype

NAMES = [name for name in ATTENTION_BACKENDS if name != "auto"]
DIFFUSERS = [name for name in NAMES if name != COMFY_INT8]


def have(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let these distributions, and no other, be installed."""

    def version(name: str) -> str:
        if name.replace("-", "_") not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("backend", "installed", "fault"),
    [
        ("sage", {}, "needs sageattention 2.1.1 or later, which is not installed"),
        (
            "_sage_qk_int8_pv_fp8_cuda",
            {"sageattention": "1.0.6"},
            "needs sageattention 2.1.1 or later, and 1.0.6 is installed",
        ),
        ("sage_varlen", {"sageattention": "2.2.0+cu128"}, None),
        ("sage_hub", {"sageattention": "2.2.0"}, "needs kernels 0.12 or later, which is not"),
        ("sage_hub", {"kernels": "0.12.0"}, None),
        ("flash_4_hub", {"kernels": "0.12.0"}, "needs kernels 0.12.3 or later, and 0.12.0 is"),
        ("_flash_3", {"flash_attn": "2.8.3"}, "needs flash_attn_3, which is not installed"),
        ("_flash_3", {"flash_attn_3": "3.0.0b1"}, None),
        ("flash", {"flash_attn": "2.5.9"}, "needs flash-attn 2.6.3 or later, and 2.5.9 is"),
        ("flash_varlen", {"flash_attn": "2.8.3.post2"}, None),
        ("xformers", {"xformers": "0.0.28.post3"}, "needs xformers 0.0.29 or later, and 0.0.28"),
        ("_native_cudnn", {}, None),
    ],
)
def test_the_installed_version_is_held_against_the_one_that_is_needed(
    monkeypatch: pytest.MonkeyPatch, backend: str, installed: dict[str, str], fault: str | None
) -> None:
    have(monkeypatch, **installed)

    found = package_fault(backend)

    assert found is None if fault is None else str(found).startswith(fault)


def test_the_versions_are_those_that_diffusers_asks_for() -> None:
    def minimum(backend: str) -> str:
        package = package_of(backend)
        assert package is not None
        return package.minimum

    assert minimum("flash") == attention_dispatch._REQUIRED_FLASH_VERSION
    assert minimum("sage") == attention_dispatch._REQUIRED_SAGE_VERSION
    assert minimum("xformers") == attention_dispatch._REQUIRED_XFORMERS_VERSION
    source = inspect.getsource(attention_dispatch._check_attention_backend_requirements)
    assert f'is_kernels_version(">=", "{minimum("sage_hub")}")' in source
    assert f'is_kernels_version(">=", "{minimum("flash_4_hub")}")' in source


@pytest.mark.parametrize("name", DIFFUSERS)
def test_a_package_is_asked_for_where_diffusers_asks_for_one(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    have(monkeypatch)
    try:
        attention_dispatch._check_attention_backend_requirements(AttentionBackendName(name))
    except RuntimeError:
        assert package_fault(name) is not None
    else:
        assert package_of(name) is None


@pytest.mark.parametrize("name", NAMES)
def test_what_runs_on_the_cpu_is_what_does_run_there(name: str) -> None:
    heads = Heads(2, 16, torch.float32)

    runs = probe(name, heads, True, torch.device("cpu")) is None

    assert runs == (KERNELS[name].on_cpu)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_what_takes_a_mask_is_what_does_not_refuse_one(name: str) -> None:
    tokens, mask = torch.ones(1, 8, 2, 16), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    kernel = _AttentionBackendRegistry._backends[AttentionBackendName(name)]

    refusal = ""
    try:
        kernel(query=tokens, key=tokens, value=tokens, attn_mask=mask)
    except Exception as error:  # what is missing here otherwise says nothing about masks
        refusal = str(error)

    assert ("attn_mask" in refusal) == (not KERNELS[name].takes_mask)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_what_runs_in_float32_is_what_diffusers_does_not_keep_to_16_bits(name: str) -> None:
    checks = _AttentionBackendRegistry._constraints[AttentionBackendName(name)]
    is_16_bit = attention_dispatch._check_qkv_dtype_bf16_or_fp16 in checks
    # These two have no such check in diffusers; the kernels themselves take 16 bits only.
    is_16_bit |= name.startswith("_sage_qk") or name == "_native_flash"

    assert is_16_bit == (not KERNELS[name].in_float32)


def test_a_backend_is_refused_for_what_it_lacks_with_what_would_do() -> None:
    def fault(backend: str, **changes: object) -> str | None:
        how: dict[str, object] = {"runs_on_cpu": False, "dtype": Dtype.bfloat16, "mask_free": True}
        return backend_fault(backend, **{**how, **changes})  # type: ignore[arg-type]

    assert fault("auto", runs_on_cpu=True, dtype=Dtype.float32, mask_free=False) is None
    assert fault("_native_cudnn") is None
    assert fault("_native_cudnn", dtype=Dtype.float32) == (
        "runtime.attention_backend=_native_cudnn: does not run in float32 on a card; use auto, "
        "native, _native_efficient, _native_math, flex or xformers."
    )
    assert fault("_native_flash", runs_on_cpu=True, dtype=Dtype.float32) is None
    assert fault("_native_flash", mask_free=False) == (
        "runtime.attention_backend=_native_flash: takes no mask, which runtime.mask_free=false "
        "asks for; leave that out, or use auto, native, _native_cudnn, _native_efficient, "
        "_native_math, flash_varlen, flash_varlen_hub, _flash_3_varlen_hub, _flash_varlen_3, flex, "
        "sage_varlen or xformers."
    )
