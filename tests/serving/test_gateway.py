"""`torpor.serving.gateway`: requests reach their model, bytes go through unchanged, and every lease is given back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from tests.serving.scripted import Engine, Leases, Talk, answer
from tests.snapshots.conftest import wait_for
from torpor.serving.gateway import HttpGateway
from torpor.serving.limits import Limits
from torpor.serving.values import (
    NoSuchModelError,
    PageAnswer,
    PageRequest,
    QueueFullError,
    StartFailedError,
    TooLateError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.serving.values import NoPlaceError


def post(model: str | None, path: str = "/v1/chat/completions", *lines: bytes, **more: object) -> bytes:
    """A request that names its model behind the messages."""
    named = {} if model is None else {"model": model}
    body = json.dumps({"messages": [{"role": "user", "model": "no"}], **named, **more}).encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (path.encode(), len(body))
    return head + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def connect(gateway: HttpGateway) -> socket.socket:
    """A connection to the gateway."""
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=30)


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one answer of known length and not a byte more: status, headers, body."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += connection.recv(1) or pytest.fail(f"hung up after {head!r}")
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b""
    while left := int(headers["content-length"]) - len(body):
        body += connection.recv(left) or pytest.fail(f"hung up after {body!r}")
    return int(first.split()[1]), headers, body


def ask(gateway: HttpGateway, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send a request on a new connection."""
    with connect(gateway) as connection:
        connection.sendall(request)
        return read_answer(connection)


def everything(connection: socket.socket) -> bytes:
    """Everything that arrives until the connection ends."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def error_of(body: bytes) -> dict[str, object]:
    """The error of an answer."""
    error: dict[str, object] = json.loads(body)["error"]
    return error


@pytest.fixture
def a() -> Iterator[Engine]:
    """An engine."""
    with Engine() as engine:
        yield engine


@pytest.fixture
def b() -> Iterator[Engine]:
    """Another engine."""
    with Engine() as engine:
        yield engine


@pytest.fixture
def leases(a: Engine, b: Engine) -> Leases:
    """Two models, of which one has an alias."""
    return Leases(ways={"a": a, "b": b}, aliases={"gpt": "b"})


@pytest.fixture
def gateway(leases: Leases) -> Iterator[HttpGateway]:
    """A gateway of two models. At its end no lease is out."""
    with HttpGateway(leases) as started:
        yield started
        assert wait_for(lambda: leases.out == 0 and started.in_flight == 0)


@contextlib.contextmanager
def gateway_of(leases: Leases, **more: object) -> Iterator[HttpGateway]:
    """A gateway of these models; at its end no lease is out."""
    with HttpGateway(leases, **more) as started:  # type: ignore[arg-type]
        yield started
        assert wait_for(lambda: leases.out == 0 and started.in_flight == 0)


# Routing


def test_one_connection_reaches_several_models(gateway: HttpGateway, a: Engine, b: Engine, leases: Leases) -> None:
    """Each request decides for itself; an alias becomes the name. Connections to the engines are kept and used again."""
    with connect(gateway) as connection:
        for model in ("a", "b", "gpt", "a", "b"):
            connection.sendall(post(model))
            named = post("b" if model == "gpt" else model)
            assert read_answer(connection)[::2] == (200, named.partition(b"\r\n\r\n")[2])
    assert leases.asked == ["a", "b", "gpt", "a", "b"]
    assert (a.got, b.got) == ([post("a")] * 2, [post("b")] * 3)
    assert (a.connections, b.connections) == (1, 1)


def test_an_unknown_model_is_told_what_there_is(gateway: HttpGateway, leases: Leases) -> None:
    """404 in the form of OpenAI's errors, on a connection that goes on. No lease is taken."""
    with connect(gateway) as connection:
        for _ in range(2):
            connection.sendall(post("c"))
            status, _, body = read_answer(connection)
            error = error_of(body)
            assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert error["message"] == "There is no model 'c' here; served are a, b, gpt."
    assert leases.asked == []


