"""Connections to replicas: each carries one request at a time and is used again, as long as both sides keep it clean."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from typing import TYPE_CHECKING, cast

from torpor._override import override
from torpor.launcher.request_limits import MAX_HEAD_BYTES
from torpor.serving.bodies import BadChunkError, EndlessBody, body_of
from torpor.serving.heads import BadAnswerError, read_answer

if TYPE_CHECKING:
    from torpor.serving.bodies import Body
    from torpor.serving.exchange import Exchange, Receiver
    from torpor.serving.heads import AnswerHead
    from torpor.serving.values import Way

__all__ = ["Pool", "Upstream"]

IDLE_S = 3.0
"""Seconds that an idle connection is kept. Uvicorn closes its own after 5 s; the gateway has to be the first."""

_MOST_IDLE = 256
_OK = 200
_CONTINUE, _SWITCHING = 100, 101


class Upstream(asyncio.Protocol):
    """One connection to a replica.

    Args:
        way: to the replica.
        pool: keeps the connection while it is idle.

    Attributes:
        way: to the replica.
        reused: whether it has carried a request before.
    """

    def __init__(self, way: Way, pool: Pool) -> None:
        self.way = way
        self.reused = False
        self.idle_since = 0.0
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._receiver: Receiver | None = None
        self._held = b""
        self._body: Body | None = None
        self._clean = True

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._pool.open += 1
        with contextlib.suppress(OSError):
            stream: socket.socket = transport.get_extra_info("socket")
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def begin(self, exchange: Exchange, receiver: Receiver) -> None:
        """Carry a request: the bytes of `write`, and its answer to the receiver."""
        self._exchange, self._receiver = exchange, receiver
        self._held, self._body, self._clean = b"", None, exchange.head.keep_alive

    def write(self, data: bytes | bytearray) -> None:
        """Send a piece of the request."""
        if self._transport is not None:
            self._transport.write(data)

    def end_writing(self) -> None:
        """Tell the replica that the client sends nothing more. The connection is not used again."""
        self._clean = False
        if self._transport is not None and not self._transport.is_closing():
            try:
                self._transport.write_eof()
            except OSError:
                self._transport.abort()

    def end(self) -> None:
        """The exchange is over: keep the connection for the next one if it is clean, else close it."""
        self._exchange = self._receiver = None
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._clean and not transport.get_write_buffer_size():
            transport.resume_reading()
            self.reused = True
            self._pool.keep(self)
        else:
            transport.abort()

    def abort(self) -> None:
        """Close it at once, whatever it carries. Nobody hears of its end."""
        self._exchange = self._receiver = None
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Read nothing for a while: the client reads more slowly than the replica sends."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def alive(self) -> bool:
        """Whether an idle connection can carry a request, as far as the kernel knows."""
        if self._transport is None or self._transport.is_closing():
            return False
        return _is_silent(self._transport.get_extra_info("socket"))

    @override
    def data_received(self, data: bytes) -> None:
        exchange, receiver, body = self._exchange, self._receiver, self._body
        if exchange is None or receiver is None:
            self.abort()  # nobody asked
            return
        if body is None:
            self._read_head(exchange, receiver, data)
            return
        try:
            end = body.feed(data)
        except BadChunkError:
            self._lose(unread=False)
            return
        if end < len(data):
            self._clean = False
            data = data[:end]
        if exchange.comments is None:
            receiver.write(data)
        else:
            exchange.comments.body(data)
        if body.done:
            receiver.answer_ended(exchange)

    @override
    def eof_received(self) -> None:
        self._end_of_input(error=False)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.open -= 1
        self._pool.drop(self)
        self._end_of_input(error=exc is not None)

    @override
    def pause_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.pause_body()

    @override
    def resume_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.resume_body()

    def _read_head(self, exchange: Exchange, receiver: Receiver, data: bytes) -> None:
        """Read the answer's head, and those of interim answers before it."""
        data = self._held + data if self._held else data
        try:
            while (end := data.find(b"\r\n\r\n")) >= 0:
                head = read_answer(data[: end + 4], exchange.head.method)
                if head.status >= _OK:
                    self._held = b""
                    self._begin_answer(exchange, receiver, head, data)
                    return
                self._interim(exchange, receiver, head.status, data[: end + 4])
                data = data[end + 4 :]
        except (BadAnswerError, BadChunkError):
            self._lose(unread=False)
            return
        self._held = data
        if len(data) > MAX_HEAD_BYTES or data[:5] != b"HTTP/"[: len(data)]:
            self._lose(unread=False)

    def _interim(self, exchange: Exchange, receiver: Receiver, status: int, data: bytes) -> None:
        """Pass an interim answer on, unless the gateway has sent it itself, or the client knows none."""
        if status == _SWITCHING:
            raise BadAnswerError("The engine changed the protocol.")
        swallowed = (status == _CONTINUE and exchange.continued) or exchange.head.minor == 0 or exchange.comments
        if not swallowed:
            exchange.answered = True
            receiver.write(data)

    def _begin_answer(self, exchange: Exchange, receiver: Receiver, head: AnswerHead, data: bytes) -> None:
        """Pass on the head and what came with it, in one piece."""
        comments = exchange.comments
        self._body = body = body_of(head.length, payload=comments.payload if comments else None)
        begin = data.find(b"\r\n\r\n") + 4
        end = body.feed(data, begin) if begin < len(data) else begin
        exchange.answered = True
        exchange.client_stays = head.keep_alive
        self._clean = self._clean and head.keep_alive and end == len(data)
        if comments is not None:
            comments.answer(head)
            comments.body(data[begin:end])
        else:
            data = data if end == len(data) else data[:end]
            if inserted := receiver.inserted(exchange, head):
                data = data[: head.line_end] + inserted + data[head.line_end :]
            receiver.write(data)
        if body.done:
            receiver.answer_ended(exchange)

    def _end_of_input(self, *, error: bool) -> None:
        """The replica has closed its side, or the connection broke."""
        exchange, receiver = self._exchange, self._receiver
        if exchange is None or receiver is None:
            return
        if isinstance(self._body, EndlessBody) and not error:
            self._clean = False
            exchange.client_stays = False
            receiver.answer_ended(exchange)
        else:
            self._lose(unread=error or self._was_reset())

    def _was_reset(self) -> bool:
        """Whether a reset came behind the end of the replica's side: tcp(7) keeps it as the socket's error."""
        if self._transport is None:
            return False
        stream: socket.socket = self._transport.get_extra_info("socket")
        try:
            return stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        except OSError:
            return False

    def _lose(self, *, unread: bool) -> None:
        exchange, receiver = self._exchange, self._receiver
        self.abort()
        if exchange is not None and receiver is not None:
            receiver.answer_lost(exchange, unread=unread)


