"""The phase of a run that rewrites prompts: before anything is encoded, several at a time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread

from hv15_batch.config.settings import Config
from hv15_batch.manifest.read import Manifest
from hv15_batch.rewrite.asked import Key, Rewriting, rewriting_of
from hv15_batch.rewrite.cache import publish_rewrites, read_rewrites
from hv15_batch.rewrite.client import Client, NotRewritten
from hv15_batch.rewrite.rows import with_rewrites
from hv15_batch.rundir.paths import REWRITES, RunDir
from hv15_batch.units import Say, counted

CONCURRENCY = 4
MAX_FAILED_IN_A_ROW = 8
"""After so many prompts without an answer the server counts as gone, and no other is sent."""
PUBLISH_SECONDS = 2.0
POLL_SECONDS = 0.2
MAX_SHOWN = 5


def with_known_rewrites(manifest: Manifest, config: Config, run_dir: RunDir) -> Manifest:
    """Return the manifest with the rewritten prompts that a run directory has; asks nobody.

    Raises:
        Refused: The instructions or `rewrites.jsonl` cannot be read.
        LogSchemaError: The log cannot be read.
    """
    rewriting = rewriting_of(config.rewrite)
    if rewriting is None:
        return manifest
    return with_rewrites(manifest, rewriting, read_rewrites(run_dir))


def rewrite_prompts(
    manifest: Manifest, rows: Iterable[int], config: Config, run_dir: RunDir, say: Say
) -> Manifest:
    """Rewrite the prompts of rows, publish `rewrites.jsonl`, and return the manifest with them.

    A prompt that fails stays pending, with the reason. Needs the lock of the run directory.

    Args:
        manifest: Its rows as `with_known_rewrites` returns them.
        rows: Indices of the rows to render.
        config: All settings; `rewrite` is on.
        run_dir: Where the texts are kept.
        say: Prints a line.
    """
    rewriting = rewriting_of(config.rewrite)
    assert rewriting is not None
    known = read_rewrites(run_dir)
    asked = dict.fromkeys(rewriting.key_of(manifest.rows[index]) for index in rows)
    todo = [key for key in asked if key not in known]
    faults: dict[Key, str] = {}
    if todo:
        say(f"Rewriting {counted(len(todo), 'prompt')} by {rewriting.model}")
        faults = _ask(todo, config, rewriting, run_dir, known)
        for key, reason in list(faults.items())[:MAX_SHOWN]:
            say(f"  not rewritten: {key.prompt_original[:60]!r}: {reason}")
        done = len(todo) - len(faults)
        say(f"Rewritten: {done} of {counted(len(todo), 'prompt')}: {run_dir.path / REWRITES}")
    elif known and not (run_dir.path / REWRITES).exists():
        publish_rewrites(run_dir, known)
    return with_rewrites(manifest, rewriting, known, faults)


def _ask(
    todo: list[Key], config: Config, rewriting: Rewriting, run_dir: RunDir, known: dict[Key, str]
) -> dict[Key, str]:
    """Put the rewritten prompts into `known` and the file; return why others failed."""
    client = Client(config.rewrite, rewriting)
    faults: dict[Key, str] = {}
    written = time.monotonic()
    try:
        for key, found in _answers(client, todo):
            if isinstance(found, str):
                known[key] = found
            else:
                faults[key] = str(found)
            if time.monotonic() - written > PUBLISH_SECONDS:
                publish_rewrites(run_dir, known)
                written = time.monotonic()
    finally:  # also if the user ends it: no answer is asked for twice
        publish_rewrites(run_dir, known)
        client.close()
    return faults


def _answers(client: Client, todo: list[Key]) -> Iterator[tuple[Key, str | NotRewritten]]:
    """Yield every key with its text or its failure, in the order of the answers."""
    waiting: SimpleQueue[Key] = SimpleQueue()
    answers: SimpleQueue[tuple[Key, str | BaseException]] = SimpleQueue()
    for key in todo:
        waiting.put(key)
    server = _Server()

    def work() -> None:
        while not server.is_given_up.is_set():
            try:
                key = waiting.get_nowait()
            except Empty:
                return
            found: str | BaseException
            try:
                found = client.rewrite(key)
            except BaseException as error:
                found = error
            server.heard(found)
            answers.put((key, found))

    # Daemons, so that a request that is under way keeps nobody from ending the program.
    threads = [
        Thread(target=work, name="hv15_batch-rewrite", daemon=True)
        for _ in range(min(CONCURRENCY, len(todo)))
    ]
    for thread in threads:
        thread.start()
    left = dict.fromkeys(todo)
    try:
        while left:
            is_over = not any(thread.is_alive() for thread in threads)
            try:
                key, found = answers.get(timeout=0 if is_over else POLL_SECONDS)
            except Empty:
                if is_over:
                    break
                continue
            del left[key]
            if isinstance(found, BaseException) and not isinstance(found, NotRewritten):
                raise found
            yield key, found
        for other in left:
            yield other, NotRewritten(f"not asked, since the server failed before: {server.reason}")
    finally:
        server.is_given_up.set()


class _Server:
    """Whether the server is still worth asking, by its answers to all threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._failed_in_a_row = 0
        self.is_given_up = Event()
        self.reason = ""

    def heard(self, found: str | BaseException) -> None:
        with self._lock:
            is_failure = isinstance(found, NotRewritten) and found.is_server
            self._failed_in_a_row = self._failed_in_a_row + 1 if is_failure else 0
            is_hopeless = isinstance(found, NotRewritten) and found.is_hopeless
            if is_hopeless or self._failed_in_a_row >= MAX_FAILED_IN_A_ROW:
                self.reason = self.reason or str(found)
                self.is_given_up.set()
