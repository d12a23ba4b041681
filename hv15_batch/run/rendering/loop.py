"""The loop: hand clips to the workers, take records, decide when to stop. No torch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from hv15_batch.clip import Clip
from hv15_batch.dispatch.local import lost_gpu
from hv15_batch.dispatch.protocol import (
    DECLINED,
    GPU_LOST,
    Declined,
    Died,
    EncodingEnded,
    Event,
    Finished,
    Job,
    Passing,
)
from hv15_batch.errors import EXIT_STOPPED, Refused
from hv15_batch.record import FAILED, INTERRUPTED
from hv15_batch.run._progress import Progress
from hv15_batch.run._run import Run
from hv15_batch.run.outcome import Outcome, StopRun, ended
from hv15_batch.run.rendering.fitting import Fitting
from hv15_batch.run.rendering.journal import Journal, Watcher
from hv15_batch.run.rendering.queue import Queue
from hv15_batch.run.rendering.recovery import Recovery
from hv15_batch.run.rendering.rounds import Rounds
from hv15_batch.run.rendering.signals import Demand, Signals
from hv15_batch.run.rendering.supervisor import Supervisor, next_event
from hv15_batch.run.rendering.team import Team
from hv15_batch.run.schedule import Stop, Wait
from hv15_batch.units import counted

POLL_SECONDS = 0.2
WAIT_SECONDS = 0.5
"""Pause between two looks at clock, pause file and signals while nothing is rendered."""
SIGNAL_GRACE_SECONDS = 0.3
"""A signal to the whole process group may reach the executor before it reaches the parent."""


class Loop:
    """Renders the clips of a run."""

    def __init__(
        self,
        fitting: Fitting,
        team: Team,
        progress: Progress,
        watchers: Sequence[Watcher] = (),
        received: list[int] | None = None,
    ) -> None:
        """Make a loop.

        Args:
            fitting: The clips to render, and what was decided for them.
            team: Its workers render; a dead one is replaced.
            progress: Shows what happens.
            watchers: Others that follow the run, after its pace and `progress`.
            received: See `Signals`; None if only the system sends signals.
        """
        self._fitting, run = fitting, fitting.run
        self._team = team
        self.journal = Journal(run, (progress, *watchers))
        self._progress = progress
        self._recovery = Recovery(run.config.retry)
        self._rounds = Rounds(fitting, self._recovery.first_attempt, self.journal, progress.say)
        self._queue = Queue(())
        self._signals = Signals(run.pace, run.clock, received)
        self._stop_reason: str | None = None
        self._is_held_back = False
        self._num_given_up = 0

    @property
    def _run(self) -> Run:
        return self._fitting.run

    def render(self) -> Outcome:
        """Render all clips.

        Raises:
            Refused: A worker cannot use these settings on this machine.
        """
        with self._signals:
            try:
                for each in self._rounds:
                    if each.needs_others:
                        self._team.close()
                    self._queue = self._team.queue_of(each.jobs, self._run)
                    if self._next_job(self._first_working()):
                        for worker in (w for w in self._team.working if not w.is_up):
                            self._start(worker)
                        self._encode(each.to_encode)
                    self._progress.rendering(self._rounds.num_clips, each.again)
                    self.journal.without_text(each.unwritten)
                    self._render()
                self._team.close()
            except StopRun as stop:
                return Outcome(stop.exit_code, stop.state, stop.message, self.journal.records)
            finally:
                self._team.kill()
        left_out = self._num_given_up, self._rounds.num_skipped
        return ended(self.journal.records, self._rounds.num_clips, *left_out)

    # -- phases -------------------------------------------------------------------------------

    def _encode(self, clips: list[Clip]) -> None:
        """Let one worker encode what these clips need. What fails here fails again with its clip.

        After a second death each clip is encoded just before it is rendered. So a clip that kills
        the worker is found and skipped.
        """
        if not clips:
            return
        encoder, was_replaced, num_deaths = self._first_working(), False, 0
        while True:
            encoder.encode(clips)  # finished encodings stay on the disk
            event = self._until_encoded([encoder], encoder)
            if event is None:
                break
            num_deaths += event.was_up  # of whichever worker: a clip may have killed it
            is_unfit = event.is_gone or event.error_type == DECLINED
            if is_unfit := is_unfit or (was_replaced and not event.was_up):
                self._retire(encoder, self._recovery.unfit(event))
            else:
                say = f"{event.reason} while encoding; starting another one"
                self._progress.say_of(encoder.place, say)
                self._start(encoder)
            if num_deaths == 2:
                self._progress.say("from here on each clip is encoded just before it is rendered")
                return
            encoder, was_replaced = self._first_working() if is_unfit else encoder, not is_unfit
        others = [worker for worker in self._team.working if worker is not encoder]
        for worker in others:
            worker.encode(self._team.to_check(clips))  # they choose and check their kernels
        self._until_encoded(others)

    def _until_encoded(
        self, workers: Sequence[Supervisor], encoder: Supervisor | None = None
    ) -> Died | None:
        """Wait until these workers have encoded; return the death of `encoder`.

        Another one that dies is replaced.
        """
        waiting = list(workers)
        while waiting:
            worker, event = self._next_event()
            if isinstance(event, Died):
                if worker is encoder:
                    worker.kill()
                    return event
                self._bury(worker, event)
                self._replace(worker, event)
            if worker in waiting and isinstance(event, Died | EncodingEnded):
                waiting.remove(worker)
        return None

    def _render(self) -> None:
        """Render the jobs of the queue."""
        self._submit()
        while self._team.is_busy or (self._may_go_on and self._team.awaits_another()):
            worker, event = self._next_event()
            if isinstance(event, Finished):
                self._recovery.finished(event.job, event.record, worker.seat)
            elif isinstance(event, Died):
                self._queue.put_back(self._bury(worker, event))
                if event.is_gone or self._next_job(worker):
                    self._replace(worker, event)
            self._submit()
        self._stop_reason = self.journal.last_try() or self._stop_reason
        if self._queue and not self._stop_reason:
            if self._signals.demand:
                self._stop_interrupted()
            self._stop_reason = self._run.too_late(self._queue, self._team.working[0].place)
        if self._stop_reason:
            raise StopRun(EXIT_STOPPED, "stopped", self._stop_reason)

    @property
    def _may_go_on(self) -> bool:
        return bool(self._queue) and not self._stop_reason and not self._signals.demand

    # -- which clip is next -------------------------------------------------------------------

    def _submit(self) -> None:
        """Hand each free worker its next clip, unless there is a reason to wait or to stop."""
        self._is_held_back = False
        for worker in self._team.working:
            if self._queue and not worker.current.rendering:
                self._submit_to(worker)

    def _submit_to(self, worker: Supervisor) -> None:
        job, reason = self._choose(worker), worker.recycle_reason
        if job is None:
            return
        is_alone = self._recovery.must_be_alone({job.key, *worker.current.keys})
        if worker.current and (is_alone or reason):
            return  # the clip that is being written is finished first
        if (job := self._next_job(worker)) is None:
            return
        if not worker.is_up:
            self._start(worker)  # after a wait
        elif reason:
            self._progress.say_of(worker.place, f"The worker is replaced {reason}.")
            worker.recycle()
            self._tell(worker, self._run.starting)
        self._queue.take(job)
        worker.submit(self.journal.submitted(job, worker.place))

    def _choose(self, worker: Supervisor) -> Job | None:
        return self._team.choose(self._queue, worker, self._run.fits(worker.place))

    def _next_job(self, worker: Supervisor) -> Job | None:
        """Return the job that a worker may start now.

        Waits if the gate says so. Current clips are finished first.
        """
        waited: Wait | None = None
        self._stop_reason = self._stop_reason or self.journal.fault
        if not self._stop_reason:
            self._give_up()
        while not self._signals.demand and not self._stop_reason:
            job = self._choose(worker)
            verdict = self._run.gate(job, worker.place) if job else None
            if verdict is None:
                if waited and job:
                    self._progress.resuming()
                return job
            if isinstance(verdict, Stop):
                if not (verdict.is_of_clip and self._queue.is_shared):
                    self._stop_reason = verdict.reason
                continue  # with another clip, where it is too late for this one alone
            if self._team.is_busy:
                self._is_held_back = True
                break
            if verdict != waited:
                self._team.close()
                self._progress.waiting(waited := verdict)
            self._run.clock.sleep(WAIT_SECONDS)
        return None

    def _give_up(self) -> None:
        """Leave out the clips of groups with too many bad ones; stop if no other group is left."""
        given_up = self._recovery.give_up(self._queue, self._fitting.groups)
        if given_up is None:
            return
        if given_up.ends_run:
            self._stop_reason = given_up.reason
        else:
            self._num_given_up += len(given_up.jobs)
            self._run.pace.left_out(given_up.jobs)
            self._progress.say(given_up.reason)

    # -- events -------------------------------------------------------------------------------

    def _next_event(self) -> tuple[Supervisor, Event | None]:
        """Return the next event that the loop must act on. Watchers get every event.

        None comes while a free worker is held back by a wait that may be over, and when workers
        joined.
        """
        while True:
            self._obey_signals()
            if arrived := self._team.arrived():
                for worker in arrived:
                    self._start(worker)
                return arrived[0], None
            worker, event = next_event(self._team.all, POLL_SECONDS)
            event = self._run.confirmed(event)
            self._progress.tick()
            if isinstance(event, Declined):
                is_first = len(self._team.working) == 1 and not self.journal.has_rows
                if is_first or self._team.is_alone:
                    raise Refused(event.message)
                event = Died(event.message, DECLINED, was_up=False)
            if isinstance(event, Died):
                time.sleep(SIGNAL_GRACE_SECONDS)
                self._obey_signals()
                if self._signals.demand is Demand.soon:
                    self._interrupt(worker)
                    if not self._team.is_busy:
                        self._stop_interrupted()  # nobody is left to finish a clip
                    continue
                if not event.is_gone and (lost := lost_gpu(worker.gpu)):
                    event = replace(event, reason=lost, error_type=GPU_LOST)
            if event is not None:
                self._tell(worker, event)
            elif self._is_held_back or not self._team.working:
                return worker, None
            if not isinstance(event, Passing | None):
                return worker, event

    def _tell(self, worker: Supervisor, event: Event) -> None:
        """Log the event's record, if it has one, and pass the event to all who follow."""
        worker.current.heard(event)
        self.journal.heard(event, worker.place)

    # -- deaths -------------------------------------------------------------------------------

    def _start(self, worker: Supervisor) -> None:
        worker.start()
        self._tell(worker, self._run.starting)

    def _bury(self, worker: Supervisor, event: Died) -> list[Job]:
        """Log the clips of a dead worker as failed; return those to try again, last first.

        They are tried at once. A clip with latents needs only decoding, and a clip that kills its
        worker is skipped before it can harm others.
        """
        worker.kill()
        rendering, lost = worker.current.rendering, worker.current.let_go()
        self._recovery.died(event, lost, rendering, worker.seat)
        if not event.was_up:  # it never received them
            return [held.job for held in lost][::-1]
        again = []
        for held in lost:
            record = event.record if held.job.key == rendering else None
            why = (FAILED, event.error_type, event.reason, worker.columns)
            record = record or self.journal.record_of(held, *why)
            self._tell(worker, Finished(held.job, record))
            job = self._recovery.another_attempt(held)
            if job is None:
                self._recovery.ended(held.job, record, worker.seat)
                self._progress.say(f"{record.clip_id} is skipped: its worker died each time")
            else:
                again.append(job)
        return again[::-1]

    def _replace(self, worker: Supervisor, event: Died) -> None:
        """Start another worker where one died, unless that has no prospect."""
        message = self._recovery.hopeless(event.reason, worker.seat)
        is_lost = event.error_type == GPU_LOST and len(self._team.working) > 1
        if is_lost or event.is_gone or event.error_type == DECLINED:
            message = event.reason
        if message is not None:
            self._retire(worker, message)
        else:
            self._progress.say_of(worker.place, f"{event.reason}; starting another one")
            self._start(worker)

    def _retire(self, worker: Supervisor, reason: str) -> None:
        """Leave the clips to the other workers.

        Raises:
            StopRun: There are none, and none will join.
        """
        if not self._team.goes_on_without(worker):
            raise StopRun(EXIT_STOPPED, "stopped", reason)
        self._run.pace.lost_worker()
        left = counted(len(self._team.working), "worker")
        self._progress.say(f"worker {worker.place} is given up, {left} left: {reason}")

    def _first_working(self) -> Supervisor:
        """Return the first worker; wait for one where all are lost.

        Raises:
            StopRun: None came in time, or a signal ends the run.
        """
        while self._team.awaits_another():
            self._next_event()
        return self._team.working[0]

    # -- signals ------------------------------------------------------------------------------

    def _obey_signals(self) -> None:
        """Stop if a signal demands it now; print a line if it demands it soon.

        Raises:
            StopRun: The run ends now.
        """
        if self._signals.end_now(self._team.current_jobs):
            self._stop_interrupted()
        if line := self._signals.news(self._team.current_jobs):
            self._progress.say(line)

    def _interrupt(self, worker: Supervisor) -> None:
        """End a worker at once; log its current clips as interrupted."""
        worker.kill()
        why = (INTERRUPTED, self._signals.cause.name, "stopped by the user", worker.columns)
        for lost in worker.current.let_go():
            self.journal.append(self.journal.record_of(lost, *why))
            self._progress.interrupted(lost.job.clip.clip_id, lost.job.repeat)

    def _stop_interrupted(self) -> None:
        """End at once; log the current clips as interrupted.

        Raises:
            StopRun: Always.
        """
        self._team.kill()
        for worker in self._team.all:
            self._interrupt(worker)
        message = f"interrupted by {self._signals.cause.name}"
        raise StopRun(self._signals.exit_code, "interrupted", message)
