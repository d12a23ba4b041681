"""The outcome of one attempt at a clip: columns, status, and an error as data."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from hv15_batch import __version__
from hv15_batch.clock import utc_now
from hv15_batch.dispatch.protocol import ExecutorSpec, Job
from hv15_batch.errors import Refused
from hv15_batch.model.variant import Task
from hv15_batch.record import (
    FAILED,
    OK,
    STAGES,
    ClipRecord,
    asked_record,
    is_denoised_here,
    seconds_column,
)
from hv15_batch.redaction import redacted

logger = logging.getLogger(__name__)

MAX_ERROR_CHARACTERS = 2000


def base_record(spec: ExecutorSpec, job: Job, repo: str, task: Task, **known: Any) -> ClipRecord:
    """Return a record with what is known of an attempt before it is rendered.

    Args:
        spec: Of the worker.
        job: What it renders.
        repo: Of the model's weights.
        task: Of the model.
        known: Further columns.
    """
    return asked_record(
        job.clip,
        run_id=spec.run_id,
        shard=spec.config.shard,
        attempt=job.attempt,
        repeat=job.repeat,
        manifest_sha256=spec.manifest_sha256,
        started_at=utc_now(),
        repo=repo,
        task=task.name,
        hostname=spec.hostname,
        system_sha256=spec.system_sha256,
        hv15_batch_version=__version__,
        worker_id=spec.worker_id,
        **known,
    )


class Attempt:
    """Gathers the columns of one attempt, whichever thread finds them."""

    def __init__(self, base: ClipRecord) -> None:
        """Begin with what is known of the clip before it is rendered."""
        self._base = base
        self._columns: dict[str, Any] = {}
        self.id = secrets.token_hex(8)
        """Tells this attempt from every other, also of other machines."""
        self.error: tuple[str, str] | None = None
        """Class and message of the first error."""
        self.status = OK
        self.other_seconds: float | None = None
        """What a program took that does not tell the seconds of its stages."""

    def add(self, **columns: Any) -> None:
        """Set columns."""
        self._columns.update(columns)

    def add_measured(self, columns: dict[str, Any]) -> None:
        """Set columns that no earlier stage has set, e.g. from the latents' metadata."""
        for name, value in columns.items():
            if self._columns.get(name) is None:
                self._columns[name] = value

    def value(self, column: str) -> Any:
        """Return a column that was set; None without it."""
        return self._columns.get(column)

    @property
    def has_reused_latents(self) -> bool:
        """Whether the latents are those of an earlier attempt, or of another clip."""
        row = {"attempt": self._base.attempt, "denoise_attempt": None, **self._columns}
        return not is_denoised_here(row)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Turn an error into this attempt's outcome; a refused setting is not the clip's fault."""
        try:
            yield
        except Refused:
            raise
        except Exception as error:
            logger.exception("%s failed", self._base.clip_id)
            # Not the exception: its traceback holds the frames and so their tensors.
            message = redacted(str(error))[:MAX_ERROR_CHARACTERS]
            self.error = self.error or (getattr(error, "kind", type(error).__name__), message)

    def record(self) -> ClipRecord:
        """Return the finished record."""
        columns = dict(self._columns)
        seconds = [columns.get(seconds_column(stage)) for stage in STAGES]
        known = [s for s in (*seconds, self.other_seconds) if s is not None]
        columns["total_seconds"] = sum(known) if known else None
        if self.error is not None:
            columns |= {
                "status": FAILED,
                "error_type": self.error[0],
                "error_message": self.error[1],
                "file": None,
                "file_bytes": None,
                "file_sha256": None,
            }
        else:
            columns["status"] = self.status
        return replace(self._base, **columns, finished_at=utc_now())