def test_a_request_without_a_model_is_refused_if_there_are_several(gateway: HttpGateway, a: Engine) -> None:
    """With one deployment it goes there."""
    status, _, body = ask(gateway, post(None))
    assert (status, error_of(body)["code"]) == (400, "no_model")
    with gateway_of(Leases(ways={"a": a})) as single:
        assert ask(single, post(None))[0] == 200
        assert ask(single, post("c"))[0] == 404


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /metrics?x=1&model=b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Torpor-Model: b\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nX-Torpor-Model: b\r\nContent-Length: 13\r\n\r\n" + b'{"model":"a"}',
        b"OPTIONS /v1/chat/completions?model=b HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\n\r\n",
    ],
)
def test_a_header_or_the_query_names_the_model(gateway: HttpGateway, b: Engine, request_: bytes) -> None:
    """For requests without a body, and for those whose body nobody should read."""
    assert ask(gateway, request_)[0] == 200
    assert b.got == [request_]


def test_a_form_names_its_model(gateway: HttpGateway, b: Engine) -> None:
    """An audio transcription, the file first."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        + bytes(range(256)) * 40
        + b"\r\n"
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nb\r\n--x--\r\n'
    )
    head = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    assert ask(gateway, request)[::2] == (200, body)
    assert b.got == [request]


def test_the_body_flows_on_as_soon_as_the_model_is_known(leases: Leases) -> None:
    """The engine gets the beginning of a body whose rest has not come."""
    seen: list[bytes] = []

    async def script(talk: Talk) -> None:
        seen.append(await talk.reader.readuntil(b"BEGIN"))
        seen.append(await talk.reader.readexactly(6))
        await talk.send(answer())

    with (
        Engine(script) as engine,
        gateway_of(Leases(ways={"a": engine, "b": engine})) as gateway,
        connect(gateway) as one,
    ):
        one.sendall(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 29\r\n\r\n{"model":"a","x":"BEGIN')
        assert wait_for(lambda: seen)
        one.sendall(b'12345"')
        assert read_answer(one)[::2] == (200, b"ok")
        assert seen[1] == b'12345"'


def test_a_model_that_is_no_name_is_refused(gateway: HttpGateway) -> None:
    """400, and the connection goes on."""
    with connect(gateway) as connection:
        for model in (5, None, ["a"]):
            body = json.dumps({"model": model}).encode()
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            status, _, told = read_answer(connection)
            assert (status, error_of(told)["code"]) == (400, "invalid_model")


def test_a_body_whose_model_comes_too_late_is_refused(leases: Leases) -> None:
    """What is held of bodies is limited. The answer says what to do, and arrives although the client still sends."""
    with gateway_of(leases, limits=Limits(held_mb=1)) as gateway, connect(gateway) as connection:
        connection.sendall(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n{"x":"')
        with contextlib.suppress(OSError):
            connection.sendall(b"A" * 2_000_000)
        received = everything(connection)
        assert received.startswith(b"HTTP/1.1 413 ")
        assert b"X-Torpor-Model" in received
        assert gateway._shared.held == 0


# The gateway's own answers


def test_the_list_of_models_is_merged(gateway: HttpGateway) -> None:
    """As OpenAI's list, and each by its name."""
    _, _, body = ask(gateway, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
    told = json.loads(body)
    assert [(one["id"], one["object"], one["created"], one["state"]) for one in told["data"]] == [
        (name, "model", 17, "serving") for name in ("a", "b", "gpt")
    ]
    assert told["object"] == "list"
    status, _, body = ask(gateway, b"GET /v1/models/gpt HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, json.loads(body)["id"]) == (200, "gpt")
    assert ask(gateway, b"GET /v1/models/c HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 404


def test_health_is_the_gateways_own_and_head_has_no_body(gateway: HttpGateway, a: Engine) -> None:
    """No model is started for it. The lifecycle's paths are closed."""
    assert ask(gateway, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200
    assert ask(gateway, b"POST /_torpor/sleep HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 404
    with connect(gateway) as connection:
        connection.sendall(b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = everything(connection)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"\r\n\r\n")
    assert a.connections == 0


def test_each_deployment_has_its_own_keys(a: Engine, b: Engine) -> None:
    """Without one nobody learns of the model or starts it. The list shows what the key opens."""
    leases = Leases(ways={"a": a, "b": b}, keys={"a": (hashlib.sha256(b"ka").hexdigest(),)})
    listed = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n%s\r\n"
    with gateway_of(leases) as gateway:
        status, headers, body = ask(gateway, post("a"))
        assert (status, headers["www-authenticate"], error_of(body)["code"]) == (401, "Bearer", "invalid_api_key")
        assert ask(gateway, post("a", "/v1/x", b"Authorization: Bearer kb"))[0] == 401
        assert leases.asked == []
        assert ask(gateway, post("a", "/v1/x", b"authorization: bearer ka"))[0] == 200
        assert ask(gateway, post("b"))[0] == 200
        assert b"authorization: bearer ka" in a.got[0]
        for key, names in ((b"", ["b"]), (b"Authorization: Bearer ka\r\n", ["a", "b"])):
            assert [one["id"] for one in json.loads(ask(gateway, listed % key)[2])["data"]] == names
    leases.keys["b"] = leases.keys["a"]
    with gateway_of(leases) as gateway:
        assert ask(gateway, listed % b"")[0] == 401
        assert ask(gateway, post("c"))[0] == 401  # not even what there is


def test_a_page_of_the_gateways_own(leases: Leases) -> None:
    """It gets whole requests below its prefix, and nothing else."""

    class Echo:
        prefix = "/torpor/"

        async def answer(self, request: PageRequest) -> PageAnswer:
            await asyncio.sleep(0)
            told = [request.method, request.path, request.query, request.headers["x-key"], request.body.decode()]
            return PageAnswer(status=201, body=json.dumps(told).encode(), headers={"X-Mine": "1"})

    with gateway_of(leases, pages=Echo()) as gateway, connect(gateway) as connection:
        for head, body in (
            (b"Content-Length: 3\r\n", b"abc"),
            (b"Transfer-Encoding: chunked\r\n", b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"),
        ):
            connection.sendall(b"PUT /torpor/pin?x=1 HTTP/1.1\r\nHost: x\r\nX-Key: k\r\n" + head + b"\r\n" + body)
            status, headers, told = read_answer(connection)
            assert (status, headers["x-mine"]) == (201, "1")
            assert json.loads(told) == ["PUT", "/torpor/pin", "x=1", "k", "abc"]
        connection.sendall(post("a"))
        assert read_answer(connection)[0] == 200


# Waiting


def open_gate(gateway: HttpGateway, leases: Leases) -> None:
    """Let those go on that wait."""
    assert leases.gate is not None
    gateway.loop.call_soon_threadsafe(leases.gate.set)


def test_an_answer_says_what_the_request_met(gateway: HttpGateway, leases: Leases, a: Engine) -> None:
    """Only if it waited; the rest of the head is the engine's, byte for byte."""
    with connect(gateway) as connection:
        connection.sendall(post("a"))
        plain = connection.recv(65536)
        leases.gate = asyncio.Event()
        connection.sendall(post("a"))
        assert wait_for(lambda: leases.waiting == 1)
        open_gate(gateway, leases)
        waited = connection.recv(65536)
    first, _, rest = plain.partition(b"\r\n")
    assert waited == first + b"\r\nX-Torpor-Start: restored\r\nX-Torpor-Waited: 1.250\r\n" + rest
    assert a.got == [post("a")] * 2


@pytest.mark.parametrize(
    ("refusal", "status", "retry"),
    [
        (QueueFullError("Too many wait.", retry_after_s=2.2), 503, "3"),
        (TooLateError("Too late.", retry_after_s=5), 503, "5"),
        (StartFailedError("It does not start: no GPU.", retry_after_s=30), 503, "30"),
        (NoSuchModelError("It is gone."), 404, None),
    ],
)
def test_a_refusal_of_the_control_side_is_answered(
    gateway: HttpGateway, leases: Leases, refusal: NoPlaceError, status: int, retry: str | None
) -> None:
    """With its status, its reason, and when to come again. The connection goes on."""
    with connect(gateway) as connection:
        leases.refusal = refusal
        connection.sendall(post("a"))
        seen, headers, body = read_answer(connection)
        assert (seen, headers.get("retry-after")) == (status, retry)
        assert (error_of(body)["message"], error_of(body)["code"]) == (str(refusal), refusal.code)
        leases.refusal = None
        connection.sendall(post("a"))
        assert read_answer(connection)[0] == 200


@pytest.mark.parametrize("how", ["close", "reset", "end", "close with a large body"])
@pytest.mark.fault("a client leaves while it waits for its model", area="public port", outcome="held")
def test_a_client_that_leaves_while_it_waits_leaves_the_queue(gateway: HttpGateway, leases: Leases, how: str) -> None:
    """At once, and before its model is there."""
    leases.gate = asyncio.Event()
    connection = connect(gateway)
    connection.sendall(post("a", x="A" * (9 << 20)) if "large" in how else post("a"))
    assert wait_for(lambda: leases.waiting == 1)
    left_at = time.monotonic()
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif how == "end":
        connection.shutdown(socket.SHUT_WR)
    if how != "end":
        connection.close()
    assert wait_for(lambda: leases.cancelled == 1)
    assert time.monotonic() - left_at < 5
    assert leases.asked == []
    connection.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /favicon.ico?model=a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/chat/completions/?model=a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS /v1/chat/completions?model=b HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\n\r\n",
    ],
    ids=["another path", "a slash behind", "a preflight without a key"],
)
def test_only_a_public_request_starts_an_engine(gateway: HttpGateway, leases: Leases, request_: bytes) -> None:
    """What the engine would refuse must not cost a start. An engine that serves answers it itself."""
    leases.public_paths, leases.keys = ("/v1/chat/completions",), {"b": ("0" * 64,)}
    assert ask(gateway, request_)[0] == 200
    leases.gate = asyncio.Event()
    status, headers, body = ask(gateway, request_)
    assert (status, headers["retry-after"]) == (503, "1")
    assert b"does not start it" in body
    assert leases.waiting == leases.cancelled == 0
    with connect(gateway) as connection:
        connection.sendall(post("a"))
        assert wait_for(lambda: leases.waiting == 1)


def test_comments_come_while_a_client_waits_if_it_asks(
    gateway: HttpGateway, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer begins at once; then comes the engine's stream, or the error as an event."""
    monkeypatch.setattr("torpor.serving.comments.COMMENT_S", 0.1)
    leases.gate = asyncio.Event()
    asks = (b"Accept: text/event-stream", b"X-Torpor-Waiting: comments")
    with connect(gateway) as connection:
        connection.sendall(post("a", "/v1/x", *asks))
        received = b""
        while received.count(b": waiting for the model\n\n") < 3:
            received += connection.recv(65536)
        open_gate(gateway, leases)
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream")
        body = post("a", "/v1/x", *asks).partition(b"\r\n\r\n")[2]
        assert received.endswith(b": start=restored waited=1.250\n\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        leases.gate, leases.refusal = asyncio.Event(), StartFailedError("No GPU.", retry_after_s=3)
        connection.sendall(post("a", "/v1/x", *asks))
        received = connection.recv(65536)
        open_gate(gateway, leases)
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(65536)
        event = received.partition(b"data: ")[2].partition(b"\n\n")[0]
        assert error_of(event)["message"] == "No GPU."


# Bytes, unchanged


STREAM = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (b"data: %d\n\n" % n for n in range(30)))
ANSWERS = {
    "a length": answer(b"abc"),
    "no body": b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
    "odd headers": b"HTTP/1.1 299 Odd Status\r\ncontent-LENGTH:   3 \r\nX: \xff\xfe\r\nX: again\r\n\r\nabc",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + STREAM + b"0\r\n\r\n",
    "chunks with trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
    "hints first": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + answer(b"abc"),
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n",
}


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_goes_through_byte_for_byte(kind: str, step: int) -> None:
    """However the engine cuts it. The next request uses the same two connections."""

    async def script(talk: Talk) -> None:
        while await talk.request():
            for start in range(0, len(ANSWERS[kind]), step):
                await talk.send(ANSWERS[kind][start : start + step])
                await asyncio.sleep(0)

    with (
        Engine(script) as engine,
        gateway_of(Leases(ways={"a": engine, "b": engine})) as gateway,
        connect(gateway) as one,
    ):
        for _ in range(2):
            one.sendall(post("a"))
            received = b""
            while len(received) < len(ANSWERS[kind]):
                received += one.recv(65536) or pytest.fail(f"hung up after {received!r}")
            assert received == ANSWERS[kind]
        assert engine.connections == 1


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    """The client's ends as well."""

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(b"HTTP/1.1 200 OK\r\n\r\nabc")

    with Engine(script) as engine, gateway_of(Leases(ways={"a": engine})) as gateway, connect(gateway) as connection:
        connection.sendall(post("a"))
        assert everything(connection) == b"HTTP/1.1 200 OK\r\n\r\nabc"


def test_chunks_of_a_stream_are_not_delayed_or_joined() -> None:
    """Each piece arrives before the engine sends the next."""
    go_on = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(5):
            await talk.send(b"6\r\ndata: \r\n")
            await go_on.wait()
            go_on.clear()
        await talk.send(b"0\r\n\r\n")

    with Engine(script) as engine, gateway_of(Leases(ways={"a": engine})) as gateway, connect(gateway) as connection:
        connection.sendall(post("a"))
        received = b""
        for number in range(1, 6):
            while received.count(b"data: ") < number:
                received += connection.recv(65536)
            engine._loop.call_soon_threadsafe(go_on.set)
        assert everything_of(connection, received).endswith(b"0\r\n\r\n")


def everything_of(connection: socket.socket, received: bytes) -> bytes:
    """Read on to the last chunk."""
    while not received.endswith(b"0\r\n\r\n"):
        received += connection.recv(65536)
    return received


@pytest.mark.parametrize("step", [1, 9, 100_000])
def test_requests_go_through_byte_for_byte(gateway: HttpGateway, a: Engine, step: int) -> None:
    """In any pieces, pipelined, with an empty line before the first."""
    sent = b"\r\n" + post("a") + post("a", "/v1/x", b"X-Odd:\t\xff ") + post("a", x="y" * 500)
    with connect(gateway) as connection:
        for start in range(0, len(sent), step):
            connection.sendall(sent[start : start + step])
        for _ in range(3):
            assert read_answer(connection)[0] == 200
    assert b"".join(a.got) == sent[2:]


@pytest.mark.parametrize("step", [1, 11, 100_000])
def test_a_chunked_request_goes_through_byte_for_byte(step: int) -> None:
    """The model is found across chunks; the engine gets the chunks as they were."""
    body = b'5\r\n{"mod\r\n6;x=y\r\nel":"a\r\n2\r\n"}\r\n0\r\nX-Sum: 1\r\n\r\n'
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    got: list[bytes] = []

    async def script(talk: Talk) -> None:
        while True:
            got.append(await talk.reader.readuntil(b"\r\n\r\n") + await talk.reader.readuntil(b"\r\n\r\n"))
            await talk.send(answer())

    with (
        Engine(script) as engine,
        gateway_of(Leases(ways={"a": engine, "b": engine})) as gateway,
        connect(gateway) as one,
    ):
        for start in range(0, 2 * len(sent), step):
            one.sendall((sent * 2)[start : start + step])
        for _ in range(2):
            assert read_answer(one)[::2] == (200, b"ok")
    assert got == [sent, sent]


def test_the_gateway_asks_for_a_body_that_it_needs(gateway: HttpGateway, a: Engine) -> None:
    """`Expect: 100-continue`: one interim answer, also if the engine sends one as well."""
    request = post("a", "/v1/x", b"Expect: 100-continue")
    head, _, body = request.partition(b"\r\n\r\n")
    with connect(gateway) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert read_answer(connection)[::2] == (200, body)
    assert a.got == [request]


# Ends


def test_an_early_answer_arrives_while_the_body_still_comes() -> None:
    """413 before the body is there: the client reads it, and the connection ends."""

    async def script(talk: Talk) -> None:
        await talk.reader.readuntil(b"\r\n\r\n")
        await talk.send(answer(b"too large", b"HTTP/1.1 413 Too Large\r\n"))
        while await talk.reader.read(65536):
            pass

    with Engine(script) as engine, gateway_of(Leases(ways={"a": engine}, by_model=False)) as gateway:
        with connect(gateway) as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 1000)
            assert read_answer(connection)[::2] == (413, b"too large")
            with contextlib.suppress(OSError):
                for _ in range(100):
                    connection.sendall(b"x" * 65536)
            assert everything(connection) == b""
        assert wait_for(lambda: engine.open == 0)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.fault("a client leaves in the middle of a stream", area="public port", outcome="held")
def test_a_client_that_leaves_a_stream_ends_the_engines_side(how: str) -> None:
    """Within half a second; the lease is given back."""

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await talk.reader.read()

    leases = Leases(ways={"a": (engine := Engine(script))})
    with engine, gateway_of(leases) as gateway:
        connection = connect(gateway)
        connection.sendall(post("a"))
        assert connection.recv(65536)
        left_at = time.monotonic()
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        assert wait_for(lambda: engine.open == 0 and leases.out == 0)
        assert time.monotonic() - left_at < 5


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"", 502), (b"nonsense\r\n\r\n", 502), (b"HTTP/1.1 200 OK\r\nContent-Le", 502), (b"HTTP/1.1 101 S\r\n\r\n", 502)],
)
@pytest.mark.fault("an engine ends before it answers, or answers nonsense", area="public port", outcome="refused")
def test_an_engine_that_gives_no_answer_is_a_502(sent: bytes, status: int) -> None:
    """In the form of OpenAI's errors. The request is not repeated: it may have been worked on."""

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(sent)

    with Engine(script) as engine, gateway_of(Leases(ways={"a": engine})) as gateway:
        seen, headers, body = ask(gateway, post("a"))
        assert (seen, error_of(body)["code"], headers["retry-after"]) == (status, "engine_gone", "1")
        assert engine.connections == 1


@pytest.mark.fault("an engine ends in the middle of an answer", area="public port", outcome="refused")
def test_a_truncated_answer_ends_the_clients_connection() -> None:
    """What came is passed on. The missing end tells the client."""
    begun = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(begun)

    with Engine(script) as engine, gateway_of(Leases(ways={"a": engine})) as gateway, connect(gateway) as connection:
        connection.sendall(post("a"))
        assert everything(connection) == begun


@pytest.mark.parametrize("lost", ["unread", "read"])
@pytest.mark.fault("an idle connection to an engine closes at its next request", area="public port", outcome="held")
def test_a_request_is_repeated_only_if_no_engine_read_it(lost: str) -> None:
    """A reset says that the engine closed without reading it all. An engine that read it all may have begun to answer."""

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(answer(b"%d" % talk.number))
        if talk.number == 1 and lost == "read":
            await talk.request()
        elif talk.number == 1:
            talk.reader._transport.pause_reading()  # type: ignore[attr-defined] # the next request stays unread
            await asyncio.sleep(0.3)
        else:
            await talk.reader.read()

    with Engine(script) as engine, gateway_of(Leases(ways={"a": engine})) as gateway, connect(gateway) as connection:
        connection.sendall(post("a"))
        assert read_answer(connection)[::2] == (200, b"1")
        connection.sendall(post("a"))
        status, _, body = read_answer(connection)
        assert (
            (status, body) == (200, b"2")
            if lost == "unread"
            else (status, error_of(body)["code"]) == (502, "engine_gone")
        )
        assert engine.connections == (2 if lost == "unread" else 1)


def test_a_replica_at_which_nobody_answers_costs_another_lease(a: Engine) -> None:
    """The failed one is reported, and the request reaches another."""
    with Engine() as gone:
        pass
    leases = Leases(ways={"a": gone})

    class Moving(Leases):
        def take(self, model: object, prefer: object) -> None:
            return None

    leases = Moving(ways={"a": gone, "b": a})
    original = leases._lease

    def lease(model: object) -> object:
        made = original(model)  # type: ignore[arg-type]
        leases.ways["a"] = a
        return made

    leases._lease = lease  # type: ignore[method-assign,assignment]
    with gateway_of(leases) as gateway:
        assert ask(gateway, post("a"))[0] == 200
    assert leases.failed == 1


@pytest.mark.parametrize(
    "attack",
    [
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\nabcde",
        b"POST / HTTP/1.1\nHost: x\nContent-Length: 5\n\nabcde",
        b"POST / HTTP/1.1\r\nHost: x\r\nX-Torpor-Model: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nabcde\r\n0\r\n\r\n",
    ],
)
@pytest.mark.fault("a client sends a request that two parsers read differently", area="public port", outcome="refused")
def test_what_could_smuggle_a_request_is_refused_and_ends_the_connection(
    gateway: HttpGateway, a: Engine, attack: bytes
) -> None:
    """400. Nothing behind it is read as a request."""
    with connect(gateway) as connection:
        connection.sendall(attack + post("a"))
        received = everything(connection)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"Content-Type: ") == 1
    assert a.got == []


