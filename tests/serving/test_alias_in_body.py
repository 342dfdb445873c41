"""`torpor.serving.alias_in_body`: an engine gets the body with the one name replaced, whatever pieces it came in."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from typing import TYPE_CHECKING, NamedTuple, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz_gateway import H11Engine
from tests.raw_streams import read_by_h11
from tests.serving.scripted import Engine, Leases, Talk, answer
from tests.snapshots.conftest import wait_for
from torpor.serving.client import Client
from torpor.serving.gateway import HttpGateway
from torpor.serving.limits import Limits
from torpor.serving.router import Router
from torpor.serving.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.serving.upstream import Pool
    from torpor.serving.values import Way

ALIASES = ("gpt-4", "org/name:tag", 'ä "\\', "n" * 300)
SERVED, OTHER = "modèl-b", "model-a"
LOOP = asyncio.new_event_loop()
FORM = b'Content-Type: multipart/form-data; boundary="xx"\r\n'
CUTS = st.lists(st.integers(0, 5000), max_size=8) | st.just(list(range(700)))
KEYS = st.sampled_from(['"model"', '"mod\\u0065l"', '"\\u006dodel"'])
PAIRS = st.dictionaries(
    st.sampled_from(["messages", "max_tokens", "x"]), st.text(max_size=8) | st.integers(), max_size=3
)


class _Recorder:
    """A connection to a replica that keeps what is written to it, and the pool that has it."""

    reused = False
    way = cast("Way", None)

    def __init__(self) -> None:
        self.got = bytearray()

    def take(self, way: Way) -> _Recorder:
        """As a pool."""
        return self

    def write(self, data: bytes | bytearray) -> None:
        """As a connection."""
        self.got += data

    def begin(self, *_: object) -> None:
        """As a connection."""


async def _passed_on(pieces: list[bytes], limits: Limits) -> bytes:
    """What reaches the engine of a request in these pieces."""
    leases = Leases(
        ways={OTHER: cast("Way", None), SERVED: cast("Way", None)},
        aliases={**dict.fromkeys(ALIASES, SERVED), "other": OTHER},
    )
    recorder = _Recorder()
    shared = Shared(
        places=leases,
        router=Router(leases),
        pages=None,
        limits=limits,
        begin=asyncio.ensure_future,  # never called: a lease and a connection are there
        left=lambda: None,
        pool=cast("Pool", recorder),
    )
    client = Client(shared)
    for piece in pieces:
        client.data_received(piece)
    return bytes(recorder.got)


def passed_on(request: bytes, cuts: list[int], limits: Limits | None = None) -> bytes:
    """What reaches the engine of a request that comes cut at these places."""
    places = [0, *sorted({cut % (len(request) + 1) for cut in cuts} - {0, len(request)}), len(request)]
    pieces = [request[first:last] for first, last in itertools.pairwise(places)]
    return LOOP.run_until_complete(_passed_on(pieces, limits or Limits()))


class Body(NamedTuple):
    """A body that names a model; its Content-Type, and what it is with another value there."""

    fields: bytes
    sent: bytes
    wanted: bytes


@st.composite
def json_bodies(draw: st.DrawFn) -> Body:
    """Objects with pairs before and behind the model, perhaps a second model there, and perhaps a byte order mark."""
    key, spaces = draw(KEYS), draw(st.sampled_from(["", " ", "\r\n\t "]))
    bom = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]))
    before = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in draw(PAIRS).items()]
    behind = [f"{json.dumps(name)}:{json.dumps(value)}" for name, value in draw(PAIRS).items()]
    behind += draw(st.sampled_from([[], [], ['"model": "gpt-4"'], ['"model": 7']]))
    value = json.dumps(draw(st.sampled_from(ALIASES)), ensure_ascii=draw(st.booleans()))

    def with_value(text: str) -> bytes:
        members = [*before, f"{key}{spaces}:{spaces}{text}{spaces}", *behind]
        return bom + f"{spaces}{{{','.join(members)}}}{spaces}".encode()

    return Body(b"Content-Type: application/json\r\n", with_value(value), with_value(json.dumps(SERVED)))


@st.composite
def forms(draw: st.DrawFn) -> Body:
    """Forms with a file before or behind the model, whose part perhaps has a length."""
    file = b'--xx\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n%b\r\n' % draw(
        st.binary(max_size=60).map(lambda data: data.replace(b"--xx", b""))
    )
    before, behind = draw(st.lists(st.just(file), max_size=2)), draw(st.lists(st.just(file), max_size=2))
    length = draw(st.sampled_from([b"", b"Content-Length: %d\r\n", b"CONTENT-LENGTH:%d\r\n"]))

    def with_value(name: str) -> bytes:
        value = name.encode()
        head = b'--xx\r\nContent-Disposition: form-data; name="model"\r\n' + length.replace(b"%d", b"%d" % len(value))
        return b"".join([*before, head, b"\r\n", value, b"\r\n", *behind, b"--xx--\r\n"])

    return Body(FORM, with_value(draw(st.sampled_from(ALIASES))), with_value(SERVED))


TRAILERS = b"X-Sum: 1\r\nB: 2\r\n"


def in_chunks(body: bytes, sizes: list[int], extension: bytes, trailers: bytes) -> bytes:
    """The body in chunks of these sizes, again and again."""
    made, at, turns = b"", 0, itertools.cycle(sizes)
    while piece := body[at : at + next(turns)]:
        made, at = made + b"%X%b\r\n%b\r\n" % (len(piece), extension, piece), at + len(piece)
    return made + b"0\r\n" + trailers + b"\r\n"


NAMED = st.sampled_from([(b"", b""), (b"?model=gpt-4", b""), (b"", b"X-Torpor-Model: gpt-4\r\n")])


@settings(max_examples=25)
@given(json_bodies() | forms(), NAMED, CUTS)
def test_a_body_of_known_length_differs_in_the_name_alone(
    body: Body, named: tuple[bytes, bytes], cuts: list[int]
) -> None:
    """So does its head: in the length. The body's name is replaced as well if the header or the query names an alias."""
    head = b"POST /v1/x%b HTTP/1.1\r\nHost: x\r\n%b%bcontent-LENGTH:  %d \r\nX: y\r\n\r\n"
    sent, wanted = ((head % (*named, body.fields, len(one))) + one for one in (body.sent, body.wanted))
    assert passed_on(sent, cuts) == wanted


