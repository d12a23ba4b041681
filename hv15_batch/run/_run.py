"""One run: the request, the clips that are left, and what is decided once before the first clip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hv15_batch import __version__
from hv15_batch.clock import Clock
from hv15_batch.config.checks import typed_compile
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.protocol import Event, ExecutorSpec, Finished, Job, ModelSpec
from hv15_batch.forecast.compilation import Compilation, decide_compilations
from hv15_batch.forecast.disk import DiskNeed, disk_need
from hv15_batch.forecast.forecast import Forecast, by_model, lora_bytes, make_forecast
from hv15_batch.forecast.offload import OffloadChoice, choose_offload
from hv15_batch.forecast.pace import Pace, make_pace
from hv15_batch.machine.machine import Machine
from hv15_batch.machine.nvml import Gpu
from hv15_batch.model.variant import OffloadKind
from hv15_batch.planning.todo import Todo
from hv15_batch.record import DONE_STATUSES, is_denoised_here
from hv15_batch.run._preflight import disk_fault
from hv15_batch.run.prepare import Asked
from hv15_batch.run.schedule import Rules, Schedule, Stop, Verdict
from hv15_batch.rundir.decided import read_compile, write_compile
from hv15_batch.rundir.log import RunLog
from hv15_batch.rundir.paths import RunDir

if TYPE_CHECKING:
    from hv15_batch.rundir.store import StoredRun


@dataclass(frozen=True)
class Run:
    """A run with at least one clip to render."""

    asked: Asked
    todo: Todo
    machine: Machine
    rules: Rules
    offloads: Mapping[str, OffloadChoice]
    """By model, each chosen once. Refusals, predictions and workers use these choices."""
    forecast: Forecast | None
    """None for an unknown card."""
    pace: Pace
    disk: DiskNeed
    compilations: Mapping[str, Compilation]
    """By model, each for its clips of the whole manifest; kept by all runs of the directory."""
    run_id: str = ""
    """Given once the run directory is locked."""
    system_sha256: str = ""
    store: StoredRun | None = None
    """The run's side in object storage; None on a disk."""

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

    @property
    def offload_kinds(self) -> set[OffloadKind]:
        """The profiles of all models."""
        return {choice.kind for choice in self.offloads.values()}

    @property
    def gpu(self) -> Gpu | None:
        """The card that it renders on; None on the CPU."""
        return next((choice.gpu for choice in self.offloads.values() if choice.gpu), None)

    def offload_lines(self) -> list[str]:
        """Return what was chosen for the card, a line for each model."""
        chosen = {n: c for n, c in self.offloads.items() if c.budget_bytes is not None}
        is_one = len({choice.reason for choice in chosen.values()}) == 1
        lines = [c.reason if is_one else f"{name}: {c.reason}" for name, c in chosen.items()]
        return list(dict.fromkeys(lines))

    @property
    def compiles(self) -> bool:
        """Whether some model is compiled."""
        return any(found.is_on for found in self.compilations.values())

    def spec(self, lock_descriptor: int | None) -> ExecutorSpec:
        """Return the settings that each worker gets at its start."""
        first, *further = (
            ModelSpec(
                self.compilations[name].in_config(self.asked.config_of(name)),
                self.asked.checkpoints[name],
                choice.kind,
                choice.streams_text_encoder,
            )
            for name, choice in self.offloads.items()
        )
        return ExecutorSpec(
            config=first.config,
            run_dir=self.run_dir.path,
            run_id=self.run_id,
            manifest_sha256=self.asked.manifest.sha256,
            checkpoint=first.checkpoint,
            hostname=self.machine.hostname,
            system_sha256=self.system_sha256,
            offload=first.offload,
            budget_bytes=next(filter(None, (c.budget_bytes for c in self.offloads.values())), None),
            gpu=self.gpu,
            streams_text_encoder=first.streams_text_encoder,
            further=tuple(further),
            compile_is_auto=typed_compile(self.config) is None,
            lock_descriptor=lock_descriptor,
        )

    def known_columns(self, model: str) -> dict[str, Any]:
        """Return the columns that the parent fills if an attempt left no record, by its model."""
        return {
            "run_id": self.run_id,
            "shard": self.config.shard,
            "manifest_sha256": self.asked.manifest.sha256,
            "repo": self.asked.checkpoints[model].repo,
            "task": self.asked.config_of(model).model.task.name,
            "hostname": self.machine.hostname,
            "system_sha256": self.system_sha256,
            "hv15_batch_version": __version__,
        }

    def open_log(self) -> RunLog:
        """Return what this run's records are added to."""
        return self.store.log() if self.store else RunLog(self.run_dir.own_log, self.run_id)

    def confirmed(self, event: Event | None) -> Event | None:
        """Return an event; that of a clip which the store does not have is one of a failure."""
        if self.store is None or not isinstance(event, Finished):
            return event
        return replace(event, record=self.store.confirmed(event.record))

    def gate(self, job: Job) -> Verdict:
        """Return whether a clip may start: disk and lease decide first, then the clock."""
        if fault := disk_fault(self.run_dir.path, self.disk):
            return Stop(fault)
        if self.store is not None and (fault := self.store.fault()):
            return Stop(fault)
        return Schedule(self.rules, self.run_dir.pause, self.pace.clip_seconds)(job)