def test_a_request_for_another_protocol_is_answered_as_it_is(gateway: HttpGateway, a: Engine) -> None:
    """As Java's client sends it. Nothing behind it is read as HTTP: the connection ends."""
    with connect(gateway) as connection:
        connection.sendall(post("a", "/v1/x", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c") + post("a"))
        received = everything(connection)
    assert received.count(b"HTTP/1.1 200 OK") == 1
    assert len(a.got) == 1


@pytest.mark.parametrize(("line", "version"), [(b"Connection: close", b"1.1"), (b"X: y", b"1.0")])
def test_a_client_that_wants_one_answer_gets_one(gateway: HttpGateway, a: Engine, line: bytes, version: bytes) -> None:
    """The engine's connection is not used again either: it was told the same."""
    for _ in range(2):
        with connect(gateway) as connection:
            connection.sendall(post("a", "/v1/x", line).replace(b"HTTP/1.1", b"HTTP/" + version))
            assert everything(connection).count(b"HTTP/1.1 200 OK") == 1
    assert a.connections == 2


def test_idle_clients_and_late_bodies_have_a_deadline(leases: Leases) -> None:
    """An idle connection is closed. A body that stops gets 408."""
    limits = Limits(idle_timeout_s=0.2, head_timeout_s=0.4)
    with gateway_of(leases, limits=limits) as gateway, connect(gateway) as idle, connect(gateway) as late:
        idle.sendall(post("a"))
        assert read_answer(idle)[0] == 200
        late.sendall(post("a")[:-3])
        assert everything(idle) == b""
        assert everything(late).startswith(b"HTTP/1.1 408 ")


def test_idle_connections_to_a_replica_can_be_closed(gateway: HttpGateway, a: Engine) -> None:
    """Before it sleeps. The client's connection stays."""
    with connect(gateway) as connection:
        for number in (1, 2):
            connection.sendall(post("a"))
            assert read_answer(connection)[0] == 200
            assert a.connections == number
            gateway.forget(a)
            assert wait_for(lambda: a.open == 0)
