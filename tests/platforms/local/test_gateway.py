"""`torpor.platforms.local.gateway`: which replica gets a connection, and how its bytes are forwarded."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from tests.snapshots.conftest import wait_for
from torpor.errors import PortInUseError
from torpor.platforms.local.gateway import Gateway
from torpor.platforms.local.gateway_route import READY_FOR_S, GatewayReplica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.snapshots.conftest import MakeSandbox
    from torpor.snapshots.sandbox.sandbox import Sandbox

    MakeReplica = Callable[[str], GatewayReplica]

pytestmark = pytest.mark.criu

PROGRAM = Path(__file__).with_name("replica_program.py")
PORT = 8000


@pytest.fixture
def make_replica(make_sandbox: MakeSandbox) -> MakeReplica:
    """A factory of replicas that answer."""

    def make(name: str) -> GatewayReplica:
        sandbox = make_sandbox(name)
        sandbox.spawn([sys.executable, str(PROGRAM), name], env={"PATH": os.environ["PATH"]})
        assert wait_for(sandbox.log_tail) == ("up",)
        return GatewayReplica(name=name, sandbox=sandbox, port=PORT)

    return make


@pytest.fixture
def deaths() -> list[GatewayReplica]:
    """The replicas that the gateway reported as ended."""
    return []


@pytest.fixture
def gateway(deaths: list[GatewayReplica]) -> Iterator[Gateway]:
    """A gateway on a free port."""
    with Gateway(on_death=deaths.append) as started:
        yield started


def sandbox_of(replica: GatewayReplica) -> Sandbox:
    """The sandbox that a replica runs in."""
    return cast("Sandbox", replica.sandbox)


def get(port: int, path: str = "/name") -> tuple[int, str]:
    """Send one request on a new connection; status and body."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        return ask(connection, path)


def ask(connection: socket.socket, path: str) -> tuple[int, str]:
    """Send one request on a connection that stays open."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536) or pytest.fail(f"hung up after {received!r}")
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65536) or pytest.fail(f"hung up after {received!r}")
    return int(head.split()[1]), body.decode()


def set_ready(replica: GatewayReplica, ready: bool) -> None:
    """Set what a replica's guard answers, without the gateway."""
    with sandbox_of(replica).connect(PORT, timeout_s=30.0) as connection:
        assert ask(connection, f"/set/{int(ready)}")[0] == 200


def count_checks(replica: GatewayReplica) -> int:
    """How many ready checks a replica got."""
    with sandbox_of(replica).connect(PORT, timeout_s=30.0) as connection:
        return int(ask(connection, "/count")[1])


def test_connections_go_to_the_replicas_in_turn(gateway: Gateway, make_replica: MakeReplica) -> None:
    """Connections are spread round robin."""
    for name in ("a", "b", "c"):
        gateway.add(make_replica(name))
    names = [get(gateway.port)[1] for _ in range(9)]
    assert Counter(names) == {"a": 3, "b": 3, "c": 3}
    assert names[:3] == names[3:6] == names[6:]


def test_a_connection_stays_with_its_replica(gateway: Gateway, make_replica: MakeReplica) -> None:
    """Its next request may find its prefix in that replica's cache."""
    for name in ("a", "b"):
        gateway.add(make_replica(name))
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        assert len({ask(connection, "/name") for _ in range(5)}) == 1


def test_a_replica_that_is_not_ready_gets_nothing_until_it_is(gateway: Gateway, make_replica: MakeReplica) -> None:
    """Its guard decides. The gateway keeps an answer for 250 ms."""
    a, b = make_replica("a"), make_replica("b")
    set_ready(b, False)
    gateway.add(a)
    gateway.add(b)
    assert {get(gateway.port)[1] for _ in range(6)} == {"a"}
    set_ready(b, True)
    time.sleep(READY_FOR_S)
    assert {get(gateway.port)[1] for _ in range(6)} == {"a", "b"}
    set_ready(a, False)
    time.sleep(READY_FOR_S)
    assert {get(gateway.port)[1] for _ in range(6)} == {"b"}


def test_ready_replicas_share_the_turns_of_one_that_is_not_ready(gateway: Gateway, make_replica: MakeReplica) -> None:
    """Its turns go to the other replicas in order, so none gets a double share."""
    a, b, c = (make_replica(name) for name in "abc")
    set_ready(a, False)
    for replica in (a, b, c):
        gateway.add(replica)
    assert Counter(get(gateway.port)[1] for _ in range(12)) == {"b": 6, "c": 6}


