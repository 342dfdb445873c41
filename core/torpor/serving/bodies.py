"""Where a body ends: of a known length, in chunks, or with the connection. Nothing is decoded on the way through.

Each class has `feed`, which returns the index behind the body's last byte in a piece of data, and `done`.
"""

from __future__ import annotations

import re
from typing import Protocol

from torpor.launcher.request_limits import MAX_HEAD_BYTES, framing_left
from torpor.serving.heads import CHUNKED, UNTIL_CLOSE

__all__ = ["BadChunkError", "Body", "ChunkedBody", "EndlessBody", "FixedBody", "body_of"]

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*)?\r\n")
_TRAILERS = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t -~\x80-\xff]*+\r\n)*+\r\n")
_TRAILERS_END = re.compile(rb"(?:\A|\n)\r?\n")
_LONGEST_SIZE = 4096


class BadChunkError(Exception):
    """Chunks that two parsers could read differently, or whose headers are much longer than their data."""


class Body(Protocol):
    """A body on its way."""

    done: bool

    def feed(self, data: bytes, start: int = 0) -> int:
        """Take the data from `start` on; returns the index behind the last byte that belongs to the body.

        Raises:
            BadChunkError: the chunks are invalid.
        """


class FixedBody:
    """A body of a known length.

    Args:
        length: bytes.
    """

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes, start: int = 0) -> int:
        """See `Body`."""
        taken = min(self._left, len(data) - start)
        self._left -= taken
        self.done = self._left == 0
        return start + taken


class EndlessBody:
    """A body that ends with the connection."""

    done = False

    def feed(self, data: bytes, start: int = 0) -> int:  # noqa: ARG002 - all of it belongs to the body
        """See `Body`."""
        return len(data)


class ChunkedBody:
    """A body in chunks (RFC 9112, 7.1).

    Args:
        limited: whether chunk headers and trailers may only have `MAX_HEAD_BYTES` more than 8 times the data's bytes so far.
        payload: gets the data without its chunks, if anybody wants it.

    Attributes:
        done: whether the body is complete.
        payload: see above; it can be taken away.
        trailers: behind the last chunk, with the blank line; only if anybody wanted the payload.
    """

    def __init__(self, *, limited: bool, payload: bytearray | None = None) -> None:
        self.done = False
        self._limited = limited
        self.payload = payload
        self.trailers = b""
        self._left = 0  # bytes of this chunk, with the CRLF behind it
        self._held = b""  # of a chunk header or of trailers that are not complete
        self._in_trailers = False
        self._framing = 0

    def feed(self, data: bytes, start: int = 0) -> int:
        """See `Body`."""
        position, size = start, len(data)
        while position < size and not self.done:
            if self._left:
                position = self._take_chunk(data, position)
            elif self._in_trailers or self._held:
                position = self._continue(data, position)
            elif header := _SIZE.match(data, position):
                position = header.end()
                self._begin_chunk(header)
            else:
                position = self._continue(data, position)
        return position

    def reframed(self, payload: bytes | bytearray) -> bytes:
        """What the body could have been so far if it had this payload: one chunk that what is still to come goes on with.

        The chunk has the payload and what is missing of the chunk under way. Extensions of chunks are lost; a recipient may ignore
        them (RFC 9112, 7.1.1).

        Args:
            payload: in place of the payload so far; not empty.
        """
        missing = max(0, self._left - 2)
        parts = [b"%x\r\n" % (len(payload) + missing), payload, (b"\r\n", b"\r", b"")[min(self._left, 2)]]
        if not self._left:
            parts += [b"0\r\n" if self._in_trailers else b"", self.trailers if self.done else self._held]
        return b"".join(parts)

    def _take_chunk(self, data: bytes, position: int) -> int:
        left = self._left
        taken = min(left, len(data) - position)
        content = min(taken, max(0, left - 2))
        if self.payload is not None:
            self.payload += data[position : position + content]
        if self._limited:
            self._framing = framing_left(self._framing, content)
        skipped = 1 if left == 1 else 0  # of the CRLF behind the data
        if data[position + content : position + taken] != b"\r\n"[skipped : skipped + taken - content]:
            raise BadChunkError
        self._left = left - taken
        return position + taken

    def _begin_chunk(self, header: re.Match[bytes]) -> None:
        self._count(len(header[0]))
        length = int(header[1], 16)
        if length:
            self._left = length + 2
        else:
            self._in_trailers = True

    def _continue(self, data: bytes, position: int) -> int:
        """Take a header or trailers that came in pieces. What is kept is small; see `_count`."""
        before = len(self._held)
        held = self._held + data[position : position + MAX_HEAD_BYTES]
        if self._in_trailers:
            if end := _TRAILERS_END.search(held):
                trailers = _TRAILERS.match(held)
                if trailers is None or trailers.end() != end.end():
                    raise BadChunkError
                self._count(trailers.end())
                self.done, self._held = True, b""
                if self.payload is not None:
                    self.trailers = held[: trailers.end()]
                return position + trailers.end() - before
            limit = MAX_HEAD_BYTES
        else:
            if b"\n" in held:
                header = _SIZE.match(held)
                if header is None:
                    raise BadChunkError
                self._held = b""
                self._begin_chunk(header)
                return position + header.end() - before
            limit = _LONGEST_SIZE
        if len(held) > limit:
            raise BadChunkError
        self._held = held
        return position + len(held) - before

    def _count(self, framing: int) -> None:
        if self._limited:
            self._framing += framing
            if self._framing > MAX_HEAD_BYTES:
                raise BadChunkError


def body_of(length: int, *, limited: bool = False, payload: bytearray | None = None) -> Body:
    """The body with this length: a number of bytes, `CHUNKED` or `UNTIL_CLOSE`.

    Args:
        length: as a head says it.
        limited: see `ChunkedBody`.
        payload: see `ChunkedBody`; only chunks fill it.
    """
    if length == CHUNKED:
        return ChunkedBody(limited=limited, payload=payload)
    return EndlessBody() if length == UNTIL_CLOSE else FixedBody(length)
