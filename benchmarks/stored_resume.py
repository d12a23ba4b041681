"""A resume on object storage with everything done: requests, seconds, CPU and memory.

    .venv/bin/python benchmarks/stored_resume.py                    # 100,000 clips: seven minutes
    .venv/bin/python benchmarks/stored_resume.py --clips 10000

moto's S3 server runs in a process of its own, with a clip, latents and a thumbnail of one byte for
each row. The same command resumes three times, until it is known that nothing is left to do: on a
machine that knows nothing of the run, on the same machine again, and there once more with tables
and page. moto needs a tenth of a second of CPU for a page of a listing. So its answers for clips,
latents and thumbnails are made once before, and then sent again. Its CPU time is told apart. Needs
the development packages (moto) and obstore.
"""

from __future__ import annotations

import argparse
import bisect
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import pyarrow as pa
import pyarrow.parquet as pq
from fakes.object_store import BUCKET, Environ, Server, serving
from overhead import done_record, executor, many_rows, quiet

from hv15_batch.clip import Clip
from hv15_batch.config.settings import Config
from hv15_batch.manifest.clips import make_clips
from hv15_batch.manifest.read import read_manifest
from hv15_batch.run import session
from hv15_batch.rundir.log import SEGMENT_ROWS
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.remote.client import Client
from hv15_batch.rundir.schema import arrow_schema
from hv15_batch.units import GIB
from hv15_batch.weights.checkpoint import resolve_checkpoint

CLIPS = 100_000
LARGE = ("clips", "latents", "thumbs")
RUN = "prompts"
URL = f"s3://{BUCKET}/{RUN}"
AGE = timedelta(hours=48)
"""Of all objects: older than the age at which an upload without a row is deleted."""


# -- the server -------------------------------------------------------------------------------


class CountingServer(Server):
    """Counts requests by kind, and sends pages of large folders again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kinds: Counter[str] = Counter()
        self._pages: dict[str, tuple[str, list[tuple[str, str]], bytes]] = {}

    def __call__(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request."""
        method, query = environ["REQUEST_METHOD"], environ["QUERY_STRING"]
        is_listing = method == "GET" and "list-type=" in query
        self.kinds["LIST" if is_listing else method] += 1
        if not is_listing or not any(f"%2F{name}%2F" in query for name in LARGE):
            return super().__call__(environ, start)
        if query not in self._pages:
            told: list[Any] = []
            answer = super().__call__(environ, lambda *words, **_: told.extend(words[:2]))
            self._pages[query] = (told[0], told[1], b"".join(answer))
        status, headers, content = self._pages[query]
        start(status, headers)
        return [content]


def serve(pipe: Connection) -> None:
    """Serve until the pipe says to end. It sends names of objects, and asks for the counts."""
    import fakes.object_store as store

    store.Server = CountingServer  # type: ignore[misc]
    with serving() as server:
        assert isinstance(server, CountingServer)
        request = urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request).close()
        pipe.send(server.url)
        while (message := pipe.recv()) is not None:
            if message == "counts":
                pipe.send((dict(server.kinds), _cpu_seconds()))
                server.kinds.clear()
            else:
                _add(message)
                pipe.send(len(server.bucket()))


def _add(objects: dict[str, bytes]) -> None:
    """Put objects into moto without requests, and find pages of listings by bisection."""
    from moto.s3.models import S3Backend, s3_backends

    backend = next(iter(s3_backends.values()))["aws"]
    for name, data in objects.items():
        key = backend.put_object(BUCKET, f"{RUN}/{name}", data)
        key.last_modified = datetime.now(timezone.utc).replace(tzinfo=None) - AGE
    usual = S3Backend.list_objects_v2
    names: list[str] = []

    def listed(
        self: Any,
        bucket: Any,
        prefix: str | None,
        delimiter: str | None,
        continuation_token: str | None,
        start_after: str | None,
        max_keys: int,
    ) -> Any:
        if delimiter and prefix == f"{RUN}/":  # few folders and files, among very many objects
            below = {n[len(prefix) :] for n in bucket.keys}
            folders = {f"{prefix}{n.partition('/')[0]}/" for n in below if "/" in n}
            files = [bucket.keys[prefix + n] for n in below if "/" not in n]
            return [*files, *sorted(folders)], False, None
        if delimiter or not prefix:
            return usual(self, bucket, prefix, delimiter, continuation_token, start_after, max_keys)
        if len(names) != len(bucket.keys):
            names[:] = sorted(bucket.keys)
        if continuation_token is None:
            first = bisect.bisect_left(names, prefix)
        else:
            first = bisect.bisect(names, continuation_token)
        last = bisect.bisect_left(names, prefix[:-1] + chr(ord(prefix[-1]) + 1))
        page = names[first : min(first + max_keys, last)]
        is_cut = first + max_keys < last
        return [bucket.keys[name] for name in page], is_cut, page[-1] if is_cut else None

    S3Backend.list_objects_v2 = listed


