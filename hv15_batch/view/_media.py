"""Clips and pictures of a run as answers, in ranges; and how many may be under way at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from hv15_batch.rundir.chosen.beneath import open_beneath, served_type
from hv15_batch.rundir.paths import RunDir
from hv15_batch.units import MIB

MAX_STREAMS = 32
"""Files and event streams that are sent at once; a browser opens at most six."""
CHUNK_BYTES = MIB // 4
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


class Streams:
    """Counts what is being sent."""

    def __init__(self, most: int = MAX_STREAMS) -> None:
        """Begin with none."""
        self._free = most

    @contextmanager
    def one(self) -> Iterator[bool]:
        """Take one for the time of the block; yield whether there was one to take."""
        if self._free <= 0:
            yield False
            return
        self._free -= 1
        try:
            yield True
        finally:
            self._free += 1


def too_many() -> Response:
    """Return the answer where no stream is left."""
    again = {"retry-after": "2"}
    return PlainTextResponse("too many open streams; close another tab\n", 503, again)


class Media:
    """One file of a run as an answer; `name` comes from the log, never from the request."""

    def __init__(self, run_dir: RunDir, name: str, streams: Streams) -> None:
        """Take what is sent, from where."""
        self._run_dir = run_dir
        self._name = name
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or the part of it that was asked for."""
        with self._streams.one() as is_free:
            if not is_free:
                await too_many()(scope, receive, send)
                return
            try:
                descriptor = open_beneath(self._run_dir, self._name)
            except OSError:
                await PlainTextResponse("no such file\n", 404)(scope, receive, send)
                return
            try:
                await self._send(descriptor, scope, receive, send)
            finally:
                os.close(descriptor)

    async def _send(self, descriptor: int, scope: Scope, receive: Receive, send: Send) -> None:
        status = os.fstat(descriptor)
        headers = {
            "content-type": served_type(self._name) or "",
            "accept-ranges": "bytes",
            "etag": f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"',
            "cache-control": "private, no-cache",
        }
        asked = Headers(scope=scope)
        if headers["etag"] in asked.get("if-none-match", ""):
            await Response(None, 304, headers)(scope, receive, send)
            return
        text = asked.get("range")
        if asked.get("if-range", headers["etag"]) != headers["etag"]:
            text = None
        part = whole = range(status.st_size)
        code = 200
        if text is not None and (match := _RANGE.fullmatch(text.strip())) and match[0] != "bytes=-":
            part, code = _part(match[1], match[2], status.st_size), 206
            if not part:
                headers["content-range"] = f"bytes */{len(whole)}"
                await Response(None, 416, headers)(scope, receive, send)
                return
            headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{len(whole)}"
        headers["content-length"] = str(len(part))
        await send({"type": "http.response.start", "status": code, "headers": _raw(headers)})
        if scope["method"] == "GET":
            await _send_bytes(descriptor, part, send)
        await send({"type": "http.response.body", "body": b""})


async def _send_bytes(descriptor: int, part: range, send: Send) -> None:
    """Send bytes of a file as the reader takes them.

    Raises:
        OSError: the reader has gone, or the file has become shorter than it was.
    """
    at = part.start
    while at < part.stop:
        wanted = min(CHUNK_BYTES, part.stop - at)
        chunk = await anyio.to_thread.run_sync(os.pread, descriptor, wanted, at)
        if not chunk:
            raise OSError("the file became shorter while it was sent")
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        at += len(chunk)


def _part(first: str, last: str, size: int) -> range:
    """Return the bytes of `first-last`; empty where there are none."""
    if not first:  # the last so many
        return range(max(size - int(last), 0), size)
    end = min(int(last) + 1, size) if last else size
    return range(int(first), end)


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
