"""The URL of a run directory on object storage, and the folder that stands for it here."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from hv15_batch.errors import Refused
from hv15_batch.machine.machine import cache_root

SCHEMES = ("s3", "gs", "az")
FORM = "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or az://CONTAINER/FOLDER"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_PART = re.compile(r"[A-Za-z0-9_=+,~-][A-Za-z0-9._=+,~-]*")


def is_url(text: str) -> bool:
    """Whether a typed run directory is a URL and no path."""
    return _URL.match(text) is not None


def checked_url(text: str, setting: str = "run_dir") -> str:
    """Return a typed URL in its one form, without a slash at the end.

    Raises:
        Refused: It has another form, or a user or password in it. The message never shows those.
    """
    match = _URL.match(text)
    assert match is not None, text
    scheme, rest = match[1].lower(), match[2]
    bucket, _, folder = rest.partition("/")
    shown = f"{setting}={text}"
    if "@" in bucket:
        raise Refused(
            f"{setting}={scheme}://***: has a user or a password in it, which would be stored and "
            "shown; leave it out: credentials come from the environment or the instance."
        )
    if scheme not in SCHEMES:
        raise Refused(f"{shown}: a run directory is a folder or {FORM}.")
    parts = folder.rstrip("/").split("/")
    if not _BUCKET.fullmatch(bucket):
        raise Refused(
            f"{shown}: {bucket!r} is no name of a bucket (at least 3 letters, digits, points, "
            f"hyphens); type {FORM}."
        )
    if parts == [""]:
        raise Refused(f"{shown}: names a whole bucket; name a folder in it: {FORM}.")
    if wrong := [part for part in parts if not _PART.fullmatch(part)]:
        raise Refused(
            f"{shown}: {wrong[0]!r} is no name of a folder there: letters, digits and . _ - = + , "
            "~ are allowed, and it does not begin with a point."
        )
    return f"{scheme}://{bucket}/{'/'.join(parts)}"


def mirror_folder(url: str) -> Path:
    """Return the folder of this machine that has the shape of a local run directory.

    Args:
        url: As `checked_url` returns it.

    Raises:
        Refused: There is no cache folder.
    """
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return cache_root() / "runs" / name / url.rpartition("/")[2]
