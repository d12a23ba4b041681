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
COMFY_INT8 = "comfy_int8"
"""The one name that is not diffusers': the INT8 attention of comfy-kitchen."""


@dataclass(frozen=True)
class Package:
    """What some kernels are installed with."""

    name: str
    """Name of the installed distribution, where diffusers reads the version."""
    minimum: str
    """Oldest version that diffusers takes."""
    install: str
    """Command that installs one that it takes."""

    def __str__(self) -> str:
        return self.name if self.minimum == "0" else f"{self.name} {self.minimum} or later"


# Sources: versions, diffusers 0.42.1, models/attention_dispatch.py; commands, the READMEs of
# thu-ml/SageAttention@07fdbd4 and Dao-AILab/flash-attention@014c349 (both build with the CUDA
# toolkit).
_HUB = Package("kernels", "0.12", "pip install -U kernels")
_HUB_4 = Package("kernels", "0.12.3", "pip install -U 'kernels[curated]'")
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
_COMFY = Package("comfy-kitchen", "0.2.40", "pip install 'comfy-kitchen>=0.2.40'")


@dataclass(frozen=True)
class Cards:
    """The CUDA compute capabilities that a kernel has code for."""

    least: tuple[int, int]
    majors: tuple[int, ...] = ()
    """The only ones; empty means all from `least` on."""

    def take(self, capability: tuple[int, int]) -> bool:
        """Whether a card of this capability runs it."""
        return capability >= self.least and (not self.majors or capability[0] in self.majors)

    def __str__(self) -> str:
        if not self.majors:
            return f"{self.least[0]}.{self.least[1]} or later"
        *most, last = (f"{major}.x" for major in self.majors)
        return f"{', '.join(most)} or {last}" if most else last


_AMPERE, _ADA, _HOPPER = Cards((8, 0)), Cards((8, 9)), Cards((9, 0), (9,))


@dataclass(frozen=True)
class HubKernel:
    """A repository of compiled code on the Hugging Face hub."""

    repo: str
    version: int

    @property
    def revision(self) -> str:
        """The branch of that version."""
        return f"v{self.version}"


_HUB_FLASH_2 = HubKernel("kernels-community/flash-attn2", 3)
_HUB_FLASH_3 = HubKernel("kernels-community/flash-attn3", 1)


@dataclass(frozen=True)
class Kernel:
    """A CUDA backend of diffusers' attention dispatcher (0.42.1), or comfy-kitchen's."""

    name: str
    """In `AttentionBackendName`. A name that ends in `_hub` means compiled code from the hub."""
    package: Package | None = None
    """None is torch's own."""
    cards: Cards | None = None
    """None: all that torch runs on."""
    bits: int = 16
    """Of the numbers that it multiplies; 16 also stands for the 32 of float32."""
    hub: HubKernel | None = None
    on_cpu: bool = False
    """Runs without a card."""
    in_float32: bool = False
    """Runs in float32 on a card; the others have code for 16 bits only, or round the result."""
    takes_mask: bool = False
    """Takes the mask of `runtime.mask_free=false`."""
    rate_shares: tuple[float | None, float | None] = (None, None)
    """Share of the dense bf16 rate that attention reaches: on Hopper, elsewhere. None: unknown."""

    @property
    def may_write_keys(self) -> bool:
        """Whether it gets a copy of the keys: SageAttention 1.0.6 subtracts their mean in place."""
        return "sage" in self.name


# Rates on one H200 at 49,350 tokens in bfloat16: cuDNN 566 TFLOP/s, flash through SDPA 361
# (2026-11-22); beside cuDNN in one sitting FA3 took 0.86 and comfy-kitchen 1.23 of its time
# (2026-11-29), both with torch 2.11. Elsewhere those of torch are assumed.
# Capabilities: diffusers' constraints, the packages' READMEs and build scripts.
_KERNELS = (
    Kernel(NATIVE, on_cpu=True, in_float32=True, takes_mask=True),
    Kernel("_native_cudnn", cards=_AMPERE, takes_mask=True, rate_shares=(0.62, 0.62)),
    Kernel("_native_efficient", in_float32=True, takes_mask=True),
    Kernel("_native_flash", cards=_AMPERE, on_cpu=True, rate_shares=(0.38, 0.62)),
    Kernel("_native_math", on_cpu=True, in_float32=True, takes_mask=True),
    Kernel("flash", _FLASH, _AMPERE),
    Kernel("flash_hub", _HUB, _AMPERE, hub=_HUB_FLASH_2),
    Kernel("flash_varlen", _FLASH, _AMPERE, takes_mask=True),
    Kernel("flash_varlen_hub", _HUB, _AMPERE, hub=_HUB_FLASH_2, takes_mask=True),
    Kernel(
        "flash_4_hub",
        _HUB_4,
        Cards((9, 0), (9, 10, 12)),
        hub=HubKernel("kernels-community/flash-attn4", 0),
    ),
    Kernel("_flash_3", _FLASH_3, _HOPPER, rate_shares=(0.72, None)),
    Kernel("_flash_3_hub", _HUB, _HOPPER, hub=_HUB_FLASH_3, rate_shares=(0.72, None)),
    Kernel("_flash_3_varlen_hub", _HUB, _HOPPER, hub=_HUB_FLASH_3, takes_mask=True),
    Kernel("_flash_varlen_3", _FLASH_3, _HOPPER, takes_mask=True),
    Kernel("flex", on_cpu=True, in_float32=True, takes_mask=True),
    Kernel(COMFY_INT8, _COMFY, Cards((7, 5)), 8, rate_shares=(0.5, None)),
    Kernel("sage", _SAGE, _AMPERE, 8),
    Kernel("sage_hub", _HUB, _AMPERE, 8, HubKernel("SageAttention/sage-attention", 3)),
    Kernel(
        "sage_blackwell_hub",
        _HUB,
        Cards((12, 0), (12,)),
        4,
        HubKernel("SageAttention/sage-blackwell", 1),
    ),
    Kernel("sage_varlen", _SAGE, _AMPERE, 8, takes_mask=True),
    Kernel("_sage_qk_int8_pv_fp16_cuda", _SAGE, _AMPERE, 8),
    Kernel("_sage_qk_int8_pv_fp16_triton", _SAGE, _AMPERE, 8),
    Kernel("_sage_qk_int8_pv_fp8_cuda", _SAGE, _ADA, 8),
    Kernel("_sage_qk_int8_pv_fp8_cuda_sm90", _SAGE, _HOPPER, 8),
    Kernel("xformers", _XFORMERS, in_float32=True, takes_mask=True),
)
KERNELS = {kernel.name: kernel for kernel in _KERNELS}
ATTENTION_BACKENDS = (AUTO, *KERNELS)
"""What `runtime.attention_backend` takes."""


