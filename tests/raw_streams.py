"""Streams of raw bytes for the fuzz of the gateway, and what h11 reads in them: a parser that shares no code with the gateway."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, NamedTuple

import h11

if TYPE_CHECKING:
    import random

__all__ = ["ALIAS", "MODELS", "POISON", "Seen", "h11_server", "read_by_h11", "seen_by", "stream", "without_alias"]

POISON = b"GET /poison HTTP/1.1\r\nHost: p\r\n\r\n"
MODELS = ("a", "b")
ALIAS = "nick"
"""Of the first model."""
_CHAT = "/v1/chat/completions"
_LARGEST_EVENT = 1 << 22


class Seen(NamedTuple):
    """A request as a parser read it."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


def read_by_h11(data: bytes) -> tuple[list[Seen], bool]:
    """The whole requests that h11 reads in a stream, and whether it read all of the stream without an error.

    Empty lines before a request do not count (RFC 9112, 2.2); h11 alone would refuse them.
    """
    found = list[Seen]()
    while data := _without_empty_lines(data):
        request, data, goes_on = _first_of(data)
        if request is None:
            return found, False
        found.append(request)
        if not goes_on:
            return found, not data
    return found, True


def _without_empty_lines(data: bytes) -> bytes:
    while data.startswith(b"\r\n"):
        data = data[2:]
    return data


def _first_of(data: bytes) -> tuple[Seen | None, bytes, bool]:
    """The first request, what is behind it, and whether the connection goes on."""
    connection, body, request = h11_server(), b"", None
    connection.receive_data(data)
    with contextlib.suppress(h11.ProtocolError):
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                goes_on = connection.their_state is h11.DONE
                return seen_by(request, body), connection.trailing_data[0], goes_on
            else:  # it needs more
                break
    return None, b"", False


def h11_server() -> h11.Connection:
    """A parser for the server's side of a connection."""
    return h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST_EVENT)


def seen_by(request: h11.Request, body: bytes) -> Seen:
    """A request that h11 has read."""
    return Seen(
        request.method, request.target, tuple((bytes(name), bytes(value)) for name, value in request.headers), body
    )


def without_alias(seen: Seen) -> Seen:
    """What an engine may read in place of a request whose body names the alias first."""
    body = seen.body.replace(ALIAS.encode(), MODELS[0].encode(), 1)
    length = (b"content-length", b"%d" % len(body))
    return seen._replace(
        body=body, headers=tuple(length if name == length[0] else (name, value) for name, value in seen.headers)
    )


def stream(dice: random.Random) -> bytes:
    """The bytes of one connection."""
    parts = []
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        choice = dice.random()
        if choice < 0.45:
            parts.append(_good(dice))
        elif choice < 0.85:
            parts.append(_bad(dice) + POISON * dice.randint(0, 2))
        elif choice < 0.95:
            parts.append(_damaged(_good(dice), dice))
        else:
            parts.append(dice.randbytes(dice.randint(1, 400)))
    data = b"".join(parts)
    return data[: dice.randrange(len(data)) + 1] if dice.random() < 0.15 else data


def _good(dice: random.Random) -> bytes:
    """A request that nobody can read in two ways."""
    kind, model = (
        dice.random(),
        dice.choice((*MODELS, *MODELS, ALIAS, "none", "m" * dice.choice((1, 1000, 1100, 70_000)))),
    )
    target = dice.choice((_CHAT, _CHAT, "/v1/completions", "/v1/embeddings"))
    if kind < 0.12:
        path = dice.choice(
            ("/v1/models", "/v1/models/a", "/health", "/torpor/", "/torpor/status", "/", "/v1/models?model=a", "*")
        )
        method = dice.choice(("GET", "GET", "HEAD", "OPTIONS", "DELETE"))
        return f"{method} {path} HTTP/1.1\r\nHost: f\r\n\r\n".encode()
    if kind < 0.25:
        content, more = _form(model, dice), 'Content-Type: multipart/form-data; boundary="xx"\r\n'
        target = "/v1/audio/transcriptions"
    else:
        content, more = _json(model, dice), "Content-Type: application/json\r\n"
    more += dice.choice(
        ("",) * 4
        + (
            "X-Torpor-Model: a\r\n",
            f"X-Torpor-Model: {ALIAS}\r\n",
            "Connection: close\r\n",
            "Expect: 100-continue\r\n",
            "Accept: text/event-stream\r\n",
        )
    )
    head = f"POST {target} HTTP/1.1\r\nHost: f\r\n{more}"
    if dice.random() < 0.6:
        return head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content
    return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + _chunks(content, dice)


