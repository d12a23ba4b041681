"""Jobs of a sweep as functions that launchers send to other processes by their names."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

from fakes.runs import fake_local_executor
from hv15_batch.config.compose import Job
from hv15_batch.errors import Refused


def render(job: Job) -> int:
    """Render with a real child process, and in it a renderer that only writes a few bytes."""
    from hv15_batch.run import session

    name = Path(str(job.config.manifest)).stem
    config = replace(job.config, run_dir=f"{job.config.run_dir}/{name}")
    return session.run(config, (), name, print, fake_local_executor)


def die(job: Job) -> int:
    """End this process by a signal that nobody can hold back."""
    if job.config.limit == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


def refuse(job: Job) -> int:
    raise Refused(f"limit={job.config.limit}: no.")
