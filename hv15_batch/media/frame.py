"""A frame of a clip, kept without loss: another clip begins with it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hv15_batch.files import read_bytes
from hv15_batch.media._open import MAX_IMAGE_BYTES, open_image

if TYPE_CHECKING:
    from hv15_batch.media.video import Frames


def write_frame(pixels: Frames, path: Path) -> None:
    """Write a frame, uint8 [H, W, 3] RGB, as a PNG; reading it gives the same pixels."""
    from PIL import Image

    Image.fromarray(pixels, "RGB").save(path, format="PNG")


def pixels_sha256(pixels: Frames) -> str:
    """Return the SHA-256 of a frame's values, uint8 [H, W, 3] RGB, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def frame_sha256(path: Path) -> str | None:
    """Return the SHA-256 of the pixels of a PNG; None where it is missing or damaged.

    The bytes of the file do not matter: they depend on the program that packed them.
    """
    try:
        status = path.stat()
        return _frame_sha256(path, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError, SyntaxError):  # of Pillow
        return None


@lru_cache(maxsize=4096)
def _frame_sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with open_image(read_bytes(path, MAX_IMAGE_BYTES)) as image:
        return pixels_sha256(np.asarray(image.convert("RGB")))
