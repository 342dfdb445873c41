"""A client's connection: reads its requests one by one, finds each a replica, and passes bytes on in both directions.

    no request        head by head; what two parsers could read differently is refused
    model unknown     the body is held as it comes until its model is found
    waiting           for a lease; what comes is held, because only a client that is read from is seen to leave
    joined            body to the replica, answer to the client, unchanged and unbuffered
    finishing         answered for the last time; what still comes is dropped (`torpor.serving.connection`)

A client that closes its side while it waits has left. Once its request is on its way, its end is passed on to the engine, which
decides: uvicorn drops the request, another server may still answer.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from torpor._override import override
from torpor.errors import SnapshotError
from torpor.launcher.request_limits import MAX_QUEUED_BYTES, MAX_SKIPPED_BYTES
from torpor.serving.alias_in_body import replace_in_body
from torpor.serving.answers import Answer, error_answer, place_answer
from torpor.serving.bodies import BadChunkError
from torpor.serving.comments import Comments, wants_comments
from torpor.serving.connection import Connection
from torpor.serving.exchange import Exchange
from torpor.serving.heads import BadRequestError, head_end, read_request
from torpor.serving.model_in_json import BadModelError
from torpor.serving.pages import MAX_PAGE_BYTES, page_request
from torpor.serving.router import PageCall
from torpor.serving.values import NoPlaceError, ServedModel

if TYPE_CHECKING:
    from torpor.serving.heads import AnswerHead
    from torpor.serving.shared import Shared
    from torpor.serving.upstream import Upstream
    from torpor.serving.values import Way

__all__ = ["Client"]

_TRIES = 8
_LEAVES_S = 0.2
_COMMENTS_AFTER_S = 0.25
_SKIPPING_S = 1.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Client(Connection):
    """One client's connection.

    Args:
        shared: what all clients of this gateway share.

    Attributes:
        shared: see above.
    """

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self.shared = shared
        self._exchange: Exchange | None = None
        self._page: PageCall | None = None
        self._head = bytearray()  # of a head that is not complete
        self._ahead = b""  # behind the current request
        self._going_on = False
        self._ended = False
        self._way: Way | None = None
        self._counted = 0
        self._skipped = 0
        self._timer: asyncio.TimerHandle | None = None  # for what can only be once at a time

    # What the client sends

    @override
    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        exchange = self._exchange
        if self.finishing:
            return
        if self._going_on or (exchange is not None and exchange.body.done):
            self._ahead += data
            if len(self._ahead) > MAX_QUEUED_BYTES:
                self.pause("ahead")
        elif exchange is None:
            self._read_head(data)
        else:
            self._read_body(exchange, data)

    @override
    def eof_received(self) -> bool:
        """The client has closed its side; see the module."""
        self._ended = True
        exchange = self._exchange
        if self.finishing:
            return False
        if exchange is None:
            return self._going_on
        return self._goes_on_ended(exchange)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._end(exchange)
        self._stop_timer()
        super().connection_lost(exc)

    def _goes_on_ended(self, exchange: Exchange) -> bool:
        """Whether a request goes on whose client has closed its side."""
        if not exchange.body.done:
            return False
        if exchange.upstream is not None:
            exchange.upstream.end_writing()
        else:
            asyncio.get_running_loop().call_later(_LEAVES_S, self._leave, exchange)
        return True

    def _read_head(self, data: bytes) -> None:
        searched = len(self._head)
        if self._head:
            self._head += data
            data = bytes(self._head)
        else:
            self.head_since = asyncio.get_running_loop().time()
        while data[:2] == b"\r\n":  # RFC 9112, 2.2
            data, searched = data[2:], 0
            self._head.clear()
        try:
            if not data or data == b"\r":
                self._head = bytearray(data)
                return
            end = head_end(data, searched)
            if end < 0:
                self._head = self._head or bytearray(data)
                return
            self._head.clear()
            head = read_request(data[:end])
        except BadRequestError as error:
            self._head.clear()
            code = HTTPStatus(error.status).phrase.lower().replace(" ", "_")
            self.write(error_answer(error.status, code, str(error)).encoded(closes=True))
            self.finish()
            return
        self._begin(Exchange(head), data, end)

    def _begin(self, exchange: Exchange, data: bytes, end: int) -> None:
        """Decide where a request goes, whose head ends at `end`."""
        self._exchange = exchange
        self.in_request = True
        shared = self.shared
        decision = shared.router.decide(exchange.head, end)
        if isinstance(decision, ServedModel) and decision.alias_of and exchange.head.length:
            exchange.model, decision = decision, shared.router.scanner(exchange.head, end)  # the body may name it, too
        direct = isinstance(decision, ServedModel | Answer)
        if not direct:
            exchange.wants_payload()
        try:
            stop = end if exchange.body.done else exchange.body.feed(data, end)
        except BadChunkError:
            self._refuse_body(exchange)
            return
        if stop < len(data):
            self._ahead, data = data[stop:], data[:stop]
        exchange.held = data
        if shared.draining:
            self._refuse(exchange, shared.not_ready())
        elif isinstance(decision, ServedModel):
            self._place(exchange, decision)
        elif isinstance(decision, Answer):
            self._refuse(exchange, decision)
        elif isinstance(decision, PageCall):
            self._page = decision
            self._turn_page(exchange, decision)
        else:
            exchange.scanner = decision
            self._scan(exchange)

    def _read_body(self, exchange: Exchange, data: bytes) -> None:
        try:
            stop = exchange.body.feed(data)
        except BadChunkError:
            self._refuse_body(exchange)
            return
        if stop < len(data):
            self._ahead, data = data[stop:], data[:stop]
        if exchange.upstream is not None:
            exchange.note_sent(data)
            exchange.upstream.write(data)
            if exchange.answer_done:
                self._skip(exchange, len(data))
            return
        exchange.hold(data)
        self._counted += len(data)
        self.shared.held += len(data)
        if self._page is not None:
            self._turn_page(exchange, self._page)
        elif exchange.scanner is not None:
            self._scan(exchange)
        elif self.shared.is_full(self._counted):
            self._refuse(exchange, _too_large())

    def _refuse_body(self, exchange: Exchange) -> None:
        """Chunks are invalid: nobody knows where the next request begins."""
        if exchange.answered:
            self.abort()
        else:
            self._refuse(exchange, error_answer(HTTPStatus.BAD_REQUEST, "bad_request", "The chunks are invalid."))

    # Where the request goes

    def _scan(self, exchange: Exchange) -> None:
        """Look for the model in what has come of the body. If the head named it, the body is only rid of an alias."""
        scanner, router = exchange.scanner, self.shared.router
        if scanner is None:
            return
        problem: Answer | None = None
        try:
            whole = exchange.held if exchange.payload is None else exchange.payload
            scanner.feed(whole, ended=exchange.body.done)
        except BadModelError as error:
            problem = error_answer(HTTPStatus.BAD_REQUEST, "invalid_model", str(error), param="model")
        if problem is None and not scanner.done:
            if not self.shared.is_full(self._counted):
                self._ask_for_body(exchange)
                return
            problem = _too_large()
        found: ServedModel | Answer | None = exchange.model or problem
        if found is None:
            named = scanner.model
            found = router.unnamed(exchange.head) if named is None else router.named(named, exchange.head)
        if isinstance(found, Answer):
            self._refuse(exchange, found)
            return
        if found.alias_of and problem is None and (name := router.engine_name(scanner.model, found)):
            replace_in_body(exchange, scanner.edits(name))
        exchange.scanner = None
        exchange.drop_payload()
        self._place(exchange, found)

    def _ask_for_body(self, exchange: Exchange) -> None:
        """Answer `Expect: 100-continue`: the gateway itself needs the body."""
        if not exchange.continued and exchange.head.fields.get(b"expect", b"").lower() == b"100-continue":
            exchange.continued = True
            self.write(_CONTINUE)

    def _place(self, exchange: Exchange, model: ServedModel) -> None:
        """Get the request a lease and a connection, at once if there are both."""
        exchange.model = model
        exchange.lease = lease = self.shared.places.take(model, self._way)
        if lease is not None and (upstream := self.shared.pool.take(lease.way)):
            self._join(exchange, upstream)
            return
        if lease is None and not self.shared.router.starts(model, exchange.head):
            why = "The model is not serving now, and this request does not start it."
            self._refuse(exchange, place_answer(NoPlaceError(why, retry_after_s=1)))
            return
        if lease is None and wants_comments(exchange.head):
            self._set_timer(_COMMENTS_AFTER_S, lambda: self._comment(exchange))
        exchange.task = self.shared.begin(self._obtain(exchange, model))

    async def _obtain(self, exchange: Exchange, model: ServedModel, *, fresh: bool = False) -> None:
        """Wait for a lease, and connect to its replica; if nobody answers there, for another lease."""
        shared = self.shared
        try:
            for _ in range(_TRIES):
                if exchange.lease is None:
                    exchange.lease = await shared.places.acquire(model, self._way)
                way = exchange.lease.way
                try:
                    upstream = (None if fresh else shared.pool.take(way)) or await shared.pool.connect(way)
                except (OSError, SnapshotError):
                    exchange.release(failed=True)
                    continue
                self._join(exchange, upstream)
                return
        except NoPlaceError as error:
            exchange.task = None
            self._refuse(exchange, place_answer(error))
            return
        except Exception:
            exchange.task = None
            self._refuse(exchange, error_answer(500, "internal_error", "The gateway failed; its log has the reason."))
            raise
        exchange.task = None
        self._refuse(exchange, place_answer(NoPlaceError("No replica takes connections.", retry_after_s=1)))

    def _join(self, exchange: Exchange, upstream: Upstream) -> None:
        """Send what has come of the request."""
        exchange.task = None
        self._stop_timer()
        exchange.upstream = upstream
        self._way = upstream.way
        upstream.begin(exchange, self)
        if self.is_full:
            upstream.pause()
        held, exchange.held = exchange.held, b""
        exchange.note_sent(held)
        upstream.write(held)
        self._let_go()
        if self._ended:
            upstream.end_writing()

    def _comment(self, exchange: Exchange) -> None:
        """Begin an event stream's answer while the client waits."""
        if exchange is self._exchange and exchange.upstream is None:
            exchange.comments = Comments(self.write, lambda: _started(exchange))

    def _turn_page(self, exchange: Exchange, call: PageCall) -> None:
        """Answer with a page of the gateway's own once the request is complete."""
        if self._counted > MAX_PAGE_BYTES:
            self._refuse(exchange, _too_large())
        elif exchange.body.done:
            self._page = None
            exchange.task = self.shared.begin(self._show_page(exchange, call))
        else:
            self._ask_for_body(exchange)

    async def _show_page(self, exchange: Exchange, call: PageCall) -> None:
        pages = self.shared.pages
        answer = error_answer(500, "internal_error", "The gateway failed; its log has the reason.")
        try:
            if pages is not None:
                page = await pages.answer(page_request(call, exchange))
                answer = Answer(page.status, page.body, content_type=page.content_type, headers=page.headers)
        finally:
            exchange.task = None
            self._refuse(exchange, answer)

    # What the replica answers

    def inserted(self, exchange: Exchange, head: AnswerHead) -> bytes:
        """Fields that the gateway adds to an answer's head: what the request met, and that a draining gateway closes."""
        added, lease = b"", exchange.lease
        if lease is not None and (lease.waited_s > 0 or lease.start != "serving"):
            start = b"" if lease.start == "serving" else b"X-Torpor-Start: %s\r\n" % lease.start.encode()
            added = start + b"X-Torpor-Waited: %.3f\r\n" % lease.waited_s
        if self.shared.draining and exchange.client_stays and b"connection" not in head.fields:
            added += b"Connection: close\r\n"
        return added

    def answer_ended(self, exchange: Exchange) -> None:
        """All of the answer was passed on. What is missing of the request may still come, for a moment."""
        exchange.answer_done = True
        if exchange.comments is not None:
            exchange.comments.end()
        if exchange.body.done:
            self._close_exchange(exchange, stays=exchange.client_stays)
        elif b"expect" in exchange.head.fields:
            self._close_exchange(exchange, stays=False)  # the body may never come
        else:
            self._skipped = 0
            self._set_timer(_SKIPPING_S, lambda: self._close_exchange(exchange, stays=False))

    def answer_lost(self, exchange: Exchange, *, unread: bool) -> None:
        """The connection to the replica ended before the answer did."""
        upstream, exchange.upstream = exchange.upstream, None
        if exchange.answered or exchange.answer_done:
            if exchange.comments is not None and not exchange.answer_done:
                exchange.comments.stop()
            self._close_exchange(exchange, stays=False)
        elif upstream is not None and upstream.reused and exchange.model and exchange.send_again(unread=unread):
            exchange.task = self.shared.begin(self._obtain(exchange, exchange.model, fresh=True))
        else:
            message = "The engine closed the connection without an answer. Whether it began to answer is unknown."
            self._refuse(exchange, error_answer(HTTPStatus.BAD_GATEWAY, "engine_gone", message, retry_after_s=1))

    def pause_body(self) -> None:
        """The replica reads more slowly than the client sends."""
        self.pause("body")

    def resume_body(self) -> None:
        """The replica reads again."""
        self.resume("body")

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        if self._exchange is not None and self._exchange.upstream is not None:
            self._exchange.upstream.pause()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self._exchange is not None and self._exchange.upstream is not None:
            self._exchange.upstream.resume()

    # The end of an exchange

    @override
    def late(self) -> None:
        """The client took too long to send a head or the next piece of a body."""
        exchange = self._exchange
        if exchange is None and not self._head:
            self.abort()
            return
        message = f"Nothing more of the request came within {self.shared.limits.head_timeout_s:g} s."
        answer = error_answer(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", message)
        if exchange is None:
            self.write(answer.encoded(closes=True))
            self.finish()
        elif exchange.answered or exchange.comments:
            self.abort()
        else:
            self._refuse(exchange, answer)

    @property
    def in_head(self) -> bool:
        """Whether a part of a head has come."""
        return bool(self._head)

    @property
    def in_body(self) -> bool:
        """Whether more of a body has to come, and may come."""
        exchange = self._exchange
        return exchange is not None and not exchange.body.done and not self.paused

    def _refuse(self, exchange: Exchange, answer: Answer) -> None:
        """Answer in the gateway's own name."""
        if exchange is not self._exchange:
            return
        stays = exchange.body.done and exchange.head.keep_alive and not self.shared.draining
        if exchange.comments is not None:
            exchange.comments.end(answer.body)
        else:
            self.write(answer.encoded(closes=not stays, with_body=exchange.head.method != b"HEAD"))
        self._close_exchange(exchange, stays=stays)

    def _close_exchange(self, exchange: Exchange, *, stays: bool) -> None:
        if exchange is not self._exchange:
            return
        self._exchange = None
        stays = stays and exchange.head.keep_alive and not self.shared.draining
        self._end(exchange)
        if stays and (self._ahead or not self._ended):
            self._go_on_soon()
        else:
            self.finish()

    def _end(self, exchange: Exchange) -> None:
        """Give back everything that an exchange holds, whichever way it ended."""
        self.in_request = False
        self._page = None
        self._stop_timer()
        self._let_go()
        task, exchange.task = exchange.task, None
        if task is not None:
            task.cancel()
        if exchange.comments is not None:
            exchange.comments.stop()
        upstream, exchange.upstream = exchange.upstream, None
        if upstream is not None:
            if exchange.answer_done and exchange.body.done:
                upstream.end()
            else:
                upstream.abort()
        exchange.release()

    def _go_on_soon(self) -> None:
        loop = asyncio.get_running_loop()
        self.idle_since = loop.time()
        if self._ahead:
            self._going_on = True
            loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        """Read the next request, which came before the last one was answered."""
        self._going_on = False
        data, self._ahead = self._ahead, b""
        self.resume("ahead")
        if data and not self.finishing and self.is_open:
            self.data_received(data)
            if self._ended and not self._going_on:
                self._end_pipeline()

    def _end_pipeline(self) -> None:
        """The client closed its side behind a request that was sent ahead."""
        if self._exchange is None:
            self.finish()
        elif not self._goes_on_ended(self._exchange):
            self.abort()

    def _skip(self, exchange: Exchange, size: int) -> None:
        self._skipped += size
        if exchange.body.done:
            self._close_exchange(exchange, stays=exchange.client_stays)
        elif self._skipped > MAX_SKIPPED_BYTES:
            self._close_exchange(exchange, stays=False)

    def _leave(self, exchange: Exchange) -> None:
        """The client closed its side a moment ago, and still waits for a place: it has left."""
        if exchange is self._exchange and exchange.upstream is None:
            self.abort()

    def _let_go(self) -> None:
        """What was held is on its way, or not needed."""
        self.shared.held -= self._counted
        self._counted = 0

    def _set_timer(self, seconds: float, call: object) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, call)  # type: ignore[arg-type]

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _too_large() -> Answer:
    message = (
        "The gateway keeps no more of this body while its model is looked for or starts. Send it again later, put the model before "
        "what is large, or name it in the header X-Torpor-Model."
    )
    return error_answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", message, retry_after_s=1)


def _started(exchange: Exchange) -> str:
    lease = exchange.lease
    return f"start={lease.start} waited={lease.waited_s:.3f}" if lease is not None else ""
