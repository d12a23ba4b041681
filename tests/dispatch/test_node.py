"""What a worker of a cluster passes on of its renderer's events, and when."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from fakes.runs import FakeRenderer, Project
from fakes.worker import jobs, spec

from hv15_batch.dispatch import _node
from hv15_batch.dispatch._node import NodeWorker, _next_events
from hv15_batch.dispatch.protocol import (
    Declined,
    Died,
    EncodingEnded,
    Event,
    Finished,
    Note,
    Ready,
    Stepped,
)
from hv15_batch.dispatch.seats import Order
from hv15_batch.errors import Refused
from hv15_batch.weights.checkpoint import resolve_checkpoint


class Sends:
    """An executor with events that wait to be asked for."""

    is_up = True

    def __init__(self, *events: Event) -> None:
        self.events = deque(events)

    def poll(self, timeout_seconds: float) -> Event | None:
        if self.events:
            return self.events.popleft()
        time.sleep(timeout_seconds)
        return None


def passed_on(executor: Sends) -> list[Event]:
    return _next_events(cast(Any, executor))


def test_of_many_steps_the_last_is_passed_on_and_what_the_driver_acts_on_at_once() -> None:
    steps = [Stepped("cat", "denoise", n, 50) for n in range(1, 51)]
    decode = Stepped("cat", "decode", 50, 50)
    executor = Sends(*steps, Note("a line"), decode, Ready(), Stepped("dog", "denoise", 1, 50))

    begin = time.monotonic()
    assert passed_on(executor) == [steps[-1], Note("a line"), decode, Ready()]
    assert time.monotonic() - begin < _node.BATCH_SECONDS
    assert passed_on(executor) == [Stepped("dog", "denoise", 1, 50)]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.write("id,prompt", "cat,a cat")
    project.run_dir.create()
    project.run_dir.run_folder(spec(project).run_id).mkdir()
    return project


def order_of(project: Project) -> Order:
    checkpoint = resolve_checkpoint(project.config().model)
    return Order(replace(spec(project), checkpoint=checkpoint), str(project.run_dir.path))


def test_orders_that_come_before_the_renderer_is_there_are_kept(project: Project) -> None:
    worker = NodeWorker({"node_id": "n", "address": "10.0.0.1"})
    job = jobs(project)["cat"]
    worker.start(0, order_of(project), FakeRenderer)
    worker.send(0, [job.clip])
    worker.send(0, job)
    worker.send(7, job)  # of another renderer
    seen: list[Event] = []
    for batch in worker.events(0):
        seen += batch.events
        if any(isinstance(event, Finished) for event in batch.events):
            break
    kinds = [type(event) for event in seen if not isinstance(event, Stepped)]
    assert kinds[0] is EncodingEnded
    assert set(kinds) == {EncodingEnded, Ready, Finished}
    worker.stop(0, in_order=True)
    (died,) = next(iter(worker.events(0))).events
    assert isinstance(died, Died)
    assert died.is_gone, "what this process did not start is gone"
    assert not died.was_up, "it never got a clip"


def test_what_does_not_suit_the_machine_is_declined(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfit(*_: Any) -> None:
        raise Refused("loras: /a.safetensors is not on this machine")

    monkeypatch.setattr(_node, "suited", unfit)
    worker = NodeWorker({"node_id": "n", "address": "10.0.0.1"})
    worker.start(0, order_of(project), FakeRenderer)
    (batch,) = worker.events(0)
    assert batch.events == (Declined("loras: /a.safetensors is not on this machine"),)


def test_the_allocator_is_set_as_in_a_run_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    NodeWorker({"node_id": "n", "address": "10.0.0.1"})
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"


def test_hello_says_what_the_machine_is() -> None:
    hello = NodeWorker({"node_id": "n", "address": "10.0.0.1"}).hello(uses_card=False)
    assert (hello.node_id, hello.address) == ("n", "10.0.0.1")
    assert hello.machine.gpus == ()
    assert hello.facts["hardware"]["cpu_count"] == hello.machine.cpu_count
