"""Inside the executor: one clip from settings to a verified file and its record.

docs/life-of-a-clip.md describes the stages: encode, denoise, save latents, decode, check, write,
record. A clip that fails gives a record too (`_attempt`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hv15_batch.clip import Clip
from hv15_batch.dispatch.attempt import Attempt, base_record
from hv15_batch.dispatch.protocol import (
    EncodingCosts,
    Event,
    ExecutorSpec,
    Job,
    Loading,
    Note,
    RendererBroken,
    Stepped,
)
from hv15_batch.engine._ladder import Decoded
from hv15_batch.engine._latents import DenoisedClip, read_latents, write_latents
from hv15_batch.engine._measure import StageMeter, machine_columns, make_sampler, work_columns
from hv15_batch.engine._switch import ModelInUse, ModelSwitch
from hv15_batch.engine._write import ClipWriter
from hv15_batch.engine.denoise.attention import check_backend
from hv15_batch.engine.denoise.compilation import num_compilations
from hv15_batch.engine.device import device_fault, execution_device, limit_device_memory
from hv15_batch.engine.encode.phase import EncodePhase
from hv15_batch.engine.load.linears import check_linears
from hv15_batch.engine.preview.of_clips import ClipPreviews
from hv15_batch.errors import Secondary
from hv15_batch.machine.cards import ALLOCATOR_BYTES
from hv15_batch.model.shapes import Shape
from hv15_batch.model.variant import Weights
from hv15_batch.record import (
    DECODE,
    DENOISE,
    LOAD,
    OK,
    SUSPECT,
    WARM_UP,
    ClipRecord,
    seconds_column,
)
from hv15_batch.rundir.frames import frame_files
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.remote.shared import Inputs
from hv15_batch.rundir.store import open_uploads

if TYPE_CHECKING:
    from hv15_batch.rundir.store import Uploads

Emit = Callable[[Event], None]


class ClipRenderer:
    """Holds the components, each loaded once, and renders clip after clip."""

    def __init__(self, spec: ExecutorSpec) -> None:
        """Prepare, but load nothing: a clip with saved latents needs no transformer."""
        self._spec = spec
        self._run_dir = RunDir(spec.run_dir)
        self._devices = [execution_device(model.config) for model in spec.models.values()]
        needs_card = spec.budget_bytes is not None or spec.only_card is not None
        if needs_card and all(d.type == "cpu" for d in self._devices):
            raise RuntimeError("CUDA finds no card, and there was one when the run began")
        self._samplers = {device: make_sampler(device) for device in self._devices}
        self._switch = ModelSwitch(spec)
        inputs = Inputs(self._run_dir) if spec.shares_inputs else None
        self._encode_phase = EncodePhase(self._run_dir, self._switch, self._make_meter, inputs)
        if spec.budget_bytes is not None:
            for device in set(self._devices):
                limit_device_memory(device, spec.budget_bytes + ALLOCATOR_BYTES)
        self._longest = dict(spec.longest)
        self._checked: set[str] = set()
        """Models whose kernels were chosen and checked here."""
        self._has_rendered = False
        self._uploads = open_uploads(self._run_dir)
        self._previews = ClipPreviews(spec)
        self._machines = {device: machine_columns(device) for device in self._devices}

    def encode(self, clips: Sequence[Clip], emit: Emit) -> None:
        """Encode each text and image that the cache lacks once, then release the encoders.

        `clips` are those that will be denoised. Kernels are checked before.

        Raises:
            Refused: see `_choose_kernels`.
        """
        for clip in clips:
            name, tokens = clip.settings.model, Shape.of(clip.settings).num_video_tokens
            self._longest[name] = max(tokens, self._longest.get(name, 0))
        for name in self._longest:
            self._choose_kernels(name, emit)
        self._encode_phase.encode(clips, emit)
        emit(EncodingCosts(self._encode_phase.take_costs(clips)))

    def _choose_kernels(self, name: str, emit: Emit) -> None:
        """Choose and check the kernels of a model, once, before its transformer is loaded.

        A worker that replaces another one does so at its first clip of the model.

        Raises:
            Refused: the card does not compute what `runtime.linear` asks for; the attention
                asked for cannot run here, or its result is not torch's.
        """
        if name in self._checked:
            return
        model = self._switch.models[name]
        check_linears(model.config)
        backend = check_backend(
            model.config,
            model.checkpoint,
            self._longest[name],
            execution_device(model.config),
            tell=lambda text: emit(Note(text)),
        )
        self._switch.set_attention(name, backend)
        self._checked.add(name)

    def render(self, job: Job, emit: Emit) -> Callable[[], ClipRecord]:
        """Denoise and decode a clip; return what checks and writes it and gives its record."""
        clip = job.clip
        model = self._switch.use(clip.settings.model)
        attempt = Attempt(self._base_record(job, model))
        meter = self._make_meter(model.device)
        decoded: Decoded | None = None
        steps = clip.settings.num_inference_steps
        compiled_before = num_compilations()
        will_denoise = clip.settings.model in self._longest
        if will_denoise:
            self._choose_kernels(clip.settings.model, emit)
        if not model.models.are_complete:
            emit(Stepped(clip.clip_id, LOAD, 0, steps))
            what = model.models.missing(will_denoise)
            emit(Loading(what if len(self._devices) == 1 else f"{what} of {clip.settings.model}"))
        with attempt.failing():
            # Kernels are chosen at the first clip of a worker.
            attempt.add(is_cold=not self._has_rendered or job.repeat == WARM_UP)
            self._has_rendered = True
            if will_denoise:
                # All at once, also where the first clips come from latents: a worker loads once.
                model.models.load()
            with self._previews.showing(job, model, emit):
                denoised = self._denoised(job, model, meter, attempt, emit)
                emit(Stepped(clip.clip_id, DECODE, steps, steps))
                with meter.stage(DECODE):
                    decoded = model.ladder.decode(clip, denoised.latents, emit)
            self._previews.decoded(job, model, denoised.latents, decoded.frames)
            self._judge(attempt, decoded, model)
        if attempt.error and (fault := device_fault(model.device, *attempt.error)):
            raise RendererBroken(
                f"the worker can no longer use the device ({fault})", attempt.record()
            )
        if num_compilations() > compiled_before:
            attempt.add(is_cold=True)
        load_seconds = model.models.take_load_seconds()
        if load_seconds is not None:
            attempt.add(load_seconds=load_seconds, is_cold=True)
        attempt.add_measured(meter.columns())
        frames = None if attempt.error or decoded is None else decoded.frames
        return lambda: self._finish(job, model.writer, attempt, frames, emit)

    def _denoised(
        self, job: Job, model: ModelInUse, meter: StageMeter, attempt: Attempt, emit: Emit
    ) -> DenoisedClip:
        """Return saved latents, or denoise and save them."""
        clip = job.clip
        path = self._run_dir.latents_file(clip.denoise_sha256)
        # A repetition measures the whole rendering, and leaves nothing behind.
        is_repetition = job.repeat is not None
        may_reuse = job.use_latents and not is_repetition
        saved = self._saved(path, clip.denoise_sha256) if may_reuse else None
        frame = self._encode_phase.frame_sha256(clip)
        if saved is not None and frame not in (None, saved.columns.get("image_sha256")):
            saved = None  # of a frame that the clip before had when it was rendered earlier
        is_new = saved is None
        if saved is not None:
            attempt.add(**saved.columns)
            # 0 where another clip denoised them, or an attempt that a crash left without a record.
            is_own = saved.settings_sha256 == clip.settings_sha256
            denoised_in = saved.columns["denoise_attempt"] if is_own else 0
            attempt.add(denoise_attempt=min(denoised_in, job.attempt - 1))
        else:
            saved = self._denoise(job, model, meter, attempt, emit)
            if not is_repetition:
                write_latents(path, clip, saved)
            attempt.add(**saved.columns)
        if self._uploads is not None and not is_repetition and model.config.keep_latents:
            self._uploads.begin_latents(path, attempt.id, is_new)
        attempt.add(
            latents_file=None if is_repetition else self._run_dir.relative(path),
            latents_sha256=saved.latents_sha256,
        )
        return saved

    def _saved(self, path: Path, denoise_sha256: str) -> DenoisedClip | None:
        """Return saved latents of the disk, else of object storage; None without any."""
        saved = read_latents(path, denoise_sha256)
        if saved is None and self._uploads is not None and self._uploads.fetch_latents(path):
            saved = read_latents(path, denoise_sha256)
        return saved

    def _denoise(
        self, job: Job, model: ModelInUse, meter: StageMeter, attempt: Attempt, emit: Emit
    ) -> DenoisedClip:
        """Return new latents and what denoising them took."""
        clip = job.clip
        conditioning, is_cached = self._encode_phase.conditioning(clip, meter, emit, job.encoding)
        attempt.add(encode_cached=is_cached)
        result = model.ladder.denoise(clip, conditioning, meter, emit, job.on_torch_attention)
        if not torch.isfinite(result.latents).all():  # on the device: the CPU takes 40 ms
            steps = clip.settings.num_inference_steps
            raise FloatingPointError(
                f"the latents are not finite after {steps} steps; bfloat16 is the safe type"
            )
        columns = meter.columns()
        seconds = columns[seconds_column(DENOISE)]
        assert seconds is not None
        is_small = model.config.model.weights.is_small
        gpu_name = None if is_small else self._machines[model.device]["gpu_name"] or ""
        frame = self._encode_phase.frame_sha256(clip)
        work: dict[str, Any] = {} if frame is None else {"image_sha256": frame}
        with Secondary("tokens and FLOP of a clip are not logged"):
            backend = str(model.models.in_effect()["attention_backend"])
            work |= work_columns(clip.settings, conditioning, float(seconds), gpu_name, backend)
        return DenoisedClip(
            latents=result.latents.cpu(),
            settings_sha256=clip.settings_sha256,
            columns={
                "denoise_seconds": seconds,
                "num_computed_steps": result.num_computed_steps,
                "step_seconds": result.step_seconds,
                "denoise_attempt": job.attempt,
                **{k: v for k, v in columns.items() if k.startswith(f"{DENOISE}_peak_")},
                **model.models.in_effect(),
                **work,
            },
        )

    @staticmethod
    def _judge(attempt: Attempt, decoded: Decoded, model: ModelInUse) -> None:
        """Add the measures of the frames; `suspect` where they show no picture."""
        quality = decoded.quality.quality(model.config.quality)
        is_noise = model.config.model.weights in (Weights.random, Weights.tiny)
        attempt.status = SUSPECT if quality.quality_flag and not is_noise else OK
        attempt.add(
            **vars(quality), vae_tile_size=decoded.plan.tile_size, decode_device=decoded.device
        )
        if decoded.tries > 1:
            attempt.add(is_cold=True)

    def _finish(
        self,
        job: Job,
        writer: ClipWriter,
        attempt: Attempt,
        frames: torch.Tensor | None,
        emit: Emit,
    ) -> ClipRecord:
        """Write the frames; runs on a thread while the next clip denoises."""
        if frames is not None:
            with attempt.failing():
                writer.write(job, attempt, frames, emit)
        if self._uploads is not None and job.repeat is None:
            with attempt.failing():
                self._upload(self._uploads, job.clip, attempt, emit)
        return attempt.record()

    def _upload(self, uploads: Uploads, clip: Clip, attempt: Attempt, emit: Emit) -> None:
        """Upload what an attempt made, and name the objects in its columns."""

        def tell(text: str) -> None:
            emit(Note(text))

        name = None
        try:
            name = uploads.end_latents(attempt.id, tell)
        finally:
            attempt.add(latents_file=name)
        if attempt.error is None:
            uploads.upload_frames(frame_files(self._run_dir, clip), attempt.id, tell)
            attempt.add(file=uploads.upload_clip(attempt.value("file"), attempt.id, tell))

    def _make_meter(self, device: torch.device) -> StageMeter:
        return StageMeter(device, self._samplers[device])

    def _base_record(self, job: Job, model: ModelInUse) -> ClipRecord:
        task, columns = model.config.model.task, self._machines[model.device]
        return base_record(self._spec, job, model.checkpoint.repo, task, **columns)
