"""`torpor.platforms.local.gateway`: clients that leave, send slowly, read nothing or are too many do no lasting harm."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.platforms.local.gateway_place import Place
from tests.snapshots.conftest import wait_for
from torpor.errors import ConfigurationError
from torpor.platforms.local.gateway import Gateway
from torpor.serving.limits import CONNECTIONS_VARIABLE, HEAD_VARIABLE, Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

ASK = b"GET /name HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
KEPT = b"GET /name HTTP/1.1\r\nHost: x\r\n\r\n"
SPARE = 16
"""About how many sockets the gateway holds ready for a replica."""

SHORT = Limits(head_timeout_s=1, stall_timeout_s=1)


@pytest.fixture
def place() -> Iterator[Place]:
    """A replica that answers."""
    with Place() as started:
        yield started


def connect(port: int, *, small: bool = False) -> socket.socket:
    """A connection; with `small` its receive buffer is tiny."""
    connection = socket.socket()
    if small:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", port))
    return connection


def reset(connection: socket.socket) -> None:
    """Close with RST, as a crashed client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def end_and_close(connection: socket.socket) -> None:
    """End the sending side, and close without reading the answer."""
    connection.shutdown(socket.SHUT_WR)
    connection.close()


def everything(connection: socket.socket) -> bytes:
    """Everything that arrives until the connection ends."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def ask(port: int, request: bytes = ASK) -> bytes:
    """Send one request on a new connection; the whole answer."""
    with connect(port) as connection:
        connection.sendall(request)
        return everything(connection)


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextlib.contextmanager
def room_for(more: int) -> Iterator[None]:
    """Allow this process only `more` descriptors than are open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1 + more, hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


LEAVING = {
    "at once": (b"", socket.socket.close),
    "at once by RST": (b"", reset),
    "within a head": (b"GET / HT", socket.socket.close),
    "after a head": (KEPT, socket.socket.close),
    "after a head by RST": (KEPT, reset),
    "within a body": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nx", socket.socket.close),
    "after its own end": (KEPT, end_and_close),
}


@pytest.mark.parametrize("ready", [False, True], ids=["refused", "joined"])
@pytest.mark.parametrize("leaving", LEAVING)
@pytest.mark.fault("a client leaves before, while or after it is refused or joined", area="public port", outcome="held")
def test_clients_that_leave_cost_no_descriptor(place: Place, leaving: str, ready: bool) -> None:
    """Sixty clients leave, whatever they sent and however they close. The next one is answered."""
    sent, leave = LEAVING[leaving]
    place.ready = ready
    with Gateway() as gateway:
        gateway.add(place.replica())
        first = ask(gateway.port)
        assert first.startswith(b"HTTP/1.1 200" if ready else b"HTTP/1.1 503")
        assert wait_for(lambda: gateway.connections == 0)
        before = descriptors()
        for _ in range(60):
            connection = connect(gateway.port)
            connection.sendall(sent)
            leave(connection)
        assert wait_for(lambda: gateway.connections == 0 and gateway.in_flight == 0)
        assert wait_for(lambda: descriptors() <= before + SPARE)
        assert ask(gateway.port) == first


@pytest.mark.fault("a load balancer's TCP checks meet a server that starts", area="public port", outcome="held")
def test_tcp_checks_before_there_is_any_replica_cost_nothing() -> None:
    """After two hundred connects and closes a client is told to try again."""
    with Gateway() as gateway:
        before = descriptors()
        for _ in range(200):
            connect(gateway.port).close()
        assert wait_for(lambda: gateway.connections == 0 and descriptors() <= before)
        assert ask(gateway.port).startswith(b"HTTP/1.1 503")


def test_a_connection_that_asks_nothing_reaches_no_replica(place: Place) -> None:
    """It costs one descriptor and none of a replica. Once it asks, it is forwarded."""
    with Gateway() as gateway:
        gateway.add(place.replica())
        assert ask(gateway.port).endswith(b"ok")
        assert wait_for(lambda: place.open == 0)
        with connect(gateway.port) as connection:
            assert wait_for(lambda: gateway.connections == 1)
            connection.sendall(ASK[:10])
            time.sleep(0.05)
            assert place.open == 0
            connection.sendall(ASK[10:])
            assert everything(connection).endswith(b"ok")


