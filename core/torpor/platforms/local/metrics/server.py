"""An address of its own for the metrics, apart from the public port: `--metrics HOST:PORT`."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from torpor.errors import ConfigurationError
from torpor.platforms.local.metrics.names import CONTENT_TYPE
from torpor.telemetry.events import log
from torpor.values.addresses import LOOPBACK, cannot_bind, checked_host, checked_port

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from torpor.platforms.local.metrics.collector import CommandMetrics

__all__ = ["MetricsServer", "metrics_address"]

_PATH = "/metrics"
_CLIENT_TIMEOUT_S, _CLIENT_DEADLINE_S = 10.0, 60.0
"""Without a byte, and for all of a client's connection: one that sends byte by byte must not keep its place."""
_MOST_CLIENTS = 16
_EXAMPLE_PORT = 9464


class MetricsServer:
    """Answers GET /metrics at an address of its own, in threads of its own, until `stop`.

    Args:
        metrics: what it shows.
        host: address to listen on.
        port: port; 0 takes a free one.

    Raises:
        PortInUseError: somebody else listens there.
        ConfigurationError: this user may not listen there, or this machine has no such address.
    """

    def __init__(self, metrics: CommandMetrics, *, host: str, port: int) -> None:
        self._metrics = metrics
        try:
            self._server = _server_class(host)((host, port), _Handler)
        except OSError as error:
            metrics.close()
            raise cannot_bind(host, port, error, cure="choose another with --metrics") from error
        self._server.set_app(self._answer)
        self._thread = threading.Thread(target=self._server.serve_forever, name="torpor-metrics", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.server_port

    def stop(self) -> None:
        """Close the port. Harmless to repeat."""
        self._server.shutdown()
        self._server.server_close()
        self._metrics.close()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path, method = str(environ.get("PATH_INFO", "")), environ["REQUEST_METHOD"]
        if path != _PATH:
            return _said(start, HTTPStatus.NOT_FOUND, f"Metrics are at {_PATH}.\n")
        if method not in ("GET", "HEAD"):
            return _said(start, HTTPStatus.METHOD_NOT_ALLOWED, "Read them by GET.\n")
        try:
            body = self._metrics.text()
        except Exception as error:
            log("error", "metrics_not_collected", error=f"{type(error).__name__}: {error}")
            return _said(start, HTTPStatus.INTERNAL_SERVER_ERROR, "The metrics could not be collected; see the log.\n")
        start("200 OK", [("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(body)))])
        return [body] if method == "GET" else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def metrics_address(given: str) -> tuple[str, int]:
    """The value of `--metrics`: a port of 127.0.0.1, or HOST:PORT; [ADDRESS]:PORT for IPv6.

    Raises:
        ConfigurationError: it is neither.
    """
    text = given.strip()
    try:
        parts = urlsplit(f"//{text if ':' in text else f'{LOOPBACK}:{text}'}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None or parts.netloc != (text if ":" in text else f"{LOOPBACK}:{text}"):
        raise ConfigurationError(
            f"--metrics is {given!r}; write a port of this machine ({_EXAMPLE_PORT}) or an address and a port "
            f"({LOOPBACK}:{_EXAMPLE_PORT}, [::1]:{_EXAMPLE_PORT})."
        )
    return checked_host("--metrics", host), checked_port("--metrics", port)


def _said(start: StartResponse, status: HTTPStatus, text: str) -> Iterable[bytes]:
    start(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode()]


class _Handler(WSGIRequestHandler):
    """Quiet; a client that sends nothing is disconnected."""

    timeout = int(_CLIENT_TIMEOUT_S)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing: scrapes are no news."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each client, of a limited number, for a limited time: a further one is disconnected at once."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = (
        64  # with the base's 5 a client among many waits for seconds until its connection is tried again
    )

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self._places = threading.BoundedSemaphore(_MOST_CLIENTS)
        self._since: dict[socket.socket, float] = {}
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Without the base's look-up of the host's name, which may ask a name server."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def] # the base's types are private
        """Start a thread for a client, if there is room."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        self._since[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except BaseException:  # no more threads
            self._leave(request)
            raise

    def process_request_thread(self, request, client_address) -> None:  # type: ignore[no-untyped-def] # as above
        """Serve a client."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._leave(request)

    def _leave(self, request: socket.socket) -> None:
        self._since.pop(request, None)
        self._places.release()

    def service_actions(self) -> None:
        """Disconnect who is here for too long; the base calls it twice a second."""
        for client, since in list(self._since.items()):
            if time.monotonic() - since > _CLIENT_DEADLINE_S:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that leaves early is no news."""


def _server_class(host: str) -> type[_Server]:
    """The server for an address of this family."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return type("_MetricsServer", (_Server,), {"address_family": family})
