"""Inside the executor: one clip from settings to a verified file and its record.

The life of a clip, as docs/life-of-a-clip.md has it: encode, denoise, save latents, decode, check,
write, record. The only broad `except` of the project is here: a clip that fails is a record.
"""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hv15_batch import __version__, costs
from hv15_batch.attention import attention_backend_of, check_accuracy, is_mask_free
from hv15_batch.cards import find_card
from hv15_batch.checkpoint import cache_root, tiny_root
from hv15_batch.clip import Clip
from hv15_batch.config import ConfigError, Dtype, VideoCodec, Weights
from hv15_batch.decode import TilePlan, decode_frames, plan_tiles
from hv15_batch.embeddings import (
    Conditioning,
    EmbeddingCache,
    EncoderIdentity,
    clip_texts,
    image_key,
    text_key,
)
from hv15_batch.encoders import Encoders, load_encoders
from hv15_batch.executor import Encoded, Event, ExecutorSpec, Job, Note, Stepped
from hv15_batch.latents import DenoisedClip, read_latents, write_latents
from hv15_batch.measure import StageMeter, limit_device_memory, machine_columns
from hv15_batch.pipeline import Denoiser, denoise, load_denoiser, load_vae
from hv15_batch.placement import Placement, execution_device
from hv15_batch.quality import measure_quality
from hv15_batch.records import FAILED, OK, SUSPECT, ClipRecord, asked_record
from hv15_batch.rundir import RunDir, publishing, sha256_of_file, utc_now
from hv15_batch.tiny import ensure_checkpoint
from hv15_batch.video import check_video, file_suffix, write_thumbnail, write_video

