"""What a page may change: the file that pauses a run, ratings, and copies of picked clips.

A request says which run by its number, and which clips by their settings. It never names a file:
what is written where follows from the run directories that were typed and from their logs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

import msgspec
from starlette.requests import Request

from hv15_batch.clock import utc_now
from hv15_batch.errors import Refused
from hv15_batch.rundir.chosen.picks import copy_pick, pick_name, picks_folder
from hv15_batch.rundir.chosen.ratings import (
    VALUES,
    Rating,
    change_ratings,
    is_newer,
    parse_ratings,
)
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.status import set_pause
from hv15_batch.units import MIB, counted
from hv15_batch.view._watch import Watch

MAX_BODY_BYTES = 16 * MIB
"""Ratings of a hundred thousand clips."""
MAX_PICKS = 10_000
_HASH = re.compile(r"[0-9A-Za-z-]{0,64}")
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
    set_pause(_run(watch, asked.run), asked.pause)
    return {}


class _Rate(msgspec.Struct, forbid_unknown_fields=True):
    run: int
    settings_sha256: str
    file_sha256: str
    rating: str


def _rate(watch: Watch, body: bytes) -> Said:
    """Rate a clip that the page shows, or clear its rating."""
    asked = _read(body, _Rate)
    run_dir = _run(watch, asked.run)
    clip = _clip(watch, asked.run, asked.settings_sha256)
    if asked.rating not in ("", *VALUES):
        raise Refused(f"rating={asked.rating!r}: must be 1, 2, 3, 4, 5, x, or empty to clear.")
    if _HASH.fullmatch(asked.file_sha256) is None:
        raise Refused("file_sha256: must be a SHA-256 in hexadecimal digits; reload the page.")
    key, now = asked.settings_sha256, utc_now().isoformat(timespec="seconds")
    rating = Rating(key, asked.file_sha256, clip["rowId"], clip["seed"], asked.rating, now)

    def change(ratings: dict[str, Rating]) -> None:
        if asked.rating:
            ratings[key] = rating
        else:
            ratings.pop(key, None)

    change_ratings(run_dir, change)
    view = {"value": rating.rating, "sha": rating.file_sha256, "at": now}
    return {"rating": view if asked.rating else None}


class _Load(msgspec.Struct, forbid_unknown_fields=True):
    text: str


def _load(watch: Watch, body: bytes) -> Said:
    """Take over ratings that a page from the disk saved; of two of one clip the later counts."""
    loaded = parse_ratings(_read(body, _Load).text, "ratings.csv", keeps_cleared=True)
    clips = watch.seen.served.data["clips"]
    files = {(clip["settings"], clip["sha"]) for clip in clips}
    taken: set[str] = set()
    known: set[str] = set()
    for number, run_dir in enumerate(watch.run_dirs):
        own = {clip["settings"]: clip for clip in clips if clip["run"] == number}
        # Of two runs with clips of the same settings, the one with this file is meant.
        meant = {
            key: rating
            for key, rating in loaded.items()
            if key in own
            and (own[key]["sha"] == rating.file_sha256 or (key, rating.file_sha256) not in files)
        }
        known |= meant.keys()
        change_ratings(run_dir, partial(_merge, meant, taken))
    older, unknown = len(known - taken), len(loaded.keys() - known)
    said = f"loaded {counted(len(taken), 'rating')}"
    said += f", {older} older than what is here" if older else ""
    said += f", {unknown} of clips that are not here" if unknown else ""
    return {"said": said}


def _merge(meant: Mapping[str, Rating], taken: set[str], ratings: dict[str, Rating]) -> None:
    for key, rating in meant.items():
        if key in ratings and not is_newer(rating, ratings[key]):
            continue
        taken.add(key)
        if rating.rating:
            ratings[key] = rating
        else:
            ratings.pop(key, None)


class _Pick(msgspec.Struct, forbid_unknown_fields=True):
    run: int
    settings_sha256: str


class _Picks(msgspec.Struct, forbid_unknown_fields=True):
    pattern: str
    picks: Annotated[list[_Pick], msgspec.Meta(max_length=MAX_PICKS)]


def _copy_picks(watch: Watch, body: bytes) -> Said:
    """Copy clips into picks/ of their runs."""
    asked = _read(body, _Picks)
    found = [(pick.run, _clip(watch, pick.run, pick.settings_sha256)) for pick in asked.picks]
    wanted = [(run, clip, _pick_name(asked.pattern, clip)) for run, clip in found]
    files = watch.seen.served.files
    names = []
    for run, clip, name in wanted:
        address = f"/{unquote(clip['file'] or '')}"
        if address not in files:
            raise Refused(f"{clip['id']}: has no file that can be copied.")
        names.append(copy_pick(_run(watch, run), files[address][1], name))
    folders = dict.fromkeys(str(picks_folder(_run(watch, run))) for run, _ in found)
    return {"said": f"{counted(len(names), 'clip')} in {', '.join(folders)}", "names": names}


def _pick_name(pattern: str, clip: Mapping[str, Any]) -> str:
    values = {
        "row_id": clip["rowId"],
        "clip_id": clip["id"],
        "seed": clip["seed"],
        "model": clip["variant"],
        "run": clip["runName"],
        "rating": (clip["rating"] or {}).get("value", ""),
        **{f"tag_{name}": value for name, value in clip["tags"].items()},
    }
    return pick_name(pattern, values, clip["rowId"])


def _clip(watch: Watch, run: int, settings_sha256: str) -> dict[str, Any]:
    """Return a finished clip that the page shows."""
    for clip in watch.seen.served.data["clips"]:
        if clip["run"] == run and clip["settings"] == settings_sha256 and clip["isDone"]:
            return dict(clip)
    raise Refused("this page has no such finished clip; reload it.")


CHANGES: Mapping[str, Change] = {
    "pause": _pause,
    "rate": _rate,
    "load": _load,
    "picks": _copy_picks,
}
"""What can be asked for, by address."""
