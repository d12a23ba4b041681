"""What a page may change: the file that pauses a run, ratings, and copies of picked clips.

A request says which run by its number, and which clips by their settings. It never names a file:
what is written where follows from the run directories that were typed and from their logs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from hv15_batch.errors import Refused
from hv15_batch.rundir.paths import RunDir
from hv15_batch.units import MIB
from hv15_batch.view._watch import Watch

MAX_BODY_BYTES = 16 * MIB
"""Ratings of a hundred thousand clips."""
Said = dict[str, Any]
Change = Callable[[Watch, bytes], Said]
_Asked = TypeVar("_Asked")


async def body_of(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: it is too large.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise Refused(f"a request of more than {MAX_BODY_BYTES // MIB} MiB")
        parts.append(part)
    return b"".join(parts)


def _read(body: bytes, kind: type[_Asked]) -> _Asked:
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        raise Refused(f"not understood: {error}; reload the page.") from error


def _run(watch: Watch, number: int) -> RunDir:
    if not 0 <= number < len(watch.run_dirs):
        raise Refused(f"run {number}: this page has no such run; reload it.")
    return watch.run_dirs[number]


class _Pause(msgspec.Struct, forbid_unknown_fields=True):
    run: int
    pause: bool


def _pause(watch: Watch, body: bytes) -> Said:
    asked = _read(body, _Pause)
    _run(watch, asked.run).set_pause(asked.pause)
    return {}


CHANGES: Mapping[str, Change] = {"pause": _pause}
"""What can be asked for, by address."""
