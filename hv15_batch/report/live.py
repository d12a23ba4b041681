"""The page of a run while it renders: written at its start and then at most once a minute.

It runs on a thread of its own: building the page of a thousand clips takes part of a second, and
the parent must hand over the next clip meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hv15_batch.errors import Secondary
from hv15_batch.report.render import write_page

INTERVAL_SECONDS = 60.0


@contextmanager
def live_page(run_dir: Path, interval_seconds: float = INTERVAL_SECONDS) -> Iterator[None]:
    """Keep the page of a run directory up to date while the block runs.

    The last state is written elsewhere, by the code that ends the run.
    """
    ended = threading.Event()
    writing = Secondary("the page is not up to date")

    def write_again_and_again() -> None:
        while True:
            with writing:
                write_page(run_dir)
            if ended.wait(interval_seconds):
                return

    thread = threading.Thread(target=write_again_and_again, name="page", daemon=True)
    with writing:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()
