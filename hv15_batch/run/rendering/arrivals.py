"""Supervisors of a cluster's seats: those of the start, and those that come while a run goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hv15_batch.clip import ClipLora
from hv15_batch.dispatch.protocol import Executor
from hv15_batch.dispatch.seats import Cluster, Order, Seat, with_absolute_paths
from hv15_batch.errors import Refused, Secondary
from hv15_batch.machine.system import system_sha256
from hv15_batch.model.variant import OffloadKind
from hv15_batch.run._progress import Progress
from hv15_batch.run.rendering.fitting import Fitting
from hv15_batch.run.rendering.stalls import Patience, StallWatch
from hv15_batch.run.rendering.supervisor import Supervisor
from hv15_batch.rundir.publish import publish_json


@dataclass
class SeatsTaken:
    """Puts a supervisor on each seat; see `run.rendering.team.Arrivals`."""

    fitting: Fitting
    cluster: Cluster
    patience: Patience
    progress: Progress

    def __post_init__(self) -> None:
        """Count the places."""
        self._places = itertools.count()

    @property
    def _loras(self) -> tuple[ClipLora, ...]:
        clips = (planned.clip for planned in self.fitting.run.todo.to_render)
        return tuple({lora.path: lora for clip in clips for lora in clip.loras}.values())

    def first(self) -> list[Supervisor]:
        """Return the supervisors of the seats that the run was planned with."""
        return [self._supervisor(seat) for seat in self.fitting.run.seats]

    def arrived(self) -> list[Supervisor]:
        """Return those of seats that came since."""
        found = []
        for seat in self.cluster.new_seats():
            try:
                self.fitting.run.choices_for(seat)
            except Refused as error:
                self.progress.say(f"{seat.where} is not used: {error}")
                continue
            self.fitting.run.pace.joined()
            self.progress.joined(seat.where)
            supervisor = self._supervisor(seat)
            self.progress.say(f"worker {supervisor.place} joins: {seat.where}")
            found.append(supervisor)
        for note in self.cluster.take_notes():
            self.progress.say(note)
        return found

    def _supervisor(self, seat: Seat) -> Supervisor:
        run, place = self.fitting.run, next(self._places)
        retry = run.config.retry
        self.fitting.seats.append(seat)
        self._keep_facts(seat)
        stalls = StallWatch(retry, self.patience, run.pace, run.compiles)
        columns: dict[str, Any] = {
            "hostname": seat.machine.hostname,
            "system_sha256": system_sha256(dict(seat.facts)),
        }
        make = self._maker(seat, place, columns)
        # Its card is looked for on its own machine.
        return Supervisor(make, retry, stalls, place, columns=columns, seat=seat.number)

    def _keep_facts(self, seat: Seat) -> None:
        """Write what a worker's machine is, under the hash that its clips are logged with."""
        run = self.fitting.run
        folder = run.run_dir.run_folder(run.run_id)
        sha256 = system_sha256(dict(seat.facts))
        path = folder / f"system-{sha256[:8]}.json"
        with Secondary(f"{path.name} is not written", self.progress.say):
            if sha256 != run.system_sha256 and not path.exists():
                publish_json(path, dict(seat.facts))

    def _maker(
        self, seat: Seat, place: int, columns: dict[str, Any]
    ) -> Callable[[Mapping[str, OffloadKind]], Executor]:
        numbers = itertools.count()

        def make_executor(kinds: Mapping[str, OffloadKind]) -> Executor:
            run = self.fitting.run
            where = run.run_dir.url or str(run.run_dir.path)
            run.pace.started_worker(place)
            columns["worker_id"] = f"ray-{place}-{next(numbers)}"
            spec = replace(
                run.spec_for(run.choices_for(seat), seat.gpu),
                **columns,
                only_card=seat.gpu.uuid if seat.gpu else None,
                num_workers=seat.num_sharing,
                worker=place,
            )
            spec = with_absolute_paths(spec.with_offloads(kinds))
            return seat.make_executor(Order(spec, where, self._loras))

        return make_executor