@pytest.mark.slow
@pytest.mark.fault(
    "a client drips the head of its first request, or says nothing", area="public port", outcome="refused"
)
def test_a_head_has_a_deadline_and_a_long_answer_has_none(place: Place) -> None:
    """A slow head gets 408; a client that sent nothing is closed without an answer. A longer answer goes on."""
    with Gateway(limits=SHORT) as gateway:
        gateway.add(place.replica())
        with connect(gateway.port) as silent, connect(gateway.port) as dripping, connect(gateway.port) as patient:
            patient.sendall(b"GET /drip HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            dripping.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
            assert everything(silent) == b""
            assert everything(dripping).startswith(b"HTTP/1.1 408 ")
            assert everything(patient).endswith(b"\r\n\r\n" + b"x" * 20)


@pytest.mark.fault("a client takes nothing of its answer", area="public port", outcome="held")
def test_a_client_that_takes_nothing_is_closed_in_time_and_its_replica_is_free_again(place: Place) -> None:
    """Both descriptors are closed, and the replica sees the end."""
    with Gateway(limits=Limits(stall_timeout_s=0.3)) as gateway:
        gateway.add(place.replica())
        with connect(gateway.port, small=True) as connection:
            connection.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
            assert wait_for(lambda: place.asked == 1)
            assert wait_for(lambda: gateway.connections == 0)
            assert wait_for(lambda: place.open == 0)


def test_bytes_that_are_not_http_are_refused_at_once(place: Place) -> None:
    """A TLS hello has no blank line to wait for. A head that is too long gets 431."""
    with Gateway() as gateway:
        gateway.add(place.replica())
        for sent, status in ((b"\x16\x03\x01\x02\x00", b"400"), (b"GET /" + b"x" * 70_000, b"431")):
            with connect(gateway.port) as connection:
                connection.sendall(sent)
                assert everything(connection).startswith(b"HTTP/1.1 " + status)
        assert wait_for(lambda: gateway.connections == 0)
        assert place.asked == 0


@pytest.mark.fault("more clients connect than there are descriptors", area="public port", outcome="refused")
def test_one_client_too_many_gets_503_at_once_and_is_served_when_another_leaves(place: Place) -> None:
    """The limit of open descriptors decides how many are served. No client waits."""
    with room_for(220), Gateway() as gateway:
        gateway.add(place.replica())
        assert ask(gateway.port).endswith(b"ok")
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert 40 <= gateway.most_connections <= (soft - descriptors() - 40) // 2
    with Gateway(limits=Limits(connections=10)) as gateway, contextlib.ExitStack() as kept:
        gateway.add(place.replica())
        for _ in range(10):
            connection = kept.enter_context(connect(gateway.port))
            connection.sendall(KEPT)
            assert connection.recv(100).endswith(b"ok")
        started = time.monotonic()
        for _ in range(40):
            answer = ask(gateway.port)
            assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n")
            assert b'"code": "too_many_connections"' in answer
        assert time.monotonic() - started < 30
        connection.close()
        assert wait_for(lambda: ask(gateway.port).endswith(b"ok"))


@pytest.mark.slow
@pytest.mark.fault("thousands of connections are opened and ask nothing", area="public port", outcome="held")
def test_thousands_of_half_open_connections_give_their_places_back(place: Place) -> None:
    """They fill the port until the deadline of their heads. Until then others are refused at once, afterwards served."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with Gateway(limits=Limits(connections=1500, head_timeout_s=3)) as gateway, contextlib.ExitStack() as kept:
            gateway.add(place.replica())
            assert ask(gateway.port).endswith(b"ok")
            before = descriptors()
            silent = [kept.enter_context(connect(gateway.port)) for _ in range(2000)]
            for connection in silent[::2]:
                with contextlib.suppress(OSError):  # refused already
                    connection.send(b"GET / HT")
            assert ask(gateway.port).startswith(b"HTTP/1.1 503 ")
            assert wait_for(lambda: ask(gateway.port).endswith(b"ok"), 15)
        assert wait_for(lambda: descriptors() <= before + SPARE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.fault("no descriptor is left when a client connects", area="public port", outcome="refused")
def test_without_a_descriptor_clients_are_refused_in_time_and_served_again_later(
    place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    """All descriptors are taken elsewhere: a reserved one answers 503, the log gets one line, and no busy loop starts."""
    with Gateway() as gateway, connect(gateway.port), contextlib.ExitStack() as clients:
        waiting = [clients.enter_context(socket.socket()) for _ in range(20)]
        assert wait_for(lambda: gateway.connections == 1)
        with room_for(0), contextlib.ExitStack() as taken:
            with contextlib.suppress(OSError):
                while True:
                    taken.enter_context(Path(os.devnull).open())
            busy_from = time.process_time()
            for client in waiting:
                client.settimeout(5)
                client.connect(("127.0.0.1", gateway.port))
                client.sendall(ASK)
                assert client.recv(100).startswith(b"HTTP/1.1 503 ")
            time.sleep(0.3)
            assert time.process_time() - busy_from < 1.0
        gateway.add(place.replica())
        assert wait_for(lambda: ask(gateway.port).endswith(b"ok"))
    said = capfd.readouterr()
    assert (said.out + said.err).count("cannot_accept_connections") == 1


@pytest.mark.slow
def test_a_drain_waits_for_answers_and_refuses_new_clients(place: Place) -> None:
    """A stream finishes. An idle connection is closed at once. New ones are told to try again."""
    with Gateway() as gateway:
        gateway.add(place.replica())
        with connect(gateway.port) as streaming, connect(gateway.port) as idle, connect(gateway.port):
            streaming.sendall(b"GET /drip HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            idle.sendall(KEPT)
            assert idle.recv(100).endswith(b"ok")
            assert wait_for(lambda: place.asked == 2)
            assert gateway.drain(0.1) == 1
            assert everything(idle) == b""
            assert ask(gateway.port).startswith(b"HTTP/1.1 503")
            assert gateway.drain(10) == 0
            gateway.stop()
            assert everything(streaming).endswith(b"\r\n\r\n" + b"x" * 20)


def test_the_environment_sets_limits() -> None:
    """A limit is a number from 1. Anything else is an error that names the variable."""
    assert Limits.of({}) == Limits()
    assert Limits.of({CONNECTIONS_VARIABLE: "200", HEAD_VARIABLE: "5"}) == Limits(connections=200, head_timeout_s=5)
    for value in ("none", "0", "-3", "inf", "nan"):
        with pytest.raises(ConfigurationError, match=CONNECTIONS_VARIABLE):
            Limits.of({CONNECTIONS_VARIABLE: value})
