"""The seats of a Ray cluster: an actor for each free card.

Ray places the actors, makes those that die again, and says when one is gone. What is rendered next,
and what is tried again, is decided by the driver.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hv15_batch import __version__
from hv15_batch.dispatch._node import Hello
from hv15_batch.dispatch._ray_executor import RayExecutor, first_line
from hv15_batch.dispatch.protocol import ExecutorSpec, Renderer
from hv15_batch.dispatch.seats import Order, Seat
from hv15_batch.errors import Refused
from hv15_batch.units import counted

FIRST_SECONDS = 120.0
"""For the first worker, whose machine imports this package."""
MORE_SECONDS = 10.0
"""For each further one of the start; later ones join."""
FREE_SECONDS = 12.0
"""A card that a run has just given back counts as free a few seconds later."""
LOOK_SECONDS = 3.0
"""Free cards of the cluster are looked for this often."""
GROUPS = {"control": 1, "orders": 1, "events": 1}
"""One thread each: orders keep their turn, and a renderer can be ended while they wait."""
_MOST_DEATHS = 3
"""An actor that dies so often, where no clip explains it, is not used again."""
_MOST_FAILURES = 3
"""So many actors that cannot be used are made anew for each machine, then one now and then."""
AGAIN_SECONDS = 600.0
"""After that a machine may have been mended."""


@dataclass
class _Actor:
    """An actor, and what is asked of it."""

    handle: Any
    number: int
    hello: Any = None
    """The answer that is waited for; None once it sits in a seat."""
    asked_at: float = 0.0
    deaths: int = 0
    """That no clip explains, since it last finished one or had one that explains its death."""
    is_unfit: bool = False
    """It cannot be used, and holds its card so that Ray puts no other actor there."""

    def live_on(self) -> None:
        """Note that it finished a clip."""
        self.deaths = 0

    def ask_hello(self, uses_card: bool) -> None:
        self.asked_at = time.monotonic()
        method = self.handle.hello.options(concurrency_group="control")
        self.hello = method.remote(uses_card)


class RayCluster:
    """The seats of a Ray cluster: see `dispatch.seats.Cluster`."""

    def __init__(
        self,
        ray: Any,
        actor_class: Any,
        uses_card: bool | None,
        most: int,
        renderer: Callable[[ExecutorSpec], Renderer],
    ) -> None:
        """Ask for nothing yet.

        Args:
            ray: The module, connected.
            actor_class: Makes `NodeWorker`s of the cluster.
            uses_card: Whether a worker takes a card; None means where the cluster has some.
            most: How many workers are of use.
            renderer: Makes what renders.

        Raises:
            Refused: The cluster has no cards, and cards are needed.
        """
        self._ray = ray
        total = ray.cluster_resources()
        if uses_card and not total.get("GPU"):
            raise Refused(
                "dispatch=ray: the cluster has no cards; start Ray on the machines that have some "
                "(`ray start --address=HOST:PORT`), or use model=demo_t2v."
            )
        self._uses_card = bool(total.get("GPU")) if uses_card is None else uses_card
        self._kind = "GPU" if self._uses_card else "CPU"
        self._most = most
        self._renderer = renderer
        self._class = actor_class
        self._actors: list[_Actor] = []
        self._numbers = itertools.count()
        self._num_failed = 0
        self._failed_at = 0.0
        self._looked_at = -LOOK_SECONDS
        self._notes: deque[str] = deque()

    def first_seats(self) -> list[Seat]:
        """See `dispatch.seats.Cluster.first_seats`."""
        seats: list[Seat] = []
        begin = time.monotonic()
        end = begin + FIRST_SECONDS
        self._look()
        while not self._actors and time.monotonic() - begin < FREE_SECONDS:
            time.sleep(0.2)
            self._look()
        if not self._actors:
            raise Refused(
                f"dispatch=ray: no {self._kind} of the cluster is free (`ray status` shows who "
                "uses them); wait until one is, or end what holds them."
            )
        while time.monotonic() < end:
            before = len(seats)
            seats += self.new_seats()
            since = max(begin, self._failed_at)
            is_soon_more = self._room() > 0 and time.monotonic() - since < FREE_SECONDS
            if not is_soon_more and not any(actor.hello is not None for actor in self._actors):
                break
            if seats and len(seats) > before:
                end = min(end, time.monotonic() + MORE_SECONDS)
            time.sleep(0.05)
        if not seats:
            told = " ".join(self._notes) or f"none has answered within {FIRST_SECONDS:.0f} s."
            raise Refused(
                f"dispatch=ray: no worker of the cluster can be used: {told} Each machine needs "
                f"hv15_batch {__version__} in the Python that Ray runs."
            )
        return seats

    def new_seats(self) -> list[Seat]:
        """See `dispatch.seats.Cluster.new_seats`."""
        self._look()
        waiting = [actor for actor in self._actors if actor.hello is not None]
        if not waiting:
            return []
        answers = [actor.hello for actor in waiting]
        ready, _ = self._ray.wait(answers, num_returns=len(answers), timeout=0, fetch_local=False)
        seats = []
        for actor in waiting:
            if actor.hello in ready and (seat := self._seat(actor)) is not None:
                seats.append(seat)
        return seats

    def take_notes(self) -> list[str]:
        """See `dispatch.seats.Cluster.take_notes`."""
        notes = list(self._notes)
        self._notes.clear()
        return notes

    def close(self) -> None:
        """See `dispatch.seats.Cluster.close`."""
        for actor in self._actors:
            with suppress(Exception):  # it is gone already, or the cluster is
                self._ray.kill(actor.handle)
        self._actors = []

    def _look(self) -> None:
        """Make an actor for each free card, now and then."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        pending = sum(actor.hello is not None for actor in self._actors)
        free = int(self._ray.available_resources().get(self._kind, 0))
        for _ in range(min(self._room(), free - pending)):
            self._actors.append(self._make_actor())

    def _room(self) -> int:
        """Return how many actors more there is a card for, be it free or not."""
        machines = sum(bool(node.get("Alive", True)) for node in self._ray.nodes())
        if self._num_failed >= _MOST_FAILURES * machines:
            if time.monotonic() - self._failed_at < AGAIN_SECONDS:
                return 0
        total = int(self._ray.cluster_resources().get(self._kind, 0))
        num_useful = sum(not actor.is_unfit for actor in self._actors)
        return min(self._most - num_useful, total - len(self._actors))

    def _make_actor(self) -> _Actor:
        kind = {"num_gpus": 1, "num_cpus": 0} if self._uses_card else {"num_cpus": 1}
        handle = self._class.options(
            max_restarts=-1, max_task_retries=0, scheduling_strategy="SPREAD", **kind
        ).remote({})
        actor = _Actor(handle, next(self._numbers))
        actor.ask_hello(self._uses_card)
        return actor

    def _seat(self, actor: _Actor) -> Seat | None:
        """Return the seat of an actor that has answered; None if it cannot be used."""
        try:
            hello: Hello = self._ray.get(actor.hello)
        except self._ray.exceptions.ActorUnavailableError:
            actor.ask_hello(self._uses_card)  # it is being made again
            return None
        except Exception as error:
            self._give_up(actor, f"a worker could not be started: {first_line(error)}")
            return None
        actor.hello = None
        node = f"{hello.machine.hostname} ({hello.address})"
        fault = None
        if hello.version != __version__:
            fault = f"it has hv15_batch {hello.version}, and the driver {__version__}"
        elif self._uses_card and not hello.machine.gpus:
            fault = "Ray gave it a card that its driver does not list"
        if fault is not None:
            actor.is_unfit = True
            self._failed_at = time.monotonic()
            self._notes.append(f"{node} is not used: {fault}.")
            return None
        offered = {n["NodeID"]: n["Resources"].get(self._kind, 1) for n in self._ray.nodes()}
        num_sharing = max(int(offered.get(hello.node_id, 1)), 1)
        numbers = itertools.count()

        def make_executor(order: Order) -> RayExecutor:
            return RayExecutor(
                self._ray,
                actor.handle,
                order,
                self._renderer,
                next(numbers),
                node,
                finished=actor.live_on,
                gone=lambda has_clip: self._lost(actor, has_clip),
            )

        return Seat(node, hello.machine, hello.facts, num_sharing, make_executor, actor.number)

    def _give_up(self, actor: _Actor, note: str) -> None:
        self._actors.remove(actor)
        self._num_failed += 1
        self._failed_at = time.monotonic()
        self._notes.append(note)
        with suppress(Exception):
            self._ray.kill(actor.handle)

    def _lost(self, actor: _Actor, has_clip: bool) -> None:
        """Note that an actor died: Ray makes it again somewhere, and it says hello anew.

        A clip that it was rendering explains the death: the loop skips one that kills too often.
        """
        actor.deaths = 0 if has_clip else actor.deaths + 1
        if actor.deaths >= _MOST_DEATHS:
            times = counted(actor.deaths, "death")
            self._give_up(actor, f"a worker is not used again, after {times} without a clip.")
        else:
            actor.ask_hello(self._uses_card)
