"""One run: the request, the clips that are left, and what is decided once before the first clip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hv15_batch import __version__
from hv15_batch.clock import Clock
from hv15_batch.config.checks import typed_compile
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.protocol import ExecutorSpec, Job
from hv15_batch.forecast.compilation import Compilation, decide_compilation
from hv15_batch.forecast.disk import DiskNeed, disk_need
from hv15_batch.forecast.forecast import Forecast, lora_bytes, make_forecast
from hv15_batch.forecast.offload import OffloadChoice, choose_offload
from hv15_batch.forecast.pace import Pace, make_pace
from hv15_batch.machine.machine import Machine
from hv15_batch.run._preflight import disk_fault
from hv15_batch.run.prepare import Asked, Todo
from hv15_batch.run.schedule import Rules, Schedule, Stop, Verdict
from hv15_batch.rundir.decided import read_compile
from hv15_batch.rundir.paths import RunDir


@dataclass(frozen=True)
class Run:
    """A run with at least one clip to render."""

    asked: Asked
    todo: Todo
    machine: Machine
    rules: Rules
    offload: OffloadChoice
    """Chosen once. Refusals, predictions and workers use this choice."""
    forecast: Forecast | None
    """None for an unknown card."""
    pace: Pace
    disk: DiskNeed
    compilation: Compilation
    """Of the whole manifest; kept by all runs of the directory."""
    run_id: str = ""
    """Given once the run directory is locked."""
    system_sha256: str = ""

    @property
    def config(self) -> Config:
        """All settings."""
        return self.asked.config

    @property
    def run_dir(self) -> RunDir:
        """The directory of its files."""
        return self.asked.run_dir

    @property
    def clock(self) -> Clock:
        """Counts from the start of the command."""
        return self.rules.clock

    def spec(self, lock_descriptor: int | None) -> ExecutorSpec:
        """Return the settings that each worker gets at its start."""
        return ExecutorSpec(
            config=self.compilation.in_config(self.config),
            run_dir=self.run_dir.path,
            run_id=self.run_id,
            manifest_sha256=self.asked.manifest.sha256,
            checkpoint=self.asked.checkpoint,
            hostname=self.machine.hostname,
            system_sha256=self.system_sha256,
            offload=self.offload.kind,
            budget_bytes=self.offload.budget_bytes,
            gpu=self.offload.gpu,
            streams_text_encoder=self.offload.streams_text_encoder,
            compile_is_auto=typed_compile(self.config) is None,
            lock_descriptor=lock_descriptor,
        )

    def known_columns(self) -> dict[str, Any]:
        """Return the columns that the parent fills if an attempt left no record."""
        return {
            "run_id": self.run_id,
            "manifest_sha256": self.asked.manifest.sha256,
            "repo": self.asked.checkpoint.repo,
            "task": self.config.model.task.name,
            "hostname": self.machine.hostname,
            "system_sha256": self.system_sha256,
            "hv15_batch_version": __version__,
        }

    def gate(self, job: Job) -> Verdict:
        """Return whether a clip may start: the disk decides first, then the clock."""
        if fault := disk_fault(self.run_dir.path, self.disk):
            return Stop(fault)
        return Schedule(self.rules, self.run_dir.pause, self.pace.clip_seconds)(job)


def make_run(asked: Asked, todo: Todo, machine: Machine, rules: Rules) -> Run | None:
    """Return the run that renders these clips here; None if there is nothing to render.

    Raises:
        Refused: No offload profile fits the card.
    """
    if not todo.to_render:
        return None
    # `runtime.card` is for the dry run alone.
    config = replace(asked.config, runtime=replace(asked.config.runtime, card=None))
    compilation = decide_compilation(config, todo.clips, machine, asked.run_dir)
    config = compilation.in_config(config)
    forecast = make_forecast(config, todo.to_render, machine, asked.run_dir.log)
    offload = forecast.offload if forecast is not None else None
    if offload is None:
        clips = todo.to_render
        settings = [p.clip.settings for p in clips]
        offload = choose_offload(config, settings, machine, lora_bytes(clips))
    return Run(
        asked,
        todo,
        machine,
        rules,
        offload,
        forecast,
        make_pace(forecast, asked.run_dir, rules.clock, todo.to_render),
        disk_need(todo.to_render, asked.config),
        compilation,
    )


def planned_again(run: Run, asked: Asked, todo: Todo) -> Run | None:
    """Return the run with the clips that are left, now that the directory is locked.

    Another run may have finished some meanwhile. Fewer clips change none of the decisions; what
    that run has decided for the directory holds.

    Raises:
        Refused: No offload profile fits the card.
    """
    if not todo.to_render:
        return None
    decided = read_compile(asked.run_dir, asked.config.model.name)
    if run.compilation.is_new and decided not in (None, run.compilation.is_on):
        return make_run(asked, todo, run.machine, run.rules)
    return replace(
        run,
        asked=asked,
        todo=todo,
        pace=make_pace(run.forecast, asked.run_dir, run.clock, todo.to_render),
        disk=disk_need(todo.to_render, asked.config),
    )
