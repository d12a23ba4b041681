"""Prompt and first-frame embeddings: what they are, their keys, and their cache on disk.

`encoders` makes them; here nothing is computed but hashes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideo15ImageToVideoPipeline as StockPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hv15_batch.clip import ClipSettings
from hv15_batch.files import check_regular, parse_json
from hv15_batch.rundir.publish import publishing
from hv15_batch.rundir.remote.shared import Inputs
from hv15_batch.units import GIB

MAX_EMBEDDING_BYTES = GIB
"""A text of 1000 tokens has 14 MB in 32 bits."""
FORMAT_VERSION = 1
"""Bumped when the meaning of a cached file changes: all entries are then made again."""


def _stock_default(function: Any, name: str) -> Any:
    return inspect.signature(function).parameters[name].default


# The pipelines set attributes of the same values; a test holds them equal.
SYSTEM_MESSAGE: str = _stock_default(StockPipeline._get_mllm_prompt_embeds, "system_message")
CROP_START: int = _stock_default(StockPipeline._get_mllm_prompt_embeds, "crop_start")
MAX_TEXT_TOKENS: int = _stock_default(StockPipeline._get_mllm_prompt_embeds, "tokenizer_max_length")
MAX_GLYPH_TOKENS: int = _stock_default(
    StockPipeline._get_byt5_prompt_embeds, "tokenizer_max_length"
)


@dataclass(frozen=True)
class TextEmbedding:
    """One text as the transformer reads it, without padding."""

    prompt_embeds: torch.Tensor
    """Qwen2.5-VL states [1, L, 3584], L at most 1000."""
    prompt_embeds_2: torch.Tensor | None
    """ByT5 states [1, G, 1472] of the quoted text, G at most 256; None without quotes."""
    num_lost_tokens: int = 0
    """Qwen tokens beyond the 1000th, which the tokenizer cut off."""
    num_lost_glyph_tokens: int = 0
    """ByT5 tokens beyond the 256th."""

    @property
    def num_text_tokens(self) -> int:
        """Valid Qwen tokens."""
        return self.prompt_embeds.shape[1]

    @property
    def num_glyph_tokens(self) -> int:
        """Valid ByT5 tokens."""
        return 0 if self.prompt_embeds_2 is None else self.prompt_embeds_2.shape[1]


@dataclass(frozen=True)
class ImageEmbedding:
    """One first frame as the transformer reads it."""

    image_embeds: torch.Tensor
    """SigLIP states [1, 729, 1152]."""
    image_latents: torch.Tensor
    """Scaled VAE latents [1, 32, 1, height / 16, width / 16]."""
    source_height: int
    """Pixels of the upright image before resizing; the pipeline takes its bucket from them."""
    source_width: int


@dataclass(frozen=True)
class Conditioning:
    """All that a clip is conditioned on."""

    prompt: TextEmbedding
    negative: TextEmbedding | None
    """None without classifier-free guidance."""
    image: ImageEmbedding | None
    """None for text-to-video."""


@dataclass(frozen=True)
class EncoderIdentity:
    """Which encoders made an embedding: a part of its key."""

    repo: str
    """Hub id or name of the local checkpoint."""
    revision: str | None
    weights: str
    dtype: str


def text_key(text: str, encoders: EncoderIdentity) -> str:
    """Return the cache key of a text: a SHA-256 over everything that decides its embedding."""
    return _key(
        kind="text",
        encoders=vars(encoders),
        text=text,
        system_message=SYSTEM_MESSAGE,
        lengths=[CROP_START, MAX_TEXT_TOKENS, MAX_GLYPH_TOKENS],
    )


def image_key(
    image_sha256: str,
    height: int,
    width: int,
    encoders: EncoderIdentity,
    conversion: str | None = None,
) -> str:
    """Return the cache key of a first frame in its bucket of height x width pixels.

    `conversion` is left out where it is None, so that entries of earlier versions hold.
    """
    parts = {} if conversion is None else {"conversion": conversion}
    return _key(
        kind="image",
        encoders=vars(encoders),
        image=image_sha256,
        bucket=[height, width],
        # transformers resizes for SigLIP with torchvision where that is installed, else Pillow.
        torchvision=importlib.util.find_spec("torchvision") is not None,
        **parts,
    )


def clip_image_key(settings: ClipSettings, encoders: EncoderIdentity) -> str:
    """Return the cache key of a clip's first frame."""
    assert settings.image_sha256 is not None
    size = settings.height, settings.width
    return image_key(settings.image_sha256, *size, encoders, settings.image_conversion)


