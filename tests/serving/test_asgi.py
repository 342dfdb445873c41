"""`torpor.serving.asgi`: the data path behind somebody else's server, driven as that server drives an ASGI application."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, SupportsIndex

import pytest

from tests.serving.scripted import Engine, Leases, answer
from torpor.launcher.request_limits import MAX_TARGET_BYTES
from torpor.serving.asgi import AsgiGateway
from torpor.serving.one_replica import OneReplica
from torpor.serving.values import NoPlaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.serving.scripted import Talk
    from torpor.serving.asgi_answer import Message

BUSY = answer(
    b'{"error": {"message": "8 requests are in flight.", "code": "too_many_requests"}}', b"HTTP/1.1 503 No\r\n"
)


@dataclass
class Seen:
    """What the server got: messages, and whether the application failed."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> object:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[bytes, bytes]:
        found = self.messages[0]["headers"]
        assert isinstance(found, list)
        return dict(found)

    @property
    def body(self) -> bytes:
        return b"".join(bytes(one.get("body", b"")) for one in self.messages[1:])  # type: ignore[call-overload]

    @property
    def ended(self) -> bool:
        return bool(self.messages) and not self.messages[-1].get("more_body", True)


async def call(
    app: AsgiGateway,
    path: str = "/v1/chat/completions",
    *,
    body: Sequence[bytes] = (b"{}",),
    method: str = "POST",
    headers: Sequence[tuple[bytes, bytes]] | None = None,
    root: str = "",
    leaves: asyncio.Event | None = None,
    seen: Seen | None = None,
    query: bytes = b"",
    host: bytes | None = b"x",
    version: str = "1.1",
) -> Seen:
    """One request. Its client stays, unless `leaves` is set."""
    seen = seen or Seen()
    pieces = body if isinstance(body, Counted) else list(body)
    given = [] if host is None else [(b"host", host)]
    given += headers if headers is not None else [(b"content-length", b"%d" % sum(map(len, pieces)))]
    gone = leaves or asyncio.Event()

    async def receive() -> Message:
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        seen.messages.append(message)

    scope: Message = {
        "type": "http",
        "http_version": version,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": root,
        "headers": given,
    }
    try:
        await asyncio.wait_for(app(scope, receive, send), 10)
    finally:
        app.close()
        await asyncio.sleep(0)  # lets transports close
    return seen


def one(engine: Engine, most: int = 8) -> AsgiGateway:
    """A gateway before one replica."""
    return AsgiGateway(OneReplica(engine, most))


def test_a_request_and_its_answer_pass_unchanged() -> None:
    """The engine gets method, path, query, body and end-to-end headers; the client its status, headers and body."""
    with Engine() as engine:
        seen = asyncio.run(
            call(
                one(engine),
                "/app/v1/x%20y",
                root="/app",
                body=(b"ab", b"cd"),
                query=b"a=1",
                headers=[(b"content-length", b"4"), (b"x-mine", b"1"), (b"connection", b"close"), (b"te", b"trailers")],
            )
        )
    assert (seen.status, seen.body, seen.ended) == (200, b"abcd", True)
    assert seen.headers == {b"content-length": b"4"}
    (got,) = engine.got
    assert got == b"POST /v1/x%20y?a=1 HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nx-mine: 1\r\n\r\nabcd"


def test_chunks_are_framed_again_on_both_sides() -> None:
    """A body without a length goes to the engine in chunks; the engine's chunks reach the server without their framing."""

    async def script(talk: Talk) -> None:
        head = await talk.reader.readuntil(b"\r\n\r\n")
        body = await talk.reader.readuntil(b"0\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        await talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe")
        await talk.send(b"\r\n3\r\nllo\r\n")
        await talk.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    with Engine(script) as engine:
        seen = asyncio.run(call(one(engine), body=(b"ab", b"", b"c"), headers=[(b"transfer-encoding", b"chunked")]))
    assert seen.body == b"hello2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    assert seen.headers == {}


