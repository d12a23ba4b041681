"""A machine with room, so that what is free on this one decides no test.

`python -m fakes.roomy hv15_batch WORDS` is a command on that machine.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable
from typing import Any

from hv15_batch.machine import machine
from hv15_batch.units import GIB

FREE_DISK_BYTES = 500 * GIB
RAM_BYTES = (128 * GIB, 100 * GIB)
"""In all, and available."""


def make_room(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replace what is read of this machine's disk and memory.

    Args:
        replace: Sets an attribute; that of pytest's `monkeypatch` undoes it again.
    """
    disk_usage = shutil.disk_usage
    replace(shutil, "disk_usage", lambda path: disk_usage(path)._replace(free=FREE_DISK_BYTES))
    replace(machine, "read_ram", lambda: RAM_BYTES)


if __name__ == "__main__":
    make_room()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
