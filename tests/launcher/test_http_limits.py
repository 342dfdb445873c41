"""What a client may send before and around a body, with both of uvicorn's parsers and the guard behind them."""

from __future__ import annotations

import socket
import sys
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.guard.server import GuardedServer, read_all, read_until, request, statuses
from torpor.engine.start import start_engine
from torpor.guard import GuardRules
from torpor.launcher import request_limits
from torpor.launcher.limited_h11 import LimitedH11Protocol
from torpor.launcher.limited_httptools import LimitedHttpToolsProtocol
from torpor.launcher.request_limits import MAX_HEAD_BYTES, MAX_HEADERS, MAX_TARGET_BYTES
from torpor.runtime.guard_client import GuardControl, open_client
from torpor.runtime.readiness import wait_ready

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

PARSERS: dict[str, type[asyncio.Protocol]] = {"h11": LimitedH11Protocol, "httptools": LimitedHttpToolsProtocol}
GOOD = request("/v1/models", close=False)
LAST = request("/v1/models")
HEAD = b"GET /v1/models HTTP/1.1\r\nHost: test\r\n"
CHUNKED = b"POST /v1/chat HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=PARSERS)
def server(request: pytest.FixtureRequest) -> Iterator[GuardedServer]:
    """The guard in a server with limits, one per parser, serving."""
    with GuardedServer(http=PARSERS[request.param]) as running:
        assert running.control("serve").status == 200
        yield running
        assert running.errors == []


def flood(port: int, start: bytes, piece: bytes, megabytes: int) -> tuple[bytes, int]:
    """Send a beginning and then pieces until the server closes; the answer, and how many bytes it took."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            connection.sendall(start)
            while sent < megabytes * 2**20:
                connection.sendall(piece)
                sent += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return read_all(connection), sent


@pytest.mark.fault("a client sends a head that never ends", area="heads", outcome="refused")
@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (HEAD + b"a: ", b"x" * 65536),
        (HEAD, b"a: b\r\n" * 10922),
        (HEAD, b"x" * 65536),
        (b"GET /" + b"a" * 100, b"a" * 65536),
        (b"X" * 10, b"X" * 65536),
        (b"", b"\r\n" * 32768),
        (CHUNKED + b"1;", b"x" * 65536),
        (CHUNKED + b"1;a=", b"x" * 65536),
        (CHUNKED + b"0\r\nt: ", b"x" * 65536),
        (CHUNKED + b"0\r\n", b"t: x\r\n" * 10922),
        (CHUNKED + b"0" * 100, b"0" * 65536),
        (CHUNKED, (b"1;" + b"x" * 500 + b"\r\nx\r\n") * 130),
    ],
    ids=[
        *("value", "lines", "name", "target", "method", "line ends"),
        *("chunk extension", "chunk value", "trailer", "trailers", "chunk size", "extensions"),
    ],
)
def test_an_endless_head_or_trailer_is_cut_off_early(server: GuardedServer, start: bytes, piece: bytes) -> None:
    """A head, a chunk's header or trailers without an end cost the server one read, not their size."""
    answer, sent = flood(server.port, start, piece, 16)
    assert sent < 12 * 2**20  # the kernel's buffers, at most
    assert all(status >= 400 for status in statuses(answer))
    server.wait_until(lambda: server.guard.in_flight == 0)
    assert server.ask("/v1/models").status == 200


@pytest.mark.fault("a head is longer than allowed and comes in one piece", area="heads", outcome="refused")
@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"a: {'x' * (MAX_HEAD_BYTES + 8192)}\r\n", 431),
        ("a: b\r\n" * (MAX_HEADERS + 1), 431),
        ("a:\r\n" * 4000, 431),
    ],
    ids=["one value", "headers", "empty headers"],
)
def test_a_whole_head_over_the_limit_is_431_and_the_connection_closes(
    server: GuardedServer, head: str, status: int
) -> None:
    """Its size and its number of headers count, in whatever pieces it arrives."""
    answer = server.send(request("/v1/models", more=head, close=False))
    assert statuses(answer) == [status]
    assert b"connection: close" in answer.lower()


