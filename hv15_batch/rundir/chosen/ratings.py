"""ratings.csv of a run directory: how a person rated its clips.

The file is small and may be opened in a spreadsheet. It is written whole and renamed, under a lock
of its own, so that a run may go on meanwhile.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from filelock import Timeout

from hv15_batch.errors import Refused, system_message
from hv15_batch.redaction import one_line
from hv15_batch.rundir._lock import RunLock
from hv15_batch.rundir.chosen.beneath import open_beneath
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publish_text
from hv15_batch.units import MIB, parse_time, shortened

REJECTED = "x"
VALUES = ("1", "2", "3", "4", "5", REJECTED)
"""What a rating may be; 5 is best."""
MAX_BYTES = 64 * MIB
"""Of ratings.csv: two hundred bytes for each of three hundred thousand clips."""
_LOCK_SECONDS = 10.0
_HASH = re.compile(r"[0-9A-Za-z-]{1,64}")
_MAX_SHOWN = 40


@dataclass(frozen=True)
class Rating:
    """A line of ratings.csv; the fields are its columns."""

    settings_sha256: str
    file_sha256: str
    """Of the file that was looked at; empty where the log lacks it. A clip that was made again has
    another one, and the rating is then outdated."""
    row_id: str
    seed: str
    rating: str
    """One of `VALUES`."""
    rated_at: str
    """ISO 8601, UTC."""


COLUMNS = tuple(field.name for field in fields(Rating))
Ratings = Mapping[str, Rating]
"""By `settings_sha256`."""


def ratings_file(run_dir: RunDir) -> Path:
    """Return where the ratings of a run directory are."""
    return run_dir.path / "ratings.csv"


def read_ratings(run_dir: RunDir) -> dict[str, Rating]:
    """Return the ratings of a run directory; none where there is no file.

    Raises:
        Refused: the file cannot be read, or a line of it is no rating.
    """
    path = ratings_file(run_dir)
    try:
        descriptor = open_beneath(run_dir, path.name)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Refused(f"{path}: {system_message(error)}.") from error
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise Refused(f"{path}: more than {MAX_BYTES // MIB} MiB; move it elsewhere.")
    try:
        return parse_ratings(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise Refused(f"{path}: no UTF-8; save it as UTF-8, or move it.") from error


def parse_ratings(text: str, name: str) -> dict[str, Rating]:
    """Return the ratings that a text holds; of two of one clip the later.

    Args:
        text: Of a ratings.csv.
        name: Of the file, for messages.

    Raises:
        Refused: it is no ratings.csv, or a line of it is no rating.
    """
    found: dict[str, Rating] = {}
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise Refused(f"{name}: its header lacks {', '.join(missing)}; is it a ratings.csv?")
        for row in reader:
            rating = _checked(row, f"{name}:{reader.line_num}")
            before = found.get(rating.settings_sha256)
            if before is None or not is_newer(before, rating):
                found[rating.settings_sha256] = rating
    except csv.Error as error:
        raise Refused(f"{name}:{reader.line_num}: no CSV ({error}).") from error
    return found


def _checked(row: Mapping[str, str | None], place: str) -> Rating:
    cells = {column: (row[column] or "").strip() for column in COLUMNS}
    rating = Rating(**cells)
    fault = None
    if _HASH.fullmatch(rating.settings_sha256) is None:
        fault = "settings_sha256", "must be a SHA-256 in hexadecimal digits"
    elif rating.file_sha256 and _HASH.fullmatch(rating.file_sha256) is None:
        fault = "file_sha256", "must be a SHA-256 in hexadecimal digits, or empty"
    elif rating.rating not in VALUES:
        fault = "rating", "must be 1, 2, 3, 4, 5 or x"
    elif not _is_time(rating.rated_at):
        fault = "rated_at", "must be a time such as 2026-11-30T07:00:00+00:00"
    if fault is not None:
        value = shortened(one_line(cells[fault[0]]), _MAX_SHOWN)
        raise Refused(f"{place}: {fault[0]}={value}: {fault[1]}; correct it, or delete the line.")
    return rating


def _is_time(text: str) -> bool:
    try:
        return parse_time(text).tzinfo is not None
    except ValueError:
        return False


def is_newer(rating: Rating, other: Rating) -> bool:
    """Whether a rating was given after another one."""
    # Compared as they are: in UTC, a time at the edge of the calendar would be beyond it.
    return parse_time(rating.rated_at) > parse_time(other.rated_at)


def format_ratings(ratings: Ratings) -> str:
    """Return the text of a ratings.csv."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(astuple(rating) for rating in ratings.values())
    return text.getvalue()


def change_ratings(run_dir: RunDir, change: Callable[[dict[str, Rating]], None]) -> None:
    """Change the ratings of a run directory: read, change and write them under their lock.

    Args:
        run_dir: The run directory.
        change: Changes the ratings in place.

    Raises:
        Refused: another process holds the lock, or the present file is no ratings.csv.
        OSError: it cannot be written.
    """
    path = ratings_file(run_dir)
    file = run_dir.path / ".ratings.lock"
    if file.is_symlink():
        raise Refused(f"{file}: is a link, and ratings are locked by it; remove the link.")
    lock = RunLock(file, timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise Refused(f"{path}: in use by another hv15-batch view; try again.") from None
    try:
        ratings = read_ratings(run_dir)
        before = dict(ratings)
        change(ratings)
        if ratings != before:
            publish_text(path, format_ratings(ratings))
    finally:
        lock.release()
