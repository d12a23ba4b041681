"""The rounds of a run: a clip is rendered in a round after that of the clip which it follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from hv15_batch.clip import Clip, Group
from hv15_batch.dispatch.protocol import Job
from hv15_batch.errors import Refused
from hv15_batch.model.shapes import Shape
from hv15_batch.planning.chains import hindrance, outdated
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.record import OK
from hv15_batch.run.rendering.fitting import Fitting
from hv15_batch.run.rendering.journal import Journal
from hv15_batch.units import Say, shortened


@dataclass(frozen=True)
class Round:
    """What is rendered before anything of the next round begins."""

    jobs: list[Job]
    to_encode: list[Clip]
    """Whose texts and first frames are encoded before. In the first round those of all clips:
    frames that are not there yet are left for their own round."""
    unwritten: list[Job] = field(default_factory=list)
    """Clips whose prompts could not be rewritten."""
    again: frozenset[tuple[str, int | None]] = frozenset()
    """Clips of this round that earlier runs had finished."""
    needs_others: bool = False
    """The workers of the rounds before were not made for some of these clips."""


class Rounds:
    """Goes through the clips of a run."""

    def __init__(
        self,
        fitting: Fitting,
        first_attempt: Callable[[PlannedClip], Job],
        journal: Journal,
        say: Say,
    ) -> None:
        """Start.

        Args:
            fitting: Has the run, and plans its workers for clips that are added.
            first_attempt: Makes a job of one.
            journal: Knows how each attempt ended.
            say: Prints a line.
        """
        todo = fitting.run.todo
        self._planned = todo.to_render
        self._done = [
            p for p in todo.selected if p.is_done and p.clip.source and todo.repetitions is None
        ]
        self._fitting = fitting
        self._num_skipped_before = len(todo.skipped)
        self._first_attempt = first_attempt
        self._journal = journal
        self._say = say
        self._clips = {p.clip.settings_sha256 for p in self._planned if p.repeat is None}
        self._skipped: set[str] = set()

    @property
    def num_clips(self) -> int:
        """Clips of all rounds, with those that were added by now."""
        return len(self._planned)

    @property
    def num_skipped(self) -> int:
        """Clips that could not be rendered, because those that they follow could not."""
        return len(self._skipped) + self._num_skipped_before

    def __iter__(self) -> Iterator[Round]:
        """Yield each round, once the clips of the rounds before have ended; at least one."""
        ready = [p for p in self._planned if not p.clip.is_pending]
        unwritten = [self._first_attempt(p) for p in self._planned if p.clip.is_pending]
        to_encode = [p.clip for p in ready if not p.is_from_latents]
        levels = {_level(p) for p in ready} or {0}
        first = min(levels)
        levels |= {level for p in self._done if (level := _level(p)) > first}
        for level in sorted(levels):
            run = self._fitting.run
            added = self._outdated(level)
            own = [*(p for p in ready if _level(p) == level), *added]
            if not own and level != first:
                continue
            to_encode += [p.clip for p in added]
            self._journal.added(map(self._first_attempt, added))
            jobs = [job for job in map(self._first_attempt, own) if not self._is_skipped(job)]
            keys = {job.key[0] for job in jobs}
            is_first = level == first
            of_round = [clip for clip in to_encode if is_first or clip.settings_sha256 in keys]
            again = frozenset((p.clip.clip_id, p.repeat) for p in added)
            yield Round(jobs, of_round, unwritten, again, self._fitting.run is not run)
            unwritten = []

    def _outdated(self, level: int) -> list[PlannedClip]:
        """Return the finished clips of a round whose first frame this run has changed.

        One that cannot be rendered now is skipped, and left to the next run.
        """
        of_level = (p for p in self._done if _level(p) == level)
        followers = [p for p in of_level if _source(p) in self._clips]
        found = outdated(followers, self._fitting.run.run_dir)
        if not found:
            return []
        longest = self._longest()
        beyond: dict[str, list[PlannedClip]] = {}
        for p in found:
            if _num_tokens(p) > longest.get(p.clip.settings.group, 0):
                beyond.setdefault(p.clip.settings.model, []).append(p)
        self._planned = self._planned + found
        self._clips |= {p.clip.settings_sha256 for p in found}
        for of_model in beyond.values():
            try:
                self._fitting.take_in(of_model, self._say)
            except Refused as error:
                self._leave(of_model, str(error))
        return [p for p in found if p.clip.settings_sha256 not in self._skipped]

    def _longest(self) -> dict[Group, int]:
        """Return the video tokens of the longest clip that each group has been planned for."""
        found: dict[Group, int] = {}
        for p in self._planned:
            if not (p.is_from_latents or p.clip.settings_sha256 in self._skipped):
                group = p.clip.settings.group
                found[group] = max(found.get(group, 0), _num_tokens(p))
        return found

    def _leave(self, clips: Iterable[PlannedClip], why: str) -> None:
        for p in clips:
            self._skipped.add(p.clip.settings_sha256)
            self._say(
                f"{p.clip.clip_id} is skipped: the frame that it begins with has changed, and it "
                f"cannot be rendered now: {why} The same command tries it again."
            )

    def _is_skipped(self, job: Job) -> bool:
        """Whether the clip that a job follows is not fit for it. Then that is told."""
        source = job.clip.source
        if source is None or source.settings_sha256 not in self._clips:
            return False  # finished by an earlier run
        status = self._journal.status_of(source.settings_sha256)
        why = "is skipped" if source.settings_sha256 in self._skipped else hindrance(status)
        if status == OK or why is None:
            return False
        self._skipped.add(job.clip.settings_sha256)
        self._journal.left_out(job)
        self._say(
            f"{job.clip.clip_id} is skipped: it begins with a frame of "
            f"{shortened(source.clip_id, 100)}, which {why}"
        )
        return True


def _source(planned: PlannedClip) -> str | None:
    source = planned.clip.source
    return None if source is None else source.settings_sha256


def _num_tokens(planned: PlannedClip) -> int:
    return Shape.of(planned.clip.settings).num_video_tokens


def _level(planned: PlannedClip) -> int:
    """Return a clip's round. Repetitions of a benchmark have one: their frames are kept."""
    return planned.clip.level if planned.repeat is None else 0