def test_the_client_that_leaves_ends_its_request_at_the_engine() -> None:
    """Whether the server says so by a message or by a cancellation; the lease comes back."""

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
        assert await talk.reader.read() == b""
        raise asyncio.CancelledError

    async def run(*, cancels: bool) -> tuple[int, int]:
        places = OneReplica(engine, 8)
        leaves, seen = asyncio.Event(), Seen()
        task = asyncio.ensure_future(call(AsgiGateway(places), leaves=leaves, seen=seen))
        await until(lambda: len(seen.messages) == 2)
        held = places.in_flight
        if cancels:
            task.cancel()
        else:
            leaves.set()
        await asyncio.wait({task}, timeout=5)
        await until(lambda: engine.open == 0)
        return held, places.in_flight

    with Engine(script) as engine:
        assert asyncio.run(run(cancels=False)) == (1, 0)
        assert asyncio.run(run(cancels=True)) == (1, 0)


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - of threads and other programs
            await asyncio.sleep(0.005)


def test_a_request_that_meets_a_guard_too_early_is_sent_again() -> None:
    """`too_many_requests` means that the guard still counts a request which has ended for everybody else."""
    seen_bodies = []

    async def script(talk: Talk) -> None:
        while True:
            request = await talk.request()
            seen_bodies.append(request.partition(b"\r\n\r\n")[2])
            await talk.send(BUSY if len(seen_bodies) < 3 else answer(b"at last"))

    with Engine(script) as engine:
        seen = asyncio.run(call(one(engine), body=(b'{"a":', b"1}")))
    assert (seen.status, seen.body) == (200, b"at last")
    assert seen_bodies == [b'{"a":1}'] * 3


def test_a_guard_that_stays_full_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal then reaches the client as it is; another 503 does at once."""
    monkeypatch.setattr("torpor.serving.asgi._BUSY_S", 0.05)
    other = answer(b'{"error": {"code": "not_serving"}}', b"HTTP/1.1 503 No\r\nRetry-After: 7\r\n")
    counted = []

    async def script(talk: Talk) -> None:
        while True:
            counted.append(await talk.request())
            await talk.send(BUSY if b"busy" in counted[-1] else other)

    with Engine(script) as engine:
        seen = asyncio.run(call(one(engine), body=(b"busy",)))
        assert (seen.status, b"too_many_requests" in seen.body) == (503, True)
        assert len(counted) > 1
        counted.clear()
        seen = asyncio.run(call(one(engine)))
    assert (seen.status, seen.headers[b"retry-after"], len(counted)) == (503, b"7", 1)


def test_never_more_requests_than_a_replica_takes() -> None:
    """The others wait, in order; one that leaves meanwhile leaves the queue."""
    now, most, order = 0, 0, []

    async def script(talk: Talk) -> None:
        nonlocal now, most
        while True:
            body = (await talk.request()).partition(b"\r\n\r\n")[2]
            order.append(body)
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1
            await talk.send(answer(body))

    async def run() -> list[Seen]:
        app = one(engine, 2)
        leaves = asyncio.Event()
        tasks = [asyncio.ensure_future(call(app, body=(b"%d" % number,))) for number in range(6)]
        tasks.insert(3, asyncio.ensure_future(call(app, body=(b"x",), leaves=leaves)))
        leaves.set()
        await asyncio.wait(tasks)
        return [task.result() for task in tasks if task.exception() is None]

    with Engine(script) as engine:
        seen = asyncio.run(run())
    assert sorted(one.body for one in seen if one.messages) == [b"0", b"1", b"2", b"3", b"4", b"5"]
    assert most == 2
    assert order[2:] == [b"2", b"3", b"4", b"5"]


def test_a_replica_that_has_ended_refuses_those_that_wait() -> None:
    """503 with the reason and Retry-After."""

    async def script(talk: Talk) -> None:
        await talk.request()
        await asyncio.sleep(60)

    async def run() -> Seen:
        places = OneReplica(engine, 1)
        app = AsgiGateway(places)
        first = asyncio.ensure_future(call(app))
        await until(lambda: engine.open == 1)
        second = asyncio.ensure_future(call(app))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        places.close("Its engine ended.")
        found = await second
        first.cancel()
        await asyncio.wait({first})
        return found

    with Engine(script) as engine:
        seen = asyncio.run(run())
    assert (seen.status, seen.headers[b"retry-after"]) == (503, b"1")
    assert json.loads(seen.body)["error"]["message"] == "Its engine ended."


def test_an_engine_that_closes_without_an_answer_is_a_502() -> None:
    """And an answer that breaks off ends the server's connection, so that the client sees it."""

    async def script(talk: Talk) -> None:
        if b"cut" in await talk.request():
            await talk.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")

    with Engine(script) as engine:
        seen = asyncio.run(call(one(engine)))
        assert (seen.status, json.loads(seen.body)["error"]["code"]) == (502, "engine_gone")
        cut = Seen()
        with pytest.raises(Exception, match="in the middle of its answer"):
            asyncio.run(call(one(engine), body=(b"cut",), seen=cut))
    assert cut.body == b"half"
    assert not cut.ended


