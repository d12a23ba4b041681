"""The colours that an image file states, and their conversion to sRGB.

Pillow's LittleCMS converts. Gamma and primaries in numbers are first made into a profile.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

SAME_LEVELS = 2
"""A profile that moves no colour by more levels of 255 counts as sRGB."""
USUAL_GAMMA = 1 / 2.2
GAMMA_TOLERANCE = 0.05
"""A gAMA as near as this to 1/2.2 means sRGB. Source: libpng 1.6 png.c, PNG_GAMMA_THRESHOLD."""
XY_TOLERANCE = 0.005
SRGB_XY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""x, y of white, red, green and blue. Source: ITU-R BT.709-6, table 1."""

BROKEN = "a colour profile that is broken or of another kind of image, taken as sRGB"
CMYK_WITHOUT = "CMYK without a colour profile, so the colours are approximate"

_CLASSES = ("scnr", "mntr", "prtr", "spac")
_PRIMARIES = {
    1: SRGB_XY,
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
"""Primaries of cICP: BT.709, BT.2020, Display P3. Source: ITU-T H.273, table 2."""
_GAMMAS: dict[int, float | None] = {4: 1 / 2.2, 5: 1 / 2.8, 8: 1.0, 13: None}
"""Gammas of cICP; None is the curve of sRGB. Source: ITU-T H.273, table 3."""
_BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))
_D50 = (0.9642, 1.0, 0.8249)
"""White of profiles, and the adaptation to it. Source: ICC.1:2022, 7.2.16 and annex E."""


@dataclass(frozen=True)
class Colours:
    """How to convert the colours of one image."""

    profile: bytes | None = None
    """ICC profile to convert from; None if they are sRGB or taken as sRGB."""
    gamma: float | None = None
    """Gamma of grey to convert without a profile: the sample is light to this power."""
    note: str | None = None
    """A note for the user."""

    @property
    def are_converted(self) -> bool:
        """Whether they are converted."""
        return self.profile is not None or self.gamma is not None


def stated_colours(image: Image.Image, data: bytes) -> Colours:
    """Return the colours that a file states: cICP, else profile, else sRGB, else gAMA and cHRM.

    Args:
        image: Opened and not decoded yet; chunks after the picture do not count.
        data: The whole file.

    Raises:
        ValueError: The picture is HDR.
    """
    info, is_grey = image.info, _is_grey(image.mode)
    numbers = _cicp(data) if image.format == "PNG" else None
    if numbers is not None:
        return _from_cicp(numbers, is_grey)
    if "icc_profile" in info:
        profile = info["icc_profile"]
        use = _use_of(profile, image.mode) if profile else BROKEN
        return Colours(note=use) if use == BROKEN else Colours(profile if use else None)
    if image.format == "PNG" and "srgb" not in info:
        return _from_numbers(info.get("gamma"), info.get("chromaticity"), is_grey)
    return Colours(note=CMYK_WITHOUT if image.mode == "CMYK" else None)


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an image as RGB in sRGB; a grey one is L."""
    from PIL import ImageCms

    mode = {"GRAY": "L"}.get(space := _space(_opened(profile)), space)
    if image.mode != mode:
        image = image.convert(mode)
    seen = ImageCms.applyTransform(image, _transform(profile, image.mode))
    assert seen is not None
    return seen


def _use_of(profile: bytes, mode: str) -> str | None:
    """Return "convert", None for a profile that is sRGB, or `BROKEN`.

    A grey picture may have a profile of colours, which then applies to red, green and blue.
    """
    from PIL import ImageCms

    kind = "GRAY" if _is_grey(mode) else "CMYK" if mode == "CMYK" else "RGB"
    try:
        opened = _opened(profile)
        space = _space(opened)
        is_usable = opened.profile.device_class in _CLASSES and (
            space == kind or (kind, space) == ("GRAY", "RGB")
        )
        return _use(profile, {"GRAY": "L"}.get(space, space)) if is_usable else BROKEN
    except (ImageCms.PyCMSError, OSError, ValueError):
        return BROKEN


@lru_cache(maxsize=16)
def _use(profile: bytes, mode: str) -> str | None:
    if mode == "CMYK":
        _transform(profile, mode)
        return "convert"
    from PIL import Image

    steps = range(0, 256, 15)
    colours = bytes(v for rgb in product(steps, repeat=3) for v in rgb)
    before = Image.frombytes("RGB", (len(colours) // 3, 1), colours)
    if mode == "L":
        before = Image.frombytes("L", (256, 1), bytes(range(256)))
    after = to_srgb(before, profile).tobytes()
    levels = zip(before.convert("RGB").tobytes(), after, strict=True)
    return "convert" if any(abs(a - b) > SAME_LEVELS for a, b in levels) else None


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Any:
    from PIL import ImageCms

    srgb = ImageCms.createProfile("sRGB")
    # LittleCMS would use a table of 33 steps, which is too coarse for dark greys.
    flags = ImageCms.Flags.NOOPTIMIZE if mode == "L" else ImageCms.Flags.NONE
    return ImageCms.buildTransform(_opened(profile), srgb, mode, "RGB", flags=flags)


def _opened(profile: bytes) -> Any:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(BytesIO(profile))


def _is_grey(mode: str) -> bool:
    return mode.startswith(("1", "L", "I"))


def _space(opened: Any) -> str:
    return str(opened.profile.xcolor_space).strip()


# -- colours in numbers -----------------------------------------------------------------------


def _from_numbers(
    gamma: float | None, chromaticity: tuple[float, ...] | None, is_grey: bool
) -> Colours:
    xy = SRGB_XY if is_grey else chromaticity or SRGB_XY
    is_usual = gamma is None or abs(gamma / USUAL_GAMMA - 1) <= GAMMA_TOLERANCE
    has_srgb_xy = all(abs(a - b) <= XY_TOLERANCE for a, b in zip(xy, SRGB_XY, strict=True))
    if is_usual and has_srgb_xy:
        return Colours()
    return _converted(xy, None if is_usual else gamma, is_grey)


def _converted(xy: tuple[float, ...], gamma: float | None, is_grey: bool) -> Colours:
    try:
        profile = matrix_profile(xy, gamma)
        _transform(profile, "RGB")
    except (ArithmeticError, OSError, ValueError, struct.error):
        return Colours(note=BROKEN)
    return Colours(gamma=gamma) if is_grey else Colours(profile)


def _from_cicp(numbers: tuple[int, int, int, int], is_grey: bool) -> Colours:
    primaries, transfer, matrix, is_full = numbers
    if transfer in (16, 18):
        raise ValueError(
            "an image has standard brightness, and this one is HDR (cICP); save it as SDR in sRGB"
        )
    if (matrix, is_full) != (0, 1) or primaries not in _PRIMARIES or transfer not in _GAMMAS:
        return Colours(note=BROKEN)
    gamma = _GAMMAS[transfer]
    if gamma is None and (primaries == 1 or is_grey):
        return Colours()
    return _converted(_PRIMARIES[primaries], gamma, is_grey)


def _cicp(data: bytes) -> tuple[int, int, int, int] | None:
    """Return the four numbers of a PNG's cICP, which comes before the picture, or None."""
    place = 8
    while place + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind in (b"IDAT", b"PLTE", b"IEND"):
            return None
        if kind == b"cICP" and length == 4 and place + 12 <= len(data):
            first, second, third, fourth = data[place + 8 : place + 12]
            return first, second, third, fourth
        place += length + 12
    return None


