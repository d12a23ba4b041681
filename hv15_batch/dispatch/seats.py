"""Where the workers of a cluster run: places that come and go while a run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hv15_batch.clip import ClipLora
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.protocol import Executor, ExecutorSpec, ModelSpec
from hv15_batch.machine.machine import Machine
from hv15_batch.machine.nvml import Gpu
from hv15_batch.weights.checkpoint import CheckpointKind


@dataclass(frozen=True)
class Order:
    """What a worker of a cluster is started with, on whatever machine it is."""

    spec: ExecutorSpec
    place: str
    """The run directory as every machine must find it: a path that all share, or a URL."""
    loras: tuple[ClipLora, ...] = ()
    """Files of the run's clips; each machine must have them under the same paths."""


def with_absolute_paths(spec: ExecutorSpec) -> ExecutorSpec:
    """Return settings whose weights do not depend on the folder in which a process was started."""
    further = (replace(each, config=_absolute(each)) for each in spec.further)
    first, *_ = spec.models.values()
    return replace(spec, config=_absolute(first), further=tuple(further))


def _absolute(spec: ModelSpec) -> Config:
    model = spec.config.model
    if spec.checkpoint.kind is CheckpointKind.local and model.repo is not None:
        model = replace(model, repo=_absolute_path(model.repo))
    if model.transformer_file is not None:
        model = replace(model, transformer_file=_absolute_path(model.transformer_file))
    return replace(spec.config, model=model)


def _absolute_path(typed: str) -> str:
    return os.path.abspath(os.path.expanduser(typed))


@dataclass(frozen=True)
class Seat:
    """A place for one worker: a card of some machine, or a process on its CPU."""

    node: str
    """The machine's name and address, e.g. `node-3 (10.0.0.7)`."""
    machine: Machine
    """That machine; the one card in it is the seat's. None are listed for the CPU."""
    facts: Mapping[str, Any]
    """Its `system_facts`."""
    num_sharing: int
    """Seats of that machine, which share its RAM."""
    make_executor: Callable[[Order], Executor]
    number: int | None = None
    """Of the cluster's worker, which keeps it where it dies and comes back; None if none does."""

    @property
    def gpu(self) -> Gpu | None:
        """The card; None on the CPU."""
        return self.machine.gpu

    @property
    def where(self) -> str:
        """The place in words."""
        return f"{self.node}, {f'{self.gpu.name}, card {self.gpu.index}' if self.gpu else 'CPU'}"


class Cluster(Protocol):
    """Machines that offer seats."""

    def first_seats(self) -> list[Seat]:
        """Wait for the seats that are free now, and return them.

        Raises:
            Refused: There is none.
        """

    def new_seats(self) -> list[Seat]:
        """Return the seats that came since they were last asked for; returns at once."""

    def take_notes(self) -> list[str]:
        """Return lines about machines that cannot be used, each once."""

    def close(self) -> None:
        """Give all seats back."""
