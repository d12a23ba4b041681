"""What is kept and passed on of a run's events: the log's rows, and all who follow the run."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from hv15_batch.clock import utc_now
from hv15_batch.config.checks import typed_compile
from hv15_batch.dispatch.protocol import EncodingCosts, Event, Finished, Job, Key
from hv15_batch.errors import ADVICE, Secondary
from hv15_batch.record import DONE_STATUSES, FAILED, ClipRecord, is_denoised_here
from hv15_batch.run._run import Run
from hv15_batch.run.rendering.recovery import Held, record_of_lost
from hv15_batch.rundir.decided import write_compile


class Watcher(Protocol):
    """Follows a run: each clip that is handed over, and each event once, with its worker."""

    def submitted(self, job: Job, worker: int = 0) -> None:
        """Learn that a clip was handed to a worker."""

    def heard(self, event: Event, worker: int = 0) -> None:
        """Receive an event; its record is already logged."""


class Journal:
    """The log of a run, and those who follow it."""

    def __init__(self, run: Run, onlookers: Iterable[Watcher]) -> None:
        """Write nothing yet.

        Args:
            run: Has the log's folder, and the pace, which decides what happens.
            onlookers: Only show what happens, so their faults are caught.
        """
        self._log = run.open_log()
        self._pace = run.pace
        self._known_columns = run.known_columns
        self._onlookers = [
            (each, Secondary(f"{type(each).__name__} missed an event of the run"))
            for each in onlookers
        ]
        self._encoding_costs: dict[str, bytes] = {}
        self._records: dict[Key, ClipRecord] = {}
        self._untold: list[tuple[Event, int]] = []  # of records that are not in the log yet
        self.fault: str | None = None
        """Why no further clip may start: a row could not be written. The current clips go on."""
        self.has_rows = False
        """Whether the log has a row of this run."""

    @property
    def records(self) -> list[ClipRecord]:
        """The last record of each clip, without its texts."""
        return list(self._records.values())

    def status_of(self, settings_sha256: str) -> str | None:
        """Return how the last attempt of this run at a clip ended; None if it had none."""
        record = self._records.get((settings_sha256, None))
        return None if record is None else record.status

    def added(self, jobs: Iterable[Job]) -> None:
        """Note clips that the run renders besides those that were planned."""
        self._pace.added(jobs)

    def left_out(self, job: Job) -> None:
        """Note that a clip is not rendered in this run."""
        self._pace.left_out([job])

    def submitted(self, job: Job, worker: int) -> Job:
        """Pass on that a clip is handed to a worker; return the job with what it has to count."""
        cost = self._encoding_costs.pop(job.clip.settings_sha256, None)
        job = replace(job, encoding=cost)
        self._pace.submitted(job, worker)
        for onlooker, guard in self._onlookers:
            with guard:
                onlooker.submitted(job, worker)
        return job

    def heard(self, event: Event, worker: int) -> None:
        """Log the event's record, if it has one, and pass the event on.

        Where the record cannot be written, the onlookers get the event once it is.
        """
        self._pace.heard(event, worker)
        if isinstance(event, EncodingCosts):
            self._encoding_costs.update(event.by_clip)
        if not isinstance(event, Finished):
            self._tell(event, worker)
            return
        self._untold.append((event, worker))
        if self.append(event.record):
            self._tell_all()

    def _tell_all(self) -> None:
        """Pass on events whose records are in the log by now."""
        told, self._untold = self._untold, []
        for event, worker in told:
            if isinstance(event, Finished):
                record = replace(event.record, prompt=None, negative_prompt=None)
                self._records[event.job.key] = record
            self._tell(event, worker)

    def _tell(self, event: Event, worker: int) -> None:
        for onlooker, guard in self._onlookers:
            with guard:
                onlooker.heard(event, worker)

    def without_text(self, jobs: Iterable[Job]) -> None:
        """Log clips whose prompts could not be rewritten; the originals are never rendered."""
        for job in jobs:
            self._pace.left_out([job])
            rewrite, known = job.clip.rewrite, self._known_columns(job.clip.settings.model)
            why = (rewrite and rewrite.fault) or "its prompt was not asked for"
            held = Held(job, utc_now())
            self.heard(Finished(job, record_of_lost(held, known, FAILED, "NotRewritten", why)), 0)

    def record_of(
        self, lost: Held, status: str, error_type: str, message: str, own: Mapping[str, Any]
    ) -> ClipRecord:
        """Return a record for an attempt whose worker wrote none; `own` are columns of its seat."""
        known = {**self._known_columns(lost.job.clip.settings.model), **own}
        return record_of_lost(lost, known, status, error_type, message)

    def append(self, record: ClipRecord) -> bool:
        """Write a record into the log; return whether that worked. If not, `fault` says why."""
        return self._write(partial(self._log.append, record))

    def last_try(self) -> str | None:
        """Write the records that could not be written; return why that is not possible, or None.

        A clip without a row has a file, so the next run decodes it again from its latents.
        """
        if self.fault is None:
            return None
        fault, self.fault = self.fault, None
        if self._write(self._log.flush):
            self._tell_all()
        return self.fault and fault

    def _write(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            message = f"the log could not be written ({error.strerror})"
            advice = ADVICE.get(error.errno or 0)
            if advice is not None and error.errno != errno.ENOSPC:  # needs no further advice
                message += f"; {advice.text}"
            self.fault = self.fault or message
            return False
        self.has_rows = True
        return True


class FailedCompilation:
    """Stores that a model is not compiled, where `auto` decided so and torch's compiler failed.

    Later runs would fail again, and each would lose the seconds of a try.
    """

    def __init__(self, run: Run) -> None:
        """Follow a run."""
        self._run = run
        is_auto = typed_compile(run.config) is None
        self._compiled = {n for n, found in run.compilations.items() if found.is_on and is_auto}

    def submitted(self, job: Job, worker: int = 0) -> None:
        """Nothing is known of a clip that starts."""

    def heard(self, event: Event, worker: int = 0) -> None:
        """Look at the first finished clip of a model that ran without its compilation."""
        if not isinstance(event, Finished) or event.record.status not in DONE_STATUSES:
            return
        record, model = event.record, event.job.clip.settings.model
        if model not in self._compiled or record.compiled is not False:
            return
        if is_denoised_here(vars(record)):  # else it says how another run denoised it
            self._compiled.remove(model)
            with self._run.run_dir.moment():
                write_compile(self._run.run_dir, self._run.asked.config_of(model), False)
