"""The guard behind a real server: no form of a request on the wire opens a closed path."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import TYPE_CHECKING

import pytest

from tests.guard.engine import KEY, OTHER_KEY, REPLICA_ID, RULES
from tests.guard.server import GuardedServer, Reply, read_all, read_until, replies, request, statuses
from torpor.guard import GuardRules, State

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

PARSERS = ("h11", "httptools")

# Every way to write /release and /info that a server, a proxy or a framework may take for the same.
FORMS = (
    "{path}",
    "/{path}",
    "//{path}",
    "{path}/",
    "{path}//",
    "{path}?x=1",
    "{path}?",
    "{path}%20",
    "{path}%00",
    "{path}%2f",
    "{path};x",
    "{path}.",
    "{path}#x",
    "/.{path}",
    "/%2e{path}",
    "/v1/..{path}",
    "/v1/models/..{path}",
    "/v1/models/%2e%2e{path}",
    "/v1/models/..%2f..{path}",
    "/v1/models%2f..%2f..{path}",
    "/v1/models?x={path}",
    "/v1/models#{path}",
    "/v1/models;{path}",
    "/_torpor/..{path}",
    "/health/..{path}",
    "\\{path}",
    "http://test{path}",
    "http://test/{path}",
    "HTTP://TEST{path}",
    "https://user:{key}@test{path}",
    "file://{path}",
    "x:{path}",
    "{upper}",
    "{escaped}",
    "{double}",
    "{tail}",
    "*",
    "test:443",
    "/v1/models\t{path}",
    "/v1/models {path}",
    "/v1/models%0d%0aGET%20{path}",
)


@pytest.fixture(params=PARSERS)
def server(request: pytest.FixtureRequest) -> Iterator[GuardedServer]:
    """A server that serves."""
    with GuardedServer(http=request.param) as running:
        assert running.control("serve").status == 200
        yield running


def written(form: str, path: str) -> str:
    """A path in another form."""
    escaped = "".join(f"%{ord(letter):02x}" for letter in path[1:])
    double = escaped.replace("%", "%25")
    return form.format(
        path=path, upper=path.upper(), escaped=f"/{escaped}", double=f"/{double}", tail=path[1:], key=KEY
    )


def test_no_form_of_a_closed_path_reaches_the_engine(server: GuardedServer) -> None:
    """Whatever the method; a few forms are bad requests for the server already, a few are another, public path."""
    for form in FORMS:
        for path in ("/release", "/info", "/secret"):
            for method in ("GET", "POST", "HEAD", "OPTIONS"):
                data = server.send(request(written(form, path), method=method))
                public = form.startswith(("/v1/models?", "/v1/models#"))
                assert set(statuses(data)) <= ({200, 400, 404} if public else {400, 404}), (form, path, method)
    assert set(server.engine.paths) == {"/v1/models"}
    assert server.engine.violations == []
    assert server.errors == []


def test_only_the_plain_form_of_a_public_path_reaches_the_engine(server: GuardedServer) -> None:
    """An absolute target is the same request by the standard (RFC 9112, 3.2.2), where the parser knows it."""
    for form in FORMS:
        data = server.send(request(written(form, "/v1/chat"), method="POST", body=b"{}"))
        if statuses(data) == [200]:
            assert form == "{path}" or form.startswith(
                ("{path}?", "http", "HTTP", "{path}#", "x:", "file:", "/v1/models?", "/v1/models#")
            ), form
    assert set(server.engine.paths) <= {"/v1/chat", "/v1/models"}
    assert server.errors == []


def test_health_answers_get_and_head_also_without_host_in_http_1_0(server: GuardedServer) -> None:
    """What load balancers send."""
    assert server.ask("/health").status == 200
    (head,) = replies(server.send(request("/health", method="HEAD")), head=True)
    assert (head.status, head.body) == (200, b"")
    assert replies(server.send(b"GET /ready HTTP/1.0\r\n\r\n"))[0].status == 200
    server.sleep()
    answer = server.ask("/ready?probe=1")
    assert (answer.status, answer.headers["retry-after"], json.loads(answer.body)) == (503, "7", {"state": "asleep"})


def test_a_whole_life_over_the_wire(server: GuardedServer) -> None:
    """Sleep, wake with a new key, serve."""
    server.sleep()
    assert server.ask("/v1/chat", method="POST").status == 503
    assert server.ask("/release", method="POST", key=KEY).status == 409
    assert server.control("wake", body=json.dumps({"key": OTHER_KEY}).encode()).status == 200
    assert server.control("state").status == 403
    for path in RULES.wake:
        assert server.ask(path, method="POST", key=OTHER_KEY).status == 200
    assert server.control("serve", key=OTHER_KEY).status == 200
    assert json.loads(server.control("state", key=OTHER_KEY).body) == {
        "state": "serving",
        "in_flight": 0,
        "answered": 0,
        "replica_id": REPLICA_ID,
    }
    assert server.ask("/v1/chat", method="POST").status == 200
    assert json.loads(server.control("state", key=OTHER_KEY).body)["answered"] == 1
    assert server.engine.violations == []


def test_the_keys_header_is_found_in_any_case_and_under_no_other_name(server: GuardedServer) -> None:
    """Names fold, values don't; a header that looks nearly like it is none."""
    for name in ("Torpor-Key", "TORPOR-KEY", "torpor-key"):
        assert server.ask("/info", more=f"{name}: {KEY}\r\n").status == 200
    for name in ("torpor_key", "x-torpor-key", "torpor-keys"):
        assert server.ask("/info", more=f"{name}: {KEY}\r\n").status == 404
    for line in (f"torpor-key : {KEY}\r\n", f"x: y\r\n torpor-key: {KEY}\r\n", f"x: y\ntorpor-key: {KEY}\n"):
        data = server.send(request("/info", more=line))
        assert {reply.status for reply in replies(data)} <= {200, 400, 404}
    assert server.ask(f"/info?torpor-key={KEY}", more=f"cookie: torpor-key={KEY}\r\n").status == 404
    doubled = server.ask("/info", more=f"torpor-key: {OTHER_KEY}\r\nTorpor-Key: {KEY}\r\n")
    assert doubled.status == 400
    assert server.engine.violations == []


