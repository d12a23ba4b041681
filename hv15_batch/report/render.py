"""Pages as files: the view through its template, the data and the assets beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hv15_batch.clock import utc_now
from hv15_batch.errors import Refused
from hv15_batch.report._gallery import OWN_PAGE, Place
from hv15_batch.report._read import RunData, read_run
from hv15_batch.report._view import MAX_GROUPS_AT_HEAD, MAX_LISTED, make_page
from hv15_batch.rundir.paths import ASSETS, RunDir
from hv15_batch.rundir.publish import publish_copy, publish_text

if TYPE_CHECKING:
    from jinja2 import Environment

LONG_TEXT = 240
"""Characters of an error beyond which it is folded."""
DATA = "data.js"
TEMPLATES = Path(__file__).parent / "templates"


def write_page(run_dir: Path, price: float | None = None) -> Path:
    """Build a run directory's page from its plan and its log; return the path.

    Args:
        run_dir: The directory.
        price: Of a kWh; None means as the last run was set.

    Raises:
        Refused: the folder is no run directory.
        LogSchemaError: the log cannot be read.
    """
    directory = RunDir(run_dir.absolute())
    html, data = page_of(read_run(directory), price)
    write_assets(directory.path, RUN_ASSETS)
    write_data(directory.path, DATA, data)
    publish_text(directory.page, html)
    write_library(directory.path)
    return directory.page


def page_of(
    run: RunData, price: float | None = None, place: Place = OWN_PAGE, live: Live | None = None
) -> tuple[str, dict[str, Any]]:
    """Return a run's page as HTML, and what its scripts read.

    Args:
        run: The run.
        price: Of a kWh; None means as the last run was set.
        place: Where the page finds the clips.
        live: What a served page needs; None for one on the disk.
    """
    if price is None:
        price = (run.last_settings.get("report") or {}).get("price_per_kwh")
    page = make_page(run, utc_now(), price, place)
    limits = {"max_listed": MAX_LISTED, "max_groups": MAX_GROUPS_AT_HEAD}
    return render("page.html.j2", {"page": page, "live": live, **limits}), finite(page.data)


@dataclass(frozen=True)
class Live:
    """What a page needs that a server shows."""

    token: str
    """Its scripts send it with what they change."""


def render(template: str, values: Mapping[str, Any], folder: Path = TEMPLATES) -> str:
    """Return a template as HTML; its folder's templates may use the macros of this package."""
    return (
        _environment(folder)
        .get_template(template)
        .render({"long_text": LONG_TEXT, "live": None, **values})
    )


@cache
def _environment(folder: Path) -> Environment:
    # Not at the top: a run begins and ends well where the page cannot be built.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


PLOTLY = "plotly.min.js"
GALLERY_ASSETS = (
    *("page.css", "ratings.js", "picks.js", "clock.js", "player.js", "gallery.js", "large.js"),
    *("downloads.js", "paper.js", "plots.js", "page.js"),
)
RUN_ASSETS = GALLERY_ASSETS
LIVE_ASSETS = (*GALLERY_ASSETS, "live.js")

_HERE = Path(__file__).parent / ASSETS


def write_assets(folder: Path, names: tuple[str, ...], source: Path = _HERE) -> None:
    """Bring the assets of a page up to date; what is there already is not written again.

    Args:
        folder: Where the page lies; the assets go into `assets/` below it.
        names: Files that it needs.
        source: Folder of this project that they are from.

    Raises:
        Refused: `assets` is a link: names like page.js may be a user's own where it leads.
    """
    target = folder / ASSETS
    if target.is_symlink():
        raise Refused(f"{target}: is a link, where a page keeps its files; remove the link.")
    target.mkdir(exist_ok=True)
    for name in names:
        text = (source / name).read_text(encoding="utf-8")
        if not _is_same(target / name, len(text.encode())) or (
            (target / name).read_bytes() != text.encode()
        ):
            publish_text(target / name, text)


def asset(name: str) -> Path:
    """Return a script or style of the pages, in this package."""
    return _HERE / name


def write_library(folder: Path) -> None:
    """Copy the plotting library beside a page, once; last, for it is what takes most room."""
    target, library = folder / ASSETS / PLOTLY, plotly_file()
    if not _is_same(target, library.stat().st_size):
        publish_copy(target, library)


def plotly_file() -> Path:
    """Return the plotting library, plotly.js with bars, lines and dots alone, in this package.

    Raises:
        Refused: It is missing; the message says what to do.
    """
    file = _HERE.parent / "vendor" / PLOTLY
    if not file.is_file():
        raise Refused(f"plots need {file}, which is missing; install hv15_batch again.")
    return file


def write_data(folder: Path, name: str, data: Any) -> None:
    """Write what a page's scripts read, as a script that sets `hv15.data`."""
    publish_text(folder / ASSETS / name, format_data(data))


def finite(value: Any) -> Any:
    """Return JSON-able data with null for each number that JSON lacks, such as NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(part) for part in value]
    return value


def format_data(data: Any) -> str:
    """Return data as a script: ASCII, and without `<`, so that no text can end or begin a tag."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return f"var hv15 = window.hv15 || {{}};\nhv15.data = {text.replace('<', chr(92) + 'u003c')};\n"


def _is_same(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
