"""Encode each text and image of a run once, before the transformer is loaded.

An embedding that fails is remembered and fails the clips that need it, when their turn comes.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hv15_batch.clip import Clip
from hv15_batch.config.checks import effective_dtype
from hv15_batch.config.settings import Config
from hv15_batch.dispatch.protocol import (
    Encoded,
    Event,
    ExecutorSpec,
    Loading,
    Note,
    RendererBroken,
    Stepped,
)
from hv15_batch.engine._measure import StageMeter
from hv15_batch.engine.device import device_fault
from hv15_batch.engine.encode.cache import (
    Conditioning,
    EmbeddingCache,
    EncoderIdentity,
    clip_texts,
    image_key,
    text_key,
)
from hv15_batch.engine.encode.encoders import Encoders, load_encoders
from hv15_batch.engine.placement.placement import Placement
from hv15_batch.errors import Refused
from hv15_batch.media.conversion import look
from hv15_batch.media.image import read_image_bytes
from hv15_batch.record import ENCODE
from hv15_batch.rundir.paths import RunDir

Emit = Callable[[Event], None]


class EncodePhase:
    """Fills the embedding cache and reads from it."""

    def __init__(
        self,
        spec: ExecutorSpec,
        device: torch.device,
        make_meter: Callable[[], StageMeter],
        placement: Placement,
        load_vae: Callable[[], Any],
    ) -> None:
        """Load nothing yet.

        Args:
            spec: Decides model, checkpoint and whether the text encoder is streamed.
            device: Where the encoders run.
            make_meter: Returns a meter of that device.
            placement: Brings the VAE for first frames.
            load_vae: Returns the VAE that the renderer uses too.
        """
        config = spec.config
        self._config: Config = config
        self._checkpoint = spec.checkpoint
        self._device = device
        self._make_meter = make_meter
        self._placement = placement
        self._load_vae = load_vae
        self._streams_text_encoder = spec.streams_text_encoder
        self._cache = EmbeddingCache(RunDir(spec.run_dir).embeddings)
        self._identity = EncoderIdentity(
            repo=config.model.repo or config.model.name,
            revision=spec.checkpoint.revision,
            weights=config.model.weights.name,
            dtype=effective_dtype(config).name,
        )
        self._encoded: dict[str, StageMeter] = {}
        self._errors: dict[str, Exception] = {}

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
        encoders = self._encoders(emit)
        embeddings = encoders.encode_texts(list(texts.values()))
        try:
            for number, (key, text) in enumerate(texts.items(), 1):
                meter = self._make_meter()
                try:
                    with meter.stage(ENCODE):
                        embedding = next(embeddings)
                        self._cache.write_text(key, embedding)
                    self._encoded[key] = meter
                    self._warn_of_lost_tokens(text, embedding.num_lost_tokens, emit)
                except Refused:  # the checkpoint is damaged, for all texts alike
                    raise
                except Exception as error:
                    self._remember(key, error)
                    # A generator that raised is spent: the remaining texts need a new one.
                    embeddings = encoders.encode_texts(list(texts.values())[number:])
                emit(Encoded(number, total))
        finally:
            encoders.release()

    def _encode_images(self, images: dict[str, Clip], done: int, total: int, emit: Emit) -> None:
        """After the texts: text and image encoders and the VAE need not be there together."""
        emit(Loading("the VAE"))
        encoders = self._encoders(emit, vae=self._load_vae())
        try:
            for number, (key, clip) in enumerate(images.items(), done + 1):
                meter = self._make_meter()
                try:
                    with meter.stage(ENCODE), self._placement.decoding():
                        self._encode_image(key, clip, encoders)
                    self._encoded[key] = meter
                except Refused:
                    raise
                except Exception as error:
                    self._remember(key, error)
                emit(Encoded(number, total))
        finally:
            encoders.release()

    def _remember(self, key: str, error: Exception) -> None:
        """Keep an error for the clips that need this text or image.

        Raises:
            RendererBroken: after it, every call on the device fails.
        """
        self._errors[key] = error.with_traceback(None)
        if fault := device_fault(self._device, type(error).__name__, str(error)):
            raise RendererBroken(f"the worker can no longer use the device ({fault})", None)

    def _encoders(self, emit: Emit, vae: Any = None) -> Encoders:
        return load_encoders(
            self._config,
            self._checkpoint,
            vae=vae,
            streams_text_encoder=self._streams_text_encoder,
            on_load=lambda what: emit(Loading(what)),
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
        # What is hashed is what is decoded: the file may change in between.
        data = read_image_bytes(clip.image_path)
        settings = clip.settings
        if hashlib.sha256(data).hexdigest() != settings.image_sha256:
            name = Path(clip.image_path).name
            raise ValueError(f"{name} has changed since the run began; run again")
        conversion = look(data).conversion
        if conversion != settings.image_conversion:  # a worker with another version of the code
            raise ValueError(
                f"{Path(clip.image_path).name} was planned with image_conversion="
                f"{settings.image_conversion}, and this worker finds {conversion}; give all "
                "machines the same version of hv15_batch and Pillow"
            )
        self._cache.write_image(key, encoders.encode_image(data, settings.height, settings.width))

    def _image_key(self, clip: Clip) -> str:
        settings = clip.settings
        assert settings.image_sha256 is not None
        size = settings.height, settings.width
        conversion = settings.image_conversion
        return image_key(settings.image_sha256, *size, self._identity, conversion)

    def conditioning(self, clip: Clip, meter: StageMeter, emit: Emit) -> tuple[Conditioning, bool]:
        """Return the cached embeddings, and whether all of them were on disk already.

        What encoding took is added to `meter` where this clip is the first that needs it.
        """
        keys = [text_key(text, self._identity) for text in clip_texts(clip.settings)]
        if clip.settings.image_sha256 is not None:
            keys.append(self._image_key(clip))
        conditioning = None
        if not any(key in self._errors for key in keys):
            conditioning = self._cache.read_conditioning(clip.settings, self._identity)
            if conditioning is None:
                # A damaged entry, or latents that turned out to be damaged.
                emit(Stepped(clip.clip_id, ENCODE, 0, clip.settings.num_inference_steps))
                self.encode([clip], emit)
                conditioning = self._cache.read_conditioning(clip.settings, self._identity)
        for key in keys:
            if key in self._errors:
                raise self._errors[key]
        assert conditioning is not None
        encoded = [self._encoded.pop(key) for key in keys if key in self._encoded]
        for other in encoded:
            meter.add(other)
        return conditioning, not encoded
