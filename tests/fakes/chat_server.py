"""An OpenAI-style server in a thread, which answers as it is told and keeps what it is asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = str | bytes | int | float | None
"""A prompt, the body as it is, a status code, seconds of silence, or a connection that is cut."""


class ChatServer:
    """What the server was asked, and how it answers."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        """`system`, `prompt`, `model`, `key` of each request, in order."""
        self.answer: Callable[[str], Answer] = lambda prompt: f"Rewritten: {prompt}"
        self.first: list[Answer] = []
        """Answers of the first requests, before `answer` is asked."""
        self.headers: dict[str, str] = {}
        self.in_parts: Callable[[bytes], Iterable[bytes]] = lambda data: [data]
        """How the body is sent."""
        self.url = ""
        self.lock = threading.Lock()
        self.num_at_once = 0
        self.most_at_once = 0

    @property
    def prompts(self) -> list[str]:
        """The prompts of all requests."""
        return [each["prompt"] for each in self.asked]

    def respond(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        system, user = (message["content"] for message in body["messages"])
        asked = {"system": system, "prompt": user, "model": body["model"]}
        with self.lock:
            self.asked.append({**asked, "key": handler.headers["Authorization"], "body": body})
            answer = self.first.pop(0) if self.first else self.answer(user)
        if isinstance(answer, float):
            time.sleep(answer)
            answer = None
        if answer is None:
            handler.close_connection = True
            return
        status, data = 200, answer if isinstance(answer, bytes) else b""
        if isinstance(answer, int):
            status, data = answer, json.dumps({"error": {"message": "as told"}}).encode()
        if isinstance(answer, str):
            message = {"role": "assistant", "content": answer}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            data = json.dumps(
                {"id": "x", "object": "chat.completion", "choices": [choice]}
            ).encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **self.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for part in self.in_parts(data):
            handler.wfile.write(part)
            handler.wfile.flush()


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Run a server on a free port of this machine."""
    server = ChatServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            with server.lock:
                server.num_at_once += 1
                server.most_at_once = max(server.most_at_once, server.num_at_once)
            try:
                server.respond(self)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has gone
            finally:
                with server.lock:
                    server.num_at_once -= 1

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
