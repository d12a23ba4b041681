"""Checks the file that a program wrote, and publishes it with its tag, thumbnail and measures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hv15_batch.clip import Clip, ClipSettings
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.attempt import Attempt
from hv15_batch.dispatch.protocol import Emit, Job, Note
from hv15_batch.errors import Secondary
from hv15_batch.files import remove_scratch
from hv15_batch.media.faults import FaultMeter
from hv15_batch.media.quality import FrameMeter
from hv15_batch.media.tag import settings_comment
from hv15_batch.media.video import (
    copy_video,
    frame_rate,
    frame_size_and_rate,
    read_frames,
    write_thumbnail,
)
from hv15_batch.official.verdict import DAMAGED, ScriptFault
from hv15_batch.record import OK, SUSPECT, ClipRecord
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing, sha256_of_file

if TYPE_CHECKING:
    from hv15_batch.rundir.store import Uploads


class ClipPublisher:
    """Makes clips of a run directory from files that another program wrote."""

    def __init__(self, run_dir: RunDir, uploads: Uploads | None) -> None:
        """Take the run directory, and its side in object storage."""
        self._run_dir = run_dir
        self._uploads = uploads

    def publish(
        self, job: Job, config: Config, repo: str, attempt: Attempt, file: Path, emit: Emit
    ) -> ClipRecord:
        """Return the record of a clip; nothing of it is published if anything is wrong with it.

        Args:
            job: The attempt.
            config: Settings, `model` being the clip's.
            repo: Folder of the weights, for the tag.
            attempt: What is known of it so far.
            file: What the program wrote; it is deleted.
            emit: Sends an event to the parent.
        """
        is_kept = job.repeat is None
        begin = time.perf_counter()
        if attempt.error is None:
            with attempt.failing():
                middle = self._check(job.clip, config, attempt, file, emit)
                self._thumbnail(job.clip, middle, is_kept, emit)
                comment = None
                if config.video.embed_metadata:
                    comment = settings_comment(job.clip, repo, config.model.task.name)
                self._copy(job.clip, comment, attempt, file, is_kept)
                attempt.add(write_seconds=time.perf_counter() - begin)
        if self._uploads is not None and is_kept and attempt.error is None:
            with attempt.failing():
                name = attempt.value("file")
                attempt.add(
                    file=self._uploads.upload_clip(name, attempt.id, lambda text: emit(Note(text)))
                )
        remove_scratch(file.parent)
        return attempt.record()

    def _check(
        self, clip: Clip, config: Config, attempt: Attempt, file: Path, emit: Emit
    ) -> np.ndarray[Any, Any]:
        """Decode every frame and measure it; return the middle one.

        Raises:
            ScriptFault: It cannot be decoded, or has not the frames that were asked for.
        """
        settings, meter, count = clip.settings, FrameMeter(), 0
        parts = FaultMeter(settings.num_frames)
        middle: np.ndarray[Any, Any] | None = None
        try:
            for frame in read_frames(file):
                meter.add(frame)
                parts.add(frame)
                if middle is None or count == settings.num_frames // 2:
                    middle = frame
                count += 1
            differences = list(_differences(file, settings))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ScriptFault(DAMAGED, f"the video of generate.py cannot be read: {why}") from error
        if middle is None or count != settings.num_frames:
            raise ScriptFault(
                DAMAGED,
                f"the video of generate.py has {count} frames instead of {settings.num_frames}",
            )
        for difference in differences:
            emit(Note(f"WARNING: {clip.clip_id}: the video of generate.py {difference}"))
        quality = meter.quality(config.quality)
        if quality.quality_flag is None and config.quality.parts and (found := parts.faults()):
            quality = replace(quality, quality_flag=", ".join(found))
        attempt.status = SUSPECT if quality.quality_flag else OK
        attempt.add(**vars(quality))
        return middle

    def _thumbnail(
        self, clip: Clip, middle: np.ndarray[Any, Any], is_kept: bool, emit: Emit
    ) -> None:
        path = self._run_dir.thumbs / f"{clip.clip_id}.jpg"
        with Secondary(f"{clip.clip_id} has no thumbnail", lambda text: emit(Note(text))):
            with publishing(path, is_kept, makes_folder=True) as temporary:
                write_thumbnail(middle[np.newaxis], temporary)

    def _copy(
        self, clip: Clip, comment: str | None, attempt: Attempt, file: Path, is_kept: bool
    ) -> None:
        """Publish the frames as they are, with the settings in the comment."""
        path = self._run_dir.clips / f"{clip.clip_id}.mp4"
        with publishing(path, is_kept, makes_folder=True) as temporary:
            copy_video(file, temporary, comment)
            attempt.add(file_bytes=temporary.stat().st_size, file_sha256=sha256_of_file(temporary))
        if is_kept:
            attempt.add(file=self._run_dir.relative(path))


def _differences(file: Path, settings: ClipSettings) -> Iterator[str]:
    """Yield what a file has otherwise than expected, though it may be what was rendered.

    Raises:
        ValueError: It is no video.
        OSError: It cannot be opened.
    """
    (height, width), rate = frame_size_and_rate(file)
    if (height, width) != (settings.height, settings.width):
        yield f"is {height}x{width}, and {settings.height}x{settings.width} was expected"
    if rate != frame_rate(settings.fps):
        yield f"has {float(rate):g} frames a second, and {settings.fps:g} were expected"
