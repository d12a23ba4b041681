"""Encode each text and image of a run once, before the transformer is loaded.

An embedding that fails is remembered and fails the clips that need it, when their turn comes.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from hv15_batch.clip import Clip, Source
from hv15_batch.config.checks import effective_dtype
from hv15_batch.dispatch.protocol import (
    Encoded,
    Event,
    Loading,
    ModelSpec,
    Note,
    RendererBroken,
    Stepped,
)
from hv15_batch.engine._measure import Stage, StageMeter
from hv15_batch.engine._switch import ModelSwitch
from hv15_batch.engine.device import device_fault, execution_device
from hv15_batch.engine.encode.cache import (
    Conditioning,
    EmbeddingCache,
    EncoderIdentity,
    clip_image_key,
    clip_texts,
    image_key,
    text_key,
)
from hv15_batch.engine.encode.encoders import Encoders, load_encoders
from hv15_batch.errors import Refused
from hv15_batch.media.conversion import look
from hv15_batch.media.frame import frame_sha256
from hv15_batch.media.image import read_image_bytes
from hv15_batch.record import ENCODE
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.remote.shared import Inputs
from hv15_batch.rundir.store import frame_of

Emit = Callable[[Event], None]


def _identity(model: ModelSpec) -> EncoderIdentity:
    option = model.config.model
    return EncoderIdentity(
        repo=option.repo or option.name,
        revision=model.checkpoint.revision,
        weights=option.weights.name,
        dtype=effective_dtype(model.config).name,
    )


def _lost_frame(source: Source) -> str:
    return (
        f"frame {source.number} of {source.clip_id}, with which the clip begins, is not in frames/;"
        " run again, and it is made again"
    )


class EncodePhase:
    """Fills the embedding cache and reads from it."""

    def __init__(
        self,
        run_dir: RunDir,
        models: ModelSwitch,
        make_meter: Callable[[torch.device], StageMeter],
        inputs: Inputs | None = None,
    ) -> None:
        """Load nothing yet.

        Args:
            run_dir: Has the cache.
            models: The models of the run; those with the same encoders encode for each other.
            make_meter: Returns a meter of a device.
            inputs: See `EmbeddingCache`.
        """
        self._models = models
        self._make_meter = make_meter
        self._run_dir = run_dir
        self._cache = EmbeddingCache(run_dir.embeddings, inputs)
        self._identities = {name: _identity(model) for name, model in models.models.items()}
        self._encoded: dict[str, StageMeter] = {}
        self._errors: dict[str, Exception] = {}

    def encode(self, clips: Sequence[Clip], emit: Emit) -> None:
        """Encode each text and image that the cache lacks once, then release the encoders.

        What fails to encode fails the clips that need it, when their turn comes.
        """
        texts, images = self._missing(clips)
        total = sum(map(len, texts.values())) + sum(map(len, images.values()))
        done = 0
        for name, own_texts in texts.items():
            self._encode_texts(name, own_texts, done, total, emit)
            done += len(own_texts)
        for name, own_images in images.items():
            self._encode_images(name, own_images, done, total, emit)
            done += len(own_images)
        gc.collect()

    def take_costs(self, clips: Sequence[Clip]) -> dict[str, bytes]:
        """Return and forget what encoding took, by the first of these clips that needs it."""
        costs = {}
        for clip in clips:
            if found := self._take(self._keys(clip)):
                meter, *others = found
                for other in others:
                    meter.add(other)
                costs[clip.settings_sha256] = msgspec.json.encode(meter.stages)
        return costs

    def _take(self, keys: Sequence[str]) -> list[StageMeter]:
        return [self._encoded.pop(key) for key in keys if key in self._encoded]

    def _keys(self, clip: Clip) -> list[str]:
        """Return the cache's keys of a clip's texts and image."""
        of_texts = self._identities[self._text_model(clip)]
        keys = [text_key(text, of_texts) for text in clip_texts(clip.settings)]
        own = self._key_of_image(clip)
        return keys if own is None else [*keys, own]

    def _encode_texts(
        self, name: str, texts: dict[str, str], done: int, total: int, emit: Emit
    ) -> None:
        device = execution_device(self._models.models[name].config)
        encoders = self._encoders(name, emit)
        embeddings = encoders.encode_texts(list(texts.values()))
        try:
            for number, (key, text) in enumerate(texts.items(), 1):
                meter = self._make_meter(device)
                try:
                    with meter.stage(ENCODE):
                        embedding = next(embeddings)
                        self._cache.write_text(key, embedding)
                    self._encoded[key] = meter
                    self._warn_of_lost_tokens(text, embedding.num_lost_tokens, emit)
                except Refused:  # the checkpoint is damaged, for all texts alike
                    raise
                except Exception as error:
                    self._remember(key, error, device)
                    # A generator that raised is spent: the remaining texts need a new one.
                    embeddings = encoders.encode_texts(list(texts.values())[number:])
                emit(Encoded(done + number, total))
        finally:
            encoders.release()

    def _encode_images(
        self, name: str, images: dict[str, Clip], done: int, total: int, emit: Emit
    ) -> None:
        """After the texts: text and image encoders and the VAE need not be there together."""
        model = self._models.use(name)
        emit(Loading("the VAE"))
        encoders = self._encoders(name, emit, vae=model.models.vae())
        try:
            for number, (key, clip) in enumerate(images.items(), done + 1):
                meter = self._make_meter(model.device)
                try:
                    with meter.stage(ENCODE), model.placement.decoding():
                        self._encode_image(key, clip, encoders)
                    self._encoded[key] = meter
                except Refused:
                    raise
                except Exception as error:
                    self._remember(key, error, model.device)
                emit(Encoded(number, total))
        finally:
            encoders.release()

    def _remember(self, key: str, error: Exception, device: torch.device) -> None:
        """Keep an error for the clips that need this text or image.

        Raises:
            RendererBroken: after it, every call on the device fails.
        """
        self._errors[key] = error.with_traceback(None)
        if fault := device_fault(device, type(error).__name__, str(error)):
            raise RendererBroken(f"the worker can no longer use the device ({fault})", None)

    def _encoders(self, name: str, emit: Emit, vae: Any = None) -> Encoders:
        model = self._models.models[name]
        return load_encoders(
            model.config,
            model.checkpoint,
            vae=vae,
            streams_text_encoder=model.streams_text_encoder,
            on_load=lambda what: emit(Loading(what)),
        )

    def _missing(
        self, clips: Sequence[Clip]
    ) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, Clip]]]:
        """Return what the cache lacks: by model, texts by key and a clip for each image's key."""
        texts: dict[str, dict[str, str]] = {}
        images: dict[str, dict[str, Clip]] = {}
        seen: set[str] = set()
        for clip in clips:
            own, of_images = self._text_model(clip), self._image_model(clip)
            for text in clip_texts(clip.settings):
                key = text_key(text, self._identities[own])
                self._cache.fetch(key)
                if key not in seen and self._cache.read_text(key) is None:
                    texts.setdefault(own, {})[key] = text
                seen.add(key)
            own_frame = self._key_of_image(clip)
            if own_frame is not None:
                self._cache.fetch(own_frame)
                if own_frame not in seen and self._cache.read_image(own_frame) is None:
                    images.setdefault(of_images, {})[own_frame] = clip
                seen.add(own_frame)
        return texts, images

    def _text_model(self, clip: Clip) -> str:
        """Return the model whose encoders encode a clip's texts."""
        return self._models.same_texts[clip.settings.model]

    def _image_model(self, clip: Clip) -> str:
        """Return the model whose image encoder and VAE encode a clip's first frame."""
        return self._models.same_images[clip.settings.model]

    def frame_sha256(self, clip: Clip) -> str | None:
        """Return the hash of the pixels that a clip takes over from another one.

        None where it takes none, and where that clip has not been rendered.
        """
        if clip.source is None:
            return None
        path = frame_of(self._run_dir, clip.source.denoise_sha256, clip.source.number)
        return None if path is None else frame_sha256(path)

    def _key_of_image(self, clip: Clip) -> str | None:
        """Return the key of a clip's first frame; None without one, or while there is none yet."""
        identity = self._identities[self._image_model(clip)]
        if clip.source is None:
            return clip_image_key(clip.settings, identity) if clip.settings.has_image else None
        sha256 = self.frame_sha256(clip)
        size = clip.settings.height, clip.settings.width
        return None if sha256 is None else image_key(sha256, *size, identity)

    def _warn_of_lost_tokens(self, text: str, lost: int, emit: Emit) -> None:
        if lost > 0:
            emit(
                Note(
                    f"WARNING: the last {lost} tokens of a prompt are cut off (the model reads "
                    f"1000): {text[:60]!r}..."
                )
            )

    def _encode_image(self, key: str, clip: Clip, encoders: Any) -> None:
        settings = clip.settings
        if clip.source is not None:
            path = frame_of(self._run_dir, clip.source.denoise_sha256, clip.source.number)
            if path is None or self._key_of_image(clip) != key:
                raise FileNotFoundError(_lost_frame(clip.source))
            data = read_image_bytes(str(path))
            self._cache.write_image(
                key, encoders.encode_image(data, settings.height, settings.width)
            )
            return
        assert clip.image_path is not None
        # What is hashed is what is decoded: the file may change in between.
        data = read_image_bytes(clip.image_path)
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

    def conditioning(
        self, clip: Clip, meter: StageMeter, emit: Emit, cost: bytes | None = None
    ) -> tuple[Conditioning, bool]:
        """Return the cached embeddings, and whether all of them were on disk already.

        What encoding took is added to `meter` where this clip is the first that needs it.

        Args:
            clip: Whose texts and image are meant.
            meter: Of the clip.
            emit: Sends events.
            cost: Of `take_costs`, maybe of another worker.
        """
        of_texts = self._identities[self._text_model(clip)]
        of_images = self._identities[self._image_model(clip)]
        keys = self._keys(clip)
        own = self._key_of_image(clip)
        if own is None and clip.source is not None:
            raise FileNotFoundError(_lost_frame(clip.source))
        conditioning = None
        if not any(key in self._errors for key in keys):
            conditioning = self._cache.read_conditioning(clip.settings, of_texts, of_images, own)
            if conditioning is None:
                # A damaged entry, or latents that turned out to be damaged.
                emit(Stepped(clip.clip_id, ENCODE, 0, clip.settings.num_inference_steps))
                self.encode([clip], emit)
                conditioning = self._cache.read_conditioning(
                    clip.settings, of_texts, of_images, own
                )
        for key in keys:
            if key in self._errors:
                raise self._errors[key]
        assert conditioning is not None
        encoded = [other.stages for other in self._take(keys)]
        if cost is not None:
            encoded.append(msgspec.json.decode(cost, type=dict[str, Stage]))
        for stages in encoded:
            meter.add_stages(stages)
        return conditioning, not encoded