def _key(**parts: Any) -> str:
    text = json.dumps({"format": FORMAT_VERSION, **parts}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class EmbeddingCache:
    """Embeddings on disk, one safetensors file per key, published whole."""

    def __init__(self, folder: Path, inputs: Inputs | None = None) -> None:
        """Use a folder, which is created when the first entry is written.

        Args:
            folder: Of the run directory.
            inputs: Where workers of other machines find entries, and put theirs; None where the
                folder is all there is.
        """
        self.folder = folder
        self._inputs = inputs

    def fetch(self, key: str) -> None:
        """Bring an entry into the folder, if the store had it at the first call."""
        name = self._path(key).name
        if self._inputs is not None and name in self._inputs.known():
            self._fetch(name)

    def _fetch(self, name: str) -> None:
        if self._inputs is not None and not (self.folder / name).is_file():
            with suppress(OSError):  # then it is missing
                data = self._inputs.read(name)
                with publishing(self.folder / name, makes_folder=True) as temporary:
                    temporary.write_bytes(data)

    def read_text(self, key: str) -> TextEmbedding | None:
        """Return a text's embedding; None where it is missing or its file is damaged."""
        entry = self._read(key)
        if entry is None:
            return None
        tensors, numbers = entry
        return TextEmbedding(tensors["prompt_embeds"], tensors.get("prompt_embeds_2"), **numbers)

    def write_text(self, key: str, embedding: TextEmbedding) -> None:
        """Store a text's embedding."""
        tensors = {"prompt_embeds": embedding.prompt_embeds}
        if embedding.prompt_embeds_2 is not None:
            tensors["prompt_embeds_2"] = embedding.prompt_embeds_2
        numbers = {
            "num_lost_tokens": embedding.num_lost_tokens,
            "num_lost_glyph_tokens": embedding.num_lost_glyph_tokens,
        }
        self._write(key, tensors, numbers)

    def read_image(self, key: str) -> ImageEmbedding | None:
        """Return a first frame's embedding; None where it is missing or its file is damaged."""
        entry = self._read(key)
        if entry is None:
            return None
        tensors, numbers = entry
        return ImageEmbedding(
            tensors["image_embeds"],
            tensors["image_latents"],
            numbers["source_height"],
            numbers["source_width"],
        )

    def write_image(self, key: str, embedding: ImageEmbedding) -> None:
        """Store a first frame's embedding."""
        tensors = {
            "image_embeds": embedding.image_embeds,
            "image_latents": embedding.image_latents,
        }
        size = {
            "source_height": embedding.source_height,
            "source_width": embedding.source_width,
        }
        self._write(key, tensors, size)

    def read_conditioning(
        self,
        settings: ClipSettings,
        encoders: EncoderIdentity,
        of_images: EncoderIdentity | None = None,
        key_of_image: str | None = None,
    ) -> Conditioning | None:
        """Return all that a clip is conditioned on; None where an entry is missing.

        Args:
            settings: Of the clip.
            encoders: Those of its texts.
            of_images: Those of its first frame; None for the same.
            key_of_image: Of its first frame; None takes that of `clip_image_key`.
        """
        keys = [text_key(text, encoders) for text in clip_texts(settings)]
        if settings.image_sha256 is not None:
            keys.append(clip_image_key(settings, of_images or encoders))
        for key in keys:
            self._fetch(self._path(key).name)  # another worker may have made it meanwhile
        texts = [self.read_text(text_key(text, encoders)) for text in clip_texts(settings)]
        image = None
        if settings.has_image:
            key_of_image = key_of_image or clip_image_key(settings, of_images or encoders)
            image = self.read_image(key_of_image)
            if image is None:
                return None
        prompt, negative = texts[0], texts[1] if len(texts) > 1 else None
        if prompt is None or (len(texts) > 1 and negative is None):
            return None
        return Conditioning(prompt, negative, image)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _read(self, key: str) -> tuple[dict[str, torch.Tensor], dict[str, int]] | None:
        try:
            check_regular(self._path(key), MAX_EMBEDDING_BYTES)
            with safe_open(self._path(key), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            if metadata["sha256"] != _tensors_sha256(tensors):
                return None
            numbers = parse_json(metadata["numbers"])
            return (tensors, numbers) if isinstance(numbers, dict) else None
        except (OSError, SafetensorError, KeyError, ValueError):
            return None

    def _write(self, key: str, tensors: dict[str, torch.Tensor], numbers: dict[str, int]) -> None:
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        metadata = {"sha256": _tensors_sha256(tensors), "numbers": json.dumps(numbers)}
        with publishing(self._path(key), makes_folder=True) as temporary:
            # Not save_file, whose files only their owner may read.
            data = save(tensors, metadata)
            temporary.write_bytes(data)
        if self._inputs is not None:
            self._inputs.put(self._path(key).name, data)


def clip_texts(settings: ClipSettings) -> list[str]:
    """Return the texts a clip needs encoded: the prompt and, with guidance, the negative one."""
    texts = [settings.prompt]
    if settings.has_guidance:
        texts.append(settings.negative_prompt or "")
    return texts


def _tensors_sha256(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
