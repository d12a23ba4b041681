"""What the workers of a run are made for: models, sizes, profiles. A chain may need more later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hv15_batch.clip import Group
from hv15_batch.dispatch.seats import Seat
from hv15_batch.errors import Refused
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.run._preflight import refuse_or_note
from hv15_batch.run._run import Run, make_run
from hv15_batch.run.prepare import check_device, lacks_weights
from hv15_batch.units import Say
from hv15_batch.weights.transformer import make_transformers


class Fitting:
    """The run that workers are made for now; whoever starts a worker asks it."""

    def __init__(self, run: Run) -> None:
        """Begin with the clips that were planned."""
        self.run = run
        self.groups = _groups(run)
        """Those of all clips."""
        self.seats: list[Seat] = []
        """Of a cluster, those that workers have taken."""

    def take_in(self, further: Sequence[PlannedClip], say: Say) -> None:
        """Plan the workers for further clips too. Those that are up were made for the others only.

        Everything is decided as at the start of a run, for the memory that was free then: profiles,
        and whether clips can be rendered here at all. The number of workers stays. Weights are
        fetched at the start alone.

        Args:
            further: Finished clips that are to be rendered again.
            say: Prints a line.

        Raises:
            Refused: They cannot be rendered now, and nothing has changed.
        """
        run, again = self.run, {p.clip.settings_sha256: p for p in further}
        others = [p for p in run.todo.selected if p.clip.settings_sha256 not in again]
        todo = replace(run.todo, selected=[*others, *further])
        if lacks_weights(run.asked, todo):
            raise Refused("its weights are not on disk, and are fetched at the start of a run.")
        check_device(run.asked, todo, run.machine)
        make_transformers(((o.model, c.transformer) for o, c in run.asked.models(todo)), say)
        made = make_run(run.asked, todo, run.machine, run.rules, run.seats)
        assert made is not None
        grown = replace(run, todo=todo, forecast=made.forecast, disk=made.disk)
        if run.seats:
            for seat in self.seats:
                grown.choices_for(seat)  # each worker asks for its own again
        else:
            refuse_or_note(run.asked, todo, made.offload_kinds, len(run.cards))
            grown = replace(grown, choices=made.choices[: len(run.cards)])
        self.run, self.groups = grown, _groups(grown)


def _groups(run: Run) -> set[Group]:
    return {p.clip.settings.group for p in run.todo.to_render}
