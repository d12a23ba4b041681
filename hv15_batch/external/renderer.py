"""Renders with Tencent's generate.py: a process for each clip, or one for all of them."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.attempt import Attempt, base_record
from hv15_batch.dispatch.protocol import Emit, ExecutorSpec, Job, Loading, Stepped
from hv15_batch.external._process import Program
from hv15_batch.external._publish import ClipPublisher
from hv15_batch.external._served import Served
from hv15_batch.files import remove_scratch
from hv15_batch.machine.nvml import GpuHealthReader
from hv15_batch.media.image import read_image_bytes
from hv15_batch.official.command import ENVIRONMENT, output_file, row_command
from hv15_batch.official.limits import asks_for_sage, script_of
from hv15_batch.official.output import Heard, Output
from hv15_batch.official.verdict import check_words
from hv15_batch.record import DECODE, DENOISE, ENCODE, LOAD, WARM_UP, ClipRecord
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.store import open_uploads

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25


class ScriptRenderer:
    """Starts the script, follows what it says, and publishes what it wrote."""

    def __init__(self, spec: ExecutorSpec) -> None:
        """Prepare; nothing is started before the first clip."""
        self._spec = spec
        self._run_dir = RunDir(spec.run_dir)
        self._publisher = ClipPublisher(self._run_dir, open_uploads(self._run_dir))
        self._health = GpuHealthReader(spec.gpu.uuid if spec.gpu else None)
        self._served: Served | None = None

    def encode(self, clips: Sequence[Clip], emit: Emit) -> None:
        """Do nothing: the script encodes each clip's text itself."""

    def render(self, job: Job, emit: Emit) -> Callable[[], ClipRecord]:
        """Let the script make a clip; return what checks and publishes it and gives its record."""
        clip = job.clip
        config = self._spec.models[clip.settings.model].config
        attempt = Attempt(self._base_record(job, config))
        file = output_file(self._run_dir.clips, clip.clip_id, job.repeat)
        output = Output(clip.settings.num_inference_steps, file)
        # A process of its own is as cold for each clip, so that none of them is colder.
        attempt.add(is_cold=job.repeat == WARM_UP)
        with attempt.failing():
            remove_scratch(file.parent)  # of an attempt that was killed
            file.parent.mkdir(parents=True)
            clip = with_checked_image(clip, file.parent)
            emit(Stepped(clip.clip_id, LOAD, 0, clip.settings.num_inference_steps))
            watch = _Watch(clip, output, emit, self._health)
            if config.official.load_once:
                code = self._serve(config, clip, file, watch, emit, attempt)
            else:
                emit(Loading("generate.py and its model"))
                code = self._run(config, clip, file, watch)
                attempt.add(load_seconds=watch.load_seconds)
            attempt.other_seconds = watch.clip_seconds
            attempt.add(**watch.columns())
            check_words(
                output,
                code,
                file,
                seed=clip.settings.seed,
                asks_for_sage=asks_for_sage(config),
            )
        if attempt.error is not None:
            self.close()  # what is left of a process after an error is not to be trusted
        repo = self._spec.models[clip.settings.model].checkpoint.repo
        return lambda: self._publisher.publish(job, config, repo, attempt, file, emit)

    def close(self) -> None:
        """End the process that has the model, if there is one; it also ends with the worker."""
        if self._served is not None:
            self._served.end()
            self._served = None

    def _run(self, config: Config, clip: Clip, file: Path, watch: _Watch) -> int:
        """Run the script under torchrun for one clip; return its exit code."""
        words = row_command(config, clip, file)
        folder = script_of(config.official).parent
        with Program(words, folder, ENVIRONMENT, has_results=False) as program:
            while not program.is_over:
                for stream, line in program.read(_POLL_SECONDS):
                    watch.heard(stream, line)
                watch.tick()
            watch.end()
            return program.wait()

    def _serve(
        self,
        config: Config,
        clip: Clip,
        file: Path,
        watch: _Watch,
        emit: Emit,
        attempt: Attempt,
    ) -> int | None:
        """Give the clip to the process that has the model; return the code of its row."""
        if self._served is not None and self._served.is_gone:
            self.close()
        if self._served is None:
            emit(Loading("generate.py and its model"))
            self._served = Served(config)
            attempt.add(is_cold=True)
        is_first = self._served.num_rows == 0
        code = self._served.render(config, clip, file, watch.heard, watch.tick)
        watch.end()
        if is_first:
            attempt.add(load_seconds=watch.load_seconds)
        return code

    def _base_record(self, job: Job, config: Config) -> ClipRecord:
        spec, gpu, settings = self._spec, self._spec.gpu, job.clip.settings
        return base_record(
            spec,
            job,
            spec.models[settings.model].checkpoint.repo,
            config.model.task,
            engine_version=(settings.engine or "").partition(" ")[0].partition("@")[2] or None,
            gpu_name=gpu.name if gpu else None,
            gpu_uuid=gpu.uuid if gpu else None,
            gpu_index=gpu.index if gpu else None,
            gpu_total_bytes=gpu.total_bytes if gpu else None,
            driver_version=gpu.driver if gpu else None,
        )


