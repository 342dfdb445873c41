"""One request and its answer, on their way through the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torpor.serving.bodies import ChunkedBody, body_of
from torpor.serving.heads import CHUNKED

if TYPE_CHECKING:
    import asyncio

    from torpor.serving.bodies import Body
    from torpor.serving.comments import Comments
    from torpor.serving.heads import AnswerHead, RequestHead
    from torpor.serving.router import Scanner
    from torpor.serving.values import Lease, ServedModel, Way

__all__ = ["IDEMPOTENT", "Carrier", "Exchange", "Receiver"]

_MAX_KEPT = 64 * 1024
IDEMPOTENT = (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE")


class Exchange:
    """One request and its answer.

    Args:
        head: of the request.

    Attributes:
        head: of the request.
        body: where the request's body ends.
        held: bytes that came and were not sent to a replica yet, from the head on.
        scanner: looks for the model in the body; None if the model is known.
        payload: the body without its chunks, for the scanner; None if the body has a length.
        model: that the request goes to; None as long as it is not known.
        lease: on a replica.
        upstream: the connection to the replica.
        task: what waits for a lease, a connection or a page.
        continued: whether the gateway itself told the client to send its body.
        comments: of a client that wants them while it waits.
        answered: whether the answer has begun.
        answer_done: whether all of the answer was passed on.
        client_stays: whether the answer lets the client keep its connection.
        retried: whether the request was sent a second time.
    """

    __slots__ = (
        "_sent",
        "answer_done",
        "answered",
        "body",
        "client_stays",
        "comments",
        "continued",
        "head",
        "held",
        "lease",
        "model",
        "payload",
        "retried",
        "scanner",
        "task",
        "upstream",
    )

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.body: Body = body_of(head.length, limited=True)
        self.held: bytes | bytearray = b""
        self.scanner: Scanner | None = None
        self.payload: bytearray | None = None
        self.model: ServedModel | None = None
        self.lease: Lease | None = None
        self.upstream: Carrier | None = None
        self.task: asyncio.Task[None] | None = None
        self.continued = False
        self.comments: Comments | None = None
        self.answered = self.answer_done = self.retried = False
        self.client_stays = True
        self._sent: bytes | None = b""

    def wants_payload(self) -> None:
        """Have chunks taken apart for the scanner. Call it before the body is fed."""
        if self.head.length == CHUNKED:
            self.payload = bytearray()
            self.body = ChunkedBody(limited=True, payload=self.payload)

    def drop_payload(self) -> None:
        """The scanner is done; chunks are not taken apart any more."""
        self.payload = None
        if isinstance(self.body, ChunkedBody):
            self.body.payload = None

    def hold(self, data: bytes) -> None:
        """Keep more of the request."""
        if not self.held:
            self.held = data
        elif isinstance(self.held, bytearray):
            self.held += data
        else:
            self.held = bytearray(self.held) + data

    def note_sent(self, data: bytes | bytearray) -> None:
        """Remember what was sent as long as it is little and may have to be sent again."""
        if self._sent is not None and not self.answered:
            whole = self._sent + data if self._sent else bytes(data)
            self._sent = whole if len(whole) <= _MAX_KEPT else None

    def send_again(self, *, unread: bool) -> bool:
        """Whether the request may be sent on another connection, because its connection ended without a byte of the answer.

        A connection that was idle may end at the moment of its next request. Repeating a request is safe if its method says so
        (RFC 9110, 9.2.2). It is safe as well if the replica's kernel answered with a reset: it does so only for bytes that no
        program will read any more (RFC 2525, 2.17; tcp(7)). The bytes that were not read are the request's last ones, so the
        replica never had the whole request and did not begin to answer it.

        Args:
            unread: whether a reset came.
        """
        if self.answered or self.retried or self._sent is None or not (unread or self.head.method in IDEMPOTENT):
            return False
        self.retried = True
        self.held = self._sent + bytes(self.held)
        self._sent = b""
        return True

    def release(self, *, failed: bool = False) -> None:
        """Give the lease back. Harmless to repeat."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.release(failed=failed)


class Receiver(Protocol):
    """Who gets the answer: the client's side."""

    def write(self, data: bytes) -> None:
        """Pass a piece of the answer on."""

    def inserted(self, exchange: Exchange, head: AnswerHead) -> bytes:
        """Fields that the gateway adds to the answer's head."""

    def answer_ended(self, exchange: Exchange) -> None:
        """All of the answer was passed on."""

    def answer_lost(self, exchange: Exchange, *, unread: bool) -> None:
        """The connection ended, or the answer broke off.

        Args:
            exchange: whose answer it is.
            unread: whether the kernel says that the replica did not read all of the request.
        """

    def pause_body(self) -> None:
        """The replica reads more slowly than the client sends."""

    def resume_body(self) -> None:
        """The replica reads again."""


class Carrier(Protocol):
    """What carries an exchange: a connection to a replica, see `torpor.serving.upstream.Upstream`."""

    way: Way
    reused: bool

    def begin(self, exchange: Exchange, receiver: Receiver) -> None:
        """Carry a request: the bytes of `write`, and its answer to the receiver."""

    def write(self, data: bytes | bytearray) -> None:
        """Send a piece of the request."""

    def end_writing(self) -> None:
        """Tell the replica that the client sends nothing more."""

    def end(self) -> None:
        """The exchange is over: keep the connection for the next one, or close it."""

    def abort(self) -> None:
        """Close it at once."""

    def pause(self) -> None:
        """Read nothing for a while."""

    def resume(self) -> None:
        """Read on."""
