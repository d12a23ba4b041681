"""The server of `hv15-batch view` on a thread, and a client that sends what a browser would not."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hv15_batch.rundir.paths import RunDir
from hv15_batch.view._server import View, listen, server_of

PATIENCE_SECONDS = 20


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Client:
    """Speaks to a server; `cookie` and `token` are what a let-in page has."""

    port: int
    view: View
    said: list[str] = field(default_factory=list)
    cookie: str = ""
    token: str = ""

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def send(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """Send a request with these headers and no others; `Host` is ours unless given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {"Host": self.host, **(headers or {})}.items():
                connection.putheader(name, value)
            if body:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            found = connection.getresponse()
            named = {name.lower(): value for name, value in found.getheaders()}
            return Answer(found.status, named, found.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, {"Cookie": self.cookie, **headers})

    def post(self, path: str, values: Any, **headers: str) -> Answer:
        """Ask for a change as the page does, but for these headers; an empty one is left out."""
        usual = {
            "Cookie": self.cookie,
            "Origin": f"http://{self.host}",
            "Content-Type": "application/json",
            "X-HV15-Token": self.token,
        }
        given = {n: v for n, v in {**usual, **headers}.items() if v or n == "Host"}
        return self.send("POST", path, given, json.dumps(values).encode())

    @property
    def path_with_token(self) -> str:
        return self.view.gate.address.partition(self.host)[2]

    def enter(self) -> None:
        """Exchange the address for a cookie, and read the page's token."""
        answer = self.send("GET", self.path_with_token)
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        found = re.search(r'name="hv15-token" content="(\w+)"', self.get("/").text)
        assert found is not None
        self.token = found[1]

    @contextmanager
    def events(self, have: int = 0) -> Iterator[Iterator[dict[str, Any]]]:
        """Open an event stream; yield what it says."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        connection.request("GET", f"/events?have={have}", headers={"Cookie": self.cookie})
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        try:
            yield _said(answer)
        finally:
            connection.close()
            answer.close()


def _said(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    end = time.monotonic() + PATIENCE_SECONDS
    for line in iter(answer.readline, b""):
        assert time.monotonic() < end, "what was waited for was never said"
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


@contextmanager
def serving(*run_dirs: Path, is_let_in: bool = True) -> Iterator[Client]:
    """Serve run directories on a thread of this process."""
    listener = listen(0, 0)
    port = listener.getsockname()[1]
    said: list[str] = []
    view = View([RunDir(path) for path in run_dirs], port, "ab" * 32, said.append)
    server = server_of(view)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < end
            time.sleep(0.01)
        client = Client(port, view, said)
        if is_let_in:
            client.enter()
        yield client
    finally:
        view.watch.is_closed = True
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        listener.close()
    assert not thread.is_alive()
