"""An image file as a person sees it on opening it: 8 bits, sRGB, nothing transparent, upright.

The parent plans and the worker encodes with this one conversion. Its steps beyond plain RGB have
names, which are part of a clip's identity.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from hv15_batch.media._colour import Colours, encoded, stated_colours, to_srgb
from hv15_batch.media._open import RefusedImage, open_image
from hv15_batch.units import shortened

if TYPE_CHECKING:
    from PIL import Image

GREY16, SRGB, WHITE = "grey16.v1", "srgb.v1", "white.v1"
"""The conversions, in order. A conversion never changes; another way gets the name `.v2`."""
CONVERSIONS = frozenset(
    "+".join(step for step, is_done in zip((GREY16, SRGB, WHITE), done, strict=True) if is_done)
    for done in product((False, True), repeat=3)
    if any(done)
)
"""All values of `image_conversion`; None is the plain conversion to RGB."""
_NOTES = {
    GREY16: "16 bits of grey, brought to 8",
    SRGB: "colours of another space than sRGB, converted to it",
    WHITE: "transparent parts, put on white",
}
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "I;16", "I")
_SIXTEEN_BITS = ("I;16", "I")
"""Pillow's modes for 16-bit grey of a PNG. It converts 16-bit colours to 8 bits itself."""

_GREY_LEVELS = {"L;2": 4, "L;4": 16}

ORIENTATION = 0x0112
SWAPPING_ORIENTATIONS = (5, 6, 7, 8)
"""EXIF orientations that turn the picture by a quarter. Source: EXIF 2.32, tag 0x0112."""
PNG_ORIENTATION_MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Chunks of a PNG that may hold an orientation. Pillow decodes the whole picture to find one."""
PNG_PACKED_MARKS = (b"zTXt", b"iTXt", b"iCCP")
"""Chunks that may unpack to too much: read on opening before the picture, on decoding after it."""
MAX_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True)
class Look:
    """The facts about an image that planning needs."""

    size: tuple[int, int]
    """(height, width) in pixels, after the EXIF orientation is applied."""
    conversion: str | None
    """One of `CONVERSIONS`; None for plain RGB."""
    notes: tuple[str, ...]
    """Notes for the user, for example `transparent parts, put on white`."""


def look(data: bytes) -> Look:
    """Check an image completely and return its size and conversion.

    A truncated file opens without an error and would fail only in the night.

    Raises:
        ValueError: It is too large, moves or is HDR.
        OSError and others of Pillow: It is of another kind, or broken.
    """
    with open_image(data) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        form, colours = image.format, _colours(image, data)
        has_16_bits = image.mode in _SIXTEEN_BITS
        may_be_transparent = image.mode in ("LA", "RGBA") or "transparency" in image.info
        width, height = image.size
        swaps = False
        if form == "PNG" and not may_be_transparent and _is_plain_png(data):
            # Checks the checksum of every chunk: 3 ms for 2.3 MB; decoding takes 58 ms.
            image.verify()
        else:
            swaps = image.getexif().get(ORIENTATION) in SWAPPING_ORIENTATIONS
            # JPEG only: decodes to an eighth of the size, which still reads the whole file.
            image.draft(None, (max(1, width // 8), max(1, height // 8)))
            image.load()
        is_transparent = may_be_transparent and _transparency(image, form) is not None
    steps = _steps(has_16_bits, colours, is_transparent)
    notes = [_NOTES[step] for step in steps] + ([colours.note] if colours.note else [])
    size = (width, height) if swaps else (height, width)
    return Look(size, "+".join(steps) or None, tuple(notes))


def open_upright(data: bytes) -> Image.Image:
    """Return an image as RGB, as a person sees it.

    Raises:
        ValueError: It is too large, moves or is HDR.
        OSError and others of Pillow: It is of another kind, or broken.
    """
    from PIL import Image, ImageOps

    with open_image(data) as opened:
        form, colours = opened.format, _colours(opened, data)
        image: Image.Image = ImageOps.exif_transpose(opened)
        cover = _transparency(image, form)
        if image.mode in _SIXTEEN_BITS:
            image = _to_8_bits(image, colours.gamma)
        elif image.mode in ("1", "L", "LA"):  # L for a grey profile
            image = image.convert("L")
            if colours.gamma is not None:
                image = image.point([_corrected(v / 255, colours.gamma) for v in range(256)])
        elif cover is not None:
            image = image.convert("RGBA")
        if colours.profile is not None:
            image = to_srgb(image, colours.profile)
        image = image.convert("RGB")
        if cover is not None:
            image = Image.composite(image, Image.new("RGB", image.size, "white"), cover)
        return image


def note_lines(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Return the notes about first frames, a line for each kind.

    Args:
        notes: (cell of the manifest, one of its notes).
    """
    images: dict[str, dict[str, None]] = {}
    for name, note in notes:
        images.setdefault(note, {})[name] = None
    lines = []
    for note, names in images.items():
        some = ", ".join(shortened(name, 40) for name in list(names)[:MAX_SHOWN_NAMES])
        more = len(names) - MAX_SHOWN_NAMES
        count = "1 image has" if len(names) == 1 else f"{len(names)} images have"
        lines.append(f"First frames: {count} {note}: {some}" + f" and {more} more" * (more > 0))
    return lines


