"""Text for people: without secrets of the environment, and without what a terminal obeys.

Only text that is written for people passes through here: messages, log lines, tracebacks. Data
(prompts, settings, names) is never changed; where it holds a secret the run is refused instead.
Whatever the program prints, it prints with `show`, or as what `shown` returns.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TextIO
from urllib.parse import quote, unquote

BLACKED_OUT = "***"
MIN_SECRET_CHARACTERS = 8
"""Shorter values would black out ordinary words, and are no secrets worth the name."""

_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, less tab and line feed
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ufeff"  # direction, lines, notes
    "\U000e0000-\U000e007f\ud800-\udfff]"  # tags that nobody sees; halves of pairs
)
"""What a terminal obeys, or shows in another order or not at all. Joiners stay: scripts and emoji
need them. Source: Unicode 16.0, tables 23-1 to 23-4, and ECMA-48."""
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|API_?KEY|(^|_)(KEYS?|PAT|PASS)(_|$)"
)
_NO_SECRET_NAME = re.compile(r"_(PATH|FILE|DIR|SOCK|SECONDS|EXPIR\w*)$")
_LOGIN_IN_URL = re.compile(r"(?<=://)([^\s/@:]*):([^\s/@]+)(?=@)")
# Things that are secrets whatever they are called: a hub token, a header, a signed address.
_SHAPES = (
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), BLACKED_OUT),
    (_LOGIN_IN_URL, BLACKED_OUT),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{16,}"), rf"\1 {BLACKED_OUT}"),
    (re.compile(r"([?&](?:X-Amz-\w+|Signature|Policy)=)[^&\s'\"]+"), rf"\1{BLACKED_OUT}"),
)


def secret_values(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the secrets of an environment: value -> name of the variable that holds it.

    Those are values of variables whose name says so, logins in addresses such as a proxy's, and
    the token that `hf auth login` stored.
    """
    environ = os.environ if environ is None else environ
    found: dict[str, str] = {}
    for name, value in environ.items():
        found.update(dict.fromkeys(_secrets_in(name, value), name))
    if token := _read_token(_token_file(environ)):
        found[token] = "the stored hub token"
    return {value: name for value, name in found.items() if len(value) >= MIN_SECRET_CHARACTERS}


def redacted(text: str) -> str:
    """Return a text for people with every secret of the environment blacked out."""
    for value in sorted(secret_values(), key=len, reverse=True):
        for form in {value, quote(value, safe=""), repr(value)[1:-1]}:
            text = text.replace(form, BLACKED_OUT)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return text


def printable(text: str) -> str:
    r"""Return a text with every character that a terminal would obey written out: `\x1b`."""
    text = text.replace("\r\n", "\n")
    return _OBEYED.sub(lambda match: _written_out(match[0]), text)


def one_line(text: str) -> str:
    """Return a text from elsewhere as one line that can be printed among ours."""
    return " ".join(printable(text).split("\n")).strip()


def shown(text: str) -> str:
    """Return a text as people may see it: `redacted` and `printable`."""
    return printable(redacted(text))


def show(text: object, file: TextIO | None = None, end: str = "\n") -> None:
    """Print a text for people, whoever wrote it: `shown`.

    Args:
        text: What is printed, or an error.
        file: None for standard output.
        end: As of `print`.
    """
    print(shown(str(text)), file=file, end=end, flush=True)


def printable_json(text: str) -> str:
    """Return JSON with the same content in which a terminal finds nothing to obey."""
    text = text.replace("\r", "\n")  # it stands between values only
    return _OBEYED.sub(lambda match: json.dumps(match[0])[1:-1].replace("\x7f", "\\u007f"), text)


def _written_out(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def redacted_or_none(text: str | None) -> str | None:
    """Return `redacted` of a text that may be missing."""
    return None if text is None else redacted(text)


def print_redacted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print a traceback like Python's own, without secrets: a `sys.excepthook`."""
    sys.stderr.write(shown("".join(traceback.format_exception(kind, error, trace))))


def _secrets_in(name: str, value: str) -> list[str]:
    secrets = [unquote(match[2]) for match in _LOGIN_IN_URL.finditer(value)]
    secrets += [match[2] for match in _LOGIN_IN_URL.finditer(value)]
    upper = name.upper()
    if not _SECRET_NAME.search(upper) or _NO_SECRET_NAME.search(upper):
        return secrets
    value = value.strip()
    if os.path.isabs(value) and os.path.exists(value):
        return secrets  # where a secret is kept, e.g. GOOGLE_APPLICATION_CREDENTIALS
    # A private key has many lines, and a message may quote any of them.
    lines = [line.strip() for line in value.splitlines() if not line.startswith("-----")]
    return [*secrets, value, *lines]


def _token_file(environ: Mapping[str, str]) -> str:
    # Source: https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    cache = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "/")) / ".cache"
    home = environ.get("HF_HOME") or Path(cache) / "huggingface"
    return environ.get("HF_TOKEN_PATH") or str(Path(home) / "token")


@lru_cache(maxsize=8)
def _read_token(path: str) -> str:
    if not os.path.isfile(path):  # a pipe would keep us waiting
        return ""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""
