"""The command line `hv15-batch view`: serve the page of runs to a browser on this machine."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence

from hv15_batch.config.messages import Parser
from hv15_batch.errors import EXIT_REFUSED, EXIT_SIGINT, LogSchemaError, Refused
from hv15_batch.redaction import show
from hv15_batch.rundir.paths import find_runs
from hv15_batch.rundir.remote.address import is_url
from hv15_batch.rundir.status import OUTPUTS, find_latest_run

USUAL_PORT = 8015
_PORTS = range(1, 65536)


def main(argv: Sequence[str]) -> int:
    """Serve the page of some runs until Ctrl-C.

    Returns:
        130 after Ctrl-C; 2 where a folder is no run directory or the port cannot be had.
    """
    arguments = _parser().parse_args(argv)
    try:
        if arguments.port is not None and arguments.port not in _PORTS:
            raise Refused(f"--port={arguments.port}: must be a number from 1 to 65535.")
        return _serve(arguments.run_dirs, arguments.port)
    except (Refused, LogSchemaError) as error:
        show(error, file=sys.stderr)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        show("closed")
        return EXIT_SIGINT


def _serve(named: Sequence[str], port: int | None) -> int:
    for text in filter(is_url, named):
        raise Refused(
            f"{text}: view serves run directories on a disk, and the clips of this one are on "
            f"object storage; hv15-batch report {text} builds the page there."
        )
    run_dirs = find_runs(*(named or [str(find_latest_run(OUTPUTS))]))
    # Not at the top: other subcommands need no server.
    from hv15_batch.view._server import View, listen, server_of

    listener = listen(port, USUAL_PORT)
    with listener:
        view = View(run_dirs, listener.getsockname()[1], secrets.token_hex(32), _tell_again)
        for run_dir in run_dirs:
            show(run_dir.path)
        show(f"open in a browser: {view.gate.address}")
        show("Ctrl-C ends it; runs go on")
        server_of(view).run(sockets=[listener])
    return EXIT_SIGINT


def _tell_again(address: str) -> None:
    show(f"opened; for another browser: {address}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hv15-batch view",
        description="Serve the page of runs to a browser on this machine: clips appear as they are "
        "written; rate them, pause the run. Prints the address, which works once.",
        epilog="example: hv15-batch view outputs/prompts",
    )
    parser.add_argument(
        "run_dirs",
        metavar="RUN_DIR",
        nargs="*",
        help=f"a run, or the folder of a sweep; default: the latest run below {OUTPUTS}/",
    )
    parser.add_argument(
        "--port", type=int, help=f"of 127.0.0.1; default: {USUAL_PORT}, or a free one"
    )
    return parser