@pytest.mark.fault("a request's target is longer than allowed", area="heads", outcome="refused")
def test_a_long_target_is_414_and_the_connection_closes(server: GuardedServer) -> None:
    """The query counts as well."""
    answer = server.send(request(f"/v1/models?{'x' * MAX_TARGET_BYTES}", close=False))
    assert statuses(answer) == [414]


def test_a_head_within_the_limits_passes(server: GuardedServer) -> None:
    """Long cookies and many headers are an ordinary client's."""
    headers = f"cookie: {'c' * 20_000}\r\n" + "".join(f"x-{n}: v\r\n" for n in range(100))
    assert server.ask(f"/v1/models?{'q' * 8000}", more=headers).status == 200


@pytest.mark.fault("a client sends its head byte by byte", area="heads", outcome="refused")
@pytest.mark.parametrize(
    "begin", [b"", b"GET /v1/models HTTP/1.1\r\nHost: t\r\n", b"\r\n"], ids=["nothing", "head", "end"]
)
def test_a_head_that_takes_too_long_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, begin: bytes, server: GuardedServer
) -> None:
    """From the connection on for the first head; each byte gives no more time."""
    monkeypatch.setattr(request_limits, "HEAD_TIMEOUT_S", 0.4)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        began = time.monotonic()
        connection.sendall(begin)
        connection.settimeout(0.05)
        answer = b""
        while time.monotonic() - began < 30:
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                connection.sendall(b"a" if begin else b"")
                continue
            except ConnectionResetError:
                break
            answer += piece
            if not piece:
                break
        assert time.monotonic() - began < 20
    assert statuses(answer) in ([408], [400], [])


def test_a_second_head_has_its_own_time_and_a_running_request_has_none(
    monkeypatch: pytest.MonkeyPatch, server: GuardedServer
) -> None:
    """The clock stops while the engine answers."""
    monkeypatch.setattr(request_limits, "HEAD_TIMEOUT_S", 0.2)
    server.run(server.engine.gate.clear)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request("/v1/chat", method="POST", body=b"{}", close=False) + b"\r\n")
        time.sleep(0.5)
        server.run(server.engine.gate.set)
        assert statuses(read_until(connection, b"200 OK"))[:1] == [200]  # h11 takes the empty line for a wrong head


@pytest.mark.fault("a client sends thousands of requests without reading an answer", area="heads", outcome="held")
def test_pipelined_requests_are_answered_in_order_and_bounded(server: GuardedServer) -> None:
    """More than are parsed ahead wait as bytes, and all are answered."""
    assert server.send(GOOD * 300 + LAST).count(b"HTTP/1.1 200 OK") == 301


@pytest.mark.fault("a client queues requests behind one that takes long", area="heads", outcome="refused")
def test_what_queues_behind_a_running_request_is_bounded(server: GuardedServer) -> None:
    """Otherwise an engine that asks whether its client is still there takes 256 KB each time that it asks."""
    server.run(server.engine.gate.clear)
    start = request("/v1/polling", method="POST", body=b"{}", close=False)
    _, sent = flood(server.port, start, GOOD * 1000, 24)
    assert sent < 16 * 2**20
    server.run(server.engine.gate.set)
    server.wait_until(lambda: server.guard.in_flight == 0)


def test_trailers_are_dropped(server: GuardedServer) -> None:
    """A header after the body was not there when the guard decided."""
    tail = b"2\r\n{}\r\n0\r\ntorpor-key: x\r\nauthorization: Bearer y\r\n\r\n"
    data = CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert statuses(server.send(data + tail)) == [200]
    assert "authorization" not in str(server.engine.calls[-1].headers)


