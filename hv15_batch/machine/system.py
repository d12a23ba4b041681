"""The hardware and software in `system.json`, and the hash of both.

No torch: its CUDA build is read from the text of its `version.py`.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import hv15_batch
from hv15_batch.machine.machine import (
    PACKAGES,
    Machine,
    cgroup_cpus,
    cgroup_memory_bytes,
    package_version,
    read_machine,
)
from hv15_batch.machine.nvml import Gpu, as_text, open_nvml
from hv15_batch.units import GIB

ATTENTION_PACKAGES = ("flash-attn", "flash-attn-3", "sageattention", "xformers", "kernels")
_GIT_SECONDS = 10.0


def system_facts(machine: Machine | None = None, nvml: Any = None) -> dict[str, Any]:
    """Return what is written to `runs/<run_id>/system.json`: JSON-able values.

    `hardware` and `software` are what `system_sha256` covers. `project` is not in it, because a
    commit that only changes a comment makes no other system (`hv15_batch_version` is in
    `software`); nor is `moment`, which differs from run to run: a PCIe link, for example, is slower
    while the card saves power.

    Args:
        machine: None reads this one.
        nvml: Module with pynvml's functions; None imports pynvml.
    """
    machine = machine or read_machine()
    facts = asdict(machine)
    cards = [_read_card(gpu, nvml) for gpu in machine.gpus]
    return {
        "hardware": {
            "gpus": [
                _pick(card, *_LASTING) | {"power_limit_watts": gpu.power_limit_watts}
                for card, gpu in zip(cards, machine.gpus, strict=True)
            ],
            **_pick(facts, "cpu_name", "cpu_count", "ram_total_bytes"),
            "cgroup_memory_bytes": cgroup_memory_bytes(),
            "cgroup_cpus": cgroup_cpus(),
        },
        "software": {
            "driver": machine.gpu.driver if machine.gpu else None,
            "driver_cuda_version": _driver_cuda_version(nvml) if machine.gpus else None,
            **_torch_build(),
            **_pick(facts, "os", "python_version", "pytorch_cuda_alloc_conf"),
            **_pick(facts, *(f"{name}_version" for name in (*PACKAGES, "hv15_batch"))),
            **{
                f"{name.replace('-', '_')}_version": package_version(name)
                for name in ATTENTION_PACKAGES
            },
        },
        "project": project_facts(Path(hv15_batch.__file__).resolve().parent.parent),
        "moment": {
            "read_at": datetime.datetime.now(datetime.timezone.utc).isoformat(),
            "gpus": [
                _pick(asdict(gpu), "index", "uuid", "free_bytes") | _pick(card, *_PASSING)
                for card, gpu in zip(cards, machine.gpus, strict=True)
            ],
            **_pick(facts, "hostname", "ram_available_bytes"),
        },
    }


def system_sha256(facts: dict[str, Any]) -> str:
    """Return the SHA-256 of hardware and software: equal machines have equal hashes.

    RAM counts in whole GiB, because the kernel's own share differs from boot to boot.
    """
    hardware = dict(facts["hardware"])
    hardware["ram_total_bytes"] = round(hardware["ram_total_bytes"] / GIB) * GIB
    text = json.dumps(
        {"hardware": hardware, "software": facts["software"]},
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return hashlib.sha256(text.encode()).hexdigest()


# -- cards ------------------------------------------------------------------------------------

_LASTING = (
    "name",
    "total_bytes",
    "vbios_version",
    "power_limit_default_watts",
    "pcie_generation_max",
    "pcie_width_max",
)
_PASSING = ("pcie_generation", "pcie_width")


def _read_card(gpu: Gpu, nvml: Any) -> dict[str, Any]:
    """Return what NVML reports of a card beyond `Gpu`; None for what it does not report."""
    facts: dict[str, Any] = {"name": gpu.name, "total_bytes": gpu.total_bytes}
    asked: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "vbios_version": ("nvmlDeviceGetVbiosVersion", as_text),
        "power_limit_default_watts": (
            "nvmlDeviceGetPowerManagementDefaultLimit",
            lambda milliwatts: milliwatts / 1000,
        ),
        "pcie_generation_max": ("nvmlDeviceGetMaxPcieLinkGeneration", int),
        "pcie_width_max": ("nvmlDeviceGetMaxPcieLinkWidth", int),
        "pcie_generation": ("nvmlDeviceGetCurrPcieLinkGeneration", int),
        "pcie_width": ("nvmlDeviceGetCurrPcieLinkWidth", int),
    }
    facts |= dict.fromkeys(asked)
    with open_nvml(nvml) as library:
        if library is None:
            return facts
        with suppress(library.NVMLError):
            handle = library.nvmlDeviceGetHandleByUUID(gpu.uuid)
            for name, (function, convert) in asked.items():
                with suppress(library.NVMLError):
                    facts[name] = convert(getattr(library, function)(handle))
    return facts


def _driver_cuda_version(nvml: Any) -> str | None:
    """Return the newest CUDA that the driver runs, such as `13.0`."""
    with open_nvml(nvml) as library:
        if library is None:
            return None
        with suppress(library.NVMLError):
            version = int(library.nvmlSystemGetCudaDriverVersion_v2())
            return f"{version // 1000}.{version % 1000 // 10}"
    return None


# -- software ---------------------------------------------------------------------------------


@cache
def _torch_build() -> dict[str, str | None]:
    """Return CUDA and cuDNN that torch was built for; None for a CPU build."""
    cuda = None
    spec = importlib.util.find_spec("torch")  # finds it without importing it
    if spec is not None and spec.origin is not None:
        with suppress(OSError):
            text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
            found = re.search(r"^cuda\b[^=\n]*= *['\"]([^'\"]+)", text, re.MULTILINE)
            cuda = found[1] if found else None
    package = f"nvidia-cudnn-cu{cuda.partition('.')[0]}" if cuda else None
    return {
        "torch_cuda_version": cuda,
        "cudnn_version": package_version(package) if package else None,
    }


@cache
def project_facts(checkout: Path) -> dict[str, Any]:
    """Return commit and state of the checkout that this package runs from; None when installed."""
    facts: dict[str, Any] = {"git_commit": None, "git_is_dirty": None}
    top = _git(checkout, "rev-parse", "--show-toplevel")
    # A wheel may be installed below another project's checkout, which says nothing of it.
    if top is None or Path(top).resolve() != checkout:
        return facts
    commit = _git(checkout, "rev-parse", "HEAD")
    changes = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_is_dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *words: str) -> str | None:
    """Return what git prints, or None where there is no git or no repository."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            env=kept | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _pick(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names}


def commit_text(project: Mapping[str, Any]) -> str | None:
    """Return the commit of `system.json`'s `project`, and whether it was changed."""
    commit = project.get("git_commit")
    if not isinstance(commit, str):
        return None
    return f"{commit[:12]} and changes" if project.get("git_is_dirty") else str(commit[:12])
