"""The torch-free renderer as a worker of a run directory on object storage."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

from fakes.runs import FakeExecutor, FakeRenderer
from hv15_batch.dispatch.local import LocalExecutor
from hv15_batch.dispatch.protocol import Event, ExecutorSpec, Job, Note
from hv15_batch.errors import StoreError
from hv15_batch.record import FAILED, ClipRecord
from hv15_batch.rundir.frames import frame_files
from hv15_batch.rundir.store import open_uploads


class UploadingRenderer(FakeRenderer):
    """Uploads what it writes, as the real renderer does."""

    def __init__(self, spec: ExecutorSpec) -> None:
        super().__init__(spec)
        uploads = open_uploads(self._run_dir)
        assert uploads is not None
        self._uploads = uploads

    def render(self, job: Job, emit: Callable[[Event], None]) -> Callable[[], ClipRecord]:
        latents = self._run_dir.latents_file(job.clip.denoise_sha256)
        is_saved = job.use_latents and (latents.is_file() or self._uploads.fetch_latents(latents))
        finish = super().render(job, emit)
        attempt_id = secrets.token_hex(8)
        self._uploads.begin_latents(latents, attempt_id, not is_saved)

        def finish_and_upload() -> ClipRecord:
            record, tell = finish(), lambda text: emit(Note(text))
            try:
                record = replace(record, latents_file=self._uploads.end_latents(attempt_id, tell))
                if record.file is not None:
                    frames = frame_files(self._run_dir, job.clip)
                    self._uploads.upload_frames(frames, attempt_id, tell)
                    name = self._uploads.upload_clip(record.file, attempt_id, tell)
                    record = replace(record, file=name)
            except StoreError as error:
                failure = {"status": FAILED, "error_type": "StoreError", "file": None}
                record = replace(record, **failure, error_message=str(error))
            return record

        return finish_and_upload


def uploading_local_executor(spec: ExecutorSpec) -> LocalExecutor:
    """That renderer in a real child process."""
    return LocalExecutor(spec, UploadingRenderer)


class UploadingExecutor(FakeExecutor):
    """That renderer without a process of its own."""

    def __init__(self, spec: ExecutorSpec) -> None:
        super().__init__(spec, UploadingRenderer)
