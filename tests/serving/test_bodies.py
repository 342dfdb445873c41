"""`torpor.serving.bodies`: the end of a body is found, whatever pieces it comes in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.serving.bodies import BadChunkError, ChunkedBody, body_of
from torpor.serving.heads import UNTIL_CLOSE

REST = b"GET / HTTP/1.1\r\n"
CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=5)
EXTENSIONS = st.sampled_from([b"", b";a=b", b';x="y"', b"; \xff"])
TRAILERS = st.sampled_from([b"", b"X-Checksum: 1\r\n", b"A: 1\r\nB: 2\r\n"])


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """The data, cut at these places."""
    places = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[first:last] for first, last in itertools.pairwise(places) if first < last]


def take(body: ChunkedBody, data: list[bytes]) -> None:
    """Feed all pieces."""
    for piece in data:
        body.feed(piece)


@given(CHUNKS, EXTENSIONS, TRAILERS, st.lists(st.integers(0, 400), max_size=12))
def test_chunks_end_at_their_last_byte(
    content: list[bytes], extension: bytes, trailers: bytes, cuts: list[int]
) -> None:
    """Not one byte of the next request belongs to the body. The payload is what the chunks hold."""
    sent = b"".join(b"%X%s\r\n%s\r\n" % (len(one), extension, one) for one in content)
    sent += b"0%s\r\n%s\r\n" % (extension, trailers)
    payload = bytearray()
    body, used, total = ChunkedBody(limited=True, payload=payload), 0, sent + REST
    for piece in pieces(total, cuts):
        if body.done:
            break
        used += body.feed(b"###" + piece, 3) - 3
    assert (body.done, used, bytes(payload)) == (True, len(sent), b"".join(content))


@pytest.mark.parametrize(
    "sent",
    [
        b"x\r\n",
        b"\r\n",
        b"-5\r\nabc",
        b"+5\r\nabc",
        b"0x5\r\nabcde\r\n",
        b"5\nabcde\r\n",
        b" 5\r\nabcde\r\n",
        b"5 \r\nabcde\r\n",
        b"5 ;a\r\nabcde\r\n",
        b"5\r\nabcdeXX",
        b"5\r\nabcde\n0\r\n\r\n",
        b"5;a\nb\r\nabcde\r\n",
        b"5;a\rb\r\nabcde\r\n",
        b"0\r\nX : 1\r\n\r\n",
        b"0\r\nX: 1\n\r\n",
        b"0\r\n folded\r\n\r\n",
        b"0\r\n\n",
        b"F" * 16 + b"\r\n",
    ],
)
def test_chunks_that_two_parsers_could_read_differently_are_refused(sent: bytes) -> None:
    """Whole or byte by byte."""
    for cut in ([], list(range(len(sent) + 2))):
        with pytest.raises(BadChunkError):
            take(ChunkedBody(limited=False), pieces(sent + b"\r\n", cut))


def test_chunk_headers_may_not_be_much_longer_than_their_data() -> None:
    """Tiny chunks with long extensions cost the engine more than they bring. An answer has no such limit."""
    sent = (b"1;" + b"x" * 200 + b"\r\na\r\n") * 400
    with pytest.raises(BadChunkError):
        ChunkedBody(limited=True).feed(sent)
    assert ChunkedBody(limited=False).feed(sent) == len(sent)
    tiny = b"1\r\na\r\n" * 50_000
    assert ChunkedBody(limited=True).feed(tiny) == len(tiny)


@given(st.integers(0, 50), st.lists(st.integers(0, 400), max_size=5))
def test_a_body_of_known_length_ends_there(length: int, cuts: list[int]) -> None:
    """In any pieces."""
    body, used = body_of(length), 0
    assert body.done is (length == 0)
    for piece in pieces(b"x" * length + REST, cuts):
        if body.done:
            break
        used += body.feed(piece)
    assert (body.done, used) == (True, length)


def test_a_body_without_a_length_never_ends() -> None:
    """The connection's end is its end."""
    body = body_of(UNTIL_CLOSE)
    assert (body.feed(REST), body.done) == (len(REST), False)
