"""First frames in a manifest: their check, hash and size.

Pillow is imported with the first image only.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass

from hv15_batch.media._foreign import foreign_fault
from hv15_batch.media._open import (
    FORMAT_RULE,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PIXELS,
    RefusedImage,
    open_image,
    read_image_bytes,
)
from hv15_batch.media.conversion import look

__all__ = [
    "MAX_IMAGE_BYTES",
    "MAX_IMAGE_PIXELS",
    "FirstFrame",
    "FirstFrames",
    "open_image",
    "read_first_frame",
    "read_image_bytes",
]

MAX_ASPECT_RATIO = 4
"""The pipeline's buckets end at 4:1, so a longer image would lose its sides.

Source: huggingface/diffusers 0.42.1 hunyuan_video1_5/image_processor.py generate_crop_size_list.
"""

# Pillow's decoders raise these on malformed files, beside OSError.
_DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, ArithmeticError,
    NotImplementedError, AttributeError, RuntimeError, struct.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FirstFrame:
    """An image file that can be a first frame."""

    path: str
    """Absolute."""
    sha256: str
    """Of the file's bytes."""
    size: tuple[int, int]
    """(height, width) in pixels, after the EXIF orientation is applied."""
    conversion: str | None
    """Conversion beyond plain RGB, one of `conversion.CONVERSIONS`."""
    notes: tuple[str, ...]
    """Notes for the user."""


class FirstFrames:
    """Images of one manifest; each file is read once, even if several rows name it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        """Where relative paths start: the manifest's folder."""
        self._known: dict[str, FirstFrame | str] = {}

    def read(self, cell: str) -> FirstFrame:
        """Return the image that a cell names.

        Raises:
            ValueError: `what is allowed; what to do`.
        """
        path = os.path.join(self.folder, cell)
        known = self._known.get(path)
        if known is None:
            try:
                known = read_first_frame(path)
            except ValueError as error:
                known = str(error)
            self._known[path] = known
        if isinstance(known, str):
            raise ValueError(known)
        return known


def read_first_frame(path: str) -> FirstFrame:
    """Read and hash one image, and check all of it.

    A truncated file opens without an error and would fail only in the night.

    Raises:
        ValueError: It is missing, not a regular file, too large, too long, or of another kind.
    """
    data = read_image_bytes(path)
    try:
        seen = look(data)
    except RefusedImage:
        raise
    except _DECODER_ERRORS as error:
        if kind := foreign_fault(data, path):
            raise ValueError(f"{FORMAT_RULE}, and {kind}") from error
        raise ValueError(
            f"{FORMAT_RULE} that can be decoded, and this file is broken or something else; "
            "open it in a viewer and save it again"
        ) from error
    height, width = seen.size
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"an image is at most {MAX_ASPECT_RATIO}:1, and this one is {width}x{height} pixels; "
            "crop it"
        )
    sha256 = hashlib.sha256(data).hexdigest()
    return FirstFrame(path, sha256, seen.size, seen.conversion, seen.notes)
