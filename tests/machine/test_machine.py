from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hv15_batch.machine.machine import (
    cgroup_cpus,
    cgroup_memory_bytes,
    free_disk_bytes,
    read_machine,
    read_ram,
    usable_cpus,
)
from hv15_batch.machine.nvml import Gpu, read_gpus
from hv15_batch.units import GIB

UUIDS = ("GPU-aaaa1111", "GPU-aaaa2222", "GPU-bbbb3333")


@pytest.fixture(autouse=True)
def roomy() -> None:
    """The tests here are about this machine as it is."""


class FakeNvml:
    """NVML of a machine with three cards, and one slice of the third."""

    class NVMLError(Exception):
        pass

    def __init__(self, lost: int | None = None, has_driver: bool = True) -> None:
        self.lost = lost
        self.has_driver = has_driver
        self.is_open = False

    def nvmlInit(self) -> None:
        if not self.has_driver:
            raise self.NVMLError("driver not loaded")
        self.is_open = True

    def nvmlShutdown(self) -> None:
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == self.lost:
            raise self.NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "MIG-cccc":
            raise self.NVMLError("not found")
        return uuid

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> int:
        return 2

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetName(self, handle: int | str) -> bytes | str:
        return b"NVIDIA H200" if handle == 0 else "NVIDIA RTX 4090"

    def nvmlDeviceGetUUID(self, handle: int | str) -> str:
        return handle if isinstance(handle, str) else UUIDS[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int | str) -> SimpleNamespace:
        return SimpleNamespace(total=24 * GIB, free=23 * GIB)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int | str) -> int:
        if handle == 1:
            raise self.NVMLError("not supported")
        return 450_000

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95.05"


def visible(value: str | None, nvml: FakeNvml | None = None) -> list[str]:
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    return [gpu.uuid for gpu in read_gpus(environ, nvml or FakeNvml())]


def test_a_card_is_described_as_nvml_describes_it() -> None:
    nvml = FakeNvml()

    gpus = read_gpus({}, nvml)

    assert gpus[0] == Gpu(0, "NVIDIA H200", "GPU-aaaa1111", 24 * GIB, 23 * GIB, "580.95.05", 450.0)
    assert gpus[1].power_limit_watts is None
    assert not nvml.is_open


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, list(UUIDS)),
        ("", []),
        ("-1", []),
        ("2", [UUIDS[2]]),
        ("2,0", [UUIDS[2], UUIDS[0]]),
        ("0, 1", [UUIDS[0], UUIDS[1]]),
        ("0,7,1", [UUIDS[0]]),
        ("GPU-bbbb3333", [UUIDS[2]]),
        ("GPU-b,0", [UUIDS[2], UUIDS[0]]),
        ("GPU-aaaa", []),
        ("GPU-none,0", []),
        ("MIG-cccc", ["MIG-cccc"]),
        ("MIG-none", []),
    ],
)
def test_cuda_visible_devices_chooses_as_cuda_does(value: str | None, expected: list[str]) -> None:
    assert visible(value) == expected


def test_a_mig_slice_has_the_index_of_its_card() -> None:
    (gpu,) = read_gpus({"CUDA_VISIBLE_DEVICES": "MIG-cccc"}, FakeNvml())

    assert gpu.index == 2


def test_a_lost_card_is_left_out_and_the_others_keep_their_index() -> None:
    gpus = read_gpus({}, FakeNvml(lost=0))

    assert [gpu.index for gpu in gpus] == [1, 2]


def test_without_a_driver_there_are_no_cards() -> None:
    assert read_gpus({}, FakeNvml(has_driver=False)) == []


def cgroup_v2(tmp_path: Path, limits: dict[str, tuple[str, int, int]]) -> tuple[Path, Path]:
    """Write control groups: path -> (memory.max, memory.current, inactive_file)."""
    for path, (limit, used, inactive) in limits.items():
        folder = tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nslab 1\n")
    proc = tmp_path / "self_cgroup"
    proc.write_text("0::/job/step\n")
    return proc, tmp_path


def test_ram_is_bounded_by_a_control_group_above(tmp_path: Path) -> None:
    proc, root = cgroup_v2(
        tmp_path, {"job": (str(GIB), GIB // 2, 0), "job/step": ("max", GIB // 2, 0)}
    )

    assert read_ram(proc, root) == (GIB, GIB // 2)


def test_page_cache_that_the_kernel_gives_back_counts_as_available(tmp_path: Path) -> None:
    proc, root = cgroup_v2(tmp_path, {"job/step": (str(GIB), GIB, GIB // 4)})

    assert read_ram(proc, root) == (GIB, GIB // 4)


def test_ram_is_bounded_by_a_version_1_control_group(tmp_path: Path) -> None:
    folder = tmp_path / "memory/docker/abc"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{GIB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{GIB // 2}\n")
    (folder / "memory.stat").write_text(f"total_inactive_file {GIB // 4}\n")
    proc = tmp_path / "self_cgroup"
    proc.write_text("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n")

    assert read_ram(proc, tmp_path) == (GIB, GIB * 3 // 4)


def test_the_lowest_limits_of_the_control_groups_are_found(tmp_path: Path) -> None:
    proc, root = cgroup_v2(tmp_path, {"job": (str(GIB), 1, 0), "job/step": (str(2 * GIB), 1, 0)})
    (root / "job" / "cpu.max").write_text("350000 100000\n")
    (root / "job/step" / "cpu.max").write_text("max 100000\n")

    assert cgroup_memory_bytes(proc, root) == GIB
    assert cgroup_cpus(proc, root) == 3.5


def test_limits_of_version_1_control_groups_are_found_and_no_limit_is_null(tmp_path: Path) -> None:
    for name, quota in (("cpu/a", "200000"), ("cpu/b", "-1")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (tmp_path / name / "cpu.cfs_period_us").write_text("100000\n")
    proc = tmp_path / "self_cgroup"

    proc.write_text("4:cpu,cpuacct:/a\n")
    assert cgroup_cpus(proc, tmp_path) == 2
    proc.write_text("4:cpu,cpuacct:/b\n")
    assert cgroup_cpus(proc, tmp_path) is None
    assert cgroup_memory_bytes(proc, tmp_path) is None


def test_without_control_groups_ram_is_that_of_the_machine(tmp_path: Path) -> None:
    total, available = read_ram(tmp_path / "none", tmp_path)

    assert total == psutil.virtual_memory().total
    assert 0 < available <= total


def test_this_machine_is_read_with_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

    machine = read_machine()

    assert machine.gpus == ()
    assert machine.cpu_count >= 1
    assert machine.diffusers_version is not None
    assert machine.pytorch_cuda_alloc_conf == "expandable_segments:True"


def test_free_disk_of_a_folder_not_yet_made_is_that_of_its_parent(tmp_path: Path) -> None:
    ours = free_disk_bytes(tmp_path / "not" / "yet")

    assert abs(ours - psutil.disk_usage(str(tmp_path)).free) < GIB


def test_no_more_threads_than_the_control_group_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for quota, expected in ((None, 8), (3.5, 3), (0.5, 1), (64.0, 8)):
        monkeypatch.setattr("hv15_batch.machine.machine.cgroup_cpus", lambda quota=quota: quota)
        assert usable_cpus() == expected