def test_pipelined_requests_are_judged_one_by_one(server: GuardedServer) -> None:
    """Each request is checked on its own; answers come in order."""
    data = server.send(
        request("/v1/models", close=False)
        + request("/release", method="POST", body=b"{}", close=False)
        + request("/_torpor/state", close=False)
        + request("/_torpor/state", key=KEY, close=False)
        + request("/info", close=False)
        + request("/v1/chat", method="POST", body=b"{}")
    )
    assert [reply.status for reply in replies(data)] == [200, 404, 404, 200, 404, 200]
    assert server.engine.paths == ["/v1/models", "/v1/chat"]


def test_the_body_of_a_refused_request_is_never_taken_for_a_request(server: GuardedServer) -> None:
    """A refused body is skipped, not parsed."""
    inner = request("/release", method="POST", key=KEY, close=False)
    data = server.send(
        request("/secret", method="POST", body=inner, close=False)
        + request("/secret", method="POST", more="Transfer-Encoding: chunked\r\n", body=_chunked(inner), close=False)
        + request("/v1/models")
    )
    assert [reply.status for reply in replies(data)] == [404, 404, 200]
    assert server.engine.paths == ["/v1/models"]
    assert server.guard.state is State.SERVING


def test_a_body_of_ambiguous_length_does_not_reach_the_engine(server: GuardedServer) -> None:
    """Each of these is a known way to smuggle a second request behind the first one."""
    doubtful = (
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 5, 6\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    )
    for more in doubtful:
        data = server.send(
            request("/v1/chat", method="POST", more=more, body=b"0\r\n\r\nGET /release HTTP/1.1\r\n\r\n")
        )
        assert set(statuses(data)) <= {400, 413, 501}, more
    assert server.engine.calls == []


def test_equal_lengths_are_one_length_or_none(server: GuardedServer) -> None:
    """A parser may fold them (RFC 9112, 6.3); what it does not fold the guard refuses."""
    for more in ("Content-Length: 2\r\nContent-Length: 2\r\n", "Content-Length: 2, 2\r\n"):
        (status,) = statuses(server.send(request("/v1/chat", method="POST", more=more, body=b"{}")))
        assert status in (200, 400, 413)


def test_blanks_after_a_length_do_not_count(server: GuardedServer) -> None:
    """RFC 9110, 5.5: blanks around a value do not belong to it."""
    more = "Content-Length: 2 \t\r\n"
    assert statuses(server.send(request("/v1/chat", method="POST", more=more, body=b"{}"))) == [200]


