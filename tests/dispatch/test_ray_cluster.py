"""Which actors of a Ray cluster are made and used, and what reaches them. Fakes stand for Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hv15_batch import __version__
from hv15_batch.dispatch import _ray_cluster
from hv15_batch.dispatch._node import Batch, Hello
from hv15_batch.dispatch._ray_cluster import RayCluster
from hv15_batch.dispatch._ray_executor import RayExecutor
from hv15_batch.dispatch.protocol import Died, Event, Job
from hv15_batch.dispatch.seats import Order, Seat
from hv15_batch.errors import Refused
from hv15_batch.machine.machine import read_machine


class ActorError(Exception):
    """An actor is gone."""


class Method:
    def __init__(self, does: Callable[..., Any]) -> None:
        self.remote = does

    def options(self, **_: Any) -> Method:
        return self


class FakeRay:
    """Has so many CPUs on machines of one CPU; a reference is what it stands for."""

    exceptions = SimpleNamespace(
        ActorUnavailableError=type("Unavailable", (Exception,), {}),
        RayActorError=ActorError,
        GetTimeoutError=TimeoutError,
    )

    def __init__(self, num_cpus: int, *answers: Any) -> None:
        self.num_cpus = num_cpus
        self.answers = deque(answers)
        self.alive: list[Any] = []
        self.num_made = 0

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.num_cpus}

    def available_resources(self) -> dict[str, float]:
        return {"CPU": self.num_cpus - len(self.alive)}

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"NodeID": str(n), "Alive": True, "Resources": {"CPU": 1}} for n in range(self.num_cpus)
        ]

    def wait(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return references, []

    def get(self, reference: Any, **_: Any) -> Any:
        if isinstance(reference, Exception):
            raise reference
        return reference

    def kill(self, handle: Any, **_: Any) -> None:
        self.alive.remove(handle)

    def options(self, **_: Any) -> FakeRay:
        return self

    def remote(self, _: dict[str, str]) -> Any:
        self.num_made += 1
        hello = Method(lambda uses_card: self.answers.popleft())
        handle = SimpleNamespace(hello=hello, send=Method(lambda *_: None))
        self.alive.append(handle)
        return handle

    def cluster(self, most: int) -> RayCluster:
        return RayCluster(self, self, False, most, cast(Any, None))


def hello(version: str = __version__) -> Hello:
    return Hello(version, read_machine(), {}, "0", "10.0.0.1")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ray_cluster, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(_ray_cluster, "FREE_SECONDS", 0.5)


@pytest.mark.parametrize("bad", [hello("0.0.1"), ModuleNotFoundError("hv15_batch")])
def test_a_machine_that_cannot_be_used_does_not_take_the_place_of_another(bad: Any) -> None:
    ray = FakeRay(2, bad, hello())
    cluster = ray.cluster(most=1)

    (seat,) = cluster.first_seats()
    assert seat.facts == {}
    assert ray.num_made == 2
    assert len(cluster.take_notes()) == 1
    assert cluster.new_seats() == []
    assert ray.num_made == 2, "one worker is of use"


def test_actors_that_cannot_be_started_are_not_made_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = FakeRay(2, *[ModuleNotFoundError("hv15_batch")] * 6, hello())
    cluster = ray.cluster(most=1)

    with pytest.raises(Refused, match="a worker could not be started: ModuleNotFoundError"):
        cluster.first_seats()
    assert cluster.new_seats() == []
    assert ray.num_made == 3 * 2, "three for each machine"
    monkeypatch.setattr(_ray_cluster, "AGAIN_SECONDS", 0.0)
    assert len(cluster.new_seats()) == 1, "a machine was mended meanwhile"


def die(cluster: RayCluster, seat: Seat, has_clip: bool) -> list[Seat]:
    """Let the actor of a seat die, and return the seats that come then."""
    executor = seat.make_executor(cast(Order, None))
    executor._pipe = cast(Any, Sends(Died("it is gone", was_up=has_clip, is_gone=True)))  # type: ignore[attr-defined]
    if has_clip:
        executor.submit(cast(Job, "a clip"))
    assert isinstance(executor.poll(0), Died)
    return cluster.new_seats()


class Sends:
    def __init__(self, *events: Event) -> None:
        self.events = deque(events)

    def poll(self, _: float) -> bool:
        return bool(self.events)

    def recv(self) -> Event:
        return self.events.popleft()


def test_clips_that_kill_their_actor_do_not_cost_the_actor() -> None:
    ray = FakeRay(1, *[hello()] * 9)
    cluster = ray.cluster(most=4)
    seats = cluster.first_seats()

    for has_clip in (False, True, True, True, True, False, False):
        seats = die(cluster, seats[0], has_clip)
        assert len(seats) == 1
    assert (ray.num_made, cluster.take_notes()) == (1, [])
    assert die(cluster, seats[0], has_clip=False) != [], "another actor is tried"
    assert ray.num_made == 2
    assert cluster.take_notes() == ["a worker is not used again, after 3 deaths without a clip."]


def test_a_clip_is_sent_only_once_its_renderer_is_known_to_be_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Any] = []

    def events(number: int) -> Iterator[Any]:
        executor.submit(cast(Job, "a clip"))
        yield Batch((), None, False)
        assert sent == []
        assert not executor._death("").was_up, "the clip has nothing to do with it"
        yield Batch((), None, True)
        assert sent == ["a clip"]
        executor.submit(cast(Job, "another clip"))
        assert sent == ["a clip", "another clip"]
        yield ActorError("it is gone")

    handle = SimpleNamespace(
        send=Method(lambda number, message: sent.append(message)),
        start=Method(lambda *_: None),
        events=Method(events),
    )
    gone: list[bool] = []
    executor = RayExecutor(
        FakeRay(1),
        handle,
        cast(Order, None),
        cast(Any, None),
        0,
        "node-3",
        finished=lambda: None,
        gone=gone.append,
    )
    monkeypatch.setattr(executor, "_try_store", lambda: None)
    executor.start()
    event = executor.poll(10)
    assert isinstance(event, Died)
    assert "node-3 is gone from the cluster (ActorError: it is gone)" in event.reason
    assert event.was_up
    assert gone == [True]