def _json(model: str, dice: random.Random) -> bytes:
    name = json.dumps(model)
    text = dice.choice(
        (
            '{"model": %s, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}',
            '{"messages": [{"role": "user", "content": "GET /poison HTTP/1.1\\r\\n\\r\\n"}], "model": %s}',
            '{"model": %s, "model": "b"}',
            '{"model": "b", "model": %s}',
            '{"mod\\u0065l": %s}',
            '{"x": {"model": "b"}, "model": %s}',
            '{"model": [%s]}',
            '{"model": 7, "x": %s}',
            '[{"model": %s}]',
            "%s",
        )
    )
    content = (text % name).encode()
    choice = dice.random()
    if choice < 0.05:
        depth = dice.choice((100, 50_000))
        return b'{"x": ' + b"[" * depth + b"]" * depth + b', "model": "a"}'
    if choice < 0.1:
        return content.replace(b'"', b'"\xff\xfe', 3)
    if choice < 0.15:
        return b"\xef\xbb\xbf" + content
    if choice < 0.2:
        return b'{"p": "' + b"x" * dice.choice((70_000, 300_000)) + b'", "model": "a"}'
    return content


def _form(model: str, dice: random.Random) -> bytes:
    parts = [
        b'--xx\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n'
        + dice.randbytes(dice.randint(0, 3000)),
        b'--xx\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model.encode(),
        b'--xx\r\nContent-Disposition: form-data; name="model"\r\n\r\nb',
    ]
    chosen = dice.sample(parts, dice.randint(1, 3))
    return b"\r\n".join(chosen) + dice.choice((b"\r\n--xx--\r\n", b"\r\n--xx", b""))


def _chunks(content: bytes, dice: random.Random) -> bytes:
    made, at = b"", 0
    while at < len(content):
        piece = content[at : at + dice.choice((1, 7, 100, 5000, 100_000))]
        at += len(piece)
        made += b"%x%s\r\n%s\r\n" % (len(piece), dice.choice((b"", b"", b"", b";a=b", b" ;x", b';q="1"')), piece)
        if len(made) > 4 * len(content) + 10_000:
            break
    made += b"" if at >= len(content) else b"%x\r\n%s\r\n" % (len(content) - at, content[at:])
    return made + b"0\r\n" + dice.choice((b"", b"", b"T: x\r\n")) + b"\r\n"


