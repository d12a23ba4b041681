"""moto's S3 server in this process, and what can go wrong on the way to it."""

from __future__ import annotations

import io
import logging
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from moto.core.base_backend import BackendDict
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "films"
Environ = dict[str, Any]


@dataclass
class Fault:
    """What happens to requests that match."""

    method: str
    path: str
    """A pattern that is searched in the path."""
    act: Callable[[Environ], int | None]
    """Changes the request, or waits; a status instead of an answer of the server."""
    times: int = 10**9


@dataclass
class Server:
    """A real S3 server with a record of its requests."""

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        for fault in self.faults:
            if fault.times and method == fault.method and re.search(fault.path, path):
                fault.times -= 1
                status = fault.act(environ)
                if status is not None:
                    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                    start(f"{status} no", [("Content-Length", "0")])
                    return [b""]
        answer: Iterable[bytes] = self._app(environ, start)
        return answer

    def fail(self, method: str, path: str, status: int, times: int = 10**9) -> None:
        """Answer with an error."""
        self.faults.append(Fault(method, path, lambda _: status, times))

    def delay(self, method: str, path: str, seconds: float, times: int = 10**9) -> None:
        """Answer late."""
        self.faults.append(Fault(method, path, lambda _: time.sleep(seconds), times))

    def cut(self, method: str, path: str, times: int = 10**9) -> None:
        """Store only half of the bytes and say that all is well."""

        def halve(environ: Environ) -> None:
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            half = body[: len(body) // 2]
            environ |= {"wsgi.input": io.BytesIO(half), "CONTENT_LENGTH": str(len(half))}
            for name in [n for n in environ if "CONTENT_SHA256" in n or "CHECKSUM" in n]:
                del environ[name]

        self.faults.append(Fault(method, path, halve, times))

    def lose_answer(self, method: str, path: str, times: int = 1) -> None:
        """Do what is asked, and answer with an error."""

        def do(environ: Environ) -> int:
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            list(self._app({**environ, "wsgi.input": io.BytesIO(body)}, lambda *_: None))
            environ["CONTENT_LENGTH"] = "0"
            return 500

        self.faults.append(Fault(method, path, do, times))

    def ignore(self, header: str) -> None:
        """Ignore a condition."""

        def drop(environ: Environ) -> None:
            environ.pop(f"HTTP_{header.upper().replace('-', '_')}", None)

        self.faults.append(Fault("PUT", "", drop))

    def count(self, method: str, path: str = "") -> int:
        """How many requests there were."""
        return sum(m == method and re.search(path, p) is not None for m, p in self.requests)

    def bucket(self) -> Any:
        """Return the bucket's objects as moto holds them: name -> object."""
        from moto.s3.models import s3_backends

        backend = next(iter(s3_backends.values()))["aws"]
        return backend.buckets[BUCKET].keys

    def names(self, run: str) -> list[str]:
        """Return the names of a run's objects."""
        return sorted(n.removeprefix(f"{run}/") for n in self.bucket() if n.startswith(f"{run}/"))


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server without a bucket, on 127.0.0.1 alone."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = Server()
    http = make_server("127.0.0.1", 0, server, threaded=True)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
        BackendDict.reset()


def lend(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Set what obstore reads, for this process and its children, and make the bucket."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key-of-nobody",
        "AWS_SECRET_ACCESS_KEY": "secret-of-nobody",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": server.url,
    }.items():
        monkeypatch.setenv(name, value)
    BackendDict.reset()
    server.faults.clear()
    request = urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT")
    urllib.request.urlopen(request).close()
    server.requests.clear()
    return server