def test_a_chunked_body_over_the_limit_is_413_whoever_sends_it(server: GuardedServer) -> None:
    """In one packet or byte by byte, with an end or without one; the connection then takes the next request."""
    whole = request(
        "/v1/chat", method="POST", more="Transfer-Encoding: chunked\r\n", body=_chunked(b"x" * 1200), close=False
    )
    data = server.send(whole + request("/v1/models"))
    assert [reply.status for reply in replies(data)] == [413, 200]
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request("/v1/chat", method="POST", more="Transfer-Encoding: chunked\r\n"))
        for _ in range(1001):
            connection.sendall(b"1\r\nx\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    server.wait_until(lambda: server.guard.in_flight == 0)
    assert server.errors == []


def test_a_long_body_is_refused_before_it_is_sent(server: GuardedServer) -> None:
    """By its length alone; a client that asks first (Expect) is told so in place of "go on"."""
    for more in ("", "Expect: 100-continue\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(request("/v1/chat", method="POST", more=f"Content-Length: 5000\r\n{more}"))
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert server.engine.calls == []


def test_bodies_within_the_limit_arrive_whole(server: GuardedServer) -> None:
    """Chunked ones and others."""
    assert server.ask("/v1/chat", method="POST", body=b"x" * 1000).status == 200
    chunked = request("/v1/chat", method="POST", more="Transfer-Encoding: chunked\r\n", body=_chunked(b"x" * 1000))
    assert replies(server.send(chunked))[0].status == 200


def test_a_client_that_disconnects_in_a_stream_is_no_longer_in_flight(server: GuardedServer) -> None:
    """It cannot delay a drain."""
    server.engine.gate.clear()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(request("/v1/stream", method="POST"))
        read_until(connection, b"first")
        assert server.guard.in_flight == 1
    server.wait_until(lambda: server.guard.in_flight == 0)
    assert server.engine.hung_up == 1
    server.sleep()


def test_an_engine_that_crashes_on_a_request_leaves_nothing_in_flight(server: GuardedServer) -> None:
    """The server answers 500, or cuts the stream; both are an end."""
    assert server.ask("/v1/crash", method="POST").status == 500
    assert b"first" in server.send(request("/v1/late_crash", method="POST"))
    server.wait_until(lambda: server.guard.in_flight == 0)
    assert len(server.errors) == 2
    server.sleep()


def test_a_drain_fails_if_its_caller_disconnects(server: GuardedServer) -> None:
    """The server serves on."""
    server.engine.gate.clear()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as running:
        running.sendall(request("/v1/chat", method="POST"))
        server.wait_until(lambda: server.guard.in_flight == 1)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as drain:
            drain.sendall(request("/_torpor/drain", method="POST", key=KEY, body=b'{"deadline_s": 60}'))
            server.wait_until(lambda: server.guard.state is State.DRAINING)
        server.wait_until(lambda: server.guard.state is State.SERVING)
        server.run(server.engine.gate.set)
        assert replies(read_all(running))[0].status == 200


def test_a_drain_over_the_wire_waits_for_the_last_chunk(server: GuardedServer) -> None:
    """If it does not come in time, the drain reports the count."""
    server.run(server.engine.gate.clear)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as running:
        running.sendall(request("/v1/stream", method="POST"))
        server.wait_until(lambda: server.guard.in_flight == 1)
        early = server.control("drain", body=b'{"deadline_s": 0.02}')
        assert (early.status, json.loads(early.body)["in_flight"]) == (409, 1)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as drain:
            drain.sendall(request("/_torpor/drain", method="POST", key=KEY, body=b'{"deadline_s": 60}'))
            server.wait_until(lambda: server.guard.state is State.DRAINING)
            server.run(server.engine.gate.set)
            assert replies(read_all(running))[0].body == b"first last"
            assert replies(read_all(drain))[0].status == 200


def test_an_upgrade_to_anything_on_a_closed_path_is_404(server: GuardedServer) -> None:
    """Where the server knows no websockets, an upgrade is a request like another."""
    for upgrade in ("websocket", "h2c", "x"):
        more = f"Connection: upgrade\r\nUpgrade: {upgrade}\r\nSec-WebSocket-Version: 13\r\n"
        data = server.send(request("/v1/realtime", more=f"{more}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"))
        assert replies(data)[0].status == 404
    assert server.engine.calls == []


@pytest.mark.parametrize("http", PARSERS)
def test_a_websocket_that_is_not_public_gets_403_from_the_server(http: str) -> None:
    """Closed before it was accepted; a public one while nothing serves, too. An open one is in flight."""
    upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    with GuardedServer(http=http, ws="websockets-sansio") as server:
        assert statuses(server.send(request("/v1/chat", more=upgrade, close=False))) == [403]
        assert server.control("serve").status == 200
        for path in ("/v1/realtime", "/info", "/release", "/_torpor/state", "//v1/chat", "/v1/%63hat"):
            for key in (None, KEY):
                data = server.send(request(path, more=upgrade, key=key, close=False))
                assert statuses(data) == [403], (path, key)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(request("/v1/chat", more=upgrade, close=False))
            assert connection.recv(65536).startswith(b"HTTP/1.1 101 ")
            connection.sendall(b"\x81\x82\x00\x00\x00\x00hi")  # a masked text frame (RFC 6455, 5.2)
            assert read_until(connection, b"hi").endswith(b'\x81\x04"hi"')
            refused = server.control("drain", body=b'{"deadline_s": 0.02}')
            assert (refused.status, json.loads(refused.body)["in_flight"]) == (409, 1)
        server.wait_until(lambda: server.guard.in_flight == 0)
        server.sleep()
        assert statuses(server.send(request("/v1/chat", more=upgrade, close=False))) == [403]
        assert server.engine.paths == ["/v1/chat", *RULES.sleep]
        assert (server.engine.violations, server.errors) == ([], [])


@pytest.mark.parametrize("http", PARSERS)
def test_no_request_reaches_the_engine_during_a_wake_before_it_serves(http: str) -> None:
    """And every one of them is answered: 200, or 503 with Retry-After."""
    rules = GuardRules(public=RULES.public, sleep=RULES.sleep, wake=RULES.wake, max_in_flight=200, retry_after_s=7)
    with GuardedServer(http=http, rules=rules) as server:
        assert server.control("serve").status == 200
        server.sleep()
        slept = len(server.engine.calls)
        answers = asyncio.run(_wake_under_load(server, 1000))
        passed = sum(answer.status == 200 for answer in answers)
        assert len(answers) == 1000
        assert {answer.status for answer in answers} == {200, 503}, "some came before it served and some after"
        assert all(answer.headers["retry-after"] == "7" for answer in answers if answer.status == 503)
        woken = server.engine.calls[slept:]
        public = [call for call in woken if call.path == "/v1/chat"]
        assert {call.state for call in public} == {State.SERVING}
        assert len(public) == passed
        assert [call.path for call in woken if call.path != "/v1/chat"] == list(RULES.wake)
        assert (server.engine.violations, server.errors, server.guard.in_flight) == ([], [], 0)


async def _wake_under_load(server: GuardedServer, count: int) -> list[Reply]:
    """Open all connections, then wake the engine while the requests come, hundreds of them around each step."""
    calls = ("/_torpor/wake", *RULES.wake, "/_torpor/serve")
    phase = count // 8
    answers: list[Reply] = []
    all_open = asyncio.Barrier(count + 1)
    arrived = [asyncio.Event() for _ in calls]  # one phase of answers more
    done = [asyncio.Event() for _ in calls]

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await all_open.wait()
        if (calls_before := min(number // phase - 1, len(calls))) > 0:
            await done[calls_before - 1].wait()
        writer.write(request("/v1/chat", method="POST", body=b"{}"))
        answers.extend(replies(await reader.read()))
        if len(answers) % phase == 0 and len(answers) // phase <= len(calls):
            arrived[len(answers) // phase - 1].set()
        writer.close()
        await writer.wait_closed()

    async def lifecycle() -> None:
        await all_open.wait()
        for path, before, after in zip(calls, arrived, done, strict=True):
            await before.wait()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request(path, method="POST", key=KEY))
            assert statuses(await reader.read()) == [200]
            writer.close()
            after.set()

    await asyncio.wait_for(asyncio.gather(lifecycle(), *(client(number) for number in range(count))), 20)
    return answers


def _chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