def test_the_body_decides_among_several_models() -> None:
    """The request goes to its model's prefix; without a model, or with an unknown one, there is an answer at once."""

    async def ask(body: bytes, **more: object) -> Seen:
        return await call(app, body=(body[:9], body[9:]), **more)  # type: ignore[arg-type]

    with Engine() as a, Engine() as b:
        app = AsgiGateway(Leases({"a": a, "b": b}), prefixes={"a": "/a", "b": "/b"})
        seen = asyncio.run(ask(b'{"messages": [], "model": "b"}', root="/all", path="/all/v1/x"))
        assert seen.status == 200
        assert b.got[0].startswith(b"POST /b/v1/x HTTP/1.1\r\n")
        assert b.got[0].endswith(b'{"messages": [], "model": "b"}')
        assert asyncio.run(ask(b'{"model": "c", "messages": []}')).status == 404
        assert asyncio.run(ask(b'{"messages": []}')).status == 400
        listed = asyncio.run(call(app, "/v1/models", method="GET", body=(b"",), headers=[]))
        assert [one["id"] for one in json.loads(listed.body)["data"]] == ["a", "b"]
    assert a.got == []


def test_no_path_but_a_public_one_is_sent_to_a_prefix() -> None:
    """Behind a prefix any request starts a replica. What the guard would refuse gets the guard's answer at once."""
    with Engine() as engine:
        places = Leases({"a": engine}, public_paths=("/v1/chat/completions",))
        app = AsgiGateway(places, prefixes={"a": "/a"})
        for path in ("/favicon.ico", "/v1/chat/completions/", "/metrics"):
            seen = asyncio.run(call(app, path, body=(b'{"model": "a"}',)))
            assert (seen.status, json.loads(seen.body)["error"]["code"]) == (404, "not_found"), path
        assert (places.asked, engine.got) == ([], [])
        assert asyncio.run(call(app, body=(b'{"model": "a"}',))).status == 200
        assert asyncio.run(call(AsgiGateway(Leases({"a": engine}, by_model=False)), "/favicon.ico")).status == 200


def test_a_body_is_read_no_further_than_it_must_be_before_a_replica_takes_it() -> None:
    """64 KiB with the model in them; the rest comes when the replica is there, and is not kept."""
    piece, pieces = b"x" * (16 << 10), 64

    async def run() -> tuple[int, Seen]:
        places = Leases({"a": engine}, gate=asyncio.Event())
        app = AsgiGateway(places, prefixes={"a": "/a"}, most_kept=64 << 10)
        body = Counted([b'{"model": "a", "x": "', *[piece] * pieces, b'"}'])
        asking = asyncio.ensure_future(call(app, body=body))
        for _ in range(1000):  # every task has run as far as it can without the replica
            await asyncio.sleep(0)
        read = body.taken
        assert places.waiting == 1
        assert places.gate is not None
        places.gate.set()
        return read, await asking

    with Engine() as engine:
        read, seen = asyncio.run(run())
    assert read <= (64 << 10) // len(piece) + 2
    assert seen.status == 200
    assert len(seen.body) == len(piece) * pieces + 23


