"""Pages of run directories: `index.html`, one file with links to the clips beside it.

Reads a run directory, never a model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hv15_batch.clips_table import write_clips_table
from hv15_batch.config import ConfigError
from hv15_batch.report.page import write_page
from hv15_batch.rundir import RunDir
from hv15_batch.runlog import LogSchemaError

__all__ = ["main", "write_page"]


def main(argv: Sequence[str]) -> int:
    """Build the page of every run directory named and print its path.

    Returns:
        0, or 2 where at least one of them has no page; the others are built all the same.
    """
    parser = argparse.ArgumentParser(
        prog="hv15-batch report", description="Build the page of one or more run directories."
    )
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path)
    exit_code = 0
    for run_dir in parser.parse_args(argv).run_dirs:
        try:
            print(write_page(run_dir))
            directory = RunDir(run_dir.absolute())
            if directory.plan.is_file():
                write_clips_table(directory)
        except (ConfigError, LogSchemaError, OSError) as error:
            print(error, file=sys.stderr)
            exit_code = 2
    return exit_code