@settings(max_examples=25)
@given(
    json_bodies() | forms(),
    NAMED,
    CUTS,
    st.lists(st.integers(1, 200), min_size=1, max_size=5),
    st.sampled_from([(b"", b""), (b";a=b", b""), (b"", TRAILERS)]),
)
def test_a_body_in_chunks_differs_in_the_name_alone(
    body: Body, named: tuple[bytes, bytes], cuts: list[int], sizes: list[int], more: tuple[bytes, bytes]
) -> None:
    """h11 reads the same head and trailers, and the same body but for the name; not a byte is behind it."""
    head = b"POST /v1/x%b HTTP/1.1\r\nHost: x\r\n%b%bTransfer-Encoding: chunked\r\n\r\n" % (*named, body.fields)
    got = passed_on(head + in_chunks(body.sent, sizes, *more), cuts)
    wanted = read_by_h11(head + in_chunks(body.wanted, sizes, *more))
    assert read_by_h11(got) == wanted
    assert (wanted[1], wanted[0][0].body) == (True, body.wanted)
    assert (got[: len(head)], got.endswith(b"\r\n0\r\n%b\r\n" % more[1])) == (head, True)


@pytest.mark.parametrize("trailers", [b"", TRAILERS])
def test_chunks_go_on_wherever_the_first_piece_ends(trailers: bytes) -> None:
    """Inside of the chunk that names the model, inside of the line ends and the header behind it, and of the trailers."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    bodies = (b'{"x": 1, "model": "%b", "y": "0123456789"}' % name for name in (b"gpt-4", b"mod\\u00e8l-b"))
    sent, wanted = (head + in_chunks(body, [27], b";a", trailers) for body in bodies)
    for cut in range(len(sent)):
        got = passed_on(sent, [cut])
        assert read_by_h11(got) == read_by_h11(wanted), (cut, got)
        assert got.endswith(b"\r\n0\r\n%b\r\n" % trailers), (cut, got)


@settings(max_examples=25)
@given(
    st.sampled_from(
        [
            b'{"model": "mod\\u00e8l-b"}',
            b'{"model": "model-a"}',
            b'{"model": "other"}',
            b'{"model": "nobody"}',
            b'{"model": 7}',
            b'{"x": {"model": "gpt-4"}}',
            b'["gpt-4"]',
            b'"gpt-4',
            b"gpt-4",
            b" ",
        ]
    ),
    st.sampled_from([b"gpt-4", SERVED.encode(), b"org/name:tag"]),
    CUTS,
    st.booleans(),
)
def test_a_body_without_an_alias_of_the_model_goes_as_it_came(
    body: bytes, name: bytes, cuts: list[int], chunked: bool
) -> None:
    """Not a byte differs, chunks included: the engine judges another model's alias, and what is no name."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nX-Torpor-Model: %b\r\n" % name
    if chunked:
        request = head + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(body, [1, 5], b";a", TRAILERS)
    else:
        request = head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    assert passed_on(request, cuts) == request


