"""What one command is to do: every clip of the manifest, its share of them, and what it selects."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from hv15_batch.config.shard import Shard
from hv15_batch.planning.benchmark import Repetitions
from hv15_batch.planning.plan import History, PlannedClip
from hv15_batch.planning.selection import share_of


@dataclass(frozen=True)
class Todo:
    """Every clip of the manifest with its state, and those that this command selects."""

    clips: list[PlannedClip]
    selected: list[PlannedClip]
    repetitions: Repetitions | None = None
    """The repetitions of a benchmark; None for a run that makes clips."""
    shard: Shard | None = None
    """The share that this command renders of `clips`; None for all."""
    history: History | None = field(default=None, repr=False, compare=False)
    """What the log had, so that it need not be read again."""

    @cached_property
    def share(self) -> list[PlannedClip]:
        """The clips of this command's shard; all of them without one."""
        return share_of(self.clips, self.shard)

    @property
    def to_render(self) -> list[PlannedClip]:
        """What this run renders, in order."""
        if self.repetitions is not None:
            return self.repetitions.todo
        return [p for p in self.selected if p.is_left]

    @property
    def skipped(self) -> list[PlannedClip]:
        """Selected clips that cannot be rendered, because the clips that they follow could not."""
        return [p for p in self.selected if p.is_skipped] if self.repetitions is None else []

    @property
    def num_done(self) -> int:
        """How many of `num_total` earlier runs have done, those of other shards included."""
        if self.repetitions is not None:
            return self.repetitions.num_measured
        return sum(p.has_result for p in self.share)

    @property
    def num_left_out(self) -> int:
        """Clips without a result that `only` or `limit` leave out."""
        if self.repetitions is not None:
            return 0
        selected = {p.clip.settings_sha256 for p in self.selected}
        return sum(not p.has_result and p.clip.settings_sha256 not in selected for p in self.share)

    @property
    def again(self) -> set[tuple[str, int | None]]:
        """Done clips that are rendered again, by `force` or because they are suspect."""
        if self.repetitions is not None:
            return set()
        return {(p.clip.clip_id, p.repeat) for p in self.to_render if p.has_result}

    @property
    def num_total(self) -> int:
        """All clips of the share, or repetitions, also those that are done or not selected."""
        if self.repetitions is not None:
            return self.repetitions.num_measured + len(self.repetitions.todo)
        return len(self.share)
