"""Two runs of one manifest compared: quality first, then speed and memory.

Reads two run directories and never a model; torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hv15_batch.config.messages import Parser
from hv15_batch.errors import EXIT_OK, Refused
from hv15_batch.redaction import show
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.store import place

__all__ = ["main"]

DESCRIPTION = """\
Compare the clips of two runs that have row id and seed in common: PSNR, SSIM and a temporal
measure of latents and frames, whether latents and files are bit-identical, then speed and memory.
"""


def main(argv: Sequence[str], say: Callable[[str], None] = show) -> int:
    """Compare two run directories, print a summary and write page and tables; return 0.

    Raises:
        Refused: there is nothing to compare.
        LogSchemaError: a log cannot be read.
        OSError: the results cannot be written.
    """
    parser = Parser(
        prog="hv15-batch compare",
        description=DESCRIPTION,
        epilog="example: hv15-batch compare outputs/prompts outputs/other",
    )
    parser.add_argument("run_a", metavar="RUN_A", help="the run that B is compared with")
    parser.add_argument("run_b", metavar="RUN_B")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="default: RUN_B/compare/<name of A>"
    )
    arguments = parser.parse_args(argv)

    from hv15_batch.compare._comparison import compare_runs, summary_lines
    from hv15_batch.compare._page import write_comparison
    from hv15_batch.rundir.log import foreign_note

    run_a, run_b = place(arguments.run_a), place(arguments.run_b)
    if arguments.out is None and (url := RunDir(run_b).url):
        raise Refused(f"--out DIR: names the folder of the comparison, because {url} is no folder.")
    comparison = compare_runs(run_a, run_b, say)
    a, b = comparison.matched.a, comparison.matched.b
    folder = b.path / "compare" / a.path.name if arguments.out is None else arguments.out
    page = write_comparison(comparison, folder.expanduser().absolute())
    foreign = [note for run in (a, b) if (note := foreign_note(run.log))]
    for line in [*summary_lines(comparison), f"Page: {page}", *foreign]:
        say(line)
    return EXIT_OK
