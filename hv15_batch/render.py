"""Inside the executor: one clip from settings to a verified file and its record.

The life of a clip, as docs/life-of-a-clip.md has it: encode, denoise, save latents, decode, check,
write, record. A clip that fails is a record too (`attempt`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hv15_batch import __version__, costs
from hv15_batch.attempt import Attempt
from hv15_batch.attention import (
    NATIVE,
    apply_attention,
    attention_backend_of,
    check_accuracy,
    is_mask_free,
)
from hv15_batch.checkpoint import cache_root, tiny_root
from hv15_batch.clip import Clip
from hv15_batch.clip_facts import settings_comment, work_columns
from hv15_batch.config import VideoCodec, Weights
from hv15_batch.decode import TilePlan, decode_frames, plan_tiles
from hv15_batch.embeddings import Conditioning
from hv15_batch.encode_phase import EncodePhase
from hv15_batch.executor import WARM_UP, Event, ExecutorSpec, Job, Note, RendererBroken, Stepped
from hv15_batch.latents import DenoisedClip, read_latents, write_latents
from hv15_batch.machine import read_ram
from hv15_batch.measure import (
    StageMeter,
    device_fault,
    limit_device_memory,
    machine_columns,
    make_sampler,
)
from hv15_batch.pipeline import Denoised, Denoiser, denoise, load_denoiser, load_vae
from hv15_batch.placement import Placement, execution_device
from hv15_batch.quality import measure_quality
from hv15_batch.records import OK, SUSPECT, ClipRecord, asked_record
from hv15_batch.rundir import RunDir, publishing, sha256_of_file, utc_now
from hv15_batch.tile_plan import NoPlanError
from hv15_batch.tiny import ensure_checkpoint
from hv15_batch.video import check_video, file_suffix, write_thumbnail, write_video

Emit = Callable[[Event], None]


class ClipRenderer:
    """Holds the components, each loaded once, and renders clip after clip."""

    def __init__(self, spec: ExecutorSpec) -> None:
        """Prepare, but load nothing: a clip with saved latents needs no transformer."""
        config = spec.config
        self._spec = spec
        self._config = config
        self._run_dir = RunDir(spec.run_dir)
        self._device = execution_device(config)
        if spec.budget_bytes is not None and self._device.type == "cpu":
            raise RuntimeError("CUDA finds no card, and there was one when the run began")
        self._folder: Path | None = spec.checkpoint
        self._is_tiny = config.model.weights is Weights.tiny
        if self._is_tiny:
            # Small tensors gain nothing from threads, and lose much where others use the cores.
            torch.set_num_threads(1)
            self._folder = ensure_checkpoint(config.model, tiny_root())
        self._sampler = make_sampler(self._device)
        self._placement = Placement(spec.offload, self._device, cache_root() / "blocks")
        self._encode_phase = EncodePhase(
            spec, self._folder, self._device, self._make_meter, self._placement, self._load_vae
        )
        if spec.budget_bytes is not None:
            limit_device_memory(self._device, spec.budget_bytes + costs.ALLOCATOR_BYTES)
        self._vae: Any = None
        self._denoiser: Denoiser | None = None
        self._is_backend_checked = False
        self._will_denoise = False
        self._load_seconds: float | None = None
        self._attention = config.runtime.attention_backend  # as applied last, maybe `auto`
        self._sizes_seen: set[tuple[int, int, int, bool, bool]] = set()
        self._machine = machine_columns(self._device)

    def encode(self, clips: Sequence[Clip], emit: Emit) -> None:
        """Encode each text and image that the cache lacks once, then release the encoders.

        These are the clips that will be denoised.
        """
        self._will_denoise = bool(clips)
        self._encode_phase.encode(clips, emit)

    # -- one clip -----------------------------------------------------------------------------

    def render(self, job: Job, emit: Emit) -> Callable[[], ClipRecord]:
        """Denoise and decode a clip; return what checks and writes it and gives its record."""
        clip = job.clip
        attempt = Attempt(self._base_record(job))
        meter = self._make_meter()
        frames: torch.Tensor | None = None
        steps = clip.settings.num_inference_steps
        if self._vae is None or self._denoiser is None:
            emit(Stepped(clip.clip_id, "load", 0, steps))
        with attempt.failing():
            attempt.add(is_cold=self._is_cold(job))
            if self._will_denoise:
                # All at once, also where the first clips come from latents: a worker loads once.
                self._load_denoiser(job)
            denoised = self._denoised(job, meter, attempt, emit)
            emit(Stepped(clip.clip_id, "decode", steps, steps))
            with meter.stage("decode"):
                frames = self._decoded(clip, denoised.latents, attempt, emit)
        if attempt.error and (fault := device_fault(self._device, *attempt.error)):
            raise RendererBroken(
                f"the worker can no longer use the device ({fault})", attempt.record()
            )
        if self._load_seconds is not None:
            attempt.add(load_seconds=self._load_seconds, is_cold=True)
            self._load_seconds = None
        attempt.add_measured(meter.columns())
        return lambda: self._finish(job, attempt, frames)

    def _make_meter(self) -> StageMeter:
        return StageMeter(self._device, self._sampler)

    def _is_cold(self, job: Job) -> bool:
        """Whether this clip pays for first things: kernels, and compilation for its size."""
        s = job.clip.settings
        size = (s.height, s.width, s.num_frames, s.has_guidance, job.on_torch_attention)
        is_first = not self._sizes_seen
        is_compiling = self._config.runtime.compile and size not in self._sizes_seen
        self._sizes_seen.add(size)
        return is_first or is_compiling or job.repeat == WARM_UP

    def _denoised(self, job: Job, meter: StageMeter, attempt: Attempt, emit: Emit) -> DenoisedClip:
        """Return saved latents, or denoise and save them."""
        clip = job.clip
        path = self._run_dir.latents_file(clip.denoise_sha256)
        # A repetition measures the whole of it, and leaves nothing behind.
        is_repetition = job.repeat is not None
        may_reuse = job.use_latents and not is_repetition
        saved = read_latents(path, clip.denoise_sha256) if may_reuse else None
        is_reused = saved is not None
        if saved is None:
            conditioning, is_cached = self._encode_phase.conditioning(clip, meter, emit)
            attempt.add(encode_cached=is_cached)
            pipe = self._load_denoiser(job)
            self._check_backend(pipe, clip, conditioning)
            steps = clip.settings.num_inference_steps
            result, shortage = None, ""
            try:
                result = self._denoise(pipe, clip, conditioning, meter, emit)
            except torch.OutOfMemoryError as error:
                shortage = str(error)
            if result is None:  # outside of `except`: the error's frames hold the transformer
                del pipe
                if not self._step_down(emit):
                    raise torch.OutOfMemoryError(shortage)
                pipe = self._load_denoiser(job)
                result = self._denoise(pipe, clip, conditioning, meter, emit)
            if not torch.isfinite(result.latents).all():
                raise FloatingPointError(
                    f"the latents are not finite after {steps} steps; bfloat16 is the safe type"
                )
            columns = meter.columns()
            seconds = columns["denoise_seconds"]
            assert seconds is not None
            saved = DenoisedClip(
                latents=result.latents,
                settings_sha256=clip.settings_sha256,
                columns={
                    "denoise_seconds": seconds,
                    "step_seconds": result.step_seconds,
                    "denoise_attempt": job.attempt,
                    **{k: v for k, v in columns.items() if k.startswith("denoise_peak_")},
                    **self._effective(pipe),
                    **work_columns(
                        clip.settings,
                        conditioning,
                        float(seconds),
                        None if self._is_tiny else self._machine["gpu_name"] or "",
                    ),
                },
            )
            if not is_repetition:
                write_latents(path, clip, saved)
        attempt.add(**saved.columns)
        if is_reused:
            # 0 where another clip denoised them, or an attempt that a crash left without a record.
            is_own = saved.settings_sha256 == clip.settings_sha256
            denoised_in = saved.columns["denoise_attempt"] if is_own else 0
            attempt.add(denoise_attempt=min(denoised_in, job.attempt - 1))
        attempt.add(
            latents_file=None if is_repetition else self._run_dir.relative(path),
            latents_sha256=saved.latents_sha256(),
        )
        return saved

    def _denoise(
        self,
        pipe: Denoiser,
        clip: Clip,
        conditioning: Conditioning,
        meter: StageMeter,
        emit: Emit,
    ) -> Denoised:
        def on_step(step: int, total: int) -> None:
            emit(Stepped(clip.clip_id, "denoise", step, total))

        with meter.stage("denoise"), self._placement.denoising():
            return denoise(pipe, clip, conditioning, on_step)

    def _step_down(self, emit: Emit) -> bool:
        """After running out of memory: change to the next smaller profile for the rest of the run.

        The transformer is loaded again, into host memory.
        """
        if not self._config.retry.ladder:
            return False
        self._denoiser = None
        _, available = read_ram()
        if not self._placement.step_down(available > costs.TRANSFORMER_BYTES + costs.GIB):
            return False
        _release_memory()
        name = self._placement.kind.name
        text = f"out of memory while denoising: going on with offload={name}"
        emit(Note(text, self._placement.kind))
        return True

    def _decoded(
        self, clip: Clip, latents: torch.Tensor, attempt: Attempt, emit: Emit
    ) -> torch.Tensor:
        """Return the frames; when memory runs out from smaller tiles, then alone on the card."""
        vae = self._load_vae()
        shares = (1.0, 0.6, 1.0) if self._config.retry.ladder else (1.0,)
        for rung, share in enumerate(shares, 1):
            if 1 < rung == len(shares):
                self._placement.leave_transformer()
            try:
                with self._placement.decoding():
                    plan = self._tile_plan(clip, share)
                    frames = decode_frames(vae, latents, plan)
            except (torch.OutOfMemoryError, NoPlanError) as error:
                if rung == len(shares):
                    raise
                attempt.add(is_cold=True)  # its seconds are those of several tries
                emit(Note(f"out of memory while decoding, trying with less: {str(error)[:200]}"))
            else:
                attempt.add(vae_tile_size=plan.tile_size, decode_device=str(vae.device))
                return frames
            _release_memory()
        raise AssertionError("the last rung returns or raises")

    def _finish(self, job: Job, attempt: Attempt, frames: torch.Tensor | None) -> ClipRecord:
        """Check and write the frames; runs on a thread while the next clip denoises."""
        with attempt.failing():
            if frames is not None:
                begin = time.perf_counter()
                self._write(job, attempt, frames)
                attempt.add(write_seconds=time.perf_counter() - begin)
        return attempt.record()

    def _write(self, job: Job, attempt: Attempt, frames: torch.Tensor) -> None:
        clip, is_kept = job.clip, job.repeat is None
        config, settings = self._config, clip.settings
        quality = measure_quality(frames, config.quality)
        attempt.add(**vars(quality))
        is_noise = config.model.weights is not Weights.pretrained
        attempt.status = SUSPECT if quality.quality_flag and not is_noise else OK
        codec = VideoCodec[settings.video["codec"]]
        path = self._run_dir.clips / f"{clip.clip_id}{file_suffix(codec)}"
        pixels: np.ndarray[Any, Any] = frames.numpy()
        with publishing(self._run_dir.thumbs / f"{clip.clip_id}.jpg", is_kept) as temporary:
            write_thumbnail(pixels, temporary)
        comment = None
        if config.video.embed_metadata:
            comment = settings_comment(clip, self._spec.repo, config.model.task.name)
        with publishing(path, is_kept) as temporary:
            write_video(pixels, temporary, fps=settings.fps, video=config.video, comment=comment)
            check_video(
                temporary,
                num_frames=settings.num_frames,
                height=settings.height,
                width=settings.width,
                fps=settings.fps,
            )
            attempt.add(file_bytes=temporary.stat().st_size, file_sha256=sha256_of_file(temporary))
        if not is_kept:
            return
        attempt.add(file=self._run_dir.relative(path))
        if not config.keep_latents and not attempt.has_reused_latents:
            self._run_dir.latents_file(clip.denoise_sha256).unlink(missing_ok=True)
            attempt.add(latents_file=None)

    # -- components ---------------------------------------------------------------------------

    def _load_vae(self) -> Any:
        if self._vae is None:
            with self._loading():
                self._vae = load_vae(self._config, self._folder, self._placement.loading_device)
                self._placement.hold_vae(self._vae)
        return self._vae

    def _load_denoiser(self, job: Job) -> Denoiser:
        """Return the pipeline, with the attention that this clip is to have."""
        runtime = self._config.runtime
        if self._denoiser is None:
            vae = self._load_vae()
            self._attention = runtime.attention_backend
            with self._loading():
                self._denoiser = load_denoiser(
                    self._config,
                    self._folder,
                    vae=vae,
                    loading_device=self._placement.loading_device,
                )
                self._placement.hold_transformer(self._denoiser.transformer)
        attention = NATIVE if job.on_torch_attention else runtime.attention_backend
        if attention != self._attention:
            transformer = self._denoiser.transformer
            apply_attention(transformer, attention, runtime.mask_free, self._device)
            self._attention = attention
        return self._denoiser

    @contextmanager
    def _loading(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._load_seconds = (self._load_seconds or 0.0) + time.perf_counter() - begin

    def _tile_plan(self, clip: Clip, share: float) -> TilePlan:
        """Return the fastest plan within this share of what is free."""
        settings = clip.settings
        size = (settings.height // 16, settings.width // 16, (settings.num_frames - 1) // 4 + 1)
        budget = self._decode_budget_bytes()
        if budget is not None:
            budget = int(budget * share)
        return plan_tiles(*size, budget, self._device.type)

    def _decode_budget_bytes(self) -> int | None:
        """Return what decoding may take in all, the VAE's weights included."""
        if self._device.type != "cuda":
            return None
        allocated = torch.cuda.memory_allocated(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        usable = free + torch.cuda.memory_reserved(self._device)
        if self._spec.budget_bytes is not None:
            usable = min(usable, self._spec.budget_bytes)
        vae_bytes: int = sum(p.numel() * p.element_size() for p in self._vae.parameters())
        return int(usable - (allocated - vae_bytes))

    def _check_backend(self, pipe: Denoiser, clip: Clip, conditioning: Conditioning) -> None:
        """Check a foreign attention kernel once, on the shapes of the first clip that has it."""
        if not self._is_backend_checked and self._attention != NATIVE:
            s = clip.settings
            tokens = costs.num_video_tokens(s.height, s.width, s.num_frames)
            tokens += conditioning.prompt.num_text_tokens + conditioning.prompt.num_glyph_tokens
            check_accuracy(pipe.transformer, tokens, self._device)
            self._is_backend_checked = True

    # -- what the record says -----------------------------------------------------------------

    def _base_record(self, job: Job) -> ClipRecord:
        spec = self._spec
        return asked_record(
            job.clip,
            run_id=spec.run_id,
            attempt=job.attempt,
            repeat=job.repeat,
            manifest_sha256=spec.manifest_sha256,
            started_at=utc_now(),
            repo=spec.repo,
            task=self._config.model.task.name,
            hostname=spec.hostname,
            system_sha256=spec.system_sha256,
            hv15_batch_version=__version__,
            worker_id=spec.worker_id,
            **self._machine,
        )

    def _effective(self, pipe: Denoiser) -> dict[str, Any]:
        return {
            "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
            "attention_backend": attention_backend_of(pipe.transformer),
            "mask_free": is_mask_free(pipe.transformer),
            "compiled": self._config.runtime.compile,
            "offload": self._placement.describe(),
        }


def _release_memory() -> None:
    """Free what an error left behind, so that the next try has all of it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
