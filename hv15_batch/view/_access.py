"""Who gets in: every request passes here, before anything is looked up or read.

The address that is printed carries a token for one use. It buys a cookie, which pages of other
sites cannot use. A request that changes something also needs the page's own token, which only a
script of this page can read.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_BYTES = 32
"""256 bits."""
TOKEN_HEADER = "x-hv15-token"
_HOSTS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_JSON = re.compile(r"application/json\s*(;\s*charset=utf-8\s*)?", re.IGNORECASE)
_HEADERS = {
    # Plots set styles and draw pictures of their own; all else comes from this server.
    "content-security-policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}
_NO_COOKIE = (
    "This page is private. Open the address that hv15-batch view printed in its terminal. "
    "If you came from another page, reload this one.\n"
)


class Gate:
    """Lets in what has the cookie; everything else is refused."""

    def __init__(
        self, app: ASGIApp, port: int, page_token: str, tell: Callable[[str], None]
    ) -> None:
        """Make the secrets of this server.

        Args:
            app: What lies behind.
            port: That the server listens on.
            page_token: What the page's scripts send with a change.
            tell: Called with a new address when the one before was used.
        """
        self._app = app
        self._port = port
        self._page_token = page_token
        self._tell = tell
        self._session = secrets.token_hex(TOKEN_BYTES)
        self._token = secrets.token_hex(TOKEN_BYTES)
        self._spent: set[str] = set()

    @property
    def address(self) -> str:
        """The address that lets one browser in."""
        return f"http://127.0.0.1:{self._port}/?token={self._token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket, which nothing here speaks
            return
        answer = self._answer(scope) or self._app
        await answer(scope, receive, _with_headers(send))

    def _answer(self, scope: Scope) -> Response | None:
        """Return the answer to a request that does not get in, or that exchanges the token."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _HOSTS.fullmatch(hosts[0]) is None:
            return _refused("this server answers to 127.0.0.1, localhost and [::1] only")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("GET, HEAD or POST\n", 405, {"allow": "GET, HEAD, POST"})
        is_known = self._is_known(headers.getlist("cookie"), hosts[0])
        tokens = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if tokens and scope["method"] == "GET" and scope["path"] == "/":
            return self._exchange(tokens[-1], is_known, hosts[0])
        if not is_known:
            return _refused(_NO_COOKIE)
        if _is_foreign(headers):
            return _refused("a page of another site asked for this")
        return self._write_fault(headers) if scope["method"] == "POST" else None

    def _cookie(self, host: str) -> str:
        """Return the cookie's name: browsers share cookies between ports, also of tunnels."""
        port = host.rpartition("]")[2].partition(":")[2]
        return f"hv15_{port or self._port}"

    def _is_known(self, cookies: Iterable[str], host: str) -> bool:
        names = (self._cookie(host), self._cookie(""))
        # Not by a parser: it gives up at a cookie of another program that it does not understand.
        pairs = (pair.partition("=") for text in cookies for pair in text.split(";"))
        return any(
            name.strip() in names and _is_same(value.strip(), self._session)
            for name, _, value in pairs
        )

    def _write_fault(self, headers: Headers) -> Response | None:
        """Return the refusal of a change that the page's own script did not ask for."""
        origins = headers.getlist("origin")
        if len(origins) != 1 or origins[0] not in _own_origins(headers["host"]):
            return _refused("the request does not come from this page (Origin)")
        if not _is_same(headers.get(TOKEN_HEADER, ""), self._page_token):
            return _refused("the request lacks this page's token; reload the page")
        if _JSON.fullmatch(headers.get("content-type", "")) is None:
            return PlainTextResponse("JSON only\n", 415)
        return None

    def _exchange(self, token: str, is_known: bool, host: str) -> Response:
        """Return the redirect that sets the cookie; the token counts once."""
        if token in self._spent and is_known:
            return RedirectResponse("/", 303)
        if not _is_same(token, self._token):
            return _refused(_NO_COOKIE)
        self._spent.add(self._token)
        self._token = secrets.token_hex(TOKEN_BYTES)
        answer = RedirectResponse("/", 303)
        name = self._cookie(host)
        answer.set_cookie(name, self._session, path="/", httponly=True, samesite="strict")
        self._tell(self.address)
        return answer


def _is_same(given: str, expected: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def _is_foreign(headers: Headers) -> bool:
    """Whether a browser says that another page loads this; a link that is followed is allowed."""
    site = headers.get("sec-fetch-site", "none")
    return site not in ("same-origin", "none") and headers.get("sec-fetch-mode") != "navigate"


def _own_origins(host: str) -> tuple[str, str]:
    return f"http://{host}", f"https://{host}"


def _refused(reason: str) -> Response:
    return PlainTextResponse(reason if reason.endswith("\n") else f"{reason}\n", 403)


def _with_headers(send: Send) -> Send:
    """Return a `send` that adds the headers of every answer."""

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name for name, _ in message["headers"]}
            extra = {} if b"cache-control" in given else {"cache-control": "no-store"}
            message["headers"] = [
                *message["headers"],
                *((name.encode(), value.encode()) for name, value in (_HEADERS | extra).items()),
            ]
        await send(message)

    return add
