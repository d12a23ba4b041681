"""Guesses the encoding or the kind of a file that is not UTF-8."""

from __future__ import annotations

import re
from dataclasses import dataclass

SAMPLE_BYTES = 65_536
"""So many bytes of a file are examined."""

FOREIGN_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Longer ones first: UTF-32 begins with the mark of UTF-16. Source: Unicode 16.0, table 2-4."""

KINDS = {
    b"PK\x03\x04": "a ZIP file (a spreadsheet such as .xlsx is one)",
    b"\x1f\x8b": "a gzip file",
    b"\xd0\xcf\x11\xe0": "an old Office file (.xls, .doc)",
    b"PAR1": "a Parquet file",
    b"%PDF-": "a PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"SQLite format 3\x00": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"{\\rtf": "an RTF document",
}
"""First bytes of files that get a text's suffix by mistake."""


def kind_of(data: bytes) -> str | None:
    """Return the kind of a file by its first bytes; None for text."""
    return next((kind for mark, kind in KINDS.items() if data.startswith(mark)), None)


@dataclass(frozen=True)
class Encoding:
    """A guess."""

    name: str
    """As a person knows it."""
    codec: str
    """As iconv knows it."""


_UTF16_LE = Encoding("UTF-16", "UTF-16LE")
_UTF16_BE = Encoding("UTF-16", "UTF-16BE")
_LATIN = Encoding("Windows-1252 (Latin-1)", "WINDOWS-1252")
_MAC = Encoding("Mac Roman", "MACINTOSH")
_CYRILLIC = Encoding("Windows-1251 (Cyrillic)", "WINDOWS-1251")
_EAST_ASIAN = (
    (Encoding("EUC-KR (Korean)", "EUC-KR"), "euc_kr", "\uac00-\ud7a3", 0.9),
    (
        Encoding("GBK (Chinese)", "GB18030"),
        "gb2312",
        "\u4e00-\u9fff\u3000-\u303f\uff00-\uffef",
        0.9,
    ),
    (Encoding("Shift-JIS (Japanese)", "SHIFT_JIS"), "cp932", "\u3040-\u30ff", 0.25),
    (Encoding("Big5 (Chinese)", "BIG5"), "big5", "\u4e00-\u9fff\u3000-\u303f\uff00-\uffef", 0.9),
    (Encoding("GBK (Chinese)", "GB18030"), "gbk", "\u4e00-\u9fff\u3000-\u303f\uff00-\uffef", 0.9),
)
"""Encoding, Python's codec, characters that its texts are made of, and how many are so at least.

GB2312 is tried before the codecs that take nearly any two bytes; hangul before it, since half of
the bytes of Korean are Chinese characters too.
"""

_MAC_LETTERS = re.compile(rb"[a-z][\x87-\x90\x9f]")
"""After a small letter these are letters in Mac Roman, and marks or nothing in Windows-1252."""


def guess(sample: bytes) -> Encoding:
    """Return the encoding that a sample seems to have; it is known to be no UTF-8.

    Args:
        sample: Some KiB from where the first odd byte is, from the start of a line.
    """
    if sample.count(0) * 4 > len(sample):
        even, odd = sample[::2].count(0), sample[1::2].count(0)
        return _UTF16_LE if odd >= even else _UTF16_BE
    high = bytes(byte for byte in sample if byte >= 0x80)
    mean_run = _mean_run(sample)
    for encoding, codec, script, share in _EAST_ASIAN:
        # A single letter with an accent and its neighbour are two bytes too.
        is_possible = codec == "cp932" or mean_run >= 1.9
        if is_possible and _share(sample, codec, script) >= share:
            return encoding
    # Cyrillic words are made of high bytes alone, Latin ones have single ones among letters.
    if mean_run >= 3 and sum(byte >= 0xC0 for byte in high) >= 0.8 * len(high):
        return _CYRILLIC
    return _MAC if _MAC_LETTERS.search(sample) else _LATIN


def _share(sample: bytes, codec: str, script: str) -> float:
    """Return how much of what is not ASCII belongs to a script; 0 where it cannot be decoded."""
    cut = sample.rfind(b"\n") + 1 or len(sample)  # no character is cut in two
    try:
        text = sample[:cut].decode(codec)
    except UnicodeDecodeError:
        return 0.0
    foreign = [character for character in text if ord(character) >= 0x80]
    found = re.findall(f"[{script}]", "".join(foreign))
    return len(found) / len(foreign) if len(foreign) > 1 else 0.0


def _mean_run(sample: bytes) -> float:
    runs = re.findall(rb"[\x80-\xff]+", sample)
    return sum(map(len, runs)) / len(runs) if runs else 0.0
