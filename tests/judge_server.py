"""A judge on loopback for tests: a small HTTP server that answers as it is told, and keeps what it was asked."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """One answer: status, body (text of the judge, or raw bytes), headers; `cut` ends it before its end.

    With `drops` it comes byte by byte, so many seconds apart.
    """

    text: str = ""
    status: int = 200
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    finish_reason: str = "stop"
    cut: bool = False
    drops: float = 0.0

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        message = {"role": "assistant", "content": self.text}
        return json.dumps({"choices": [{"message": message, "finish_reason": self.finish_reason}]}).encode()


@dataclass
class Judge:
    """What the server was asked: bodies and headers, in the order of their arrival."""

    answer: Callable[[str, int], Reply]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    endpoint: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self.lock:
            self.bodies.append(body)
            self.headers.append(headers)
            number = len(self.bodies)
        return self.answer(body["messages"][0]["content"], number)


@contextmanager
def serving(answer: Callable[[str, int], Reply]) -> Iterator[Judge]:
    """Serve `answer(question, number of the request from 1)` until the end of the block."""
    judge = Judge(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            reply = judge.take(body, {name.lower(): value for name, value in self.headers.items()})
            content = reply.body()
            self.send_response(reply.status if self.path == "/v1/chat/completions" else 404)
            for name, value in {"content-length": str(len(content)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for byte in content if reply.drops else b"":
                self.wfile.write(bytes([byte]))
                time.sleep(reply.drops)
            if not reply.drops:
                self.wfile.write(content[: len(content) // 2] if reply.cut else content)
            self.close_connection = reply.cut

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:  # a client that gave up closes its end
            pass

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        judge.endpoint = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield judge
        finally:
            server.shutdown()
            thread.join()


def free_port() -> int:
    """A port of loopback at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
