"""Files that cannot be first frames: their kind, and the command that converts them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_HEIC = "magick {file} {png}"
_VIDEO = "ffmpeg -i {file} -frames:v 1 {png}"
_STILL = "magick {file} {png}"
_BRANDS: tuple[tuple[bytes, str, str], ...] = (
    (rb"avi[fs]", "an AVIF image", _STILL),
    (rb"hei[cmsx]|hev[cmx]|mif1|msf1", "a HEIC image", _HEIC),
    (rb"crx ", "a raw photograph", ""),
    (rb"....", "a video", _VIDEO),
)
"""First brand in `ftyp`. Source: ISO/IEC 14496-12, 4.3; registered brands of MP4RA."""
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (rb"II[*+]\0|MM\0[*+]", "a TIFF image (or a raw photograph)", "magick {first} {png}"),
    (rb"GIF8[79]a", "a GIF image", "magick {first} {png}"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image", "djxl {file} {png}"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image", _STILL),
    (rb"8BPS", "a Photoshop file", "magick {first} {png}"),
    (rb"v/1\x01", "an OpenEXR image", _STILL),
    (rb"#\?RADIANCE|#\?RGBE", "a Radiance HDR image", _STILL),
    (rb"gimp xcf", "a GIMP file", ""),
    (rb"qoif|P[1-7]\s|\0\0[\x01\x02]\0", "an image of another kind", _STILL),
    (rb"%PDF-", "a PDF file", "pdftoppm -png -singlefile {file} {stem}"),
    (rb"\x1a\x45\xdf\xa3|RIFF....AVI |\0\0\x01[\xb3\xba]|OggS|FLV\x01", "a video", _VIDEO),
    (rb"version https://git-lfs", "a pointer of Git LFS and not the image", "git lfs pull"),
    (rb"PK\x03\x04|\x1f\x8b", "an archive; unpack it", ""),
)
_SVG = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(\?xml|!--|!DOCTYPE svg|svg)", re.IGNORECASE)
_HTML = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(!DOCTYPE html|html|head|body)", re.IGNORECASE)
_PEEK = 4096


def foreign_fault(data: bytes, path: str) -> str | None:
    """Return a file's kind and what to do, e.g. `this is a HEIC image; convert it: magick ...`.

    The kind follows from the first bytes, whatever the name. None if it is unknown.
    """
    if not data:
        return "this file is empty; copy or download it again"
    if data[4:8] == b"ftyp":
        return _told(_BRANDS, data[8:12], path)
    if _HTML.match(data):
        return "this is a web page, probably a failed download; download the image itself"
    if _SVG.match(data) and b"<svg" in data[:_PEEK].lower():
        return _fault("an SVG drawing", "rsvg-convert -w 1280 {file} -o {png}", path)
    return _told(_BEGINNINGS, data[:64], path)


def _told(kinds: tuple[tuple[bytes, str, str], ...], head: bytes, path: str) -> str | None:
    for pattern, kind, command in kinds:
        if re.match(pattern, head, re.DOTALL):
            return _fault(kind, command, path)
    return None


def _fault(kind: str, command: str, path: str) -> str:
    if not command:
        return f"this is {kind}; export it as PNG from the program that made it"
    name = Path(path).name
    if not name.isprintable():
        name = "FILE"
    stem = Path(name).stem
    png = f"{stem}.png" if name != f"{stem}.png" else f"{stem}-converted.png"
    quoted = {
        "file": _word(name),
        "first": _word(f"{name}[0]"),
        "png": _word(png),
        "stem": _word(stem),
    }
    return f"this is {kind}; convert it: {command.format(**quoted)}"


def _word(name: str) -> str:
    """Return a file's name as a word of a command, also if it begins like an option."""
    return shlex.quote(f"./{name}" if name.startswith("-") else name)
