"""What lies beside a page: style, scripts and the plotting library, each written once.

Pages are opened from the disk, so scripts are classic ones: browsers load no modules from there.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hv15_batch.rundir import ASSETS, publish_copy, publish_text

PLOTLY = "plotly.min.js"
RUN_ASSETS = ("page.css", "gallery.js", "player.js", "stars.js", "plots.js", "page.js")
COMPARISON_ASSETS = ("page.css", "plots.js", "comparison.js")

_HERE = Path(__file__).parent / ASSETS


def write_assets(folder: Path, names: tuple[str, ...], source: Path = _HERE) -> None:
    """Bring the assets of a page up to date; what is there already is not written again.

    Args:
        folder: Where the page lies; the assets go into `assets/` below it.
        names: Files that it needs.
        source: Folder of this project that they are from.
    """
    target = folder / ASSETS
    target.mkdir(exist_ok=True)
    for name in names:
        text = (source / name).read_text(encoding="utf-8")
        if not _is_same(target / name, len(text.encode())) or (
            (target / name).read_text(encoding="utf-8") != text
        ):
            publish_text(target / name, text)


def write_library(folder: Path) -> None:
    """Copy the plotting library beside a page, once; last, for it is what takes most room."""
    target, library = folder / ASSETS / PLOTLY, plotly_file()
    if not _is_same(target, library.stat().st_size):
        publish_copy(target, library)


def plotly_file() -> Path:
    """Return the plotting library of the installed `plotly`, which is not imported: it is slow."""
    spec = find_spec("plotly")
    assert spec is not None  # a dependency of this package
    assert spec.origin is not None
    return Path(spec.origin).parent / "package_data" / PLOTLY


def write_data(folder: Path, name: str, data: Any) -> None:
    """Write what a page's scripts read, as a script that sets `hv15.data`."""
    publish_text(folder / ASSETS / name, format_data(data))


def format_data(data: Any) -> str:
    """Return data as a script: ASCII, and without `<`, so that no text can end or begin a tag."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return f"var hv15 = window.hv15 || {{}};\nhv15.data = {text.replace('<', chr(92) + 'u003c')};\n"


def _is_same(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
