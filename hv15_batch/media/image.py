"""First frames that a manifest names: whether they can be used, their hash and their size.

Pillow is imported with the first image only.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from hv15_batch.units import MIB

if TYPE_CHECKING:
    from PIL import Image


MAX_IMAGE_BYTES = 64 * MIB
MAX_IMAGE_PIXELS = 64_000_000
MAX_ASPECT_RATIO = 4
"""The pipeline's buckets end at 4:1, so a longer image would lose its sides.

Source: huggingface/diffusers 0.42.1 hunyuan_video1_5/image_processor.py generate_crop_size_list.
"""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
FORMAT_RULE = "must be a PNG, JPEG, WEBP or BMP image"

ORIENTATION = 0x0112
SWAPPING_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations that turn the picture by a quarter. Source: EXIF 2.32, tag 0x0112."""

PNG_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Where a PNG may hold an orientation; Pillow decodes the whole picture to look for one."""
PNG_PACKED_MARKS = (b"zTXt", b"iTXt", b"iCCP")
"""What may unpack to too much: found on opening before the picture, on decoding behind it."""

# What Pillow's decoders raise on malformed files, beside OSError.
_DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, ArithmeticError,
    NotImplementedError, struct.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FirstFrame:
    """An image file that can be rendered from."""

    path: str
    """Absolute."""
    sha256: str
    """Of the file's bytes."""
    size: tuple[int, int]
    """(height, width) in pixels, after the EXIF orientation is applied."""


class FirstFrames:
    """Images of one manifest; each file is read once however many rows name it."""

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

    All of it because a truncated file opens like any other and would fail only in the night.

    Raises:
        ValueError: It is missing, no plain file, too large, too long, or not such an image.
    """
    data = read_image_bytes(path)
    try:
        height, width = _decoded_size(data)
    except _DECODER_ERRORS as error:
        if isinstance(error, _RefusedImage):
            raise
        raise ValueError(
            f"{FORMAT_RULE} that can be decoded, and this file is broken or something else; "
            "open it in a viewer and save it again"
        ) from error
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"an image is at most {MAX_ASPECT_RATIO}:1, and this one is {width}x{height} pixels; "
            "crop it"
        )
    return FirstFrame(path, hashlib.sha256(data).hexdigest(), (height, width))


class _RefusedImage(ValueError):
    """An image that Pillow can read and this project will not."""


def read_image_bytes(path: str) -> bytes:
    """Return the bytes of an image file; a link may lead to it from anywhere.

    Raises:
        ValueError: It is missing, not readable, no plain file or too large.
    """
    try:
        _check_file(path, os.stat(path))  # before it is opened: a device may act on that
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())  # of what was opened, not of what had the name
            _check_file(path, status)
            return file.read(status.st_size)
    except FileNotFoundError:
        raise ValueError(
            f"the file must exist, and {path} does not; "
            "correct the path, which starts at the manifest's folder"
        ) from None
    except OSError as error:
        raise ValueError(
            f"the file must be readable, and {path} is not ({error.strerror}); "
            "correct the path or its permissions"
        ) from error


def open_image(data: bytes) -> Image.Image:
    """Return an image that is not yet decoded, within the limits on format, pixels and frames.

    Raises:
        ValueError: It is too large or moves.
    """
    from PIL import Image

    with warnings.catch_warnings():
        # Pillow warns from 89 megapixels and raises from 179; the limit below is stricter.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            raise _RefusedImage(_too_many_pixels("far more")) from None
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise _RefusedImage(_too_many_pixels(f"{width}x{height}"))
    # A phone's JPEG may carry a second picture (MPO); the first is the photograph.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise _RefusedImage(
            f"an image is a still one, and this one has {getattr(image, 'n_frames', 2)} frames; "
            "save the frame you want as PNG"
        )
    return image


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _check_file(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{FORMAT_RULE}, and {path} is no regular file; name an image file")
    if status.st_size > MAX_IMAGE_BYTES:
        raise ValueError(
            f"an image file has at most {MAX_IMAGE_BYTES // MIB} MiB, and this one "
            f"{status.st_size:,} bytes; save it smaller or as JPEG"
        )


def _decoded_size(data: bytes) -> tuple[int, int]:
    """Check the whole image and return (height, width) as a viewer shows it."""
    with open_image(data) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        width, height = image.size
        if image.format == "PNG" and _is_plain_png(data):
            # The checksum of every chunk, 3 ms for 2.3 MB where decoding takes 58 ms.
            image.verify()
            return height, width
        swaps = image.getexif().get(ORIENTATION) in SWAPPING_ORIENTATIONS
        # JPEG only: an eighth of the size is decoded, which still reads the whole file.
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        image.load()
    return (width, height) if swaps else (height, width)


def _is_plain_png(data: bytes) -> bool:
    tail = data[data.rfind(b"IDAT") :]
    return not (
        any(mark in data for mark in PNG_ORIENTATION_MARKS)
        or any(mark in tail for mark in PNG_PACKED_MARKS)
    )


def _too_many_pixels(found: str) -> str:
    return (
        f"an image has at most {MAX_IMAGE_PIXELS // 1_000_000} megapixels, and this one {found}; "
        "scale it down (frames have under 1 megapixel)"
    )
