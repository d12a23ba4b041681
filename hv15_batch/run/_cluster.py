"""A run on a cluster: its seats as the plan sees them, and what their machines need of this one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from hv15_batch.config.checks import typed_workers
from hv15_batch.config.settings import Config, DispatchKind
from hv15_batch.dispatch.seats import Cluster, Seat
from hv15_batch.errors import Refused
from hv15_batch.forecast.compilation import Compilation
from hv15_batch.forecast.forecast import by_model, lora_bytes
from hv15_batch.forecast.offload import OffloadChoice, choose_offload
from hv15_batch.machine.machine import Machine
from hv15_batch.model.variant import Weights
from hv15_batch.planning.todo import Todo
from hv15_batch.run.prepare import Asked
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.remote.shared import Inputs
from hv15_batch.rundir.store import check_free

OpenCluster = Callable[[str | None, bool | None, int], AbstractContextManager[Cluster]]
"""Takes the address, whether workers need a card (None: where there are some), and their number."""


def open_ray(
    address: str | None, uses_card: bool | None, most: int
) -> AbstractContextManager[Cluster]:
    """Return a Ray cluster, see `dispatch.ray.cluster_at`."""
    from hv15_batch.dispatch.ray import cluster_at  # ray is installed where it is asked for

    return cluster_at(address, uses_card, most)


@contextmanager
def cluster_for(asked: Asked, todo: Todo, open_cluster: OpenCluster) -> Iterator[Cluster | None]:
    """Yield the cluster that renders; None for workers of this machine, or with nothing to render.

    Raises:
        Refused: The cluster cannot be used, or another run holds the run directory.
    """
    config = asked.config
    if config.dispatch.kind is not DispatchKind.ray or not todo.to_render:
        yield None
        return
    check_free(asked.run_dir)
    weights = {own.model.weights for own, _ in asked.models(todo)}
    uses_card: bool | None = True
    if weights == {Weights.tiny}:
        uses_card = False
    elif all(each.is_small for each in weights):
        uses_card = None
    typed = typed_workers(config)
    most = len({planned.clip.denoise_sha256 for planned in todo.to_render})
    most = min(most, typed) if isinstance(typed, int) else most
    with open_cluster(config.dispatch.address, uses_card, most) as cluster:
        yield cluster


def dry_run_notes(config: Config) -> list[str]:
    """Return what a dry run says of a cluster, which it does not ask."""
    if config.dispatch.kind is not DispatchKind.ray:
        return []
    return [
        "dispatch=ray: a dry run asks no cluster; type dispatch.workers=N and runtime.card=NAME "
        "for the prediction."
    ]


def store_first_frames(run_dir: RunDir, todo: Todo) -> None:
    """Store each first frame once under its hash, for workers of other machines.

    Raises:
        Refused: The store does not take one, or its file has changed.
    """
    frames = {
        p.clip.settings.image_sha256: p.clip.image_path
        for p in todo.to_render
        if p.clip.settings.image_sha256 is not None
    }
    inputs = Inputs(run_dir)
    for sha256, path in frames.items():
        assert sha256 is not None
        try:
            if path is None or sha256 in inputs.known():
                continue
            data = Path(path).read_bytes()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise Refused(f"{path}: has changed since the command began; run again.")
            inputs.put(sha256, data)
        except OSError as error:
            raise Refused(
                f"{path}: cannot be stored in {run_dir.shown()} for the cluster ({error}); correct "
                "that, and run again."
            ) from error


# -- the plan ---------------------------------------------------------------------------------


def as_one(machine: Machine, seats: Sequence[Seat]) -> Machine:
    """Return a machine with the cards and the RAM of all seats, for planning."""
    if not seats:
        return machine
    shares = [(seat.machine, seat.num_sharing) for seat in seats]
    return replace(
        machine,
        gpus=tuple(seat.gpu for seat in seats if seat.gpu is not None),
        ram_total_bytes=sum(here.ram_total_bytes // n for here, n in shares),
        ram_available_bytes=sum(here.ram_available_bytes // n for here, n in shares),
    )


def choices_for(
    config: Config, todo: Todo, compilations: Mapping[str, Compilation], seat: Seat
) -> dict[str, OffloadChoice]:
    """Return the profile of each model for a seat.

    Raises:
        Refused: None fits its card.
    """
    offloads = {}
    for own, clips in by_model(config, todo.to_render):
        own = compilations[own.model.name].in_config(own)
        settings = [p.clip.settings for p in clips]
        shared = lora_bytes(clips), seat.num_sharing
        offloads[own.model.name] = choose_offload(own, settings, seat.machine, *shared)
    return offloads


def usable_seats(
    config: Config, todo: Todo, compilations: Mapping[str, Compilation], seats: Sequence[Seat]
) -> tuple[list[Seat], list[dict[str, OffloadChoice]], tuple[str, ...]]:
    """Return the seats whose cards some profile fits, their profiles, and lines about the others.

    Raises:
        Refused: None fits any of them.
    """
    found, choices, notes, fault = [], [], [], None
    for seat in seats:
        try:
            choices.append(choices_for(config, todo, compilations, seat))
            found.append(seat)
        except Refused as error:
            fault = error
            notes.append(f"{seat.where} is not used: {error}")
    if fault is not None and not found:
        raise fault
    return found, choices, tuple(notes)


def config_for(asked: Asked, seats: Sequence[Seat]) -> Config:
    """Return the settings with as many workers as there are seats."""
    if not seats:
        return asked.config
    dispatch = replace(asked.config.dispatch, workers=len(seats))
    return replace(asked.config, dispatch=dispatch)