def with_checked_image(clip: Clip, folder: Path) -> Clip:
    """Return a clip whose first frame is a copy, so that what was planned is what is rendered.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not the file that was planned.
    """
    if clip.image_path is None:
        return clip
    path = Path(clip.image_path)
    data = read_image_bytes(clip.image_path)
    if hashlib.sha256(data).hexdigest() != clip.settings.image_sha256:
        raise ValueError(f"{path.name} has changed since the run began; run again")
    copy = folder / f"first_frame{path.suffix}"
    copy.write_bytes(data)
    return replace(clip, image_path=str(copy))


class _Watch:
    """Follows one clip: its stages for those who wait, its seconds and the card's memory."""

    def __init__(self, clip: Clip, output: Output, emit: Emit, health: GpuHealthReader) -> None:
        self._clip, self._output, self._emit, self._health = clip, output, emit, health
        self._began = time.perf_counter()
        self._box_at: float | None = None
        self._ended_at: float | None = None
        self._peak_bytes: int | None = None

    def heard(self, stream: str, line: str) -> None:
        """Take in a line."""
        heard = self._output.heard(line, stream == "error")
        steps = self._clip.settings.num_inference_steps
        if heard is Heard.step:
            self._step(DENOISE, self._output.step)
            if self._output.step == steps:
                self._step(DECODE, steps)
            return
        if heard is Heard.box:
            self._box_at = time.perf_counter()
            self._step(ENCODE, 0)
        if line.strip() and "%|" not in line:
            logger.info("generate.py: %s", line.rstrip())

    def _step(self, stage: str, step: int) -> None:
        self._emit(
            Stepped(self._clip.clip_id, stage, step, self._clip.settings.num_inference_steps)
        )

    def tick(self) -> None:
        """Look at the card's memory."""
        used = self._health.read().vram_used_bytes
        if used is not None:
            self._peak_bytes = max(used, self._peak_bytes or 0)

    def end(self) -> None:
        """Stop the clock."""
        self._ended_at = time.perf_counter()

    @property
    def load_seconds(self) -> float | None:
        """From the start to the box, which is printed once the model is loaded."""
        return None if self._box_at is None else self._box_at - self._began

    @property
    def clip_seconds(self) -> float | None:
        """From the box to the end; None where it said none."""
        if self._box_at is None or self._ended_at is None:
            return None
        return self._ended_at - self._box_at

    def columns(self) -> dict[str, Any]:
        """Return what is known of the clip; what the script does not tell is missing."""
        return {
            "attention_backend": self._output.attention,
            "dtype": self._output.dtype,
            "peak_vram_device_bytes": self._peak_bytes,
        }