# -- what is measured -------------------------------------------------------------------------


def fill(folder: Path, count: int, pipe: Connection) -> Config:
    """Put a run of which every clip is done into the store, and return its settings."""
    config = many_rows(folder, count)
    assert session.run(replace(config, limit=1), (), None, quiet, executor) == 0
    run_dir = RunDir(folder / "out")
    assert config.manifest is not None
    manifest = read_manifest(Path(config.manifest), config.model.task)
    clips = make_clips(manifest, config, resolve_checkpoint(config.model).revision)
    for segment in run_dir.log.iterdir():
        segment.unlink()
    objects: dict[str, bytes] = {}
    for n in range(0, len(clips), SEGMENT_ROWS):
        rows = [_row(clip, n + at, objects) for at, clip in enumerate(clips[n : n + SEGMENT_ROWS])]
        segment = run_dir.log / f"20261122T000000-0000-abcd-{n // SEGMENT_ROWS:04d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema()), segment)
    small = (*run_dir.log.iterdir(), *run_dir.runs.rglob("*"), run_dir.plan, run_dir.status)
    objects |= {run_dir.relative(path): path.read_bytes() for path in small if path.is_file()}
    pipe.send(objects)
    pipe.recv()
    return replace(config, run_dir=URL)


def _row(clip: Clip, number: int, objects: dict[str, bytes]) -> dict[str, Any]:
    attempt = f"{number:016x}"
    file = f"clips/{clip.clip_id}.{attempt}.mp4"
    latents = f"latents/{clip.denoise_sha256}.{attempt}.safetensors"
    thumb = f"thumbs/{clip.clip_id}.{attempt}.jpg"
    objects |= dict.fromkeys((file, latents, thumb), b"x")
    record = done_record(clip, run_id="r", attempt=1)
    return vars(replace(record, file=file, file_bytes=1, latents_file=latents))


def resume(config: Config, with_results: bool, pipe: Connection) -> None:
    """Resume, and send seconds, CPU seconds and GiB of this process."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    known: list[float] = []
    finish = session._nothing_to_do

    def decided(*arguments: Any) -> int:
        known.extend((time.perf_counter() - wall, _cpu_seconds() - cpu, _gib()))
        return finish(*arguments) if with_results else 0

    session._nothing_to_do = decided
    said: list[str] = []
    assert session.run(config, (), None, said.append) == 0, said
    ended = (time.perf_counter() - wall, _cpu_seconds() - cpu, _gib())
    pipe.send((known, ended))


def measure(what: str, config: Config, with_results: bool, server: Connection) -> dict[str, Any]:
    """Resume in a process of its own."""
    server.send("counts")
    _, before = server.recv()
    told, tell = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=resume, args=(config, with_results, tell)
    )
    process.start()
    tell.close()
    known, ended = told.recv()
    process.join()
    server.send("counts")
    kinds, after = server.recv()
    return {
        "what": what,
        **dict(zip(("decided_wall", "decided_cpu", "decided_gib"), known, strict=True)),
        **dict(zip(("wall", "cpu", "gib"), ended, strict=True)),
        "server_cpu": after - before,
        "requests": kinds,
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _gib() -> float:
    """Return the most RAM of this process; `ru_maxrss` would count the parent's too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / GIB


def main() -> None:
    """Measure, and print a line of JSON for each resume."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key-of-nobody",
        "AWS_SECRET_ACCESS_KEY": "secret-of-nobody",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": pipe.recv(),
    }
    with tempfile.TemporaryDirectory(prefix="hv15_batch-stored-") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        config = fill(Path(folder), arguments.clips, pipe)
        assert len(Client(URL).list()) > len(LARGE) * arguments.clips
        for what, with_results in (
            ("another machine", False),
            ("the same machine", False),
            ("the same machine, tables and page", True),
        ):
            print(json.dumps(measure(what, config, with_results, pipe)), flush=True)
    pipe.send(None)
    process.join()


if __name__ == "__main__":
    main()
