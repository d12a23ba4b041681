"""Estimates how much disk a run needs, rather too much than too little. Arithmetic, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from hv15_batch.clip import ClipSettings, glyph_texts
from hv15_batch.config.settings import Config, VideoCodec
from hv15_batch.model.architectures import read_architecture, size_of
from hv15_batch.model.shapes import latents_bytes
from hv15_batch.model.variant import Weights
from hv15_batch.planning.plan import PlannedClip
from hv15_batch.units import MIB

SPARE_BYTES = 512 * MIB
"""Stays free on the disk: a run stops before a clip that would use some of it."""
CLIPS_IN_WRITING = 2
"""One clip is still being written when the next one starts (`dispatch._child`)."""

_BYTES_PER_VALUE = {"bfloat16": 2, "float16": 2, "float32": 4}
_MAX_TEXT_TOKENS = 1000
_TEMPLATE_TOKENS = 8
_UTF8_BYTES_PER_TOKEN = 3
"""Assumed: English has over 4, and fewer bytes make a larger estimate."""
_MAX_GLYPH_TOKENS = 256
_NOISE_BITS_PER_PIXEL = 6
"""What tiny and random weights make hardly compresses: 5.2 at CRF 17 with tiny_t2v."""
_THUMBNAIL_BYTES = 48 * 1024
"""A JPEG of at most 320 pixels across."""
_ROW_BYTES = 4 * 1024
"""A clip's share of log, tables, page and run.log, texts left out (2.2 KiB in a run of 300)."""
_TEXT_COPIES = 5
"""A prompt is in log, plan.csv, clips.csv, page and the video's settings."""


@dataclass(frozen=True)
class DiskNeed:
    """What the clips that are to be rendered need, in bytes."""

    encode_bytes: int
    """Embeddings that are written before the first clip."""
    next_bytes: int
    """Must be free before a clip starts: all that may be written at once, and `SPARE_BYTES`."""
    clip_bytes: tuple[int, ...]
    """What each clip leaves behind, in the order of rendering."""

    @property
    def start_bytes(self) -> int:
        """Bytes that must be free at the start, so that the first clips can be written."""
        return self.encode_bytes + self.next_bytes

    @property
    def plan_bytes(self) -> int:
        """What the run leaves behind."""
        return self.encode_bytes + sum(self.clip_bytes)

    def count_clips(self, free_bytes: int) -> int:
        """Return how many clips will be started on a disk with `free_bytes` free."""
        needed = accumulate(self.clip_bytes[:-1], initial=self.start_bytes)
        return sum(num_bytes <= free_bytes for num_bytes in needed)


def disk_need(todo: Sequence[PlannedClip], config: Config, num_workers: int = 1) -> DiskNeed:
    """Return the bytes of disk that rendering these clips needs.

    Args:
        todo: Clips in the order of rendering; finished ones are ignored.
        config: Decides whether latents are kept.
        num_workers: How many write at a time.
    """
    todo = [p for p in todo if not p.is_done]
    largest = max((_writing_bytes(p.clip.settings) for p in todo), default=0)
    return DiskNeed(
        encode_bytes=_embedding_bytes(todo),
        next_bytes=SPARE_BYTES + num_workers * CLIPS_IN_WRITING * largest,
        clip_bytes=tuple(_clip_bytes(p, config.keep_latents) for p in todo),
    )


def _clip_bytes(planned: PlannedClip, keep_latents: bool) -> int:
    """Return what a clip leaves behind: video, thumbnail, rows, and its latents where kept."""
    settings = planned.clip.settings
    texts = len(settings.prompt.encode(errors="surrogatepass"))
    if planned.repeat is not None:  # of a repetition only its row is kept
        return _ROW_BYTES + texts
    size = _video_bytes(settings) + _THUMBNAIL_BYTES + _ROW_BYTES + _TEXT_COPIES * texts
    if keep_latents and not planned.is_from_latents:
        size += _latents_bytes(settings)
    # Frames for other clips are PNG, of up to three bytes a pixel.
    return size + len(planned.clip.kept_frames) * settings.height * settings.width * 3


def _writing_bytes(settings: ClipSettings) -> int:
    """Return what a clip may take while it is written, twice the usual video included."""
    return 2 * _video_bytes(settings) + _latents_bytes(settings) + _THUMBNAIL_BYTES + _ROW_BYTES


def _video_bytes(settings: ClipSettings) -> int:
    size = (settings.height, settings.width, settings.num_frames)
    # The official script has no such setting, and writes H.264.
    codec = VideoCodec[settings.video.get("codec", VideoCodec.h264.name)]
    is_noise = settings.weights in (Weights.random.name, Weights.tiny.name)
    least = _NOISE_BITS_PER_PIXEL if is_noise else 0
    return math.ceil(math.prod(size) * max(codec.bits_per_pixel, least) / 8)


def _latents_bytes(settings: ClipSettings) -> int:
    size = (settings.height, settings.width, settings.num_frames)
    return latents_bytes(*size, _BYTES_PER_VALUE[settings.dtype])


def _embedding_bytes(todo: Sequence[PlannedClip]) -> int:
    """Return the size of the embeddings of all texts and first frames, each counted once."""
    settings = [p.clip.settings for p in todo if not p.is_from_latents]
    if not settings:
        return 0
    sizes = read_architecture(size_of(Weights[settings[0].weights]))
    texts = {s.prompt for s in settings}
    texts |= {s.negative_prompt or "" for s in settings if s.has_guidance}
    images = {
        (s.image_sha256 or s.image_source, s.height, s.width) for s in settings if s.has_image
    }
    values = sum(_text_tokens(text) * sizes["text_encoder"]["hidden_size"] for text in texts)
    values += sum(_glyph_tokens(text) * sizes["text_encoder_2"]["d_model"] for text in texts)
    vision = sizes["image_encoder"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    values += len(images) * patches * vision["hidden_size"]
    size: int = values * _BYTES_PER_VALUE[settings[0].dtype]
    frames: int = sum(latents_bytes(height, width, 1, 4) for _, height, width in images)
    return size + frames


def _text_tokens(text: str) -> int:
    num_bytes = len(text.encode(errors="surrogatepass"))
    return min(_MAX_TEXT_TOKENS, num_bytes // _UTF8_BYTES_PER_TOKEN + _TEMPLATE_TOKENS)


def _glyph_tokens(text: str) -> int:
    """Return the ByT5 tokens of the quoted texts: one a byte."""
    num_bytes = sum(len(part.encode(errors="surrogatepass")) for part in glyph_texts(text))
    return min(_MAX_GLYPH_TOKENS, num_bytes)
