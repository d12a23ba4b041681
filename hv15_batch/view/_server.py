"""The server: which address gives what. Everything passes the gate in `_access` first."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
)
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from hv15_batch.errors import Refused, system_message
from hv15_batch.report.render import format_data
from hv15_batch.report.served import served_assets
from hv15_batch.rundir.paths import ASSETS, RunDir
from hv15_batch.view._access import Gate
from hv15_batch.view._changes import CHANGES, Change, body_of
from hv15_batch.view._media import Media, Streams, too_many
from hv15_batch.view._watch import Watch

HOST = "127.0.0.1"
BEAT_SECONDS = 15.0
"""An event stream says something this often, so that a reader that has gone is noticed."""
_CLOSE_SECONDS = 2


class View:
    """The pages of some runs, behind one port of this machine."""

    def __init__(
        self, run_dirs: Sequence[RunDir], port: int, page_token: str, tell: Callable[[str], None]
    ) -> None:
        """Read the runs.

        Raises:
            Refused: a folder is no run directory.
            LogSchemaError: a log cannot be read.
        """
        self.watch = Watch(run_dirs, page_token)
        self.streams = Streams()
        self._assets = served_assets()
        self._changing = anyio.Lock()
        app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/events", self._events),
                Route("/plots", self._plots),
                *(
                    Route(f"/{name}", partial(self._change, change), methods=["POST"])
                    for name, change in CHANGES.items()
                ),
                Route("/{path:path}", self._file),
            ],
            lifespan=self._lifespan,
        )
        self.gate = Gate(app, port, page_token, tell)

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(self.watch.seen.served.html)

    async def _plots(self, request: Request) -> Response:
        """Return the plots of now: an open page draws again those that have changed."""
        return JSONResponse(self.watch.seen.served.data["plots"])

    async def _file(self, request: Request) -> Response | Media:
        """Return a file of the package, the data, or a clip: all are looked up by their address."""
        address, served = request.scope["path"], self.watch.seen.served
        if (path := self._assets.get(address)) is not None:
            answer = FileResponse(
                path, stat_result=os.stat(path), headers={"cache-control": "no-cache"}
            )
            tag = answer.headers["etag"]
            if tag in request.headers.get("if-none-match", ""):  # a megabyte less, by a tunnel
                return Response(None, 304, {"cache-control": "no-cache", "etag": tag})
            return answer
        if address == f"/{ASSETS}/{served.data_name}":
            values = {**served.data, "version": self.watch.seen.version}
            return Response(format_data(values), media_type="text/javascript")
        found = served.files.get(address) or self.watch.seen.previews.get(address)
        if found is not None:
            number, name = found
            return Media(self.watch.run_dirs[number], name, self.streams)
        return PlainTextResponse("no such page\n", 404)

    async def _events(self, request: Request) -> Events:
        have = request.query_params.get("have", "")
        version = int(have) if re.fullmatch("[0-9]{1,18}", have) else 0
        return Events(self.watch, self.streams, version)

    async def _change(self, change: Change, request: Request) -> Response:
        """Carry out what a page asks for, and say how it went."""
        try:
            body = await body_of(request)
            async with self._changing:
                said = await anyio.to_thread.run_sync(change, self.watch, body)
                await self.watch.look_now()
        except Refused as error:
            return JSONResponse({"fault": str(error)}, 400)
        except OSError as error:
            return JSONResponse({"fault": system_message(error)}, 500)
        return JSONResponse(said)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.watch.keep)
            yield
            tasks.cancel_scope.cancel()


class Events:
    """A stream of what changes, as server-sent events."""

    def __init__(self, watch: Watch, streams: Streams, have: int) -> None:
        """Take the version that the page has."""
        self._watch = watch
        self._streams = streams
        self._have = have

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the page or the server ends."""
        with self._streams.one() as is_free:
            if not is_free:
                await too_many()(scope, receive, send)
                return
            headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._send, send, tasks.cancel_scope)
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

    async def _send(self, send: Send, scope: anyio.CancelScope) -> None:
        text = self._news(first=True)
        while not self._watch.is_closed:
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            with anyio.move_on_after(BEAT_SECONDS):
                await self._watch.changed()
            text = self._news()
        await send({"type": "http.response.body", "body": b""})
        scope.cancel()

    def _news(self, first: bool = False) -> str:
        """Return what the page lacks as an event; a comment where that is nothing."""
        seen = self._watch.seen
        if seen.version == self._have and not first:
            return ":\n\n"
        news: dict[str, Any] = seen.since(self._have)
        if first:
            news["statuses"] = seen.statuses
        self._have = seen.version
        return f"data: {json.dumps(news, ensure_ascii=True, allow_nan=False)}\n\n"


def listen(port: int | None, usual: int) -> socket.socket:
    """Return a socket that listens on this machine alone.

    Args:
        port: The one that was typed; None takes the usual one, or any where that is in use.
        usual: The usual one.

    Raises:
        Refused: the typed port cannot be had.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, usual if port is None else port))
    except OSError as error:
        if port is not None:
            listener.close()
            raise Refused(
                f"--port={port}: cannot be used ({error.strerror}); name another one from 1024 to "
                "65535, or leave it out."
            ) from error
        listener.bind((HOST, 0))
    return listener


class _Server(uvicorn.Server):
    """Tells the open pages when the server is to end; it would wait for them otherwise."""

    watch: Watch | None = None

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Take the signal."""
        if self.watch is not None:
            self.watch.is_closed = True
        super().handle_exit(sig, frame)


def server_of(view: View) -> uvicorn.Server:
    """Return a server for a view; `run(sockets=[...])` serves until it is told to end."""
    config = uvicorn.Config(
        view.gate,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )
    server = _Server(config)
    server.watch = view.watch
    return server