@pytest.mark.fault("a client asks for another protocol and sends requests behind it", area="heads", outcome="held")
@pytest.mark.parametrize("protocol", ["websocket", "h2c", "x"])
def test_nothing_behind_an_upgrade_is_read_as_a_request(server: GuardedServer, protocol: str) -> None:
    """The request is answered as a plain one; two servers could disagree on whether the following bytes are HTTP."""
    upgrade = f"Connection: upgrade\r\nUpgrade: {protocol}\r\n"
    answer = server.send(request("/v1/models", more=upgrade, close=False) + b"\x00\x01" * 2000 + LAST)
    assert statuses(answer)[0] == 200
    assert server.engine.paths == ["/v1/models"]


@pytest.mark.fault("a client goes on with a body that was answered", area="heads", outcome="refused")
@pytest.mark.parametrize(
    "head", [b"Content-Length: 900000\r\n", b"Transfer-Encoding: chunked\r\n"], ids=["length", "chunked"]
)
def test_the_rest_of_an_answered_body_is_not_read_for_ever(server: GuardedServer, head: bytes) -> None:
    """An engine that answers without reading, as with 405, leaves a body that nobody counts."""
    piece = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    answer, sent = flood(server.port, b"POST /v1/models HTTP/1.1\r\nHost: t\r\n" + head + b"\r\n" + piece, piece, 16)
    assert statuses(answer)[:1] in ([200], [413], [])
    assert sent < 12 * 2**20


def test_a_connection_is_kept_where_the_rest_of_an_answered_body_is_short(server: GuardedServer) -> None:
    """Ordinary clients send head and body apart, and use the connection again."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request("/v1/models", method="POST", body=b"{}", close=False)[:-2])
        assert statuses(read_until(connection, b"{}")) == [200]
        connection.sendall(b"{}" + LAST)
        assert statuses(read_all(connection)) == [200]


AMBIGUOUS = (
    "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
    "Content-Length: 5\r\nContent-Length: 6\r\n",
    "Content-Length: 2, 3\r\n",
    "Content-Length: +2\r\n",
    "Content-Length: 0x2\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding : chunked\r\n",
)


@pytest.mark.slow
@pytest.mark.fault("a request's body has two lengths", area="heads", outcome="refused")
@pytest.mark.parametrize("more", AMBIGUOUS)
@pytest.mark.parametrize("asleep", [False, True], ids=["serving", "asleep"])
def test_an_ambiguous_request_is_400_and_the_connection_is_closed(
    server: GuardedServer, more: str, asleep: bool
) -> None:
    """A proxy in front may read its end elsewhere, so nothing behind it is taken for a request."""
    if asleep:
        server.sleep()
    reached = len(server.engine.calls)
    for path in ("/v1/chat", "/secret", "/health", "/_torpor/state"):
        answer = server.send(request(path, method="POST", more=more, body=b"0\r\n\r\n", close=False) + GOOD)
        assert len(statuses(answer)) == 1, path
        assert statuses(answer)[0] in (400, 501), path
        assert b"connection: close" in answer.lower(), path
    assert len(server.engine.calls) == reached


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/chat HTTP/1.0\r\nHost: t\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat HTTP/1.1\r\nHost: t\r\nHost: u\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=["chunks in HTTP/1.0", "two hosts"],
)
def test_what_a_proxy_may_route_or_read_otherwise_is_ambiguous_too(server: GuardedServer, head: bytes) -> None:
    """RFC 9112, 3.2 and 6.1: both are faults of the sender."""
    answer = server.send(head + GOOD)
    assert statuses(answer) == [400]
    assert server.engine.calls == []


@pytest.mark.fault("a head has lines that two parsers end in two places", area="heads", outcome="refused")
@pytest.mark.parametrize(
    "more",
    [
        b"X: a\nContent-Length: 2\r\n\r\n{}",
        b"X: a\r\nContent-Length: 2\n\n{}",
        b"Content-Length:\r\n 2\r\n\r\n{}",
        b"Transfer-Encoding:\r\n\tchunked\r\n\r\n0\r\n\r\n",
        b"X: a\rContent-Length: 2\r\n\r\n{}",
        b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=["LF alone", "LF alone at the end", "folded length", "folded encoding", "CR alone", "NUL"],
)
def test_a_head_has_the_same_lines_for_every_parser(server: GuardedServer, more: bytes) -> None:
    """What one of uvicorn's parsers folds or forgives, a proxy in front may read as another header, or as none."""
    answer = server.send(b"POST /v1/chat HTTP/1.1\r\nHost: t\r\n" + more + GOOD)
    assert statuses(answer) == [400]
    assert b"connection: close" in answer.lower()
    assert server.engine.calls == []


