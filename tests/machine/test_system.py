"""system.json: what it says, and that its hash stays while the machine does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hv15_batch.machine.machine import Machine
from hv15_batch.machine.nvml import Gpu
from hv15_batch.machine.system import project_facts, system_facts, system_sha256
from hv15_batch.units import GIB


class FakeNvml:
    """NVML of one card whose PCIe link rests."""

    class NVMLError(Exception):
        pass

    def __init__(self, **answers: Any) -> None:
        self.answers = {
            "nvmlDeviceGetVbiosVersion": b"96.00.89",
            "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
            "nvmlDeviceGetMaxPcieLinkGeneration": 5,
            "nvmlDeviceGetMaxPcieLinkWidth": 16,
            "nvmlDeviceGetCurrPcieLinkGeneration": 1,
            "nvmlDeviceGetCurrPcieLinkWidth": 16,
            "nvmlSystemGetCudaDriverVersion_v2": 13010,
            "nvmlDeviceGetHandleByUUID": "card",
        } | answers

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)
        return lambda *_: self._answer(name)

    def _answer(self, name: str) -> Any:
        if self.answers[name] is None:
            raise self.NVMLError("not supported")
        return self.answers[name]


MACHINE = Machine(
    gpus=(Gpu(0, "NVIDIA H200", "GPU-1", 140 * GIB, 130 * GIB, "580.95", 700.0),),
    ram_total_bytes=128 * GIB - 12345,
    ram_available_bytes=100 * GIB,
    cpu_name="Xeon",
    cpu_count=16,
    hostname="left",
    os="Linux-6.18",
    python_version="3.11.7",
    torch_version="2.13.0",
    diffusers_version="0.42.1",
    transformers_version="5.23.0",
    hv15_batch_version="0.1.0",
    pytorch_cuda_alloc_conf=None,
)


def sha256_of(machine: Machine, nvml: Any = None) -> str:
    return system_sha256(system_facts(machine, nvml or FakeNvml()))


def test_system_facts_are_json() -> None:
    facts = system_facts(MACHINE, FakeNvml())

    assert json.loads(json.dumps(facts)) == facts
    assert facts["hardware"]["gpus"] == [
        {
            "name": "NVIDIA H200",
            "total_bytes": 140 * GIB,
            "vbios_version": "96.00.89",
            "power_limit_default_watts": 700.0,
            "pcie_generation_max": 5,
            "pcie_width_max": 16,
            "power_limit_watts": 700.0,
        }
    ]


def test_equal_machines_have_equal_hashes_whatever_the_moment() -> None:
    gpu = MACHINE.gpus[0]
    other = replace(
        MACHINE,
        gpus=(replace(gpu, index=3, uuid="GPU-2", free_bytes=GIB),),
        ram_total_bytes=128 * GIB - 99999,
        ram_available_bytes=GIB,
        hostname="right",
    )

    assert sha256_of(other) == sha256_of(MACHINE)


@pytest.mark.parametrize(
    "change",
    [
        {"gpus": ()},
        {"gpus": (replace(MACHINE.gpus[0], power_limit_watts=500.0),)},
        {"gpus": (replace(MACHINE.gpus[0], driver="590.1"),)},
        {"torch_version": "2.14.0"},
        {"ram_total_bytes": 64 * GIB},
        {"pytorch_cuda_alloc_conf": "expandable_segments:True"},
    ],
)
def test_other_hardware_or_software_has_another_hash(change: dict[str, object]) -> None:
    assert sha256_of(replace(MACHINE, **change)) != sha256_of(MACHINE)  # type: ignore[arg-type]


def test_a_link_that_saves_power_is_told_and_changes_no_hash() -> None:
    awake = FakeNvml(nvmlDeviceGetCurrPcieLinkGeneration=5)

    (gpu,) = system_facts(MACHINE, FakeNvml())["moment"]["gpus"]

    assert (gpu["pcie_generation"], gpu["pcie_width"]) == (1, 16)
    assert sha256_of(MACHINE, awake) == sha256_of(MACHINE)


def test_another_vbios_has_another_hash() -> None:
    assert sha256_of(MACHINE, FakeNvml(nvmlDeviceGetVbiosVersion="97")) != sha256_of(MACHINE)


@pytest.mark.parametrize(
    "silent",
    ["nvmlDeviceGetVbiosVersion", "nvmlDeviceGetMaxPcieLinkWidth", "nvmlDeviceGetHandleByUUID"],
)
def test_what_the_card_does_not_tell_is_null(silent: str) -> None:
    facts = system_facts(MACHINE, FakeNvml(**{silent: None}))

    (gpu,) = facts["hardware"]["gpus"]
    assert None in gpu.values()
    assert gpu["power_limit_watts"] == 700.0
    assert facts["software"]["driver_cuda_version"] == "13.1"


def test_the_software_is_named_without_importing_torch(tmp_path: Path) -> None:
    code = """
import json, sys
from hv15_batch.machine.system import system_facts, system_sha256
facts = system_facts()
assert "torch" not in sys.modules
print(json.dumps([facts["software"], system_sha256(facts)]))
"""

    software, first = json.loads(python(code, tmp_path))
    _, second = json.loads(python(code, tmp_path))

    assert first == second
    assert set(software) == {
        "driver", "driver_cuda_version", "torch_cuda_version", "cudnn_version", "os",
        "python_version", "pytorch_cuda_alloc_conf", "torch_version", "diffusers_version",
        "transformers_version", "hv15_batch_version", "flash_attn_version", "flash_attn_3_version",
        "sageattention_version", "xformers_version", "kernels_version",
    }  # fmt: skip
    import torch

    assert software["torch_cuda_version"] == torch.version.cuda


def python(code: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_checkout_tells_its_commit_and_whether_tracked_files_differ(tmp_path: Path) -> None:
    folder = tmp_path.resolve()
    git(folder, "init", "-q")
    (folder / "a.txt").write_text("1")
    git(folder, "add", "a.txt")
    git(folder, "commit", "-qm", "one")
    commit = git(folder, "rev-parse", "HEAD")

    (folder / "untracked.txt").write_text("mine")
    assert project_facts(folder) == {"git_commit": commit, "git_is_dirty": False}

    project_facts.cache_clear()
    (folder / "a.txt").write_text("2")
    assert project_facts(folder) == {"git_commit": commit, "git_is_dirty": True}


def test_a_package_that_is_no_checkout_of_its_own_has_no_commit(tmp_path: Path) -> None:
    nothing = {"git_commit": None, "git_is_dirty": None}
    inside = tmp_path.resolve() / "venv" / "site-packages"
    inside.mkdir(parents=True)

    assert project_facts(inside) == nothing
    git(tmp_path, "init", "-q")
    project_facts.cache_clear()
    assert project_facts(inside) == nothing


def test_the_commit_is_in_the_facts_and_not_in_the_hash() -> None:
    facts = system_facts(MACHINE, FakeNvml())
    other = facts | {"project": {"git_commit": "0" * 40, "git_is_dirty": True}}

    assert set(facts["project"]) == {"git_commit", "git_is_dirty"}
    assert system_sha256(other) == system_sha256(facts)