def _is_silent(stream: socket.socket) -> bool:
    """Whether nothing came on a connection, not even its end."""
    looking = select.poll()
    looking.register(stream, select.POLLIN)
    return not looking.poll(0)


class Pool:
    """Idle connections to all replicas.

    Attributes:
        open: connections, idle or not.
    """

    def __init__(self) -> None:
        self.open = 0
        self._idle: dict[Way, list[Upstream]] = {}
        self._count = 0

    @property
    def idle(self) -> int:
        """How many are idle."""
        return self._count

    def keep(self, upstream: Upstream) -> None:
        """Keep a connection that carries nothing now."""
        if self._count >= _MOST_IDLE:
            upstream.abort()
            return
        upstream.idle_since = asyncio.get_running_loop().time()
        self._idle.setdefault(upstream.way, []).append(upstream)
        self._count += 1

    def take(self, way: Way) -> Upstream | None:
        """The idle connection of this way that was used last; None if there is none."""
        kept = self._idle.get(way)
        while kept:
            upstream = kept.pop()
            self._count -= 1
            if upstream.alive:
                return upstream
            upstream.abort()
        return None

    def drop(self, upstream: Upstream) -> None:
        """Forget a connection that was lost. Harmless to repeat."""
        kept = self._idle.get(upstream.way)
        if kept and upstream in kept:
            kept.remove(upstream)
            self._count -= 1
        if kept is not None and not kept:
            del self._idle[upstream.way]

    def forget(self, way: Way) -> None:
        """Close the idle connections of a way."""
        for upstream in self._idle.pop(way, []):
            self._count -= 1
            upstream.abort()

    def trim(self, *, now: float, most: int = _MOST_IDLE) -> None:
        """Close those that were idle too long, and the oldest ones beyond a number."""
        everyone = sorted((one for kept in self._idle.values() for one in kept), key=lambda one: one.idle_since)
        for place, upstream in enumerate(everyone):
            if now - upstream.idle_since < IDLE_S and len(everyone) - place <= most:
                break
            self.drop(upstream)
            upstream.abort()

    async def connect(self, way: Way) -> Upstream:
        """A new connection.

        Raises:
            OSError: nobody listens, or not in time.
            SnapshotError: the replica is gone.
        """
        stream = await way.connect()
        try:
            _, upstream = await asyncio.get_running_loop().create_connection(lambda: Upstream(way, self), sock=stream)
        except BaseException:
            stream.close()
            raise
        return upstream