@pytest.mark.slow
@pytest.mark.fault("a refused request's body does not come", area="heads", outcome="refused")
@pytest.mark.parametrize("asleep", [False, True], ids=["serving", "asleep"])
@pytest.mark.parametrize(
    "more",
    ["Content-Length: 900\r\n", "Transfer-Encoding: chunked\r\n", "Expect: 100-continue\r\nContent-Length: 900\r\n"],
)
def test_a_refusal_whose_body_was_not_read_closes_the_connection(
    server: GuardedServer, more: str, asleep: bool
) -> None:
    """The rest is neither awaited nor read as a request."""
    if asleep:
        server.sleep()
    path = "/v1/chat" if asleep else "/secret"
    answer = server.send(request(path, method="POST", more=more, close=False))
    assert statuses(answer) == [503 if asleep else 404]
    assert b"connection: close" in answer.lower()


def test_a_refusal_whose_short_body_was_read_keeps_the_connection(server: GuardedServer) -> None:
    """A load balancer keeps its connections while a replica sleeps."""
    server.sleep()
    refused = request("/v1/chat", method="POST", body=b"{}", close=False)
    answer = server.send(refused + refused + LAST)
    assert answer.count(b"HTTP/1.1 503") == 3


@pytest.mark.slow
@pytest.mark.fault("a client drips its body", area="request", outcome="held")
def test_a_body_that_drips_is_counted_until_it_ends_or_its_client_goes(server: GuardedServer) -> None:
    """It is in flight, its bytes count against the limit as they come, and nothing of it stays."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(CHUNKED)
        for _ in range(50):
            connection.sendall(b"1\r\nx\r\n")
        server.wait_until(lambda: server.guard.in_flight == 1)
        connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
        answer = read_all(connection)
        assert statuses(answer) == [413]
        assert b"connection: close" in answer.lower()
    server.wait_until(lambda: server.guard.in_flight == 0)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"POST /v1/chat HTTP/1.1\r\nHost: t\r\nContent-Length: 900\r\n\r\n" + b"x" * 10)
        server.wait_until(lambda: server.guard.in_flight == 1)
    server.wait_until(lambda: server.guard.in_flight == 0)


@pytest.mark.slow
@pytest.mark.fault("a client sends a head of 200 MB to an engine that sleeps", area="heads", outcome="refused")
@pytest.mark.parametrize("http", PARSERS)
def test_a_server_that_the_launcher_has_limited_keeps_its_memory(free_port: int, http: str) -> None:
    """In a process of its own, by `limit_uvicorn`: before the guard serves, as while it sleeps."""
    argv = [sys.executable, "-m", "torpor.testing.standin", "--port", str(free_port), "--http", http]
    engine = start_engine(argv, env={}, guard=GuardRules(public=("/v1/models",)))
    try:
        with open_client(engine, port=free_port, timeout_s=30) as client:
            wait_ready(engine, client, port=free_port, ready_path="/v1/models", timeout_s=60)
            control = GuardControl(engine, client)
            control.drain(5.0)
            control.asleep()
        process = psutil.Process(engine.pid)
        flood(free_port, HEAD + b"a: ", b"x" * 65536, 200)  # its buffers, and what is imported for an error, are there
        before = process.memory_info().rss
        for piece in (b"x" * 65536, b"a: b\r\n" * 10922):
            _, sent = flood(free_port, HEAD + b"a: ", piece, 200)
            assert sent < 12 * 2**20
        assert process.memory_info().rss - before < 16 * 2**20
    finally:
        engine.terminate(5)
