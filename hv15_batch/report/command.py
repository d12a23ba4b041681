"""The command line `hv15-batch report`: pages of runs, and one that compares them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hv15_batch.config.checks import check_number
from hv15_batch.config.messages import Parser
from hv15_batch.errors import LogSchemaError, Refused
from hv15_batch.figures.tables import repetitions_of, write_timing_tables
from hv15_batch.planning.tables import write_clips_table
from hv15_batch.redaction import show
from hv15_batch.report._comparison import common_folder, comparison_plots, write_comparison
from hv15_batch.report._grid import ALL, PICKS, check_grid, write_run_grid
from hv15_batch.report._plots import plots
from hv15_batch.report._read import read_run
from hv15_batch.report.drawn.files import write_plots
from hv15_batch.report.render import write_page
from hv15_batch.rundir.log import foreign_note
from hv15_batch.rundir.paths import RunDir, expand
from hv15_batch.rundir.store import place, put_results

_PRICE = "report.price_per_kwh"
"""A setting of a run that this subcommand takes too."""


def main(argv: Sequence[str]) -> int:
    """Build the page of every run directory named, for several a comparison; print their paths.

    Returns:
        0, or 2 where at least one of them has no page; the others are built all the same. An option
        that cannot be is refused before any is built.
    """
    setting = f"{_PRICE}="
    is_typed = any(word.startswith(setting) for word in argv)
    arguments = _parser().parse_args(
        [f"--price={w.removeprefix(setting)}" if w.startswith(setting) else w for w in argv]
    )
    try:
        run_dirs = [run_dir for named in arguments.run_dirs for run_dir in expand(place(named))]
        check_number(_PRICE, arguments.price, _PRICE if is_typed else "--price")
        _check_out(arguments.out, run_dirs)
        _check_figures(arguments.figures)
        check_grid(arguments.grid, arguments.grid_of)
    except Refused as error:
        show(error, file=sys.stderr)
        return 2
    exit_code = 0
    built = []
    for run_dir in run_dirs:
        try:
            page = _write_run(run_dir, arguments.price)
            directory = RunDir(run_dir.absolute())
            put_results(directory)
            show(directory.shown(page) if directory.url else os.path.abspath(page))
            if note := foreign_note(RunDir(run_dir.absolute()).log):
                show(note, file=sys.stderr)
            built.append(run_dir)
            if arguments.figures is not None:
                _write_figures(run_dir, run_dirs, arguments.figures)
        except (Refused, LogSchemaError, OSError) as error:
            show(error, file=sys.stderr)
            exit_code = 2
    if len(built) > 1:
        folder = arguments.out or common_folder(built)
        try:
            show(os.path.abspath(write_comparison(built, folder)))
            if arguments.figures is not None:
                write_plots(comparison_plots(built), arguments.figures)
        except (Refused, LogSchemaError, OSError) as error:
            show(error, file=sys.stderr)
            exit_code = 2
    if built and arguments.figures is not None and not exit_code:
        show(os.path.abspath(arguments.figures))
    if arguments.grid is not None and built:
        try:
            show(write_run_grid(built, arguments.grid, arguments.grid_of))
        except (Refused, LogSchemaError, OSError) as error:
            show(error, file=sys.stderr)
            exit_code = 2
    return exit_code


def _write_figures(run_dir: Path, run_dirs: Sequence[Path], folder: Path) -> None:
    """Write the plots of a run; of one among several into a folder of its path's name."""
    if len(run_dirs) > 1:
        folder /= os.path.relpath(run_dir.absolute(), common_folder(run_dirs))
    folder.mkdir(parents=True, exist_ok=True)
    write_plots(plots(read_run(RunDir(run_dir.absolute()))), folder)


def _check_out(out: Path | None, run_dirs: Sequence[Path]) -> None:
    """Refuse a folder for a comparison where there is none, and ask for one where it is needed.

    Raises:
        Refused: only one run is named with one, or several on object storage without one.
    """
    if out is None and len(run_dirs) > 1 and any(RunDir(each).url for each in run_dirs):
        raise Refused("--out DIR: names the folder of a comparison of runs on object storage.")
    if out is not None and len(run_dirs) < 2:
        raise Refused(
            f"--out={out}: names the folder of a comparison, but the page of a single run goes "
            "into its run directory; leave it out, or name several runs."
        )


def _check_figures(folder: Path | None) -> None:
    """Refuse a file in the place of the folder for plots.

    Raises:
        Refused: there is one.
    """
    if folder is not None and folder.exists() and not folder.is_dir():
        raise Refused(f"--figures={folder}: is a file; name a folder for the plots.")


def _write_run(run_dir: Path, price: float | None) -> Path:
    directory = RunDir(run_dir.absolute())
    # Tables first: the page links those that are there.
    if directory.is_run_dir() and repetitions_of(directory):
        write_timing_tables(directory)
    page = write_page(run_dir, price)
    if directory.plan.is_file():
        write_clips_table(directory)
    return page


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hv15-batch report",
        description="Build the pages of run directories. For several, or for a sweep, also build a "
        "comparison with its tables.",
        epilog="example: hv15-batch report outputs/prompts.sweep",
    )
    parser.add_argument(
        "run_dirs", metavar="RUN_DIR", nargs="+", help="a run, or the folder of a sweep"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="folder of the comparison; default: the folder above the runs",
    )
    parser.add_argument(
        "--figures",
        metavar="DIR",
        type=Path,
        help="write each plot into this folder too, as SVG, PNG and CSV",
    )
    parser.add_argument(
        "--price", metavar="PER_KWH", type=float, help="price of electricity, in any currency"
    )
    parser.add_argument(
        "--grid", metavar="FILE.mp4", type=Path, help="also write clips side by side as one video"
    )
    parser.add_argument(
        "--grid-of",
        choices=(PICKS, ALL),
        help="clips of the grid; default: those rated 4 and 5 if there are any, else all",
    )
    return parser
