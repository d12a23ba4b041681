"""Pages as files: the view through its template, the data and the assets beside it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hv15_batch.report.page_files import RUN_ASSETS, write_assets, write_data, write_library
from hv15_batch.report.read import read_run
from hv15_batch.report.view import MAX_GROUPS_AT_HEAD, MAX_LISTED, make_page
from hv15_batch.rundir import RunDir, publish_text, utc_now

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
        ConfigError: the folder is no run directory.
        LogSchemaError: the log cannot be read.
    """
    directory = RunDir(run_dir.absolute())
    run = read_run(directory)
    if price is None:
        price = (run.last_settings.get("report") or {}).get("price_per_kwh")
    page = make_page(run, utc_now(), price)
    write_assets(directory.path, RUN_ASSETS)
    write_data(directory.path, DATA, page.data)
    limits = {"max_listed": MAX_LISTED, "max_groups": MAX_GROUPS_AT_HEAD}
    html = render("page.html.j2", {"page": page, **limits})
    publish_text(directory.page, html)
    write_library(directory.path)
    return directory.page


def render(template: str, values: Mapping[str, Any], folder: Path = TEMPLATES) -> str:
    """Return a template as HTML; its folder's templates may use the macros of this package."""
    return _environment(folder).get_template(template).render(long_text=LONG_TEXT, **values)


@cache
def _environment(folder: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
