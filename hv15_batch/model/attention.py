"""What an attention backend needs: a package and its version, a card, a type, no mask. No torch.

One place for names, versions and commands, for the command line, which refuses before anything is
touched, and for the worker, where the package turns out not to run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata

from packaging.version import Version

from hv15_batch.model.variant import Dtype

ON_CPU = ("auto", "native", "_native_flash", "_native_math", "flex")
"""Backends that run without a card."""
IN_FLOAT32 = ("auto", "native", "_native_efficient", "_native_math", "flex", "xformers")
"""Backends that run in float32 on a card; the others have kernels for 16 bits only."""
WITH_A_MASK = (
    *("auto", "native", "_native_cudnn", "_native_efficient", "_native_math", "flex"),
    *("flash_varlen", "flash_varlen_hub", "_flash_varlen_3", "_flash_3_varlen_hub"),
    *("sage_varlen", "xformers"),
)
"""Backends that take the mask of `runtime.mask_free=false`."""


@dataclass(frozen=True)
class Package:
    """The package behind some backends."""

    backends: str
    """Their names, as a pattern."""
    name: str
    """Of the installed distribution, which is where diffusers looks for the version."""
    minimum: str
    """Oldest version that diffusers takes."""
    install: str
    """Command that installs one that it takes."""


PACKAGES = (
    Package("flash_4_hub", "kernels", "0.12.3", "pip install -U kernels"),
    Package(".*_hub", "kernels", "0.12", "pip install -U kernels"),
    Package(
        "_flash_3|_flash_varlen_3",
        "flash_attn_3",
        "0",
        "git clone --recursive https://github.com/Dao-AILab/flash-attention.git && "
        "cd flash-attention/hopper && python setup.py install",
    ),
    Package(
        "flash|flash_varlen",
        "flash-attn",
        "2.6.3",
        "pip install 'flash-attn>=2.6.3' --no-build-isolation",
    ),
    # Not from PyPI: what is there ends at 1.0.6.
    Package(
        "_?sage.*",
        "sageattention",
        "2.1.1",
        "git clone https://github.com/thu-ml/SageAttention.git && "
        "cd SageAttention && python setup.py install",
    ),
    Package("xformers", "xformers", "0.0.29", "pip install 'xformers>=0.0.29'"),
)
"""The first whose pattern fits counts.

Sources: versions, diffusers 0.42.1, models/attention_dispatch.py; commands, the READMEs of
thu-ml/SageAttention@07fdbd4 and Dao-AILab/flash-attention@014c349 (both build with the CUDA
toolkit).
"""


def is_fetched(backend: str) -> bool:
    """Whether the kernel is compiled code that diffusers fetches from the hub and runs."""
    return backend.endswith("_hub")


def package_of(backend: str) -> Package | None:
    """Return the package behind a backend; None for torch's own."""
    return next((p for p in PACKAGES if re.fullmatch(p.backends, backend)), None)


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
    where = f"runtime.attention_backend={backend}"
    if fault := package_fault(backend):
        package = package_of(backend)
        assert package is not None
        return f"{where}: {fault}; install it with `{package.install}`, or leave it at auto."
    if runs_on_cpu and backend not in ON_CPU:
        return f"{where}: needs a CUDA card, and this runs on the CPU; use {_either(ON_CPU)}."
    if not runs_on_cpu and dtype is Dtype.float32 and backend not in IN_FLOAT32:
        return f"{where}: does not run in float32 on a card; use {_either(IN_FLOAT32)}."
    if not mask_free and backend not in WITH_A_MASK:
        return (
            f"{where}: takes no mask, which runtime.mask_free=false asks for; leave that out, or "
            f"use {_either(WITH_A_MASK)}."
        )
    return None


def _either(backends: tuple[str, ...]) -> str:
    """Return backends as a choice, in the order in which all are listed."""
    *most, last = (backend for backend in ATTENTION_BACKENDS if backend in backends)
    return f"{', '.join(most)} or {last}"


ATTENTION_BACKENDS = (
    "auto",
    "native",
    "_native_cudnn",
    "_native_efficient",
    "_native_flash",
    "_native_math",
    "flash",
    "flash_hub",
    "flash_varlen",
    "flash_varlen_hub",
    "flash_4_hub",
    "_flash_3",
    "_flash_3_hub",
    "_flash_3_varlen_hub",
    "_flash_varlen_3",
    "flex",
    "sage",
    "sage_hub",
    "sage_blackwell_hub",
    "sage_varlen",
    "_sage_qk_int8_pv_fp16_cuda",
    "_sage_qk_int8_pv_fp16_triton",
    "_sage_qk_int8_pv_fp8_cuda",
    "_sage_qk_int8_pv_fp8_cuda_sm90",
    "xformers",
)
"""`auto` and the CUDA backends of diffusers' attention dispatcher (0.42.1)."""
