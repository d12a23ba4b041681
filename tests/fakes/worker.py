"""What a worker is started with, the clips it is given, and the events it sends."""

from __future__ import annotations

import time

from fakes.runs import Project
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Event, ExecutorSpec, Job
from hv15_batch.manifest.clips import make_clips
from hv15_batch.manifest.read import read_manifest
from hv15_batch.model.variant import OffloadKind
from hv15_batch.weights.checkpoint import Checkpoint, CheckpointKind, resolve_checkpoint

RUN_ID = "20261122T000000-0000-abcd"


def spec(project: Project) -> ExecutorSpec:
    return ExecutorSpec(
        config=project.config(),
        run_dir=project.run_dir.path,
        run_id=RUN_ID,
        manifest_sha256="0" * 64,
        checkpoint=Checkpoint("tiny", "1", None, CheckpointKind.tiny),
        hostname="here",
        system_sha256="0" * 64,
        offload=OffloadKind.resident,
    )


def jobs(project: Project) -> dict[str, Job]:
    """Return the first attempt at each clip, by row."""
    config = project.config()
    manifest = read_manifest(project.manifest, config.model.task)
    clips = make_clips(manifest, config, resolve_checkpoint(config.model).revision)
    return {clip.row_id: Job(clip, 1, True) for clip in clips}


def next_event(executor: LocalExecutor, seconds: float = 30) -> Event:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        event = executor.poll(0.1)
        if event is not None:
            return event
    raise TimeoutError


def events_until(executor: LocalExecutor, last: type) -> list[Event]:
    events = [next_event(executor)]
    while not isinstance(events[-1], last):
        events.append(next_event(executor))
    return events
