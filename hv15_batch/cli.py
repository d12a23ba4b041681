"""The command line: subcommands, runs, and exit codes of errors. Slow imports wait until needed."""

from __future__ import annotations

import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TextIO

from hv15_batch import __version__
from hv15_batch.config.messages import WORDS, report_error
from hv15_batch.errors import EXIT_OK, EXIT_REFUSED, EXIT_SIGINT, Secondary
from hv15_batch.redaction import print_redacted, redacted, show

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from hv15_batch.clock import Clock
    from hv15_batch.config.compose import Job


HELP = """\
hv15-batch prompts.csv                    render every row; run it again to resume
hv15-batch prompts.csv --dry-run          check, resolve and predict; no weights, no device
hv15-batch prompts.csv limit=1            also only=id,id force=true order=rows run_dir=DIR
hv15-batch prompts.csv model=480p_t2v offload=model override.num_frames=61
hv15-batch resume=outputs/prompts         resume a run with its manifest and settings
hv15-batch recipe clip.mp4 [--out FILE]   manifest and command that render a clip again
hv15-batch -m prompts.csv model=480p_t2v,480p_t2v_distilled              Hydra sweep
hv15-batch prompts.csv experiment=rtx4090_standard                       a preset
hv15-batch report RUN_DIR [RUN_DIR ...]   build the page again; for several runs a comparison too
hv15-batch report RUN_DIR --figures DIR   plots as files; --grid FILE.mp4: clips as one video
hv15-batch prompts.csv window=22:00-07:00 render by night only; also until=07:00 time_limit=8h
hv15-batch status [RUN_DIR] [--watch]     progress and time left; default: the latest run
hv15-batch status RUN_DIR --pause         use the card for something else, until --unpause
hv15-batch view [RUN_DIR ...] [--port N]  the page, live on 127.0.0.1: choose, rate, pause
hv15-batch references [RUN_DIR ...]       compare the log with published numbers
hv15-batch compare RUN_A RUN_B            same rows and seeds: PSNR, SSIM, speed, memory
hv15-batch prefetch model=480p_t2v        print size and folder, download, verify
hv15-batch convert FILE [--out FILE]      rewrite a single-file transformer for other programs
hv15-batch doctor                         what this machine lacks, and what to type

Settings and their defaults: hv15-batch --cfg job. Groups: model, offload, dispatch, experiment.
Help for a subcommand: hv15-batch report --help, and so on.
Exit codes: 0 all done, 2 refused, 3 some clips failed, 4 stopped early, 130/143 interrupted.
"""


PREFETCH_HELP = """\
usage: hv15-batch prefetch [model=NAME] [model.repo=HUB_ID] [runtime.attention_backend=NAME]

Fetch the weights of a model: print size, folder and free disk, download, verify.
Fetch the attention kernel too, if its name ends in _hub.
Later runs with them need no network.

example: hv15-batch prefetch model=480p_t2v_distilled
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; user errors are one message on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_SIGINT
    except Exception as error:
        code = report_error(error)
        if code is None:
            raise  # a fault of this program, shown with its traceback
        return code


def _dispatch(arguments: list[str]) -> int:
    word, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if word in WORDS and word != "prefetch":
        return _run_reader(word, rest)
    if not arguments:
        from hv15_batch.doctor import print_overview

        print_overview(_say)
        return EXIT_OK
    if word == "prefetch" and {"-h", "--help"} & set(rest):
        print(PREFETCH_HELP, end="")
        return EXIT_OK
    if word == "help" or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return EXIT_OK
    if "--version" in arguments:
        print(__version__)
        return EXIT_OK

    from hv15_batch.clock import Clock
    from hv15_batch.config.compose import run_jobs

    if word == "prefetch":
        return run_jobs(rest, _prefetch, say=_say)
    # Word by word, because quotes of a shell could split a secret.
    line = shlex.join(["hv15-batch", *map(redacted, arguments)])
    render = partial(_render, clock=Clock(), typed_line=line)
    if not {"-m", "--multirun"} & set(arguments):
        return run_jobs(arguments, render, _measure, _say)

    from hv15_batch.report.sweep import show_sweep, told_runs

    with told_runs() as folder:
        code = run_jobs(arguments, partial(render, told=folder), _measure, _say)
        show_sweep(folder, code, _say)
    return code


def _run_reader(word: str, arguments: list[str]) -> int:
    """Run a subcommand with its own command line."""
    try:
        if word == "report":
            from hv15_batch.report.command import main as report

            return report(arguments)
        if word == "view":
            from hv15_batch.view.command import main as view

            return view(arguments)
        if word == "references":
            from hv15_batch.references.command import main as references

            return references(arguments)
        if word == "compare":
            from hv15_batch.compare.command import main as compare

            return compare(arguments, _say)
        if word == "recipe":
            from hv15_batch.recipe import main as recipe

            return recipe(arguments, _say)
        if word == "convert":
            from hv15_batch.weights.command import main as convert

            return convert(arguments, _say)
        if word == "doctor":
            from hv15_batch.doctor import main as doctor

            return doctor(arguments, _say)
        from hv15_batch.status.command import main as status

        return status(arguments)
    except SystemExit as stop:  # from argparse: 2 for a bad argument, 0 after --help
        return EXIT_REFUSED if stop.code else EXIT_OK


# -- runs -------------------------------------------------------------------------------------


def _render(job: Job, clock: Clock, typed_line: str, told: str | None = None) -> int:
    """Carry out one run; that of a sweep tells where it is, in the folder `told`."""
    from hv15_batch import api

    code = api.carry_out(job, _say, clock, typed_line)
    if told is not None and not job.config.dry_run:
        from hv15_batch.report.sweep import tell_run

        with Secondary("this run is missing in the comparison of the sweep", _say):
            if (run_dir := api.directory_of(job)) is not None:
                tell_run(told, run_dir)
    return code


def _measure(job: Job) -> float | None:
    from hv15_batch import api

    return api.measure(job)


def _prefetch(job: Job) -> int:
    from hv15_batch.prefetch import prefetch

    return prefetch(job.config, _say)


def _say(text: str) -> None:
    with suppress(OSError):  # a full disk or a closed pipe must not end the run
        show(text)


# -- as a program -----------------------------------------------------------------------------


class _Lossy(io.FileIO):
    """A standard stream that drops what cannot be written."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _open_standard_streams() -> None:
    """Replace standard streams, so that closed or full ones do not end a run."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next opened file would get its number and its output
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = _lossy(sys.stdout, 1), _lossy(sys.stderr, 2)


def _lossy(stream: TextIO | None, number: int) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(_Lossy(number, "w", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",  # a file name may hold bytes that the terminal's encoding lacks
        line_buffering=True,
    )


def entry() -> NoReturn:
    """Console script: exit with the code of `main`."""
    _open_standard_streams()
    if sys.argv[1:2] == ["status"]:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # it only prints, so it ends with its reader
    sys.excepthook = print_redacted
    code = main()
    # Only the interpreter's end is left, so a late Ctrl-C must not change the exit code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)
