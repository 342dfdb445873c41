"""httpx over sockets of the engine's own: the lifecycle's client reaches its engine and nobody else.

A request with the lifecycle key goes over a connection on which the engine has proven its identity
(`torpor.runtime.engine_identity`).

httpx accepts no sockets. Its transport uses httpcore, which does, but importing httpcore takes 20 ms of a restore. The standard
library's HTTP client is imported already: httpx needs it for cookies.
"""

from __future__ import annotations

import contextlib
import socket
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING

import httpx

from torpor._override import override
from torpor.guard.protocol import KEY_HEADER
from torpor.runtime.engine_identity import check_engine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPResponse

    from torpor.engine.handle import Engine

__all__ = ["EngineTransport"]

PROOF_TIMEOUT_S = 10.0
"""Seconds for the engine's proof. A guard answers within a millisecond unless the engine blocks its event loop."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NO_LIMIT_S = 3600.0
_READ_BYTES = 65536


class EngineTransport(httpx.BaseTransport):
    """Sends each request over a new connection from `Engine.open_socket`, to this machine's loopback only.

    Only `Engine.open_socket` opens connections: http.client on its own would reconnect after a server closed one.

    Args:
        engine: opens the sockets.
        proof_timeout_s: seconds for the engine's proof, at most those of the request; None for `PROOF_TIMEOUT_S`.
    """

    def __init__(self, engine: Engine, *, proof_timeout_s: float | None = None) -> None:
        self._engine = engine
        self._proof_timeout_s = PROOF_TIMEOUT_S if proof_timeout_s is None else proof_timeout_s

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.scheme != "http" or request.url.host not in _LOOPBACK:
            raise httpx.UnsupportedProtocol(
                f"The lifecycle's client reaches the engine on 127.0.0.1 alone, by HTTP, and not {request.url}: it carries the "
                "lifecycle key. Use a client of your own for anything else."
            )
        limits_s = {"connect": None, "read": None, "write": None, **request.extensions.get("timeout", {})}
        stream = request.stream
        assert isinstance(stream, httpx.SyncByteStream)
        connection = HTTPConnection(request.url.host)
        connection.auto_open = 0
        try:
            with _httpx_errors(httpx.ConnectTimeout, httpx.ConnectError):
                port = request.url.port or 80
                connection.sock = self._engine.open_socket(port, _limit_s(limits_s["connect"]))
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if KEY_HEADER in request.headers and self._engine.guard_key is not None:
                with _httpx_errors(httpx.ReadTimeout, httpx.ReadError):
                    check_engine(
                        self._engine,
                        connection.sock,
                        port=port,
                        timeout_s=min(_limit_s(limits_s["read"]), self._proof_timeout_s),
                    )
            with _httpx_errors(httpx.WriteTimeout, httpx.WriteError):
                connection.sock.settimeout(limits_s["write"])
                connection.putrequest(
                    request.method, request.url.raw_path.decode("ascii"), skip_host=True, skip_accept_encoding=True
                )
                for name, value in request.headers.raw:
                    connection.putheader(name, value)
                connection.endheaders(stream, encode_chunked="transfer-encoding" in request.headers)
            with _httpx_errors(httpx.ReadTimeout, httpx.ReadError):
                connection.sock.settimeout(limits_s["read"])
                answer = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        return httpx.Response(answer.status, headers=answer.getheaders(), stream=_Body(connection, answer))


def _limit_s(given: float | None) -> float:
    return _NO_LIMIT_S if given is None else given


class _Body(httpx.SyncByteStream):
    def __init__(self, connection: HTTPConnection, answer: HTTPResponse) -> None:
        self._connection = connection
        self._answer = answer

    @override
    def __iter__(self) -> Iterator[bytes]:
        with _httpx_errors(httpx.ReadTimeout, httpx.ReadError):
            while chunk := self._answer.read1(_READ_BYTES):
                yield chunk
            if self._answer.length:
                raise httpx.RemoteProtocolError(f"The answer was cut off {self._answer.length} bytes before its end.")

    @override
    def close(self) -> None:
        self._answer.close()
        self._connection.close()


@contextlib.contextmanager
def _httpx_errors(timeout: type[httpx.TransportError], broken: type[httpx.TransportError]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except ConnectionError as error:  # http.client's RemoteDisconnected among them: no answer came at all
        kind = httpx.RemoteProtocolError if isinstance(error, HTTPException) else broken
        raise kind(str(error)) from error
    except OSError as error:
        raise broken(str(error)) from error
    except HTTPException as error:
        raise httpx.RemoteProtocolError(f"{type(error).__name__}: {error}") from error
