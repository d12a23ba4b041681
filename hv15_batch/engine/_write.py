"""Writes frames to files and reads them back, on a thread beside the next clip's denoising."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from hv15_batch.clip import ClipSettings
from hv15_batch.config.settings import Config, VideoCodec
from hv15_batch.dispatch.attempt import Attempt
from hv15_batch.dispatch.protocol import Emit, Job, Note
from hv15_batch.errors import Secondary
from hv15_batch.media.faults import FaultMeter
from hv15_batch.media.frame import write_frame
from hv15_batch.media.tag import settings_comment
from hv15_batch.media.video import check_video, file_suffix, write_thumbnail, write_video
from hv15_batch.model.variant import Weights
from hv15_batch.record import OK, SUSPECT
from hv15_batch.rundir.frames import frame_files
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing, sha256_of_file


class ClipWriter:
    """Writes clips and their thumbnails into a run directory."""

    def __init__(self, config: Config, run_dir: RunDir, repo: str) -> None:
        """Remember where and how.

        Args:
            config: codec, tag, and whether latents are kept.
            run_dir: where.
            repo: Hub id or local folder, for the tag.
        """
        self._config = config
        self._run_dir = run_dir
        self._repo = repo

    def write(self, job: Job, attempt: Attempt, frames: torch.Tensor, emit: Emit) -> None:
        """Write uint8 [F, H, W, 3] frames, read the file back, and add the columns that say so.

        Frames with which other clips begin are kept without loss, once the file is good: until then
        an earlier attempt's stay. A repetition of a benchmark is written and checked as well, and
        then dropped. A thumbnail that cannot be made is only told of.

        Raises:
            ValueError: the file read back is not what was written.
            OSError: it cannot be written.
        """
        begin = time.perf_counter()
        clip, settings, is_kept = job.clip, job.clip.settings, job.repeat is None
        config = self._config
        codec = VideoCodec[settings.video["codec"]]
        path = self._run_dir.clips / f"{clip.clip_id}{file_suffix(codec)}"
        pixels: np.ndarray[Any, Any] = frames.numpy()
        thumbnail = self._run_dir.thumbs / f"{clip.clip_id}.jpg"
        with Secondary(f"{clip.clip_id} has no thumbnail", lambda text: emit(Note(text))):
            with publishing(thumbnail, is_kept, makes_folder=True) as temporary:
                write_thumbnail(pixels, temporary)
        self._look_at_parts(settings, attempt, pixels)
        comment = None
        if config.video.embed_metadata:
            comment = settings_comment(clip, self._repo, config.model.task.name)
        with publishing(path, is_kept, makes_folder=True) as temporary:
            write_video(pixels, temporary, fps=settings.fps, video=config.video, comment=comment)
            check_video(
                temporary,
                num_frames=settings.num_frames,
                height=settings.height,
                width=settings.width,
                fps=settings.fps,
            )
            attempt.add(file_bytes=temporary.stat().st_size, file_sha256=sha256_of_file(temporary))
        for number, frame in zip(clip.kept_frames, frame_files(self._run_dir, clip), strict=True):
            with publishing(frame, is_kept, makes_folder=True) as temporary:
                write_frame(pixels[number], temporary)
        if is_kept:
            attempt.add(file=self._run_dir.relative(path))
            if not config.keep_latents and not attempt.has_reused_latents:
                # Written by this very attempt, so it may go also where `latents` is a link.
                self._run_dir.latents_file(clip.denoise_sha256).unlink(missing_ok=True)
                attempt.add(latents_file=None)
        attempt.add(write_seconds=time.perf_counter() - begin)

    def _look_at_parts(
        self, settings: ClipSettings, attempt: Attempt, pixels: np.ndarray[Any, Any]
    ) -> None:
        """Make a clip `suspect` that is faulty in a part; noise is not looked at."""
        is_noise = settings.weights in (Weights.random.name, Weights.tiny.name)
        if is_noise or attempt.status != OK or not self._config.quality.parts:
            return
        meter = FaultMeter(len(pixels))
        for frame in pixels:
            meter.add(frame)
        if faults := meter.faults():
            attempt.status = SUSPECT
            attempt.add(quality_flag=", ".join(faults))
