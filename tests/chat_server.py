"""A loopback HTTP server that answers by a script, for clients: real sockets, real streams, real breaks."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

from typing_extensions import override

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

__all__ = ["ChatServer", "Reply", "Seen", "answer", "events"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server does with one request.

    Attributes:
        status: HTTP status.
        headers: further headers.
        pieces: parts of the body, sent one by one.
        pause_s: seconds before each piece.
        breaks: whether the connection is cut after the last piece, in the middle of the body.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: tuple[bytes, ...] = ()
    pause_s: float = 0.0
    breaks: bool = False


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, object]
    at: float


def events(*chunks: object, done: bool = True) -> tuple[bytes, ...]:
    """Chunks as server-sent events, `[DONE]` last."""
    lines = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
    return (*lines, b"data: [DONE]\n\n") if done else tuple(lines)


def answer(*words: str, tokens: int | None = None, pause_s: float = 0.0) -> Reply:
    """A streamed chat answer, one chunk per word."""
    chunks: list[object] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    chunks += [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    if tokens is not None:
        chunks.append({"choices": [], "usage": {"completion_tokens": tokens}})
    return Reply(headers={"Content-Type": "text/event-stream"}, pieces=events(*chunks), pause_s=pause_s)


class ChatServer:
    """Answers the first request with the first reply and so on; the last reply answers all that come after.

    Args:
        replies: the script.
        port: where to listen; 0 for a free port.
        tls: certificate and key with which it speaks https; None for http.
    """

    def __init__(self, replies: Sequence[Reply], *, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.replies = list(replies)
        self.seen: list[Seen] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def next_reply(self, seen: Seen) -> Reply:
        """Note a request and say what to do with it."""
        with self._lock:
            self.seen.append(seen)
            return self.replies[min(len(self.seen), len(self.replies)) - 1]

    def wait(self, seconds: float) -> bool:
        """Wait, or return True at once when the server closes."""
        return self._closing.wait(seconds)


def _handler(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve({})

        def do_POST(self) -> None:
            self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _serve(self, body: dict[str, object]) -> None:
            seen = Seen(method=self.command, path=self.path, headers=dict(self.headers), body=body, at=time.monotonic())
            reply = server.next_reply(seen)
            self.close_connection = True
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in reply.pieces:
                if server.wait(reply.pause_s):
                    return
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.flush()
            if not reply.breaks:
                self.wfile.write(b"0\r\n\r\n")

        @override
        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:
                """The client left; that is its right."""

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    return Handler
