"""One run: the request, the clips that are left, and what is decided once before the first clip."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from hv15_batch import __version__
from hv15_batch.clip import Group
from hv15_batch.clock import Clock
from hv15_batch.config.checks import typed_compile
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.protocol import (
    Event,
    ExecutorSpec,
    Finished,
    Job,
    Loading,
    ModelSpec,
)
from hv15_batch.dispatch.seats import Seat
from hv15_batch.forecast.compilation import Compilation, decide_compilations
from hv15_batch.forecast.disk import DiskNeed, disk_need
from hv15_batch.forecast.forecast import (
    Forecast,
    by_model,
    cards_for,
    lora_bytes,
    make_forecast,
    sharing_ram,
)
from hv15_batch.forecast.offload import OffloadChoice, choose_offload
from hv15_batch.forecast.pace import Pace, make_pace
from hv15_batch.machine.machine import Machine
from hv15_batch.machine.nvml import Gpu
from hv15_batch.model.shapes import Shape
from hv15_batch.model.variant import OffloadKind
from hv15_batch.official.limits import is_official
from hv15_batch.planning.todo import Todo
from hv15_batch.run._cluster import choices_for, config_for, usable_seats
from hv15_batch.run._preflight import disk_fault
from hv15_batch.run.prepare import Asked
from hv15_batch.run.schedule import Rules, Schedule, Stop, Verdict, Wait
from hv15_batch.rundir.decided import read_compile
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
    cards: Sequence[Gpu | None]
    """The card of each worker; None for a process on the CPU."""
    choices: Sequence[Mapping[str, OffloadChoice]]
    """For each worker by model, chosen once for each kind of card. Refusals, predictions and
    workers use these choices."""
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
    seats: Sequence[Seat] = ()
    """Of a cluster, those that the run starts with; empty where workers are child processes."""
    notes: tuple[str, ...] = ()
    """Lines about seats that cannot be used."""

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
        return {choice.kind for offloads in self.choices for choice in offloads.values()}

    @property
    def gpus(self) -> list[Gpu | None]:
        """The card that each worker holds weights on; None on the CPU."""
        return [_gpu_of(offloads) for offloads in self.choices]

    @property
    def gpu(self) -> Gpu | None:
        """The first worker's card; None on the CPU."""
        return self.gpus[0]

    @property
    def places(self) -> list[str]:
        """Where each worker renders, in words."""
        if self.seats:
            return [seat.where for seat in self.seats]
        return [f"{gpu.name}, card {gpu.index}" if gpu else "CPU" for gpu in self.cards]

    @property
    def starting(self) -> Loading:
        """What a new worker does before its first event."""
        return Loading("a worker" if is_official(self.config) else "PyTorch")

    def offload_lines(self) -> list[str]:
        """Return what was chosen for the cards, a line for each kind of card and model."""
        lines = []
        for offloads in self.choices:
            gpu = _gpu_of(offloads)
            chosen = {n: c for n, c in offloads.items() if c.budget_bytes is not None}
            is_one = len({choice.reason for choice in chosen.values()}) == 1
            is_like_all = len({other.name for other in self.gpus if other}) == 1
            card = "" if gpu is None or is_like_all else f"{gpu.name}: "
            lines += [
                f"{card}{c.reason}" if is_one else f"{card}{name}: {c.reason}"
                for name, c in chosen.items()
            ]
        return list(dict.fromkeys(lines))

    @property
    def compiles(self) -> bool:
        """Whether some model is compiled."""
        return any(found.is_on for found in self.compilations.values())

    def spec(self, lock_descriptor: int | None, worker: int = 0) -> ExecutorSpec:
        """Return the settings that a worker of this machine gets at its start."""
        card = self.cards[worker]
        return replace(
            self.spec_for(self.choices[worker], self.gpus[worker]),
            only_card=card.uuid if len(self.cards) > 1 and card else None,
            num_workers=len(self.cards),
            worker=worker,
            lock_descriptor=lock_descriptor,
        )

    def spec_for(self, offloads: Mapping[str, OffloadChoice], gpu: Gpu | None) -> ExecutorSpec:
        """Return the settings of a worker with these profiles on this card."""
        first, *further = (
            ModelSpec(
                self.compilations[name].in_config(self.asked.config_of(name)),
                self.asked.checkpoints[name],
                choice.kind,
                choice.streams_text_encoder,
            )
            for name, choice in offloads.items()
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
            budget_bytes=next(filter(None, (c.budget_bytes for c in offloads.values())), None),
            gpu=gpu,
            streams_text_encoder=first.streams_text_encoder,
            further=tuple(further),
            longest=self._longest,
            compile_is_auto=typed_compile(self.config) is None,
        )

    def choices_for(self, seat: Seat) -> dict[str, OffloadChoice]:
        """Return the profile of each model for a seat.

        Raises:
            Refused: None fits its card.
        """
        return choices_for(self.asked.config, self.todo, self.compilations, seat)

    @cached_property
    def _longest(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for planned in self.todo.to_render:
            if not (planned.is_from_latents or planned.clip.is_pending):
                settings = planned.clip.settings
                tokens = Shape.of(settings).num_video_tokens
                found[settings.model] = max(tokens, found.get(settings.model, 0))
        return found

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
        kept = event.job.clip.kept_frames
        return replace(event, record=self.store.confirmed(event.record, kept))

    def load_seconds(self, job: Job, own: Group | None) -> float:
        """Return the predicted seconds before a worker of the group `own` renders a clip."""
        if self.forecast is None:
            return 0.0
        return self.forecast.group_load_seconds(own, job.clip.settings.group)

    def gate(self, job: Job, worker: int = 0) -> Verdict:
        """Return whether a clip may start: disk and lease decide first, then the clock."""
        if fault := disk_fault(self.run_dir.path, self.disk):
            return Stop(fault)
        if self.store is not None and (fault := self.store.fault()):
            return Stop(fault)
        return self._schedule(worker)(job)

    def _schedule(self, worker: int) -> Schedule:
        seconds = partial(self.pace.clip_seconds, worker=worker)
        return Schedule(self.rules, self.run_dir.pause, seconds)

    def fits(self, worker: int) -> Sequence[Callable[[Job], bool]]:
        """Return what tells which clips a worker of several may take, the strictest first.

        First those that can end in time from now on, then those that can after a wait, e.g. for
        the window of the next day. A run of one worker keeps to its order.
        """
        schedule = self._schedule(worker)
        is_alone = len(self.cards) == 1 and not self.seats
        if is_alone or not schedule.limits_clips:
            return (lambda _job: True,)

        def can_end(job: Job, after_a_wait: bool) -> bool:
            verdict = schedule(job)
            if isinstance(verdict, Wait):
                return after_a_wait
            return verdict is None or not verdict.is_of_clip

        return tuple(partial(can_end, after_a_wait=wait) for wait in (False, True))

    def too_late(self, jobs: Iterable[Job], worker: int) -> str:
        """Return why none of these clips, of which no worker can end one in time, is started."""
        verdicts = (self._schedule(worker)(job) for job in jobs)
        stop = next((each for each in verdicts if isinstance(each, Stop)), None)
        assert stop is not None, "clips were never rendered"
        return stop.reason


def make_run(
    asked: Asked, todo: Todo, machine: Machine, rules: Rules, seats: Sequence[Seat] = ()
) -> Run | None:
    """Return the run that renders these clips; None if there is nothing to render.

    Args:
        asked: The request.
        todo: What is to be rendered.
        machine: This one, or with the cards of all seats.
        rules: The clock's.
        seats: Of a cluster; empty for child processes of this machine.

    Raises:
        Refused: No offload profile fits the card.
    """
    if not todo.to_render:
        return None
    # `runtime.card` is for the dry run alone.
    config = config_for(asked, seats)
    config = replace(config, runtime=replace(config.runtime, card=None))
    compilations = decide_compilations(config, todo.clips, machine, asked.run_dir)
    compiled = {name: found.is_on for name, found in compilations.items()}
    log = asked.run_dir.log
    forecast = make_forecast(config, todo.to_render, machine, log, compiled=compiled)
    known = forecast.by_model if forecast is not None else {}
    cards = cards_for(config, todo.to_render, machine)

    def choose(gpu: Gpu | None) -> dict[str, OffloadChoice]:
        here = machine if gpu is None else replace(machine, gpus=(gpu,))
        offloads = {}
        for own, clips in by_model(config, todo.to_render):
            name, settings = own.model.name, [p.clip.settings for p in clips]
            if name in known and gpu == machine.gpu:
                offloads[name] = known[name].offload
            else:
                own = compilations[name].in_config(own)
                shared = lora_bytes(clips), sharing_ram(len(cards), machine)
                offloads[name] = choose_offload(own, settings, here, *shared)
        return offloads

    notes: tuple[str, ...] = ()
    choices: Sequence[dict[str, OffloadChoice]]
    if seats:
        seats, choices, notes = usable_seats(config, todo, compilations, seats[: len(cards)])
        cards = tuple(seat.gpu for seat in seats)
    else:
        choices = _for_each_card(cards, choose)
    return Run(
        asked,
        todo,
        machine,
        rules,
        cards,
        choices,
        forecast,
        make_pace(forecast, asked.run_dir, rules.clock, todo.to_render, len(choices)),
        disk_need(todo.to_render, asked.config, len(cards)),
        compilations,
        seats=seats,
        notes=notes,
    )


def _for_each_card(
    gpus: Sequence[Gpu | None], choose: Callable[[Gpu | None], dict[str, OffloadChoice]]
) -> list[dict[str, OffloadChoice]]:
    """Return the profiles of each card, chosen once for its kind by the one with least memory."""
    kinds: dict[tuple[str, int] | None, list[Gpu]] = {}
    for gpu in filter(None, gpus):
        kinds.setdefault((gpu.name, gpu.total_bytes), []).append(gpu)
    if not kinds:
        return [choose(None)] * len(gpus)
    chosen = {
        kind: choose(min(like, key=lambda gpu: gpu.free_bytes)) for kind, like in kinds.items()
    }
    return [
        {
            name: replace(choice, gpu=gpu) if choice.gpu is not None else choice
            for name, choice in chosen[gpu.name, gpu.total_bytes].items()
        }
        for gpu in filter(None, gpus)
    ]


def _gpu_of(offloads: Mapping[str, OffloadChoice]) -> Gpu | None:
    return next((choice.gpu for choice in offloads.values() if choice.gpu), None)


def planned_again(run: Run, asked: Asked, todo: Todo) -> Run | None:
    """Return the run with the clips that are left, now that the directory is locked.

    Another run may have finished some meanwhile. Fewer clips change none of the decisions; what
    that run has decided for the directory holds.

    Raises:
        Refused: No offload profile fits the card.
    """
    if not todo.to_render:
        return None
    if {p.clip.settings.model for p in todo.to_render} - run.choices[0].keys():
        # `limit` reaches a further model now.
        return make_run(asked, todo, run.machine, run.rules, run.seats)
    for name, found in run.compilations.items():
        stored = read_compile(asked.run_dir, asked.config_of(name))
        if found.is_new and stored not in (None, found.is_on):
            return make_run(asked, todo, run.machine, run.rules, run.seats)
    planned = config_for(asked, run.seats)
    num_workers = len(cards_for(planned, todo.to_render, run.machine))
    return replace(
        run,
        asked=asked,
        todo=todo,
        cards=run.cards[:num_workers],
        choices=run.choices[:num_workers],
        seats=run.seats[:num_workers],
        pace=make_pace(run.forecast, asked.run_dir, run.clock, todo.to_render, num_workers),
        disk=disk_need(todo.to_render, asked.config, num_workers),
    )