def test_many_connections_at_once_all_find_the_ready_replica(gateway: Gateway, make_replica: MakeReplica) -> None:
    """Connections that arrive while the guards are being asked do not take each other's turns."""
    a, b = make_replica("a"), make_replica("b")
    set_ready(a, False)
    gateway.add(a)
    gateway.add(b)
    answers: list[tuple[int, str]] = []
    for _ in range(6):
        time.sleep(READY_FOR_S)
        threads = [threading.Thread(target=lambda: answers.append(get(gateway.port))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert Counter(answers) == {(200, "b"): 48}


def test_guards_are_not_asked_more_often_than_every_250_ms(gateway: Gateway, make_replica: MakeReplica) -> None:
    """This holds for many connections at once too."""
    replica = make_replica("a")
    gateway.add(replica)
    started = time.monotonic()
    threads = [threading.Thread(target=get, args=(gateway.port,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for _ in range(30):
        get(gateway.port)
    assert 1 <= count_checks(replica) <= 1 + (time.monotonic() - started) / READY_FOR_S


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000,
    ],
)
def test_without_a_ready_replica_the_client_is_told_to_try_again(
    gateway: Gateway, make_replica: MakeReplica, sent: bytes
) -> None:
    """It gets a complete 503 with Retry-After, however much it was about to send."""
    replica = make_replica("a")
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while data := connection.recv(65536):
                received += data
        assert received.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n")
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["message"] == "no replica is ready"
        set_ready(replica, False)
        gateway.add(replica)


def test_a_sleeping_server_says_what_wakes_it(gateway: Gateway) -> None:
    """Until it is woken, the refusal says so. The client may try again."""
    for woken_by, said in (("`kill -USR2 17` on its machine", b"`kill -USR2 17` on its machine"), ("", b"no replica")):
        gateway.sleeps(woken_by)
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
            connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            received = b""
            while data := connection.recv(65536):
                received += data
        assert received.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n")
        assert said in received
        assert (b"The server is asleep" in received) == bool(woken_by)
        if woken_by:  # in the form of the guard's own refusals
            error = json.loads(received.partition(b"\r\n\r\n")[2])["error"]
            assert (error["type"], error["code"]) == ("server_error", "not_serving")
            assert error["message"].startswith("The server is asleep; it answers again once it is woken")


@pytest.mark.alone
def test_a_replica_that_dies_is_reported_and_skipped(
    gateway: Gateway, make_replica: MakeReplica, deaths: list[GatewayReplica]
) -> None:
    """It is reported once, within about 100 ms. The others keep serving."""
    a, b = make_replica("a"), make_replica("b")
    gateway.add(a)
    gateway.add(b)
    sandbox_of(a).signal_tree(signal.SIGKILL)
    started = time.monotonic()
    assert wait_for(lambda: deaths) == [a]
    assert time.monotonic() - started < 0.5
    assert gateway.replicas == (b,)
    assert {get(gateway.port)[1] for _ in range(4)} == {"b"}
    os.kill(sandbox_of(b).pid, signal.SIGKILL)
    assert wait_for(lambda: len(deaths) == 2)
    assert deaths == [a, b]
    assert get(gateway.port)[0] == 503


@pytest.mark.ordinary_user
def test_a_killed_sandbox_can_be_replaced_under_the_same_name(
    gateway: Gateway, make_replica: MakeReplica, deaths: list[GatewayReplica]
) -> None:
    """A restored replica takes the place of the one that ended."""
    first = make_replica("a")
    gateway.add(first)
    assert get(gateway.port) == (200, "a")
    sandbox_of(first).kill()
    assert wait_for(lambda: deaths)
    gateway.add(make_replica("a"))
    assert get(gateway.port) == (200, "a")


def test_a_replica_that_hangs_delays_no_client_for_long(gateway: Gateway, make_replica: MakeReplica) -> None:
    """A guard that does not answer within a second counts as not ready."""
    a, b = make_replica("a"), make_replica("b")
    gateway.add(a)
    gateway.add(b)
    sandbox_of(a).signal_tree(signal.SIGSTOP)
    started = time.monotonic()
    assert {get(gateway.port)[1] for _ in range(4)} == {"b"}
    assert time.monotonic() - started < 8.0  # a client waits 10 s


def test_a_busy_replica_gets_more_time_if_no_other_is_ready(gateway: Gateway, make_replica: MakeReplica) -> None:
    """A replica on a busy machine answers late; its clients wait, they are not told that it is not ready."""
    only = make_replica("a")
    gateway.add(only)
    assert get(gateway.port) == (200, "a")
    time.sleep(READY_FOR_S)  # its last answer counts no more
    sandbox_of(only).signal_tree(signal.SIGSTOP)
    goes_on = threading.Timer(2.0, sandbox_of(only).signal_tree, (signal.SIGCONT,))
    goes_on.start()
    try:
        assert get(gateway.port) == (200, "a")
    finally:
        goes_on.join()


def test_a_failed_connection_goes_to_the_next_replica(gateway: Gateway, make_replica: MakeReplica) -> None:
    """A listener may end while its last good answer still counts. The client does not notice."""
    a, b = make_replica("a"), make_replica("b")
    gateway.add(a)
    gateway.add(b)
    assert {get(gateway.port)[1] for _ in range(2)} == {"a", "b"}
    closed = GatewayReplica(name="closed", sandbox=a.sandbox, port=PORT + 1)
    gateway.add(closed)
    assert {get(gateway.port)[1] for _ in range(6)} == {"a", "b"}


def test_streams_are_not_delayed(gateway: Gateway, make_replica: MakeReplica) -> None:
    """Each small chunk arrives when it is written, not with the next one."""
    gateway.add(make_replica("a"))
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        arrivals, received = [], b""
        for number in range(5):
            while not received.endswith(str(number).encode()):  # the head may come alone
                piece = connection.recv(100)
                assert piece
                received += piece
            arrivals.append(time.monotonic())
    assert all(0.02 < after - before < 0.5 for before, after in itertools.pairwise(arrivals))
    assert arrivals[-1] - arrivals[0] < 1.0


def test_a_client_may_end_its_side_first(gateway: Gateway, make_replica: MakeReplica) -> None:
    """After a half-close the request is still answered: 20 MB, unchanged in both directions."""
    gateway.add(make_replica("a"))
    sent = os.urandom(1 << 20) * 20
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        received = bytearray()

        def receive() -> None:
            while data := connection.recv(1 << 20):
                received.extend(data)

        receiver = threading.Thread(target=receive)
        receiver.start()
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent)
        connection.shutdown(socket.SHUT_WR)
        receiver.join()
    assert bytes(received).partition(b"\r\n\r\n")[2][:-64] == sent
    assert received[-64:].decode() == hashlib.sha256(sent).hexdigest()


def test_a_slow_client_slows_its_replica_down(gateway: Gateway, make_replica: MakeReplica) -> None:
    """The gateway buffers little for a client that does not read, and still serves other clients."""
    replica = make_replica("a")
    gateway.add(replica)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wait_for(lambda: not grows(gateway.port))
        assert 0 < int(get(gateway.port, "/flooded")[1]) < 32 << 20
        assert len(connection.recv(65536)) > 0
        assert get(gateway.port) == (200, "a")


def test_a_client_that_goes_away_ends_the_replicas_side(gateway: Gateway, make_replica: MakeReplica) -> None:
    """The replica's answer stops, whether the client closed the connection or crashed (RST)."""
    gateway.add(make_replica("a"))
    for linger in (b"", b"\1\0\0\0\0\0\0\0"):
        connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
        if linger:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536)
        connection.close()
        assert wait_for(lambda: not grows(gateway.port))


def grows(port: int) -> bool:
    """Whether the replica still sends a flood."""
    before = get(port, "/flooded")
    time.sleep(0.1)
    return get(port, "/flooded") != before


def test_a_removed_replica_ends_its_answers_and_gets_no_new_request(
    gateway: Gateway, make_replica: MakeReplica
) -> None:
    """A running answer continues. The next request of the same connection goes to another replica."""
    a, b = make_replica("a"), make_replica("b")
    gateway.add(a)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        received = connection.recv(1000)
        gateway.remove(a)
        assert get(gateway.port)[0] == 503
        gateway.add(b)
        while not received.endswith(b"01234"):
            received += connection.recv(1000) or pytest.fail(f"hung up after {received!r}")
        assert ask(connection, "/name") == (200, "b")


def test_many_clients_at_once_are_all_served(gateway: Gateway, make_replica: MakeReplica) -> None:
    """200 connections in 20 threads are spread over three replicas."""
    for name in ("a", "b", "c"):
        gateway.add(make_replica(name))
    answers: list[tuple[int, str]] = []

    def use() -> None:
        answers.extend(get(gateway.port) for _ in range(10))

    threads = [threading.Thread(target=use) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = Counter(answers)
    assert set(counted) == {(200, "a"), (200, "b"), (200, "c")}
    assert sum(counted.values()) == 200
    assert min(counted.values()) > 50


def test_a_taken_port_is_an_error() -> None:
    """The message names the port, and the attempt leaves nothing behind."""
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        gateway = Gateway(port=taken.getsockname()[1])
        with pytest.raises(PortInUseError, match=str(taken.getsockname()[1])):
            gateway.start()
    assert threading.active_count() == threads
    gateway.stop()


def test_stopping_closes_everything(make_replica: MakeReplica) -> None:
    """It closes connections, ports, threads and descriptors."""
    replica = make_replica("a")
    before = sorted(Path("/proc/self/fd").iterdir())
    threads = threading.active_count()
    gateway = Gateway()
    gateway.start()
    gateway.add(replica)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        assert ask(connection, "/name") == (200, "a")
        gateway.stop()
        assert connection.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        get(gateway.port)
    gateway.stop()
    assert threading.active_count() == threads
    assert sorted(Path("/proc/self/fd").iterdir()) == before