class FailedCompilation:
    """Stores that a model is not compiled, where `auto` decided so and torch's compiler failed.

    Later runs would fail again, and each would lose the seconds of a try.
    """

    def __init__(self, run: Run) -> None:
        """Follow a run."""
        self._run = run
        is_auto = typed_compile(run.config) is None
        self._compiled = {n for n, found in run.compilations.items() if found.is_on and is_auto}

    def submitted(self, job: Job) -> None:
        """Nothing is known of a clip that starts."""

    def heard(self, event: Event) -> None:
        """Look at the first finished clip of a model that ran without its compilation."""
        if not isinstance(event, Finished) or event.record.status not in DONE_STATUSES:
            return
        record, model = event.record, event.job.clip.settings.model
        if model not in self._compiled or record.compiled is not False:
            return
        if is_denoised_here(vars(record)):  # else it says how another run denoised it
            self._compiled.remove(model)
            with self._run.run_dir.moment():
                write_compile(self._run.run_dir, self._run.asked.config_of(model), False)


def make_run(asked: Asked, todo: Todo, machine: Machine, rules: Rules) -> Run | None:
    """Return the run that renders these clips here; None if there is nothing to render.

    Raises:
        Refused: No offload profile fits the card.
    """
    if not todo.to_render:
        return None
    # `runtime.card` is for the dry run alone.
    config = replace(asked.config, runtime=replace(asked.config.runtime, card=None))
    compilations = decide_compilations(config, todo.clips, machine, asked.run_dir)
    compiled = {name: found.is_on for name, found in compilations.items()}
    log = asked.run_dir.log
    forecast = make_forecast(config, todo.to_render, machine, log, compiled=compiled)
    known = forecast.by_model if forecast is not None else {}
    offloads = {}
    for own, clips in by_model(config, todo.to_render):
        name, settings = own.model.name, [p.clip.settings for p in clips]
        own = compilations[name].in_config(own)
        offloads[name] = (
            known[name].offload
            if name in known
            else choose_offload(own, settings, machine, lora_bytes(clips))
        )
    return Run(
        asked,
        todo,
        machine,
        rules,
        offloads,
        forecast,
        make_pace(forecast, asked.run_dir, rules.clock, todo.to_render),
        disk_need(todo.to_render, asked.config),
        compilations,
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
    if {p.clip.settings.model for p in todo.to_render} - run.offloads.keys():
        return make_run(asked, todo, run.machine, run.rules)  # `limit` reaches a further model now
    for name, found in run.compilations.items():
        stored = read_compile(asked.run_dir, asked.config_of(name))
        if found.is_new and stored not in (None, found.is_on):
            return make_run(asked, todo, run.machine, run.rules)
    return replace(
        run,
        asked=asked,
        todo=todo,
        pace=make_pace(run.forecast, asked.run_dir, run.clock, todo.to_render),
        disk=disk_need(todo.to_render, asked.config),
    )
