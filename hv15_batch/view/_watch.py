"""What the server shows now, and what has changed since a page last heard of it.

The run directories are looked at again and again, because the runs are other processes and may be
on another machine. A page says which version it has, and gets the clips that are newer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio

from hv15_batch.clock import utc_now
from hv15_batch.errors import Refused, Secondary, reason_of
from hv15_batch.report.served import Served, rate_again, serve_page
from hv15_batch.rundir.chosen.ratings import ratings_file
from hv15_batch.rundir.frames import films_folder
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.status import ACTIVE_STATES, Holder, Status, is_gone
from hv15_batch.status.overall import current_run
from hv15_batch.status.show import format_start, format_status
from hv15_batch.view._previews import preview_files, shown_previews

LOOK_SECONDS = 0.4
"""Between two looks; a clip is on the page within two seconds."""
MOST_OF_THE_TIME = 0.5
"""A large run takes long to read; reading takes at most this share of the time."""
_STATUS_SECONDS = 2.0
"""The age of the last update is brought up to date this often."""


@dataclass(frozen=True)
class Seen:
    """What was found at one moment."""

    served: Served
    version: int
    """Rises with each change."""
    clip_versions: dict[str, int]
    """By `key_of`: when each clip last changed."""
    order_version: int
    """When a clip last came, went or changed its place."""
    page_version: int = 0
    """When what stands around the gallery last changed."""
    statuses: list[dict[str, Any]] = field(default_factory=list)
    """How each run stands."""
    statuses_version: int = 0

    @property
    def previews(self) -> dict[str, tuple[int, str]]:
        """Pictures of clips that denoise: number of the run and path below it, by address."""
        return preview_files(self.statuses)

    def since(self, version: int) -> dict[str, Any]:
        """Return what a page lacks that has a version, as JSON-able values."""
        clips = self.served.data["clips"]
        known = self.clip_versions
        news: dict[str, Any] = {
            "version": self.version,
            "isPageOld": self.page_version > version,
            "clips": [clip for clip in clips if known[key_of(clip)] > version],
        }
        if self.order_version > version:
            news["order"] = [key_of(clip) for clip in clips]
        if self.statuses_version > version or version <= 0:
            news["statuses"] = self.statuses
        return news


def key_of(clip: dict[str, Any]) -> str:
    """Return the name of a clip on a page of several runs."""
    return f"{clip['run']}/{clip['id']}"


class Watch:
    """Looks at run directories and tells the open pages."""

    def __init__(self, run_dirs: Sequence[RunDir], token: str) -> None:
        """Look for the first time.

        Raises:
            Refused: a folder is no run directory.
            LogSchemaError: a log cannot be read.
        """
        self.run_dirs = list(run_dirs)
        self.is_closed = False
        self._token = token
        self._prints = [_print_of(run_dir) for run_dir in self.run_dirs]
        self._ratings = [_ratings_of(run_dir) for run_dir in self.run_dirs]
        self._status_at = 0.0
        self._reading = Secondary("the page is not up to date")
        self._telling = Secondary("how a run stands is not shown")
        served = serve_page(self.run_dirs, token)
        self.seen = Seen(served, 1, dict.fromkeys(map(key_of, served.data["clips"]), 1), 1)
        self.seen = replace(self.seen, statuses=self._statuses(served, None), statuses_version=1)
        self._changed = anyio.Event()
        self._looking = anyio.Lock()

    async def keep(self) -> None:
        """Look again and again until the server ends."""
        while not self.is_closed:
            start = time.monotonic()
            await self.look_again()
            taken = time.monotonic() - start
            await anyio.sleep(max(LOOK_SECONDS, taken / MOST_OF_THE_TIME - taken))
        self._tell()

    async def look_now(self) -> None:
        """Look at once, after a change that came from a page."""
        self._status_at = 0.0
        await self.look_again()

    async def look_again(self) -> None:
        """Look on a thread, and tell the pages what has changed."""
        async with self._looking:
            seen = await anyio.to_thread.run_sync(self.look)
            if seen is not self.seen:
                self.seen = seen
                self._tell()

    def _tell(self) -> None:
        event, self._changed = self._changed, anyio.Event()
        event.set()

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    def look(self) -> Seen:
        """Return what is there now; the same object where nothing has changed."""
        seen = self.seen
        prints = [_print_of(run_dir) for run_dir in self.run_dirs]
        fault = None
        ratings = [_ratings_of(run_dir) for run_dir in self.run_dirs]
        if prints != self._prints or ratings != self._ratings:
            with self._reading:  # what fails is shown, and tried again
                # A page of thousands of clips takes seconds; somebody who rates does not wait.
                if prints == self._prints:
                    served = rate_again(seen.served, self.run_dirs)
                else:
                    served = serve_page(self.run_dirs, self._token, seen.served)
                seen = _newer(seen, served)
                self._prints, self._ratings = prints, ratings
            if self._reading.error is not None:
                fault = reason_of(self._reading.error)
        now = time.monotonic()
        if seen is not self.seen or fault or now > self._status_at + _STATUS_SECONDS:
            self._status_at = now
            statuses = self._statuses(seen.served, fault)
            if _states(statuses) != _states(seen.statuses):
                self._prints = []  # the page's first line names the state: it is made again
            if statuses != seen.statuses:
                version = max(seen.version, self.seen.version + 1)
                seen = replace(seen, statuses=statuses, version=version, statuses_version=version)
        return seen

    def _statuses(self, served: Served, fault: str | None) -> list[dict[str, Any]]:
        faults = [f"the log cannot be read now: {fault}"] if fault else []
        return [
            _status_of(n, run_dir, faults + _rating_lines(of_ratings), self._telling)
            for n, (run_dir, of_ratings) in enumerate(
                zip(self.run_dirs, served.rating_faults, strict=True)
            )
        ]


def _states(statuses: Sequence[dict[str, Any]]) -> list[str | None]:
    return [status.get("state") for status in statuses]


def _rating_lines(fault: str | None) -> list[str]:
    return [f"ratings are shown as they were last read: {fault}"] if fault else []


def _newer(seen: Seen, served: Served) -> Seen:
    """Return what was seen with a page that was made again."""
    version = seen.version + 1
    before = {key_of(clip): clip for clip in seen.served.data["clips"]}
    versions = {
        key: seen.clip_versions[key] if before.get(key) == clip else version
        for clip in served.data["clips"]
        if (key := key_of(clip))
    }
    is_same_order = list(before) == list(versions)
    return replace(
        seen,
        served=served,
        version=version,
        clip_versions=versions,
        order_version=seen.order_version if is_same_order else version,
        page_version=seen.page_version if served.html == seen.served.html else version,
    )


def _status_of(
    number: int, run_dir: RunDir, lines: list[str], telling: Secondary
) -> dict[str, Any]:
    """Return how a run stands, as `hv15-batch status` says it, and the clips that denoise."""
    values: dict[str, Any] = {"name": run_dir.path.name, "isPaused": run_dir.pause.exists()}
    now = utc_now()
    with telling:
        try:
            status = current_run(run_dir.path)
        except Refused as error:  # it has not begun
            return {**values, "isActive": False, "lines": [*lines, str(error)]}
        if isinstance(status, Holder):
            _, *said = format_start(run_dir.path, status, now).splitlines()
            return {**values, "isActive": True, "lines": [*lines, *said]}
        _, *said = format_status(run_dir.path, status, now).splitlines()
        previews = shown_previews(number, run_dir, status)
        return {**values, **_numbers(status), "lines": [*lines, *said], "previews": previews}
    reason = reason_of(telling.error) if telling.error is not None else ""
    return {**values, "isActive": False, "lines": [*lines, f"the status cannot be read: {reason}"]}


def _numbers(status: Status) -> dict[str, Any]:
    return {
        "isActive": status.state in ACTIVE_STATES and not is_gone(status),
        "state": status.state,
        "done": status.done,
        "failed": status.failed,
        "total": status.total,
        "clip": status.clip_id,
        "step": status.step,
        "steps": status.steps,
    }


def _print_of(run_dir: RunDir) -> list[tuple[str, int, int]]:
    """Return what changes when a page of the run would change."""
    own = [folder for d in (run_dir, *run_dir.shard_dirs()) for folder in (d.runs, d.own_log)]
    paths = [run_dir.plan, run_dir.clips, run_dir.thumbs, films_folder(run_dir), *own]
    return list(_stamps(paths))


def _ratings_of(run_dir: RunDir) -> list[tuple[str, int, int]]:
    return list(_stamps([ratings_file(run_dir)]))


def _stamps(paths: Sequence[Path]) -> Iterator[tuple[str, int, int]]:
    """Yield name, time and size of files, and of a log's folder what lies in it."""
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            continue
        yield str(path), found.st_mtime_ns, found.st_size
