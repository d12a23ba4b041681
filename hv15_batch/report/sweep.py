"""What a sweep says at its end: the table of its runs, and where the page that compares them is.

Launchers may carry out runs in other processes, so each run leaves its directory in a folder.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hv15_batch.errors import EXIT_SIGINT, Secondary
from hv15_batch.figures.summary import shown_value
from hv15_batch.figures.tables import TABLE_COLUMNS, format_cells
from hv15_batch.report._comparison import Compared, common_folder, publish_comparison
from hv15_batch.rundir.paths import RunDir
from hv15_batch.units import NOT_MEASURED, Say


@contextmanager
def told_runs() -> Iterator[str | None]:
    """Yield a folder for `tell_run`; None where there is none for temporary files."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="hv15_batch-", ignore_cleanup_errors=True)
    except OSError:
        yield None
        return
    with folder as name:
        yield name


def tell_run(folder: str, run_dir: Path) -> None:
    """Leave the directory of a run that has ended; a machine without the folder tells nothing."""
    if Path(folder).is_dir():
        (Path(folder) / uuid.uuid4().hex).write_bytes(os.fsencode(run_dir))


def show_sweep(folder: str | None, code: int, say: Say) -> None:
    """Write the comparison of a sweep's runs and print its table; its failure is one line.

    Nothing happens where fewer than two runs told, or after an interrupt.

    Args:
        folder: Of `told_runs`.
        code: Exit code of the sweep.
        say: Prints a line.
    """
    if folder is None or code >= EXIT_SIGINT:
        return
    with Secondary("the runs of this sweep are not compared", say):
        told = {Path(os.fsdecode(path.read_bytes())) for path in Path(folder).iterdir()}
        runs = sorted(run for run in told if RunDir(run).is_run_dir())
        if len(runs) < 2:
            return
        page, compared = publish_comparison(runs, common_folder(runs))
        if compared.compared:
            for line in _lines(compared):
                say(line)
        say(f"Comparison: {page}")


def _lines(compared: Compared) -> Iterator[str]:
    """Yield the headline, a table whose columns are aligned, and the number of warnings."""
    if compared.headline:
        yield f"{compared.headline}."
    names = compared.shown
    rows = [[*names, *TABLE_COLUMNS]]
    rows += [
        [*(shown_value(name, facts, NOT_MEASURED) for name in names), *format_cells(group)]
        for _, facts, group in compared.named
    ]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if place < len(names) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    for label, _, group in compared.named:
        for warning in group.warnings:
            yield f"WARNING: {label}: {warning}"
