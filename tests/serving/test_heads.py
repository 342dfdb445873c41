"""`torpor.serving.heads`: what two parsers could read differently is refused; everything else is read as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.serving.heads import (
    CHUNKED,
    UNTIL_CLOSE,
    BadAnswerError,
    BadRequestError,
    head_end,
    read_answer,
    read_request,
)

START = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


def request(*lines: bytes, start: bytes = START) -> bytes:
    """A head with these further lines."""
    return start + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


ATTACKS = {
    "length twice": [b"Content-Length: 5", b"Content-Length: 5"],
    "two lengths": [b"Content-Length: 5", b"Content-Length: 6"],
    "a list of lengths": [b"Content-Length: 5, 5"],
    "a signed length": [b"Content-Length: +5"],
    "a negative length": [b"Content-Length: -5"],
    "a length in hex": [b"Content-Length: 0x5"],
    "an empty length": [b"Content-Length:"],
    "a length with a space": [b"Content-Length: 5 5"],
    "a huge length": [b"Content-Length: " + b"9" * 30],
    "length and coding": [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
    "coding and length": [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
    "coding twice": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
    "another coding": [b"Transfer-Encoding: xchunked"],
    "two codings": [b"Transfer-Encoding: gzip, chunked"],
    "chunked not last": [b"Transfer-Encoding: chunked, identity"],
    "identity": [b"Transfer-Encoding: identity"],
    "an empty coding": [b"Transfer-Encoding:"],
    "a coding in quotes": [b'Transfer-Encoding: "chunked"'],
    "a vertical tab": [b"Transfer-Encoding: \x0bchunked"],
    "space before the colon": [b"Content-Length : 5"],
    "tab before the colon": [b"Transfer-Encoding\t: chunked"],
    "a folded line": [b"X: a", b" b"],
    "a folded coding": [b"Transfer-Encoding:", b" chunked"],
    "a line without a colon": [b"Content-Length 5"],
    "an empty name": [b": 5"],
    "a null byte": [b"X: a\0b"],
    "a bare line feed": [b"X: a\nContent-Length: 5"],
    "a bare carriage return": [b"X: a\rContent-Length: 5"],
    "two hosts": [b"Host: y"],
    "two empty hosts": [b"Host:"],
    "a name that is no ASCII": ["Ä: 1".encode()],
    "a control character": [b"X: \x7f"],
}


@pytest.mark.parametrize("lines", ATTACKS.values(), ids=ATTACKS)
def test_a_head_that_two_parsers_could_read_differently_is_refused(lines: list[bytes]) -> None:
    """With status 400."""
    with pytest.raises(BadRequestError) as error:
        read_request(request(*lines))
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET / HTTP/2.0", 400),
        (b"GET / HTTP/0.9", 400),
        (b"GET / http/1.1", 400),
        (b"GET /", 400),
        (b"G\xffT / HTTP/1.1", 400),
        (b"GET /\xff HTTP/1.1", 400),
        (b"GET\t/ HTTP/1.1", 400),
        (b"CONNECT x:1 HTTP/1.1", 405),
        (b"GET /" + b"x" * 8200 + b" HTTP/1.1", 414),
    ],
)
def test_a_first_line_is_read_strictly(line: bytes, status: int) -> None:
    """One space between its three parts, HTTP/1.0 or 1.1."""
    with pytest.raises(BadRequestError) as error:
        read_request(line + b"\r\nHost: x\r\n\r\n")
    assert error.value.status == status


@pytest.mark.parametrize("host", [b"", b"x:8000", b"[::1]:8000", b"a_b.example", b"%C3%A4"])
def test_a_host_may_have_a_port_or_be_empty(host: bytes) -> None:
    """RFC 3986, 3.2."""
    assert read_request(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % host).fields[b"host"] == host


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"u@a", b"a,b c", b'"a"', b"\xe4", b"a?b"])
def test_what_is_no_host_is_refused(host: bytes) -> None:
    """RFC 9112, 3.2, in every version."""
    for version in (b"1.0", b"1.1"):
        with pytest.raises(BadRequestError, match="The header Host is no host"):
            read_request(b"GET / HTTP/%s\r\nHost: %s\r\n\r\n" % (version, host))


def test_http_1_1_needs_a_host() -> None:
    """HTTP/1.0 had none."""
    with pytest.raises(BadRequestError, match=r"HTTP/1\.1 needs the header Host"):
        read_request(b"GET / HTTP/1.1\r\n\r\n")
    assert read_request(b"GET / HTTP/1.0\r\n\r\n").minor == 0


def test_a_chunked_body_needs_http_1_1() -> None:
    """HTTP/1.0 knows no chunks: such a body's end is unknown."""
    with pytest.raises(BadRequestError):
        read_request(request(b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0\r\n"))
    assert read_request(request(b"transfer-encoding: CHUNKED")).length == CHUNKED


def test_too_many_headers_are_refused() -> None:
    """As by the engines: 128 at most."""
    assert read_request(request(*[b"X: 1"] * 127)).length == 0
    with pytest.raises(BadRequestError) as error:
        read_request(request(*[b"X: 1"] * 129))
    assert error.value.status == 431


@pytest.mark.parametrize(
    ("lines", "minor", "keeps"),
    [
        ((), b"1", True),
        ((), b"0", False),
        ((b"Connection: close",), b"1", False),
        ((b"Connection: TE, Close",), b"1", False),
        ((b"Connection: keep-alive",), b"0", True),
        ((b"Connection: keep-alive", b"Connection: close"), b"1", False),
        ((b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"), b"1", False),
    ],
)
def test_whether_the_connection_goes_on(lines: tuple[bytes, ...], minor: bytes, keeps: bool) -> None:
    """A request for another protocol is the last one: the engine answers it as it is."""
    head = read_request(request(*lines, start=b"GET / HTTP/1." + minor + b"\r\nHost: x\r\n"))
    assert head.keep_alive is keeps


@pytest.mark.parametrize("data", [b"\x16\x03\x01", b"GET / HTTP/1.1\n\n", b"GET / HTTP/1.1\r\nX: 1\n\r\n"])
def test_what_can_be_no_head_is_refused_before_it_is_complete(data: bytes) -> None:
    """Its blank line would never come."""
    with pytest.raises(BadRequestError):
        head_end(data)


@given(st.integers(1, len(request())))
def test_the_end_of_a_head_is_found_however_it_comes(cut: int) -> None:
    """In two pieces, the second search begins where the first ended."""
    whole = request() + b"body\r\n\r\n"
    first = head_end(whole[:cut])
    assert first == (len(request()) if cut >= len(request()) else -1)
    assert head_end(whole, cut if first < 0 else 0) == len(request())


@pytest.mark.parametrize(
    ("head", "method", "length", "keeps"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET", 5, True),
        (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n", b"GET", 5, True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"GET", CHUNKED, True),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"GET", UNTIL_CLOSE, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", b"GET", 5, False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"HEAD", 0, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", 0, True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"GET", 0, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", b"GET", 5, False),
    ],
)
def test_the_length_of_an_answer(head: bytes, method: bytes, length: int, keeps: bool) -> None:
    """RFC 9112, 6.3."""
    read = read_answer(head, method)
    assert (read.length, read.keep_alive) == (length, keeps)
    assert head[read.line_end - 2 : read.line_end] == b"\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"HTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
    ],
)
def test_an_ambiguous_answer_is_refused(head: bytes) -> None:
    """It could smuggle an answer to the next client of the connection."""
    with pytest.raises(BadAnswerError):
        read_answer(head, b"GET")