def auto_kernels(capability: tuple[int, int]) -> tuple[str, ...]:
    """Return what `auto` takes on a card of this compute capability, the best first.

    In 16 bits without a mask; with a mask, in float32 and on the CPU it takes `NATIVE`. The last
    one is torch's own; one before it is taken if its package is installed and its result is right.
    Only kernels that compute in 16 bits, and none of the hub. cuDNN is fast on Hopper. On 12.x it
    had 0.88 of the speed of flash in training shapes (huggingface/transformers pull request 48163).
    Its code for Ampere and Ada is not measured here. docs/attention.md has all figures.
    """
    if capability < (8, 0):
        return (NATIVE,)
    own = "_native_cudnn" if 9 <= capability[0] < 12 else "_native_flash"
    return ("_flash_3", own) if capability[0] == 9 else (own,)


def auto_kernel(capability: tuple[int, int]) -> str:
    """Return what `auto` means on such a card with the packages that are installed here."""
    return next(name for name in auto_kernels(capability) if package_fault(name) is None)


def is_exact(backend: str) -> bool:
    """Whether a kernel multiplies in 16 bits or more; `auto` takes no other."""
    return backend not in KERNELS or KERNELS[backend].bits >= 16


def is_fetched(backend: str) -> bool:
    """Whether the kernel is compiled code that diffusers fetches from the hub and runs."""
    return backend.endswith("_hub")


def hub_of(backend: str) -> HubKernel | None:
    """Return where a backend's code is fetched from; None for all that is not of the hub."""
    return KERNELS[backend].hub if backend in KERNELS else None


def package_of(backend: str) -> Package | None:
    """Return the package behind a backend; None for torch's own."""
    return KERNELS[backend].package if backend in KERNELS else None


def package_fault(backend: str) -> str | None:
    """Return which package or version a backend lacks here, as half a sentence, or None."""
    package = package_of(backend)
    if package is None:
        return None
    try:
        found = metadata.version(package.name)
    except metadata.PackageNotFoundError:
        return f"needs {package}, which is not installed"
    if Version(found) < Version(package.minimum):
        return f"needs {package}, and {found} is installed"
    return None


def card_fault(backend: str, capability: tuple[int, int]) -> str | None:
    """Return why a backend has no code for a card, as half a sentence, or None."""
    cards = KERNELS[backend].cards if backend in KERNELS else None
    if cards is None or cards.take(capability):
        return None
    return f"needs compute capability {cards}, and this card has {capability[0]}.{capability[1]}"


def backend_fault(
    backend: str,
    *,
    runs_on_cpu: bool,
    dtype: Dtype,
    mask_free: bool,
    capability: tuple[int, int] | None = None,
) -> str | None:
    """Return why a backend cannot run here and what to do, or None; the card itself is not asked.

    Args:
        backend: One of `ATTENTION_BACKENDS`.
        runs_on_cpu: The maths runs on the CPU.
        dtype: Of the transformer.
        mask_free: No mask is built.
        capability: Compute capability of the card; None where it is not known.
    """
    if backend == AUTO:
        return None
    kernel, where = KERNELS[backend], f"runtime.attention_backend={backend}"
    # Before the package, so that nobody builds one that the card cannot use.
    if not runs_on_cpu and capability and (fault := card_fault(backend, capability)):
        use = _either(lambda k: k.package is None and (not k.cards or k.cards.take(capability)))
        return f"{where}: {fault}; use {use}."
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