_AMBIGUOUS = (
    b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n",
    b"Content-Length: %d\r\nContent-Length: 0\r\n",
    b"Content-Length: %d\r\nContent-Length: %d\r\n",
    b"Content-Length: %d, 0\r\n",
    b"Content-Length: +%d\r\n",
    b"Content-Length: -%d\r\n",
    b"Content-Length: 0x%x\r\n",
    b"Content-Length: %d_0\r\n",
    b"Content-Length:\x0b%d\r\n",
    b"Content-Length : %d\r\n",
    b" Content-Length: %d\r\n",
    b"X: y\r\n Content-Length: %d\r\n",
    b"X: y\rContent-Length: %d\r\n",
    b"X: y\nContent-Length: %d\r\n",
    b"X: \x00\r\nContent-Length: %d\r\n",
    b"Content-Length: %d\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: identity, chunked\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding:\x0bchunked\r\n",
    b'Transfer-Encoding: "chunked"\r\n',
    b"Transfer-Encoding: chunked;q=1\r\n",
    b"Transfer_Encoding: chunked\r\nContent-Length: %d\r\n",
    b"Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n",
    b"Host: g\r\nContent-Length: %d\r\n",
    b"no colon\r\nContent-Length: %d\r\n",
    b": empty\r\nContent-Length: %d\r\n",
    b"Content-Length: 99999999999999999999\r\n",
)
_BAD_CHUNKS = (
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n",
    b"5\r\nhelloX\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"-1\r\n\r\n0\r\n\r\n",
    b"FFFFFFFFFFFFFFFFF\r\nhello",
    b"5;\x00\r\nhello\r\n0\r\n\r\n",
    b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    b"0\r\nContent-Length: 9\r\n\r\n",
    b"0\r\n bad: x\r\n\r\n",
    b"0\r\nX y\r\n\r\n",
    b"0\n\n",
    b"000000000000000000000\r\n\r\n",
    b"\r\n",
)
_LINES = (
    b"POST /poison HTTP/1.2",
    b"POST /poison HTTP/2.0",
    b"POST  /poison HTTP/1.1",
    b"POST\t/poison HTTP/1.1",
    b"POST /poi son HTTP/1.1",
    b"POST /poison\x00 HTTP/1.1",
    b"POST /poison",
    b"CONNECT poison:443 HTTP/1.1",
    b"PO(ST /poison HTTP/1.1",
    b"POST /\xc3\xa9 HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /poison HTTP/1.1 HTTP/1.1",
    b"GET " + b"/" * 70_000 + b" HTTP/1.1",
)


def _bad(dice: random.Random) -> bytes:
    """A request that two parsers could read differently, or that is none."""
    kind = dice.random()
    content = _json(dice.choice(MODELS), dice)
    if kind < 0.55:
        fields = dice.choice(_AMBIGUOUS)
        fields = fields.replace(b"%d", str(len(content)).encode()).replace(b"%x", b"%x" % len(content))
        body = dice.choice(
            (content, b"0\r\n\r\n", content + POISON, b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content))
        )
        version = dice.choice((b"1.1", b"1.1", b"1.1", b"1.0"))
        return b"POST %s HTTP/%s\r\nHost: f\r\nX-Torpor-Model: a\r\n%s\r\n%s" % (_CHAT.encode(), version, fields, body)
    if kind < 0.8:
        chunks = dice.choice(_BAD_CHUNKS)
        return b"POST %s HTTP/1.1\r\nHost: f\r\nX-Torpor-Model: b\r\nTransfer-Encoding: chunked\r\n\r\n%s" % (
            _CHAT.encode(),
            chunks,
        )
    if kind < 0.95:
        return dice.choice(_LINES) + b"\r\nHost: f\r\nContent-Length: 0\r\n\r\n"
    large = (b"a: " + b"x" * 200_000, b"a: b\r\n" * 3000, b"X-Torpor-Model: " + b"m" * 30_000)
    return b"POST /poison HTTP/1.1\r\nHost: f\r\n%s\r\n\r\n" % dice.choice(large)


def _damaged(data: bytes, dice: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(min(len(damaged), 400))
        if dice.random() < 0.5:
            damaged[at] = dice.choice(b"\x00\r\n \t:;,/%?#\xff\x80aZ09")
        elif dice.random() < 0.5:
            del damaged[at : at + dice.randint(1, 3)]
        else:
            damaged[at:at] = dice.choice((b"\r\n", b"\n", b" ", b"\x00", b"\r", b":", b"0"))
        if not damaged:
            return b"\r\n"
    first = bytes(damaged).partition(b"\r\n\r\n")[0] + b"\r\n"
    return (
        bytes(damaged) if b"\r\nHost: f\r\n" in first else data
    )  # h11 wants a Host; the gateway leaves that to the engine
