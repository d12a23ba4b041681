"""The loop: hand clips to the executor, take records, log, status, stop rules.

No torch. The loop decides which clip is next and when to stop. The executor renders the clip.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from hv15_batch.clip import Clip
from hv15_batch.clock import utc_now
from hv15_batch.dispatch.protocol import (
    GPU_LOST,
    Declined,
    Died,
    Encoded,
    EncodingEnded,
    Event,
    Finished,
    Job,
    Key,
    Loading,
    Note,
    Stepped,
)
from hv15_batch.errors import (
    ADVICE,
    EXIT_OK,
    EXIT_SOME_FAILED,
    EXIT_STOPPED,
    Refused,
    Secondary,
)
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.record import FAILED, INTERRUPTED, ClipRecord
from hv15_batch.run._progress import Progress
from hv15_batch.run._recovery import Current, Held, Recovery, record_of_lost
from hv15_batch.run._run import Run
from hv15_batch.run._signals import Demand, Signals
from hv15_batch.run._supervisor import Supervisor, lost_gpu
from hv15_batch.run.outcome import Outcome, StopRun
from hv15_batch.run.schedule import Stop, Wait
from hv15_batch.rundir.log import RunLog

POLL_SECONDS = 0.2
WAIT_SECONDS = 0.5
"""Pause between two looks at clock, pause file and signals while nothing is rendered."""
SIGNAL_GRACE_SECONDS = 0.3
"""A signal to the whole process group may reach the executor before it reaches the parent."""

_NEW_WORKER = Loading("PyTorch")
"""What a new worker loads before its first event."""


class Watcher(Protocol):
    """Follows a run: each clip that is handed over, and each event once."""

    def submitted(self, job: Job) -> None:
        """Learn that a clip was handed to the executor."""

    def heard(self, event: Event) -> None:
        """Receive an event; its record is already logged."""


class Loop:
    """Renders the clips of a run."""

    def __init__(
        self,
        run: Run,
        executor: Supervisor,
        progress: Progress,
        watchers: Sequence[Watcher] = (),
        received: list[int] | None = None,
    ) -> None:
        """Make a loop.

        Args:
            run: The clips to render, and what was decided for them.
            executor: Renders; a dead one is replaced.
            progress: Shows what happens.
            watchers: Others that follow the run, after its pace and `progress`.
            received: See `Signals`; None if only the system sends signals.
        """
        self._run = run
        self._executor = executor
        self._log = RunLog(run.run_dir.log, run.run_id)
        self._progress = progress
        self._current = Current()
        # These two decide what happens. The onlookers only show it, so their faults are caught.
        self._watchers: tuple[Watcher, ...] = (self._current, run.pace)
        self._onlookers = [
            (each, Secondary(f"{type(each).__name__} missed an event of the run"))
            for each in (progress, *watchers)
        ]
        self._recovery = Recovery(run.config.retry)
        self._records: dict[Key, ClipRecord] = {}
        self._signals = Signals(run.pace, run.clock, received)
        self._stop_reason: str | None = None
        self._groups = {p.clip.settings.group for p in run.todo.to_render}
        self._num_given_up = 0
        self.has_logged = False
        """Whether the log has a record of this run."""

    def render(self) -> Outcome:
        """Render all clips in their order.

        Raises:
            Refused: The executor cannot use these settings on this machine.
        """
        todo = self._run.todo.to_render
        ready = [p for p in todo if not p.clip.is_pending]
        queue = [self._recovery.first_attempt(p) for p in reversed(ready)]
        with self._signals:
            try:
                for planned in todo:
                    if planned.clip.is_pending:
                        self._fail_without_text(planned)
                if self._may_start(queue):
                    self._executor.start()
                    self._tell(_NEW_WORKER)
                    self._encode([p.clip for p in ready if not p.is_from_latents])
                    self._progress.rendering(len(todo))
                self._render(queue)
                self._executor.close()
            except StopRun as stop:
                records = list(self._records.values())
                return Outcome(stop.exit_code, stop.state, stop.message, records)
            finally:
                self._executor.kill()
        records = list(self._records.values())
        failed = sum(r.status == FAILED for r in records)
        message = f"{failed} of {len(todo)} clip{'' if len(todo) == 1 else 's'} failed"
        if self._num_given_up:
            message += f", {self._num_given_up} given up"
        if failed or self._num_given_up:
            return Outcome(EXIT_SOME_FAILED, "failed", message, records)
        return Outcome(EXIT_OK, "done", "", records)

    def _fail_without_text(self, planned: PlannedClip) -> None:
        """Log a clip whose prompt could not be rewritten; the original is never rendered."""
        job = self._recovery.first_attempt(planned)
        reason = (planned.clip.rewrite and planned.clip.rewrite.fault) or "it was not asked for"
        why = (FAILED, "NotRewritten", reason)
        self._run.pace.left_out([job])
        self._tell(Finished(job, record_of_lost(Held(job, utc_now()), self._known(job), *why)))

    # -- phases -------------------------------------------------------------------------------

    def _encode(self, clips: list[Clip]) -> None:
        """Let the executor encode what these clips need. What fails here fails again with its clip.

        After a second death each clip is encoded just before it is rendered. So a clip that kills
        the executor is found and skipped.
        """
        if not clips:
            return
        for is_last_try in (False, True):
            self._executor.encode(clips)  # finished encodings stay on the disk
            event = self._next_event()
            if isinstance(event, EncodingEnded):
                break
            assert isinstance(event, Died), event
            if is_last_try and not event.was_up:
                raise StopRun(EXIT_STOPPED, "stopped", self._recovery.unfit(event.reason))
            self._progress.say(f"{event.reason} while encoding; starting another one")
            self._executor.replace()
            self._tell(_NEW_WORKER)
            if is_last_try:
                self._progress.say("from here on each clip is encoded just before it is rendered")

    def _render(self, queue: list[Job]) -> None:
        """Render the jobs from the end of the queue."""
        self._submit_next(queue)
        while self._current or self._current.rendering:
            event = self._next_event()
            if isinstance(event, Finished):
                self._recovery.finished(event.job, event.record)
            elif isinstance(event, Died):
                queue += self._bury(event)
                if self._may_start(queue):
                    self._replace(event.reason)
            self._submit_next(queue)
        if self._stop_reason:
            raise StopRun(EXIT_STOPPED, "stopped", self._stop_reason)
        if queue:
            assert self._signals.demand, f"{len(queue)} clips were never rendered"
            self._stop_interrupted()

    def _may_start(self, queue: list[Job]) -> bool:
        """Whether the next clip may start now.

        Waits if the gate says so. Current clips are finished first.
        """
        waited: Wait | None = None
        if not self._stop_reason:
            self._give_up(queue)
        while queue and not self._signals.demand and not self._stop_reason:
            verdict = self._run.gate(queue[-1])
            if verdict is None:
                if waited:
                    self._progress.resuming()
                return True
            if isinstance(verdict, Stop):
                self._stop_reason = verdict.reason
                break
            if self._current or self._current.rendering:
                break
            if verdict != waited:
                self._executor.close()
                self._progress.waiting(waited := verdict)
            self._run.clock.sleep(WAIT_SECONDS)
        return False

    def _give_up(self, queue: list[Job]) -> None:
        """Leave out the clips of groups with too many bad ones; stop if no other group is left."""
        given_up = self._recovery.give_up(queue, self._groups)
        if given_up is None:
            return
        if given_up.ends_run:
            self._stop_reason = given_up.reason
        else:
            self._num_given_up += len(given_up.jobs)
            self._run.pace.left_out(given_up.jobs)
            self._progress.say(given_up.reason)

    def _submit_next(self, queue: list[Job]) -> None:
        """Hand over the next clip, unless there is a reason to wait or to stop."""
        if not queue or self._current.rendering:
            return
        reason = self._executor.recycle_reason
        is_alone = self._recovery.must_be_alone({queue[-1].key, *self._current.keys})
        if self._current and (is_alone or reason):
            return  # the clip that is being written is finished first
        if self._may_start(queue):
            if not self._executor.is_up:
                self._executor.start()  # after a wait
                self._tell(_NEW_WORKER)
            elif reason:
                self._progress.say(f"The worker is replaced {reason}.")
                self._executor.recycle()
                self._tell(_NEW_WORKER)
            job = queue.pop()
            for watcher in self._watchers:
                watcher.submitted(job)
            for onlooker, guard in self._onlookers:
                with guard:
                    onlooker.submitted(job)
            self._executor.submit(job)

    # -- events -------------------------------------------------------------------------------

    def _next_event(self) -> Event:
        """Return the next event that the loop must act on. Watchers get every event."""
        while True:
            self._obey_signals()
            event = self._executor.poll(POLL_SECONDS)
            self._progress.tick()
            if isinstance(event, Declined):
                raise Refused(event.message)
            if isinstance(event, Died):
                time.sleep(SIGNAL_GRACE_SECONDS)
                self._obey_signals()
                if self._signals.demand is Demand.soon:
                    self._stop_interrupted()  # nobody is left to finish it
                if lost := lost_gpu(self._run.gpu):
                    event = replace(event, reason=lost, error_type=GPU_LOST)
            if event is not None:
                self._tell(event)
            if not isinstance(event, Note | Loading | Encoded | Stepped | None):
                return event

    def _tell(self, event: Event) -> None:
        """Log the event's record, if it has one, and pass the event to all watchers."""
        if isinstance(event, Finished):
            job, record = event.job, event.record
            self._append(record)
            self._records[job.key] = replace(record, prompt=None, negative_prompt=None)
        for watcher in self._watchers:
            watcher.heard(event)
        for onlooker, guard in self._onlookers:
            with guard:
                onlooker.heard(event)

    def _known(self, job: Job) -> dict[str, Any]:
        return self._run.known_columns(job.clip.settings.model)

    def _append(self, record: ClipRecord) -> None:
        try:
            self._log.append(record)
        except OSError as error:
            # The clip has a file and no row, so the next run decodes it again from its latents.
            message = f"the log could not be written ({error.strerror})"
            advice = ADVICE.get(error.errno or 0)
            if advice is not None and error.errno != errno.ENOSPC:  # needs no further advice
                message += f"; {advice.text}"
            raise StopRun(EXIT_STOPPED, "stopped", message) from error
        self.has_logged = True

    def _bury(self, event: Died) -> list[Job]:
        """Log the clips of a dead executor as failed; return those to try again, last first.

        They are tried at once. A clip with latents needs only decoding, and a clip that kills its
        executor is skipped before it can harm others.
        """
        rendering, lost = self._current.rendering, self._current.let_go()
        if not event.was_up:  # it never received them
            self._recovery.died(event, lost, rendering)
            return [held.job for held in lost][::-1]
        self._recovery.died(event, lost, rendering)
        again = []
        for held in lost:
            record = event.record if held.job.key == rendering else None
            why = (FAILED, event.error_type, event.reason)
            record = record or record_of_lost(held, self._known(held.job), *why)
            self._tell(Finished(held.job, record))
            job = self._recovery.another_attempt(held)
            if job is None:
                self._recovery.ended(held.job, record)
                self._progress.say(f"{record.clip_id} is skipped: its worker died each time")
            else:
                again.append(job)
        return again[::-1]

    def _replace(self, reason: str) -> None:
        if message := self._recovery.hopeless(reason):
            raise StopRun(EXIT_STOPPED, "stopped", message)
        self._progress.say(f"{reason}; starting another one")
        self._executor.replace()
        self._tell(_NEW_WORKER)

    # -- signals ------------------------------------------------------------------------------

    def _obey_signals(self) -> None:
        """Stop if a signal demands it now; print a line if it demands it soon.

        Raises:
            StopRun: The run ends now.
        """
        if self._signals.end_now(self._current.jobs):
            self._stop_interrupted()
        if line := self._signals.news(self._current.jobs):
            self._progress.say(line)

    def _stop_interrupted(self) -> None:
        """End at once; log the current clips as interrupted.

        Raises:
            StopRun: Always.
        """
        self._executor.kill()
        name = self._signals.cause.name
        for lost in self._current.let_go():
            why = (name, "stopped by the user")
            self._append(record_of_lost(lost, self._known(lost.job), INTERRUPTED, *why))
            self._progress.interrupted(lost.job.clip.clip_id, lost.job.repeat)
        raise StopRun(self._signals.exit_code, "interrupted", f"interrupted by {name}")