def test_a_body_that_is_too_large_to_read_goes_as_it_came_if_the_head_names_the_model() -> None:
    """Nothing is refused that the gateway need not read. Of a body that the gateway holds, it replaces the name."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nX-Torpor-Model: gpt-4\r\nContent-Length: %d\r\n\r\n"
    for size, name in ((300_000, b'"gpt-4"'), (1000, b'"mod\\u00e8l-b"')):
        bodies = [b'{"x": "%b", "model": %b}' % (b"x" * size, one) for one in (b'"gpt-4"', name)]
        sent, wanted = (head % len(body) + body for body in bodies)
        assert passed_on(sent, [500, 290_000], Limits(held_mb=1)) == wanted


# Over sockets


def post(body: bytes, *lines: bytes, chunks: bool = False) -> bytes:
    """A request with this body."""
    head = b"POST /v1/x HTTP/1.1\r\nHost: x\r\n" + b"".join(line + b"\r\n" for line in lines)
    if chunks:
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + in_chunks(body, [3, 40], b"", TRAILERS)
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the connection ends."""
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


@contextlib.contextmanager
def at_gateway(engine: Engine, **more: object) -> Iterator[tuple[HttpGateway, Leases, socket.socket]]:
    """A gateway of one engine with the alias `gpt`, and a connection to it. At the end no lease is out."""
    leases = Leases(ways={"b": engine, "c": engine}, aliases={"gpt": "b"}, **more)  # type: ignore[arg-type]
    with (
        HttpGateway(leases) as gateway,
        socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection,
    ):
        yield gateway, leases, connection
        connection.close()
        assert wait_for(lambda: leases.out == 0 and gateway.in_flight == 0)


def test_requests_that_are_sent_ahead_are_told_apart() -> None:
    """Each request ends where its own framing says, whatever its neighbour is called."""
    bodies = [b'{"model": "gpt", "x": 1}', b'{"x": 1, "model":"gpt"}', b'{"model": "c"}', b'{"model": "gpt"}']
    requests = [post(body, chunks=chunks) for chunks in (False, True) for body in bodies]
    requests[-1] = post(bodies[-1], b"Connection: close", chunks=True)
    with H11Engine() as engine, at_gateway(engine) as (_, _, connection):
        connection.sendall(b"".join(requests))
        received = read_all(connection)
        assert received.count(b"HTTP/1.1 200 ") == len(requests), received
        assert engine.refused == []
        assert [seen.body for seen in engine.seen] == [body.replace(b'"gpt"', b'"b"') for body in bodies] * 2


def test_a_client_that_waits_for_a_continue_gets_one() -> None:
    """One, whether the alias is in the head or in the body."""
    body = b'{"model": "gpt"}'
    for line in (b"X: y", b"X-Torpor-Model: gpt"):
        head, _, rest = post(body, b"Expect: 100-continue", line, b"Connection: close").partition(b"\r\n\r\n")
        with Engine() as engine, at_gateway(engine) as (_, _, connection):
            connection.sendall(head + b"\r\n\r\n")
            assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(rest)
            received = read_all(connection)
            assert received.endswith(b'\r\n\r\n{"model": "b"}'), received
            assert engine.got == [post(b'{"model": "b"}', b"Expect: 100-continue", line, b"Connection: close")]


@pytest.mark.parametrize("chunks", [False, True])
def test_what_comes_while_the_request_waits_follows(chunks: bool) -> None:
    """The engine gets one whole body, of which a part came before the alias, a part while it waited, and a part afterwards."""
    body = b'{"model": "gpt", "x": "%b"}' % (b"0123456789" * 30)
    request = post(body, b"Connection: close", chunks=chunks)
    with H11Engine() as engine, at_gateway(engine, gate=asyncio.Event()) as (gateway, leases, connection):
        connection.sendall(request[:150])
        assert wait_for(lambda: leases.waiting == 1)
        connection.sendall(request[150:200])
        assert wait_for(lambda: gateway._shared.held == 50)
        assert leases.gate is not None
        gateway.loop.call_soon_threadsafe(leases.gate.set)
        assert wait_for(lambda: leases.out == 1)
        connection.sendall(request[200:])
        received = read_all(connection)
        assert received.startswith(b"HTTP/1.1 200 "), received
        assert [seen.body for seen in engine.seen] == [body.replace(b"gpt", b"b")]


def test_a_request_that_is_sent_again_has_the_engines_name_again() -> None:
    """An idle connection resets at the request's moment: the second one gets what the first one should have read."""
    got: list[bytes] = []
    come = asyncio.Event()

    async def script(talk: Talk) -> None:
        got.append(await talk.request())
        await talk.send(answer(b"%d" % talk.number))
        if talk.number == 1:
            talk.reader._transport.pause_reading()  # type: ignore[attr-defined] # the next request stays unread
            await come.wait()
            await asyncio.sleep(0.1)  # a request that comes later finds the connection gone, and is not sent twice

    with Engine(script) as engine, at_gateway(engine) as (_, _, connection):
        for number in (1, 2):
            connection.sendall(post(b'{"model": "gpt", "x": %d}' % number))
            if number == 2:
                engine._loop.call_soon_threadsafe(come.set)
            received = connection.recv(65536)
            assert received.endswith(b"\r\n\r\n%d" % number), received
        assert engine.connections == 2
    assert got == [post(b'{"model": "b", "x": %d}' % number) for number in (1, 2)]