def matrix_profile(xy: tuple[float, ...], gamma: float | None) -> bytes:
    """Return an ICC profile of three primaries and one curve (ICC.1:2022, 8.3.3).

    Args:
        xy: x, y of white, red, green and blue.
        gamma: As in gAMA: the sample is light to this power; None for the curve of sRGB.

    Raises:
        ArithmeticError, ValueError, struct.error: No colours have these numbers.
    """
    import numpy as np

    white, *colours = (
        np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in zip(xy[::2], xy[1::2], strict=True)
    )
    matrix = np.array(colours).T
    try:
        matrix = matrix * np.linalg.solve(matrix, white)
    except np.linalg.LinAlgError as error:
        raise ValueError("no three primaries") from error
    bradford = np.array(_BRADFORD)
    scale = np.diag((bradford @ _D50) / (bradford @ white))
    adapted = np.linalg.inv(bradford) @ scale @ bradford @ matrix
    if not np.isfinite(adapted).all():
        raise ValueError("no colours")
    curve = _curve(gamma)
    tags = [
        (name.encode(), b"XYZ \0\0\0\0" + struct.pack(">3i", *np.rint(column * 65536).astype(int)))
        for name, column in zip(("rXYZ", "gXYZ", "bXYZ"), adapted.T, strict=True)
    ]
    tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    white_of_profile = struct.pack(">3i", *(round(v * 65536) for v in _D50))
    tags.append((b"wtpt", b"XYZ \0\0\0\0" + white_of_profile))
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags:
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4xI4s4s4s", start + len(body), 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp")
    head = head.ljust(68, b"\0") + white_of_profile
    return head.ljust(128, b"\0") + table + body


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        exponent = 1 / gamma
        if not 0.1 <= exponent <= 20:
            raise ValueError("no curve")
        values = [round(65535 * (n / 4095) ** exponent) for n in range(4096)]
    else:
        values = [round(65535 * linear(n / 4095)) for n in range(4096)]
    return struct.pack(">4s4xI4096H", b"curv", len(values), *values)


def linear(sample: float) -> float:
    """Return the light of a sample in sRGB, both 0..1. Source: IEC 61966-2-1."""
    return sample / 12.92 if sample <= 0.04045 else float(((sample + 0.055) / 1.055) ** 2.4)


def encoded(light: float) -> float:
    """Return the sample in sRGB of a light, both 0..1. Source: IEC 61966-2-1."""
    return light * 12.92 if light <= 0.0031308 else float(1.055 * light ** (1 / 2.4) - 0.055)