def test_the_model_may_stand_behind_more_than_is_kept() -> None:
    """The body is read up to the name, whatever is kept of it afterwards."""
    body = (b'{"x": "', *[b"x" * (16 << 10)] * 16, b'", "model": "a"}')
    with Engine() as engine:
        seen = asyncio.run(
            call(AsgiGateway(Leases({"a": engine}), prefixes={"a": "/a"}, most_kept=64 << 10), body=body)
        )
    assert (seen.status, seen.body) == (200, b"".join(body))


class Counted(list[bytes]):
    """Pieces of a body that count how many were taken."""

    taken = 0

    def pop(self, index: SupportsIndex = -1) -> bytes:
        """As of a list."""
        self.taken += 1
        return super().pop(index)


def test_a_request_that_comes_back_from_its_prefix_is_refused() -> None:
    """A prefix without an application leads to the one at `/`, which is this one: it would send the request round for ever."""
    with Engine() as engine:
        app = AsgiGateway(Leases({"a": engine}), prefixes={"a": "/a"})
        body = b'{"model": "a"}'
        assert asyncio.run(call(app, body=(body,))).status == 200
        head = engine.got[0].partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        again = [(name, value) for name, value in (line.split(b": ") for line in head) if name != b"host"]
        seen = asyncio.run(call(app, "/a/v1/chat/completions", body=(body,), headers=again))
        assert (seen.status, seen.headers[b"retry-after"]) == (503, b"10")
        assert json.loads(seen.body)["error"]["code"] == "not_serving"
        assert len(engine.got) == 1
        assert asyncio.run(call(one(engine), body=(body,), headers=again)).status == 200  # the replica's own takes it


def test_a_refusal_of_the_places_is_the_answer() -> None:
    """With its status, code and Retry-After."""
    with Engine() as engine:
        places = Leases({"a": engine}, by_model=False, refusal=NoPlaceError("It cannot start.", retry_after_s=3))
        seen = asyncio.run(call(AsgiGateway(places)))
    assert (seen.status, seen.headers[b"retry-after"]) == (503, b"3")
    assert engine.got == []


def test_what_no_parser_should_read_is_refused() -> None:
    """The same rules as at the gateway's own port, though the server has parsed the head already."""
    with Engine() as engine:
        both = [(b"content-length", b"2"), (b"transfer-encoding", b"chunked")]
        assert asyncio.run(call(one(engine), headers=both)).status == 400
        assert asyncio.run(call(one(engine), headers=[(b"x", b"a\r\nb: c")])).status == 400
        assert asyncio.run(call(one(engine), host=None)).status == 400
    assert engine.got == []


def test_a_request_of_http_1_0_without_a_host_gets_an_empty_one() -> None:
    """The replica gets it as HTTP/1.1, where the header is needed."""
    with Engine() as engine:
        assert asyncio.run(call(one(engine), host=None, version="1.0")).status == 200
    assert engine.got[0].endswith(b" HTTP/1.1\r\ncontent-length: 2\r\nhost:\r\n\r\n{}")


def test_a_prefix_may_make_a_target_longer_than_a_client_may_send() -> None:
    """The longest target that is allowed still reaches its replica."""
    with Engine() as engine:
        app = AsgiGateway(OneReplica(engine, 8), prefixes={"": "/deployment"})
        path = "/" + "x" * (MAX_TARGET_BYTES - 1)
        assert asyncio.run(call(app, path)).status == 200
    assert engine.got[0].startswith(b"POST /deployment/xxx")


def test_the_first_answer_names_the_start_that_its_request_met() -> None:
    """Later ones do not."""
    with Engine() as engine:
        app = AsgiGateway(OneReplica(engine, 8, start="restored"))

        async def run() -> list[Seen]:
            return [await call(app) for _ in range(2)]

        first, second = asyncio.run(run())
    assert first.headers[b"x-torpor-start"] == b"restored"
    assert b"x-torpor-start" not in second.headers