logger = logging.getLogger(__name__)

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
        self._folder: Path | None = spec.checkpoint
        if config.model.weights is Weights.tiny:
            # Small tensors gain nothing from threads, and lose much where others use the cores.
            torch.set_num_threads(1)
            self._folder = ensure_checkpoint(config.model, tiny_root())
        self._cache = EmbeddingCache(self._run_dir.embeddings)
        self._identity = EncoderIdentity(
            repo=config.model.repo or config.model.name,
            revision=spec.revision,
            weights=config.model.weights.name,
            dtype=(config.runtime.dtype or config.model.dtype).name,
        )
        self._placement = Placement(spec.offload, self._device, cache_root() / "blocks")
        limit_device_memory(self._device, spec.budget_bytes)
        self._vae: Any = None
        self._denoiser: Denoiser | None = None
        self._is_backend_checked = False
        self._load_seconds: float | None = None
        self._sizes_seen: set[tuple[int, int, int, bool]] = set()
        self._encoded: dict[str, StageMeter] = {}
        self._encode_errors: dict[str, Exception] = {}
        self._machine = machine_columns(self._device)

    # -- encode phase -------------------------------------------------------------------------

    def encode(self, clips: Sequence[Clip], emit: Emit) -> None:
        """Encode each text and image that the cache lacks once, then release the encoders.

        What fails to encode fails the clips that need it, when their turn comes.
        """
        texts, images = self._missing(clips)
        total = len(texts) + len(images)
        if texts:
            self._encode_texts(texts, total, emit)
        if images:
            self._encode_images(images, len(texts), total, emit)
        gc.collect()

    def _encode_texts(self, texts: dict[str, str], total: int, emit: Emit) -> None:
        encoders = self._encoders()
        embeddings = encoders.encode_texts(list(texts.values()))
        try:
            for number, (key, text) in enumerate(texts.items(), 1):
                meter = StageMeter(self._device)
                try:
                    with meter.stage("encode"):
                        embedding = next(embeddings)
                        self._cache.write_text(key, embedding)
                    self._encoded[key] = meter
                    self._warn_of_lost_tokens(text, embedding.num_lost_tokens, emit)
                except Exception as error:
                    self._encode_errors[key] = error.with_traceback(None)
                    # A generator that raised is spent: the remaining texts need a new one.
                    embeddings = encoders.encode_texts(list(texts.values())[number:])
                emit(Encoded(number, total))
        finally:
            encoders.release()

    def _encode_images(
        self, images: dict[str, Clip], done: int, total: int, emit: Emit
    ) -> None:
        """After the texts: text and image encoders and the VAE need not be there together."""
        encoders = self._encoders(vae=self._load_vae())
        try:
            for number, (key, clip) in enumerate(images.items(), done + 1):
                meter = StageMeter(self._device)
                try:
                    with meter.stage("encode"), self._placement.decoding():
                        self._encode_image(key, clip, encoders)
                    self._encoded[key] = meter
                except Exception as error:
                    self._encode_errors[key] = error.with_traceback(None)
                emit(Encoded(number, total))
        finally:
            encoders.release()

    def _encoders(self, vae: Any = None) -> Encoders:
        return load_encoders(
            self._config,
            self._folder,
            vae=vae,
            streams_text_encoder=self._spec.streams_text_encoder,
        )

    def _missing(self, clips: Sequence[Clip]) -> tuple[dict[str, str], dict[str, Clip]]:
        """Return by key the texts that the cache lacks, and a clip for each missing image."""
        texts: dict[str, str] = {}
        images: dict[str, Clip] = {}
        seen: set[str] = set()
        for clip in clips:
            for text in clip_texts(clip.settings):
                key = text_key(text, self._identity)
                if key not in seen and self._cache.read_text(key) is None:
                    texts[key] = text
                seen.add(key)
            if clip.settings.image_sha256 is not None:
                key = self._image_key(clip)
                if key not in seen and self._cache.read_image(key) is None:
                    images[key] = clip
                seen.add(key)
        return texts, images

    def _warn_of_lost_tokens(self, text: str, lost: int, emit: Emit) -> None:
        if lost > 0:
            emit(
                Note(
                    f"WARNING: the last {lost} tokens of a prompt are cut off (the model reads "
                    f"1000): {text[:60]!r}..."
                )
            )

    def _encode_image(self, key: str, clip: Clip, encoders: Any) -> None:
        assert clip.image_path is not None
        path = Path(clip.image_path)
        if sha256_of_file(path) != clip.settings.image_sha256:
            raise ValueError(f"{path.name} has changed since the run began; run again")
        settings = clip.settings
        self._cache.write_image(key, encoders.encode_image(path, settings.height, settings.width))

    def _image_key(self, clip: Clip) -> str:
        settings = clip.settings
        assert settings.image_sha256 is not None
        return image_key(settings.image_sha256, settings.height, settings.width, self._identity)

    def _conditioning(self, clip: Clip, emit: Emit) -> tuple[Conditioning, dict[str, Any]]:
        """Return the cached embeddings and what encoding them cost, where this clip caused it."""
        keys = [text_key(text, self._identity) for text in clip_texts(clip.settings)]
        if clip.settings.image_sha256 is not None:
            keys.append(self._image_key(clip))
        conditioning = None
        if not any(key in self._encode_errors for key in keys):
            conditioning = self._cache.read_conditioning(clip.settings, self._identity)
            if conditioning is None:
                # A damaged entry, or latents that turned out to be damaged.
                self.encode([clip], emit)
                conditioning = self._cache.read_conditioning(clip.settings, self._identity)
        for key in keys:
            if key in self._encode_errors:
                raise self._encode_errors[key]
        assert conditioning is not None
        meters = [self._encoded.pop(key) for key in keys if key in self._encoded]
        columns: dict[str, Any] = {"encode_cached": not meters}
        if meters:
            costs_ = [meter.columns() for meter in meters]
            columns["encode_seconds"] = sum(c["encode_seconds"] or 0.0 for c in costs_)
            for name in ("encode_peak_vram_allocated_bytes", "encode_peak_vram_reserved_bytes"):
                peaks = [peak for c in costs_ if (peak := c.get(name)) is not None]
                columns[name] = max(peaks) if peaks else None
        return conditioning, columns

    # -- one clip -----------------------------------------------------------------------------

    def render(self, job: Job, emit: Emit) -> Callable[[], ClipRecord]:
        """Denoise and decode a clip; return what checks and writes it and gives its record."""
        clip = job.clip
        attempt = _Attempt(self._base_record(job))
        meter = StageMeter(self._device)
        frames: torch.Tensor | None = None
        with attempt.failing():
            attempt.add(is_cold=self._is_cold(clip))
            denoised = self._denoised(job, meter, attempt, emit)
            emit(Stepped(clip.clip_id, "decode", *[clip.settings.num_inference_steps] * 2))
            vae = self._load_vae()
            with meter.stage("decode"), self._placement.decoding():
                plan = self._tile_plan(clip)
                frames = decode_frames(vae, denoised.latents, plan)
                attempt.add(vae_tile_size=plan.tile_size, decode_device=str(vae.device))
        if self._load_seconds is not None:
            attempt.add(load_seconds=self._load_seconds)
            self._load_seconds = None
        attempt.add_measured(meter.columns())
        return lambda: self._finish(clip, attempt, frames)

    def _is_cold(self, clip: Clip) -> bool:
        """Whether this clip pays for first things: kernels, and compilation for its size."""
        s = clip.settings
        size = (s.height, s.width, s.num_frames, s.has_guidance)
        is_first = not self._sizes_seen
        is_compiling = self._config.runtime.compile and size not in self._sizes_seen
        self._sizes_seen.add(size)
        return is_first or is_compiling

    def _denoised(
        self, job: Job, meter: StageMeter, attempt: _Attempt, emit: Emit
    ) -> DenoisedClip:
        """Return saved latents, or denoise and save them."""
        clip = job.clip
        path = self._run_dir.latents_file(clip.denoise_sha256)
        saved = read_latents(path, clip.denoise_sha256) if job.use_latents else None
        if saved is None:
            conditioning, encode_columns = self._conditioning(clip, emit)
            attempt.add(**encode_columns)
            pipe = self._load_denoiser()
            self._check_backend(pipe, clip, conditioning)
            steps = clip.settings.num_inference_steps
            with meter.stage("denoise"), self._placement.denoising():
                result = denoise(
                    pipe,
                    clip,
                    conditioning,
                    lambda step, total: emit(Stepped(clip.clip_id, "denoise", step, total)),
                )
            if not torch.isfinite(result.latents).all():
                raise FloatingPointError(
                    f"the latents are not finite after {steps} steps; bfloat16 is the safe type"
                )
            columns = meter.columns()
            seconds = columns["denoise_seconds"]
            assert seconds is not None
            saved = DenoisedClip(
                latents=result.latents,
                columns={
                    "denoise_seconds": seconds,
                    "step_seconds": result.step_seconds,
                    "denoise_attempt": job.attempt,
                    **{k: v for k, v in columns.items() if k.startswith("denoise_peak_")},
                    **self._effective(pipe),
                    **self._work(clip, conditioning, float(seconds)),
                },
            )
            write_latents(path, clip, saved)
        attempt.add(
            **saved.columns,
            latents_file=self._run_dir.relative(path),
            latents_sha256=saved.latents_sha256(),
        )
        return saved

    def _finish(
        self, clip: Clip, attempt: _Attempt, frames: torch.Tensor | None
    ) -> ClipRecord:
        """Check and write the frames; runs on a thread while the next clip denoises."""
        with attempt.failing():
            if frames is not None:
                begin = time.perf_counter()
                self._write(clip, attempt, frames)
                attempt.add(write_seconds=time.perf_counter() - begin)
        return attempt.record()

    def _write(self, clip: Clip, attempt: _Attempt, frames: torch.Tensor) -> None:
        config, settings = self._config, clip.settings
        quality = measure_quality(frames, config.quality)
        attempt.add(**vars(quality))
        is_noise = config.model.weights is not Weights.pretrained
        attempt.status = SUSPECT if quality.quality_flag and not is_noise else OK
        codec = VideoCodec[settings.video["codec"]]
        path = self._run_dir.clips / f"{clip.clip_id}{file_suffix(codec)}"
        pixels: np.ndarray[Any, Any] = frames.numpy()
        write_thumbnail_whole(pixels, self._run_dir.thumbs / f"{clip.clip_id}.jpg")
        comment = self._comment(clip) if config.video.embed_metadata else None
        with publishing(path) as temporary:
            write_video(
                pixels, temporary, fps=settings.fps, video=config.video, comment=comment
            )
            check_video(
                temporary,
                num_frames=settings.num_frames,
                height=settings.height,
                width=settings.width,
                fps=settings.fps,
            )
            attempt.add(
                file_bytes=temporary.stat().st_size, file_sha256=sha256_of_file(temporary)
            )
        attempt.add(file=self._run_dir.relative(path))
        if not config.keep_latents:
            self._run_dir.latents_file(clip.denoise_sha256).unlink(missing_ok=True)
            attempt.add(latents_file=None)

    # -- components ---------------------------------------------------------------------------

    def _load_vae(self) -> Any:
        if self._vae is None:
            with self._loading():
                self._vae = load_vae(
                    self._config, self._folder, self._placement.loading_device
                )
                self._placement.hold_vae(self._vae)
        return self._vae

    def _load_denoiser(self) -> Denoiser:
        if self._denoiser is None:
            vae = self._load_vae()
            with self._loading():
                self._denoiser = load_denoiser(
                    self._config,
                    self._folder,
                    vae=vae,
                    loading_device=self._placement.loading_device,
                )
                self._placement.hold_transformer(self._denoiser.transformer)
        return self._denoiser

    @contextmanager
    def _loading(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._load_seconds = (self._load_seconds or 0.0) + time.perf_counter() - begin

    def _tile_plan(self, clip: Clip) -> TilePlan:
        settings = clip.settings
        size = (settings.height // 16, settings.width // 16, (settings.num_frames - 1) // 4 + 1)
        return plan_tiles(*size, self._decode_budget_bytes(), self._device.type)

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
        """Check a foreign attention kernel once, on the first clip's shapes."""
        if not self._is_backend_checked:
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
            manifest_sha256=spec.manifest_sha256,
            started_at=utc_now(),
            repo=spec.repo,
            task=self._config.model.task.name,
            hostname=spec.hostname,
            system_sha256=spec.system_sha256,
            hv15_batch_version=__version__,
            worker_id="local-0",
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

    def _work(self, clip: Clip, conditioning: Conditioning, seconds: float) -> dict[str, Any]:
        settings = clip.settings
        size = (settings.height, settings.width, settings.num_frames)
        video_tokens = costs.num_video_tokens(*size)
        columns: dict[str, Any] = {
            "num_text_tokens": conditioning.prompt.num_text_tokens,
            "num_glyph_tokens": conditioning.prompt.num_glyph_tokens,
            "num_video_tokens": video_tokens,
        }
        if self._config.model.weights is Weights.tiny:
            return columns  # the FLOP formula holds for the full-size transformer
        image_tokens = 0 if conditioning.image is None else conditioning.image.image_embeds.shape[1]
        texts = [conditioning.prompt] + ([conditioning.negative] if conditioning.negative else [])
        flop = settings.num_inference_steps * sum(
            costs.forward_flop(
                video_tokens, text.num_text_tokens + text.num_glyph_tokens + image_tokens
            )
            for text in texts
        )
        tflops = flop / 1e12 / seconds
        card = find_card(self._machine["gpu_name"] or "")
        is_16_bit = self._identity.dtype != Dtype.float32.name
        mfu = tflops / card.dense_bf16_tflops if card is not None and is_16_bit else None
        return columns | {"model_pflop": flop / 1e15, "tflops": tflops, "mfu": mfu}

    def _comment(self, clip: Clip) -> str:
        settings = clip.settings.as_dict()
        facts = {
            "hv15_batch_version": __version__,
            "clip_id": clip.clip_id,
            "settings_sha256": clip.settings_sha256,
            "repo": Path(self._spec.repo).name if Path(self._spec.repo).is_absolute() else
            self._spec.repo,
            "task": self._config.model.task.name,
            "image": Path(clip.image).name if clip.image else None,
        }
        return json.dumps(facts | settings, ensure_ascii=False)


class _Attempt:
    """Gathers the columns of one attempt, whichever thread finds them."""

    def __init__(self, base: ClipRecord) -> None:
        self._base = base
        self._columns: dict[str, Any] = {}
        self._error: tuple[str, str] | None = None
        self.status = OK

    def add(self, **columns: Any) -> None:
        """Set columns."""
        self._columns.update(columns)

    def add_measured(self, columns: dict[str, Any]) -> None:
        """Set columns that no earlier stage has set, e.g. from the latents' metadata."""
        for name, value in columns.items():
            if self._columns.get(name) is None:
                self._columns[name] = value

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Turn an error into this attempt's outcome; a refused setting is not the clip's fault."""
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:
            logger.exception("%s failed", self._base.clip_id)
            # Not the exception: its traceback holds the frames and so their tensors.
            self._error = self._error or (type(error).__name__, str(error)[:2000])

    def record(self) -> ClipRecord:
        """Return the finished record."""
        columns = dict(self._columns)
        stages = ("encode", "denoise", "decode", "write")
        seconds = [columns.get(f"{stage}_seconds") for stage in stages]
        columns["total_seconds"] = sum(s for s in seconds if s is not None)
        if self._error is not None:
            columns |= {
                "status": FAILED,
                "error_type": self._error[0],
                "error_message": self._error[1],
                "file": None,
                "file_bytes": None,
                "file_sha256": None,
            }
        else:
            columns["status"] = self.status
        return replace(self._base, **columns, finished_at=utc_now())


def write_thumbnail_whole(pixels: np.ndarray[Any, Any], path: Path) -> None:
    """Write a thumbnail under its final name only when it is whole."""
    with publishing(path) as temporary:
        write_thumbnail(pixels, temporary)
