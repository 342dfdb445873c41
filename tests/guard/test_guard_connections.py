"""A drain that closes connections: idle ones at once, the others at its deadline; no client keeps a server awake."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

import pytest

from tests.guard.engine import KEY
from tests.guard.server import GuardedServer, read_all, read_until, request
from torpor.guard import control as guard_control
from torpor.guard.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.guard.server import Reply

PARSERS = ("h11", "httptools")

SLOW = {
    "waits for the engine": request("/v1/chat", method="POST", close=False),
    "drips its body": request("/v1/chat", method="POST", more="Content-Length: 50\r\n", close=False) + b"x",
    "waits after Expect": request(
        "/v1/chat", method="POST", more="Content-Length: 50\r\nExpect: 100-continue\r\n", close=False
    ),
    "is within a head": b"POST /v1/chat HTTP/1.1\r\nHost: t",
}


@pytest.fixture(params=PARSERS)
def server(request: pytest.FixtureRequest) -> Iterator[GuardedServer]:
    """The guard behind uvicorn with either parser, serving."""
    with GuardedServer(http=request.param) as running:
        assert running.control("serve").status == 200
        yield running


def connect(server: GuardedServer) -> socket.socket:
    """A connection to it."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def drain(server: GuardedServer, deadline_s: float) -> Reply:
    """A drain that closes connections."""
    return server.control("drain", body=json.dumps({"deadline_s": deadline_s, "cut": True}).encode())


@pytest.mark.fault("a client keeps an idle connection over a sleep", area="sleep", outcome="held")
def test_idle_connections_are_closed_at_once(server: GuardedServer) -> None:
    """Those that asked before, long before the deadline; one that never asked has a second."""
    with connect(server) as kept, connect(server) as silent:
        kept.sendall(request("/v1/models", close=False))
        read_until(kept, b"{}")
        server.wait_until(lambda: len(server._server.server_state.connections) == 2)
        started = time.monotonic()
        reply = drain(server, 30)
        assert (reply.status, json.loads(reply.body)) == (200, {"state": "draining"})
        assert time.monotonic() - started < 20
        assert (kept.recv(1), silent.recv(1)) == (b"", b"")


@pytest.mark.parametrize("slow", SLOW)
@pytest.mark.fault(
    "a client drips its body, waits after Expect or for its answer, and a sleep is due", area="sleep", outcome="held"
)
def test_connections_that_are_still_open_at_the_deadline_are_cut(server: GuardedServer, slow: str) -> None:
    """The drain succeeds, says how many requests it cut, and the sleep goes on."""
    server.run(server.engine.gate.clear)
    counted = 0 if slow == "is within a head" else 1
    with connect(server) as client:
        client.sendall(SLOW[slow])
        server.wait_until(lambda: server.guard.in_flight == counted)
        reply = drain(server, 0.1)
        assert reply.status == 200
        assert json.loads(reply.body).get("cut", 0) == counted
        assert b"200 OK" not in read_all(client)
    assert server.guard.in_flight == 0
    assert server.ask("/pause", method="POST", key=KEY).status == 200


def test_an_answer_that_ends_in_time_is_whole_and_its_connection_closed(server: GuardedServer) -> None:
    """A stream is finished; then the connection is closed, though the client would have kept it."""
    server.run(server.engine.gate.clear)
    with connect(server) as client:
        client.sendall(request("/v1/stream", method="POST", close=False))
        server.wait_until(lambda: server.guard.in_flight == 1)
        with connect(server) as draining:
            draining.sendall(request("/_torpor/drain", method="POST", key=KEY, body=b'{"deadline_s": 30, "cut": true}'))
            server.wait_until(lambda: server.guard.state is State.DRAINING)
            server.run(server.engine.gate.set)
            said = read_all(client)
            assert b"first" in said
            assert b"last" in said
            assert b'{"state": "draining"}' in read_all(draining)


def test_an_engine_that_keeps_a_request_goes_on_serving(server: GuardedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """409 with the count; nothing was put to sleep."""
    monkeypatch.setattr(guard_control, "LETS_GO_S", 0.01)
    server.run(server.engine.gate.clear)
    with connect(server) as client:
        client.sendall(request("/v1/afterwards", method="POST", close=False))  # goes on for 50 ms without its client
        server.wait_until(lambda: server.guard.in_flight == 1)
        reply = drain(server, 0.1)
        assert (reply.status, json.loads(reply.body)["in_flight"]) == (409, 1)
        assert server.guard.state is State.SERVING
        server.run(server.engine.gate.set)
    server.wait_until(lambda: server.guard.in_flight == 0)
    assert server.ask("/v1/models").status == 200


@pytest.mark.fault("a connection is open when a snapshot is taken", area="sleep", outcome="held")
def test_a_sleep_for_a_snapshot_leaves_no_connection(server: GuardedServer) -> None:
    """Connections from during the drain are cut at the last step."""
    assert drain(server, 1).status == 200
    for path in ("/pause", "/release"):
        assert server.ask(path, method="POST", key=KEY).status == 200
    with connect(server) as late:
        late.sendall(request("/v1/models", close=False))
        read_until(late, b"503")
        assert server.control("asleep", body=b'{"alone": true}').status == 200
        assert read_all(late)[-2:] != b"{}"
        server.wait_until(lambda: not server._server.server_state.connections)
