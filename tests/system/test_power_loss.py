"""The power goes in the middle of a run, on a real ext4: what was said to be done is still there.

The file system lies in a file that is mounted as a loop device (root only). `EXT4_IOC_SHUTDOWN`
stops it as a power loss does: what was not synced never reaches the file.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes.samples import sampled
from test_kills import Night, processes_of

EXT4_IOC_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32) of Linux' include/uapi/linux/ext4.h (6.11)."""
NO_LOG_FLUSH = 2
CLIPS = 12
RUN_SECONDS = 60.0
SETTLE_SECONDS = 0.3
"""A row may be seen between its rename and the sync of its folder; after that long it must stay."""


@dataclass
class Disk:
    """An ext4 in a file."""

    image: Path
    place: Path

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.place], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.place], check=True)

    def lose_power(self) -> None:
        descriptor = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "ext4.img", tmp_path / "disk")
    disk.place.mkdir()
    with disk.image.open("wb") as file:
        file.truncate(2 << 30)
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    make = ["mkfs.ext4", "-q", "-F", disk.image]
    mount = ["mount", "-o", "loop", disk.image, disk.place]
    for words in (make, mount):
        try:
            ended = subprocess.run(words, check=False, capture_output=True)
        except FileNotFoundError:
            pytest.skip(f"{words[0]} is not installed")
        if ended.returncode:
            pytest.skip(f"no file system can be mounted here: {ended.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk.place], check=False, capture_output=True)


def wait_until(what: Callable[[], bool], parent: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + RUN_SECONDS
    while parent.poll() is None and not what():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", sampled(range(12), 1))
def test_after_a_power_loss_nothing_that_was_done_is_lost_and_the_next_run_goes_on(
    tmp_path: Path, disk: Disk, number: int
) -> None:
    rng = random.Random(number)
    folder = tmp_path / "night"
    folder.mkdir()
    (disk.place / "run").mkdir()
    (folder / "out").symlink_to(disk.place / "run", target_is_directory=True)
    os.sync()
    night = Night(folder, "fake", rng)
    night.add_rows(CLIPS)
    wanted = 1 + number % (CLIPS - 1)

    with night.parent() as parent:
        wait_until(lambda: len(night.done()) >= wanted, parent)
        done = night.done()
        time.sleep(SETTLE_SECONDS + rng.uniform(0, 0.2))
        disk.lose_power()
        code = parent.wait(RUN_SECONDS)
    while processes_of(folder):
        time.sleep(0.01)
    said = night.said()
    disk.unmount()
    disk.mount()

    assert code in (0, 3, 4), said  # 0: the run was over before
    assert "Traceback" not in said
    assert done <= night.done(), "said to be done, and lost"
    (log,) = night.project.run_dir.runs.glob("*/run.log")
    assert "typed: hv15-batch prompts.csv" in log.read_text(encoding="utf-8")
    begin = len(night.journal())
    assert night.run(None) == 0, night.said()
    night.check_nothing_again(night.journal()[begin:], done, set())
    night.check_end()
    disk.unmount()
