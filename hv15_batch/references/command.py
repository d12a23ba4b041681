"""The command line `hv15-batch references`: published numbers, alone or against logs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hv15_batch.config.messages import Parser
from hv15_batch.errors import EXIT_OK, EXIT_REFUSED, LogSchemaError, Refused
from hv15_batch.model.options import conf_dir
from hv15_batch.redaction import show
from hv15_batch.references.check import CHECK_COLUMNS, compare_with_references
from hv15_batch.references.data import read_references
from hv15_batch.references.text import format_references_text, format_verdicts_text
from hv15_batch.rundir.log import foreign_note
from hv15_batch.rundir.paths import RunDir, expand
from hv15_batch.rundir.store import place
from hv15_batch.rundir.stored import read_rows_of_runs


def main(argv: Sequence[str]) -> int:
    """Print references, or verdicts on them; return 0, or 2 for a log that is refused."""
    arguments = _parser().parse_args(argv)
    try:
        run_dirs = [place(typed) for typed in arguments.run_dirs]
        show(_answer(run_dirs), end="")
        for folder in run_dirs:
            for run_dir in map(RunDir, expand(folder)):
                if note := foreign_note(run_dir.log):
                    show(note, file=sys.stderr)
    except (Refused, LogSchemaError, FileNotFoundError) as error:
        show(error, file=sys.stderr)
        return EXIT_REFUSED
    return EXIT_OK


def _answer(run_dirs: Sequence[Path]) -> str:
    references = read_references(conf_dir() / "reference")
    if not run_dirs:
        return format_references_text(references)
    rows = read_logs(run_dirs)
    return format_verdicts_text(compare_with_references(rows, references))


def read_logs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the rows of run directories, and of those in the folder of a sweep.

    Raises:
        Refused: a folder is neither.
        LogSchemaError: a log cannot be read.
    """
    rows: list[dict[str, Any]] = []
    for folder in folders:
        for run_dir in map(RunDir, expand(folder)):
            run_dir.check_started()
            rows += read_rows_of_runs(run_dir, CHECK_COLUMNS)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hv15-batch references",
        description="Compare logs with published numbers. Without a log, print what the numbers "
        "imply.",
        epilog="example: hv15-batch references outputs/rtx4090_step_distilled.sweep",
    )
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="*")
    return parser