def _colours(image: Image.Image, data: bytes) -> Colours:
    """Return the colours that an image states, after a check of its kind of pixels.

    Raises:
        RefusedImage: Pillow drops bits of its pixels, or the picture is HDR.
    """
    if image.mode not in _MODES:
        raise RefusedImage(
            f"an image has grey, colours or a palette, and this one pixels of kind {image.mode}; "
            "save it as RGB"
        )
    packing = _packing(image)
    if packing == "RGB;16B" and "transparency" in image.info:
        raise RefusedImage(
            "a PNG of 16 bits has its transparency in a channel, and this one in a colour (tRNS); "
            "save it as RGBA"
        )
    # A PNG stores its transparent grey as a raw sample, and Pillow's pixels are 0..255.
    if image.mode == "L" and packing in _GREY_LEVELS and "transparency" in image.info:
        image.info["transparency"] *= 255 // (_GREY_LEVELS[packing] - 1)
    try:
        return stated_colours(image, data)
    except ValueError as error:
        raise RefusedImage(str(error)) from error


def _packing(image: Image.Image) -> str:
    """Return Pillow's name of the stored pixels; empty if it has none."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0][3]) if tiles else ""


def _steps(has_16_bits: bool, colours: Colours, is_transparent: bool) -> list[str]:
    is_done = (has_16_bits, colours.are_converted, is_transparent)
    return [step for step, done in zip((GREY16, SRGB, WHITE), is_done, strict=True) if done]


def _transparency(image: Image.Image, form: str | None) -> Image.Image | None:
    """Return the opacity of each pixel, 0..255; None if all are opaque."""
    key = image.info.get("transparency")
    if image.mode in ("LA", "RGBA"):
        cover = image.getchannel("A")
    elif key is None:
        return None
    elif image.mode in _SIXTEEN_BITS:
        import numpy as np
        from PIL import Image

        cover = Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8))
    elif image.mode in ("1", "L"):
        cover = image.convert("L").point([0 if v == key else 255 for v in range(256)])
    else:
        cover = image.convert("RGBA").getchannel("A")
    lowest, highest = cover.getextrema()
    # Some programs leave alpha at 0 in a BMP, and viewers show it as opaque.
    return None if lowest == 255 or (form == "BMP" and highest == 0) else cover


def _to_8_bits(image: Image.Image, gamma: float | None) -> Image.Image:
    """Return 16 bits of grey as 8, rounded, after a gamma of their own was removed."""
    import numpy as np
    from PIL import Image

    values = np.arange(65536)
    table = (values + 128) // 257
    if gamma is not None:
        table = np.array([_corrected(value / 65535, gamma) for value in values])
    pixels = np.clip(np.asarray(image), 0, 65535)
    return Image.fromarray(table.astype(np.uint8)[pixels])


def _corrected(sample: float, gamma: float) -> int:
    return round(255 * encoded(float(sample ** (1 / gamma))))


def _is_plain_png(data: bytes) -> bool:
    tail = data[data.rfind(b"IDAT") :]
    return not (
        any(mark in data for mark in PNG_ORIENTATION_MARKS)
        or any(mark in tail for mark in PNG_PACKED_MARKS)
    )


def is_turned(path: str) -> bool:
    """Whether an image file says that it is to be turned or mirrored; False if it can't be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return bool(image.getexif().get(ORIENTATION, 1) != 1)
    except (OSError, ValueError, SyntaxError):
        return False
