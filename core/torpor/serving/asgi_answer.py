"""A replica's answer on its way through an ASGI server: bytes of HTTP/1.1 become a status, headers, and pieces of a body."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

from torpor.serving.bodies import ChunkedBody
from torpor.serving.heads import CHUNKED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence

    from torpor.serving.answers import Answer
    from torpor.serving.exchange import Carrier, Exchange
    from torpor.serving.heads import AnswerHead

__all__ = ["HOP_BY_HOP", "BrokenAnswerError", "EngineAnswer", "Message", "Receive", "Scope", "Send", "send_answer"]

Message: TypeAlias = "MutableMapping[str, object]"
Scope: TypeAlias = "MutableMapping[str, object]"
Receive: TypeAlias = "Callable[[], Awaitable[Message]]"
Send: TypeAlias = "Callable[[Message], Awaitable[None]]"

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers between two neighbours (RFC 9110, 7.6.1); the server on each side makes its own."""

_OF_THE_SERVER = frozenset({b"date", b"server"})
_BUSY = b'"too_many_requests"'
_MOST_BUSY_BYTES = 64 * 1024
_MOST_WAITING_BYTES = 256 * 1024


class BrokenAnswerError(Exception):
    """The engine's answer broke off. The server has to close the client's connection, so that the client sees it."""


class EngineAnswer:
    """Gets one answer from a connection to a replica (`torpor.serving.exchange.Receiver`), and sends it on.

    Args:
        carrier: the connection.
        added: headers that the answer gets.

    Attributes:
        lost: whether the connection ended, or the answer broke off.
        unread: whether the kernel says that the replica did not read all of the request.
        may_send: set while the replica reads as fast as the client sends.
    """

    def __init__(self, carrier: Carrier, added: Sequence[tuple[bytes, bytes]] = ()) -> None:
        self._added = added
        self.lost = self.unread = False
        self.may_send = asyncio.Event()
        self.may_send.set()
        self._carrier = carrier
        self._head: AnswerHead | None = None
        self._headers: list[tuple[bytes, bytes]] | None = None
        self._chunks: ChunkedBody | None = None
        self._payload = bytearray()
        self._pieces: list[bytes] = []
        self._size = 0
        self._ended = self._paused = False
        self._news = asyncio.Event()

    # What the connection calls

    def inserted(self, exchange: Exchange, head: AnswerHead) -> bytes:  # noqa: ARG002 - the protocol's
        """The head is there; nothing is added to it."""
        self._head = head
        if head.length == CHUNKED:
            self._chunks = ChunkedBody(limited=False, payload=self._payload)
        return b""

    def write(self, data: bytes) -> None:
        """A piece of the answer, framed as the engine sent it."""
        head = self._head
        if head is None:
            return  # an interim answer: ASGI has none
        if self._headers is None:
            end = data.find(b"\r\n\r\n") + 4
            self._headers = [*_headers(data[head.line_end : end - 4]), *self._added]
            data = data[end:]
        if self._chunks is not None:
            self._chunks.feed(data)
            data = bytes(self._payload)
            self._payload.clear()
        if data:
            self._pieces.append(data)
            self._size += len(data)
            if self._size > _MOST_WAITING_BYTES and not self._paused:
                self._paused = True
                self._carrier.pause()
        self._news.set()

    def answer_ended(self, exchange: Exchange) -> None:
        """All of it is there."""
        exchange.answer_done = self._ended = True
        self._news.set()

    def answer_lost(self, exchange: Exchange, *, unread: bool) -> None:  # noqa: ARG002 - the protocol's
        """The connection ended before the answer did."""
        self.lost, self.unread = True, unread
        self.may_send.set()
        self._news.set()

    def pause_body(self) -> None:
        """The replica reads more slowly than the client sends."""
        self.may_send.clear()

    def resume_body(self) -> None:
        """The replica reads again."""
        self.may_send.set()

    # What the request's task calls

    @property
    def complete(self) -> bool:
        """Whether all of it came."""
        return self._ended

    async def begun(self) -> bool:
        """Wait for the head; False if the connection ended without one."""
        while self._headers is None:
            if self.lost:
                return False
            await self._wait()
        return True

    async def is_busy(self) -> bool:
        """Whether the guard refused the request because others are in flight. Reads the answer to its end to know that."""
        if self._head is None or self._head.status != HTTPStatus.SERVICE_UNAVAILABLE:
            return False
        while not self._ended and not self.lost and self._size <= _MOST_BUSY_BYTES:
            await self._wait()
        return self._ended and _BUSY in b"".join(self._pieces)

    async def pass_on(self, send: Send) -> None:
        """Send all of it.

        Raises:
            BrokenAnswerError: it broke off.
        """
        status = self._head.status if self._head is not None else HTTPStatus.BAD_GATEWAY
        await send({"type": "http.response.start", "status": int(status), "headers": self._headers or []})
        while True:
            body, ended = self._taken(), self._ended
            if self.lost and not ended and not body:
                raise BrokenAnswerError("The engine closed the connection in the middle of its answer.")
            if body or ended:
                await send({"type": "http.response.body", "body": body, "more_body": not ended})
            if ended:
                return
            if not self._pieces:
                await self._wait()

    def _taken(self) -> bytes:
        pieces, self._pieces, self._size = self._pieces, [], 0
        if self._paused:
            self._paused = False
            self._carrier.resume()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _wait(self) -> None:
        """Wait for news, which may be old: the caller looks again. The end of the engine or of the client ends it."""
        await self._news.wait()
        self._news.clear()


async def send_answer(send: Send, answer: Answer, *, with_body: bool = True) -> None:
    """Send an answer of the gateway's own.

    Args:
        send: of the ASGI server.
        answer: whole.
        with_body: false for HEAD.
    """
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.fields})
    await send({"type": "http.response.body", "body": answer.body if with_body else b""})


def _headers(lines: bytes) -> list[tuple[bytes, bytes]]:
    """Names in lower case and values, without those of one hop and those that the server adds itself."""
    found = []
    for line in lines.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if (lower := name.lower()) and lower not in HOP_BY_HOP and lower not in _OF_THE_SERVER:
            found.append((lower, value.strip(b" \t")))
    return found
