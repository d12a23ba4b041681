"""The attention kernels that may be asked for, and what each needs. No torch.

One place for names, versions and commands, for the command line, which refuses before anything is
touched, and for the worker, where the package turns out not to run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

from packaging.version import Version

from hv15_batch.model.variant import Dtype

AUTO, NATIVE = "auto", "native"


@dataclass(frozen=True)
class Package:
    """What some kernels are installed with."""

    name: str
    """Name of the installed distribution, where diffusers reads the version."""
    minimum: str
    """Oldest version that diffusers takes."""
    install: str
    """Command that installs one that it takes."""


# Sources: versions, diffusers 0.42.1, models/attention_dispatch.py; commands, the READMEs of
# thu-ml/SageAttention@07fdbd4 and Dao-AILab/flash-attention@014c349 (both build with the CUDA
# toolkit).
_HUB = Package("kernels", "0.12", "pip install -U kernels")
_HUB_4 = Package("kernels", "0.12.3", "pip install -U kernels")
_FLASH = Package("flash-attn", "2.6.3", "pip install 'flash-attn>=2.6.3' --no-build-isolation")
_FLASH_3 = Package(
    "flash_attn_3",
    "0",
    "git clone --recursive https://github.com/Dao-AILab/flash-attention.git && "
    "cd flash-attention/hopper && python setup.py install",
)
_SAGE = Package(  # from source: PyPI has nothing later than 1.0.6
    "sageattention",
    "2.1.1",
    "git clone https://github.com/thu-ml/SageAttention.git && "
    "cd SageAttention && python setup.py install",
)
_XFORMERS = Package("xformers", "0.0.29", "pip install 'xformers>=0.0.29'")


@dataclass(frozen=True)
class Kernel:
    """A CUDA backend of diffusers' attention dispatcher (0.42.1)."""

    name: str
    """In `AttentionBackendName`. A name that ends in `_hub` means compiled code from the hub."""
    package: Package | None = None
    """None is torch's own."""
    on_cpu: bool = False
    """Runs without a card."""
    in_float32: bool = False
    """Runs in float32 on a card; the others have code for 16 bits only."""
    takes_mask: bool = False
    """Takes the mask of `runtime.mask_free=false`."""
    rate_shares: tuple[float, float] | None = None
    """Share of the dense bf16 rate that attention reaches: on Hopper, elsewhere. None: unknown."""


# Rates on one H200 at 49,350 tokens in bfloat16: cuDNN 566 TFLOP/s, flash through SDPA 361
# (measured 2026-11-22, torch 2.11). Elsewhere they are assumed.
_KERNELS = (
    Kernel(NATIVE, on_cpu=True, in_float32=True, takes_mask=True),
    Kernel("_native_cudnn", takes_mask=True, rate_shares=(0.62, 0.62)),
    Kernel("_native_efficient", in_float32=True, takes_mask=True),
    Kernel("_native_flash", on_cpu=True, rate_shares=(0.38, 0.62)),
    Kernel("_native_math", on_cpu=True, in_float32=True, takes_mask=True),
    Kernel("flash", _FLASH),
    Kernel("flash_hub", _HUB),
    Kernel("flash_varlen", _FLASH, takes_mask=True),
    Kernel("flash_varlen_hub", _HUB, takes_mask=True),
    Kernel("flash_4_hub", _HUB_4),
    Kernel("_flash_3", _FLASH_3),
    Kernel("_flash_3_hub", _HUB),
    Kernel("_flash_3_varlen_hub", _HUB, takes_mask=True),
    Kernel("_flash_varlen_3", _FLASH_3, takes_mask=True),
    Kernel("flex", on_cpu=True, in_float32=True, takes_mask=True),
    Kernel("sage", _SAGE),
    Kernel("sage_hub", _HUB),
    Kernel("sage_blackwell_hub", _HUB),
    Kernel("sage_varlen", _SAGE, takes_mask=True),
    Kernel("_sage_qk_int8_pv_fp16_cuda", _SAGE),
    Kernel("_sage_qk_int8_pv_fp16_triton", _SAGE),
    Kernel("_sage_qk_int8_pv_fp8_cuda", _SAGE),
    Kernel("_sage_qk_int8_pv_fp8_cuda_sm90", _SAGE),
    Kernel("xformers", _XFORMERS, in_float32=True, takes_mask=True),
)
KERNELS = {kernel.name: kernel for kernel in _KERNELS}
ATTENTION_BACKENDS = (AUTO, *KERNELS)
"""What `runtime.attention_backend` takes."""


def auto_kernel(capability: tuple[int, int]) -> str:
    """Return what `auto` means on a card of this compute capability, in 16 bits without a mask.

    With a mask, in float32 and on the CPU it means `NATIVE`. cuDNN's fused code for Ampere and Ada
    is not measured here.
    """
    if capability >= (9, 0):
        return "_native_cudnn"
    return "_native_flash" if capability >= (8, 0) else NATIVE


def is_fetched(backend: str) -> bool:
    """Whether the kernel is compiled code that diffusers fetches from the hub and runs."""
    return backend.endswith("_hub")


def package_of(backend: str) -> Package | None:
    """Return the package behind a backend; None for torch's own."""
    return KERNELS[backend].package if backend in KERNELS else None


def package_fault(backend: str) -> str | None:
    """Return which package or version a backend lacks here, as half a sentence, or None."""
    package = package_of(backend)
    if package is None:
        return None
    wanted = (
        package.name if package.minimum == "0" else f"{package.name} {package.minimum} or later"
    )
    try:
        found = metadata.version(package.name)
    except metadata.PackageNotFoundError:
        return f"needs {wanted}, which is not installed"
    if Version(found) < Version(package.minimum):
        return f"needs {wanted}, and {found} is installed"
    return None


def backend_fault(backend: str, *, runs_on_cpu: bool, dtype: Dtype, mask_free: bool) -> str | None:
    """Return why a backend cannot run here and what to do, or None; the card is not asked.

    Args:
        backend: One of `ATTENTION_BACKENDS`.
        runs_on_cpu: The maths runs on the CPU.
        dtype: Of the transformer.
        mask_free: No mask is built.
    """
    if backend == AUTO:
        return None
    kernel, where = KERNELS[backend], f"runtime.attention_backend={backend}"
    if kernel.package and (fault := package_fault(backend)):
        return f"{where}: {fault}; install it with `{kernel.package.install}`, or leave it at auto."
    if runs_on_cpu and not kernel.on_cpu:
        use = _either(lambda k: k.on_cpu)
        return f"{where}: needs a CUDA card, and this runs on the CPU; use {use}."
    if not runs_on_cpu and dtype is Dtype.float32 and not kernel.in_float32:
        use = _either(lambda k: k.in_float32)
        return f"{where}: does not run in float32 on a card; use {use}."
    if not mask_free and not kernel.takes_mask:
        return (
            f"{where}: takes no mask, which runtime.mask_free=false asks for; leave that out, or "
            f"use {_either(lambda k: k.takes_mask)}."
        )
    return None


def _either(would_do: Callable[[Kernel], bool]) -> str:
    """Return the backends that would do as a choice; `auto` always does."""
    *most, last = (AUTO, *(name for name, kernel in KERNELS.items() if would_do(kernel)))
    return f"{', '.join(most)} or {last}"
