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
from hv15_batch.forecast.offload import OffloadChoice
from hv15_batch.machine.system import system_sha256
from hv15_batch.model.variant import OffloadKind
from hv15_batch.run._progress import Progress
from hv15_batch.run._run import Run
from hv15_batch.run.rendering.stalls import Patience, StallWatch
from hv15_batch.run.rendering.supervisor import Supervisor
from hv15_batch.rundir.publish import publish_json


@dataclass
class SeatsTaken:
    """Puts a supervisor on each seat; see `run.rendering.team.Arrivals`."""

    run: Run
    cluster: Cluster
    patience: Patience
    progress: Progress

    def __post_init__(self) -> None:
        """Count the places."""
        self._places = itertools.count()
        clips = (planned.clip for planned in self.run.todo.to_render)
        loras = {lora.path: lora for clip in clips for lora in clip.loras}
        self._loras: tuple[ClipLora, ...] = tuple(loras.values())

    def first(self) -> list[Supervisor]:
        """Return the supervisors of the seats that the run was planned with."""
        return [
            self._supervisor(seat, offloads)
            for seat, offloads in zip(self.run.seats, self.run.choices, strict=True)
        ]

    def arrived(self) -> list[Supervisor]:
        """Return those of seats that came since."""
        found = []
        for seat in self.cluster.new_seats():
            try:
                offloads = self.run.choices_for(seat)
            except Refused as error:
                self.progress.say(f"{seat.where} is not used: {error}")
                continue
            self.run.pace.joined()
            self.progress.joined(seat.where)
            supervisor = self._supervisor(seat, offloads)
            self.progress.say(f"worker {supervisor.place} joins: {seat.where}")
            found.append(supervisor)
        for note in self.cluster.take_notes():
            self.progress.say(note)
        return found

    def _supervisor(self, seat: Seat, offloads: Mapping[str, OffloadChoice]) -> Supervisor:
        place, retry = next(self._places), self.run.config.retry
        self._keep_facts(seat)
        stalls = StallWatch(retry, self.patience, self.run.pace, self.run.compiles)
        columns: dict[str, Any] = {
            "hostname": seat.machine.hostname,
            "system_sha256": system_sha256(dict(seat.facts)),
        }
        make = self._maker(seat, offloads, place, columns)
        # Its card is looked for on its own machine.
        return Supervisor(make, retry, stalls, place, columns=columns)

    def _keep_facts(self, seat: Seat) -> None:
        """Write what a worker's machine is, under the hash that its clips are logged with."""
        folder = self.run.run_dir.run_folder(self.run.run_id)
        sha256 = system_sha256(dict(seat.facts))
        path = folder / f"system-{sha256[:8]}.json"
        with Secondary(f"{path.name} is not written", self.progress.say):
            if sha256 != self.run.system_sha256 and not path.exists():
                publish_json(path, dict(seat.facts))

    def _maker(
        self,
        seat: Seat,
        offloads: Mapping[str, OffloadChoice],
        place: int,
        columns: dict[str, Any],
    ) -> Callable[[Mapping[str, OffloadKind]], Executor]:
        run, numbers = self.run, itertools.count()
        where = run.run_dir.url or str(run.run_dir.path)

        def make_executor(kinds: Mapping[str, OffloadKind]) -> Executor:
            run.pace.started_worker(place)
            columns["worker_id"] = f"ray-{place}-{next(numbers)}"
            spec = replace(
                run.spec_for(offloads, seat.gpu),
                **columns,
                only_card=seat.gpu.uuid if seat.gpu else None,
                num_workers=seat.num_sharing,
                worker=place,
            )
            spec = with_absolute_paths(spec.with_offloads(kinds))
            return seat.make_executor(Order(spec, where, self._loras))

        return make_executor
