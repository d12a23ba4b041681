"""A cluster without a network: its seats are child processes of this machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from fakes.runs import FakeRenderer
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Died, Event, ExecutorSpec
from hv15_batch.dispatch.seats import Order, Seat
from hv15_batch.errors import Refused
from hv15_batch.machine.machine import read_machine
from hv15_batch.machine.nvml import Gpu


class LeavingExecutor(LocalExecutor):
    """A child process whose death means that its machine is gone."""

    def poll(self, timeout_seconds: float) -> Event | None:
        event = super().poll(timeout_seconds)
        return replace(event, is_gone=True) if isinstance(event, Died) else event


class UnfitLater(FakeRenderer):
    """Cannot render any more once something was rendered."""

    def __init__(self, spec: ExecutorSpec) -> None:
        super().__init__(spec)
        if (spec.run_dir.parent / "journal.txt").exists():
            raise Refused("loras: /a.safetensors is not on this machine")


def seat(
    node: str,
    gpu: Gpu | None = None,
    leaves: bool = False,
    renderer: Any = None,
    number: int | None = None,
) -> Seat:
    """Return a seat on a machine of that name."""
    machine = replace(read_machine(), hostname=node, gpus=(gpu,) if gpu else ())
    kind = LeavingExecutor if leaves else LocalExecutor

    def make_executor(order: Order) -> LocalExecutor:
        return kind(replace(order.spec, only_card=None), renderer or FakeRenderer)

    return Seat(
        node,
        machine,
        {"hardware": {"ram_total_bytes": 2**34}, "software": {"on": node}},
        1,
        make_executor,
        number,
    )


class Returning(LeavingExecutor):
    """Says when its machine is gone."""

    def __init__(self, spec: ExecutorSpec, renderer: Any, gone: Callable[[], None]) -> None:
        super().__init__(spec, renderer)
        self._gone = gone

    def poll(self, timeout_seconds: float) -> Event | None:
        event = super().poll(timeout_seconds)
        if isinstance(event, Died):
            self._gone()
        return event


class FakeCluster:
    """Has these seats at first; others come when a test says so."""

    def __init__(self, *first: Seat) -> None:
        self._first = list(first)
        self._lock = threading.Lock()
        self._new: list[Seat] = []
        self.notes: list[str] = []
        self.asked: list[tuple[str | None, bool | None, int]] = []
        self.is_closed = False

    def add(self, seat: Seat) -> None:
        with self._lock:
            self._new.append(seat)

    def returning(self, node: str, number: int, renderer: Any = FakeRenderer) -> Seat:
        """Return a seat that comes back after each death of its worker, as Ray makes it again."""

        def make_executor(order: Order) -> LocalExecutor:
            again = partial(self.add, self.returning(node, number, renderer))
            return Returning(replace(order.spec, only_card=None), renderer, again)

        return replace(seat(node, number=number), make_executor=make_executor)

    def begin_with(self, *first: Seat) -> None:
        self._first = list(first)

    def first_seats(self) -> list[Seat]:
        return self._first

    def new_seats(self) -> list[Seat]:
        with self._lock:
            new, self._new = self._new, []
        return new

    def take_notes(self) -> list[str]:
        notes, self.notes = self.notes, []
        return notes

    def close(self) -> None:
        self.is_closed = True

    @property
    def open(self) -> Callable[[str | None, bool | None, int], Any]:
        @contextmanager
        def opened(address: str | None, uses_card: bool | None, most: int) -> Iterator[Any]:
            self.asked.append((address, uses_card, most))
            try:
                yield self
            finally:
                self.close()

        return opened
