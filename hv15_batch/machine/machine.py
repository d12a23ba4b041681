"""What this machine is: cards, memory, CPU and versions, read without touching CUDA.

NVML and /proc only: no CUDA context is created, so a reader costs no VRAM.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import socket
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from hv15_batch import __version__
from hv15_batch.errors import Refused
from hv15_batch.machine.nvml import Gpu, read_gpus

PACKAGES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Machine:
    """One machine at one moment. None where it could not be found out."""

    gpus: tuple[Gpu, ...]
    """Cards that CUDA_VISIBLE_DEVICES lets through, in its order; empty without a driver."""
    ram_total_bytes: int
    """The smaller of installed memory and the control group's limit."""
    ram_available_bytes: int
    """The smaller of MemAvailable and what the control group leaves."""
    cpu_name: str
    cpu_count: int
    """Logical CPUs that this process may use."""
    hostname: str
    os: str
    python_version: str
    torch_version: str | None
    diffusers_version: str | None
    transformers_version: str | None
    hv15_batch_version: str
    pytorch_cuda_alloc_conf: str | None
    """PYTORCH_CUDA_ALLOC_CONF, or its newer name PYTORCH_ALLOC_CONF."""

    @property
    def gpu(self) -> Gpu | None:
        """The card that is rendered on: the first; None without one."""
        return self.gpus[0] if self.gpus else None


def read_machine() -> Machine:
    """Return what this machine is now."""
    ram_total, ram_available = read_ram()
    versions = {f"{name}_version": package_version(name) for name in PACKAGES}
    return Machine(
        gpus=tuple(read_gpus()),
        ram_total_bytes=ram_total,
        ram_available_bytes=ram_available,
        cpu_name=_cpu_name(),
        cpu_count=len(os.sched_getaffinity(0)),
        hostname=socket.gethostname(),
        os=platform.platform(),
        python_version=platform.python_version(),
        hv15_batch_version=__version__,
        pytorch_cuda_alloc_conf=os.environ.get("PYTORCH_CUDA_ALLOC_CONF")
        or os.environ.get("PYTORCH_ALLOC_CONF"),
        **versions,
    )


def compiler() -> str | None:
    """Return the C compiler that Triton would use, or None."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next(filter(None, map(shutil.which, names)), None)


def compiler_fault() -> str | None:
    """Return what torch's compiler lacks here and what to type, or None.

    Triton builds a launcher in C for each kernel. Source: triton-lang/triton@v3.6.0,
    python/triton/runtime/build.py.
    """
    if compiler() is None:
        return "it needs a C compiler: sudo apt install build-essential"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "it needs Python's headers: sudo apt install python3-dev"
    return None


def read_ram(
    proc_cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> tuple[int, int]:
    """Return (total, available) bytes of RAM for this process, control group limits included."""
    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    for limit, used in _cgroup_limits(proc_cgroup, root):
        total = min(total, limit)
        available = min(available, max(limit - used, 0))
    return total, available


def cgroup_memory_bytes(
    proc_cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the lowest memory limit of this process's control groups; None without one."""
    limits = [limit for limit, _ in _cgroup_limits(proc_cgroup, root)]
    # Version 1 writes "no limit" as a number near 2^63.
    return min((limit for limit in limits if limit < 2**62), default=None)


def cgroup_cpus(
    proc_cgroup: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Return how many CPUs' time the control groups leave to this process; None without a limit."""
    shares = []
    for folder, is_unified in _cgroup_folders("cpu", proc_cgroup, root):
        with suppress(OSError, ValueError):
            if is_unified:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text().strip()
                period = (folder / "cpu.cfs_period_us").read_text().strip()
            if int(quota) > 0:  # `max` and -1 mean none
                shares.append(int(quota) / int(period))
    return min(shares, default=None)


def usable_cpus() -> int:
    """Return how many threads can run at a time: affinity and control groups, at least 1."""
    return max(1, int(min(len(os.sched_getaffinity(0)), cgroup_cpus() or math.inf)))


def _cgroup_limits(proc_cgroup: Path, root: Path) -> list[tuple[int, int]]:
    """Return (limit, bytes in use) of this process's control group and all above it.

    Inactive page cache is not counted as in use: the kernel gives it back before it kills.
    """
    limits = []
    for folder, is_unified in _cgroup_folders("memory", proc_cgroup, root):
        if is_unified:
            names = ("memory.max", "memory.current", "inactive_file")
        else:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, used = _read_int(folder / names[0]), _read_int(folder / names[1])
        if limit is not None and used is not None:
            limits.append((limit, used - _inactive_bytes(folder / "memory.stat", names[2])))
    return limits


def _cgroup_folders(controller: str, proc_cgroup: Path, root: Path) -> list[tuple[Path, bool]]:
    """Return the folders of this process's control group and all above it.

    With each goes whether it is of the unified hierarchy, version 2.
    """
    try:
        lines = proc_cgroup.read_text().splitlines()
    except OSError:
        return []
    folders: list[tuple[Path, bool]] = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        is_unified = number == "0" and not controllers
        if not is_unified and controller not in controllers.split(","):
            continue
        base, relative = root if is_unified else root / controller, Path(path.lstrip("/"))
        parents = (base / parent for parent in relative.parents)
        folders += [(folder, is_unified) for folder in (base / relative, *parents)]
    return folders


def _read_int(path: Path) -> int | None:
    """Return the number in a control group file; None for `max` or no such file."""
    with suppress(OSError):
        text = path.read_text().strip()
        return int(text) if text.isdigit() else None
    return None


def _inactive_bytes(path: Path, key: str) -> int:
    with suppress(OSError):
        pairs = (line.split() for line in path.read_text().splitlines())
        return next((int(value) for name, value in pairs if name == key), 0)
    return 0


def free_disk_bytes(path: Path) -> int:
    """Return the free bytes of the disk that `path` is on, or will be once it is made."""
    return shutil.disk_usage(existing_parent(path)).free


def existing_parent(path: Path) -> Path:
    """Return `path` itself, or the nearest folder above it that exists."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    return path


def package_version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cache_root() -> Path:
    """Return this project's cache folder: $XDG_CACHE_HOME (or ~/.cache) / hv15_batch.

    Raises:
        Refused: XDG_CACHE_HOME is not set, and the home folder is not known.
    """
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "hv15_batch"
    try:
        return Path.home() / ".cache" / "hv15_batch"
    except RuntimeError as error:
        raise Refused(
            "HOME is not set, and this user has no home folder; set HOME, or XDG_CACHE_HOME and "
            "HF_HOME, to folders that can be written."
        ) from error
