"""Renders with Tencent's generate.py: a process for each clip, or one for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.attempt import Attempt, base_record
from hv15_batch.dispatch.protocol import Emit, ExecutorSpec, Job, Loading, Note, Stepped
from hv15_batch.external._process import Program
from hv15_batch.external._publish import ClipPublisher
from hv15_batch.external._served import NotTaken, Served
from hv15_batch.external._strays import Strays
from hv15_batch.external._unchanged import Unchanged
from hv15_batch.external._watch import Watch
from hv15_batch.files import remove_scratch
from hv15_batch.machine.nvml import GpuHealthReader
from hv15_batch.media.image import read_image_bytes
from hv15_batch.official.command import ENVIRONMENT, output_file, row_command
from hv15_batch.official.limits import asks_for_sage, script_of
from hv15_batch.official.verdict import check_words
from hv15_batch.record import LOAD, WARM_UP, ClipRecord
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.store import open_uploads

_POLL_SECONDS = 0.25


class ScriptRenderer:
    """Starts the script, follows what it says, and publishes what it wrote."""

    def __init__(self, spec: ExecutorSpec) -> None:
        """Prepare; nothing is started before the first clip."""
        self._spec = spec
        self._run_dir = RunDir(spec.run_dir)
        self._publisher = ClipPublisher(self._run_dir, open_uploads(self._run_dir))
        self._health = GpuHealthReader(spec.gpu.uuid if spec.gpu else None)
        self._unchanged = Unchanged()
        self._served: Served | None = None

    def encode(self, clips: Sequence[Clip], emit: Emit) -> None:
        """Do nothing: the script encodes each clip's text itself."""

    def render(self, job: Job, emit: Emit) -> Callable[[], ClipRecord]:
        """Let the script make a clip; return what checks and publishes it and gives its record."""
        clip = job.clip
        config = self._spec.models[clip.settings.model].config
        attempt = Attempt(self._base_record(job, config))
        file = output_file(self._run_dir.clips, clip.clip_id, job.repeat)
        # A process of its own is as cold for each clip, so that none of them is colder.
        attempt.add(is_cold=job.repeat == WARM_UP)
        with attempt.failing():
            remove_scratch(file.parent)  # of an attempt that was killed
            file.parent.mkdir(parents=True)
            clip = with_checked_image(clip, file.parent)
            emit(Stepped(clip.clip_id, LOAD, 0, clip.settings.num_inference_steps))
            self._unchanged.check(config, clip, emit)
            strays = Strays(self._run_dir, clip.clip_id)
            try:
                watch, code = self._ask(config, clip, file, emit, attempt)
            finally:
                if names := strays.remove():
                    emit(Note(f"WARNING: {clip.clip_id}: removed what generate.py left: {names}"))
            attempt.other_seconds = watch.other_seconds
            attempt.add(**watch.columns())
            check_words(
                watch.output,
                code,
                file,
                seed=clip.settings.seed,
                asks_for_sage=asks_for_sage(config),
            )
            self._unchanged.check(config, clip, emit)
        if attempt.error is not None:
            self.close()  # what is left of a process after an error is not to be trusted
        repo = self._spec.models[clip.settings.model].checkpoint.repo
        return lambda: self._publisher.publish(job, config, repo, attempt, file, emit)

    def close(self) -> None:
        """End the process that has the model, if there is one; it also ends with the worker."""
        if self._served is not None:
            self._served.end()
            self._served = None

    def _ask(
        self, config: Config, clip: Clip, file: Path, emit: Emit, attempt: Attempt
    ) -> tuple[Watch, int | None]:
        """Let the script make a clip; return what it said, and its exit code."""
        watch = Watch(clip, file, emit, self._health)
        if config.official.load_once:
            try:
                return watch, self._serve(config, clip, file, watch, emit, attempt)
            except NotTaken:
                self.close()
            watch = Watch(clip, file, emit, self._health)
            return watch, self._serve(config, clip, file, watch, emit, attempt)
        emit(Loading("generate.py and its model"))
        code = self._run(config, clip, file, watch)
        attempt.add(load_seconds=watch.load_seconds)
        return watch, code

    def _run(self, config: Config, clip: Clip, file: Path, watch: Watch) -> int:
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
        watch: Watch,
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
