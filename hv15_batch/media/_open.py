"""Opening an image file: its bytes and its header, within the limits of a first frame."""

from __future__ import annotations

import errno
import warnings
from io import BytesIO
from typing import TYPE_CHECKING

from hv15_batch.files import TooLarge, read_bytes
from hv15_batch.units import MIB

if TYPE_CHECKING:
    from PIL import Image

MAX_IMAGE_BYTES = 64 * MIB
MAX_IMAGE_PIXELS = 64_000_000

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""Others are refused, because TIFF, AVIF and so on depend on how Pillow was built."""
FORMAT_RULE = "must be a PNG, JPEG, WEBP or BMP image"


class RefusedImage(ValueError):
    """An image that Pillow can read and this project refuses."""


def read_image_bytes(path: str) -> bytes:
    """Return the bytes of an image file; links to it are followed.

    Raises:
        ValueError: It is missing, not readable, no regular file or too large.
    """
    try:
        return read_bytes(path, MAX_IMAGE_BYTES)
    except FileNotFoundError:
        raise ValueError(
            f"the file must exist, and {path} does not; "
            "correct the path, which starts at the manifest's folder"
        ) from None
    except TooLarge as error:
        raise ValueError(
            f"an image file has at most {MAX_IMAGE_BYTES // MIB} MiB, and this one has "
            f"{error.num_bytes:,} bytes; save it smaller or as JPEG"
        ) from None
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EISDIR):
            raise ValueError(
                f"{FORMAT_RULE}, and {path} is no regular file; name an image file"
            ) from None
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
            raise RefusedImage(_too_many_pixels("far more")) from None
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise RefusedImage(_too_many_pixels(f"{width}x{height}"))
    # A phone's JPEG may carry a second picture (MPO); the first is the photograph.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise RefusedImage(
            f"an image has one frame, and this one has {getattr(image, 'n_frames', 2)} frames; "
            "save the frame you want as PNG"
        )
    return image


def _too_many_pixels(found: str) -> str:
    return (
        f"an image has at most {MAX_IMAGE_PIXELS // 1_000_000} megapixels, and this one has "
        f"{found}; scale it down (frames have under 1 megapixel)"
    )
