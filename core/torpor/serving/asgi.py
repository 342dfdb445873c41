"""The data path behind a server that is not ours: an ASGI application that forwards each request to a replica.

It finds the model (`torpor.serving.router`), takes a lease, and passes bytes on in both directions over the same connections as
the gateway (`torpor.serving.upstream`). The server has read the head and taken the framing off, so the head is written again.

A guard counts a request until its engine is done with it. A server counts one until its client has gone. So a request can reach
the guard a moment too early, which refuses it as one too many. Such a request is sent again, for some seconds. Without that, its
refusal would free the server's slot at once, and the next request of the queue would be refused in the same way.

A body goes as it came: there are no aliases here, because nothing reads a `serve.toml`. Every name is one that an engine knows.
"""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from torpor.errors import SnapshotError
from torpor.serving.answers import Answer, error_answer, place_answer
from torpor.serving.asgi_answer import EngineAnswer, send_answer
from torpor.serving.asgi_request import framed, request_head, was_forwarded
from torpor.serving.exchange import IDEMPOTENT, Exchange
from torpor.serving.heads import CHUNKED, BadRequestError, read_request
from torpor.serving.model_in_json import BadModelError
from torpor.serving.router import PageCall, Router
from torpor.serving.upstream import IDLE_S, Pool
from torpor.serving.values import NoPlaceError, ServedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.serving.asgi_answer import Receive, Scope, Send
    from torpor.serving.heads import RequestHead
    from torpor.serving.router import Scanner
    from torpor.serving.upstream import Upstream
    from torpor.serving.values import Lease, Places

__all__ = ["AsgiGateway", "serve_lifespan"]

MAX_KEPT_BYTES = 32 << 20
"""Bytes of a body that are kept until its answer begins, by default, and in which its model has to be named."""

_TRIES = 8
_BUSY_S = 10.0
_GONE_S = 10.0
_BUSY_PAUSES_S = (0.002, 0.1)
_POLICY_VIOLATION = 1008


class AsgiGateway:
    """The application.

    Args:
        places: the models and their replicas.
        prefixes: by the name of a deployment, what is put before the path; empty by default.
        most_kept: bytes of a body that are kept until its answer begins, so that it can be sent again. A body is read no further
            than that before a replica takes it, except to find its model.
    """

    def __init__(
        self, places: Places, *, prefixes: Mapping[str, str] | None = None, most_kept: int = MAX_KEPT_BYTES
    ) -> None:
        self.places = places
        self.most_kept = most_kept
        self.router = Router(places)
        self.pool = Pool()
        self._prefixes = prefixes or {}
        self._trimming: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            await _Request(self, scope, receive, send).serve()
        elif scope["type"] == "lifespan":
            await serve_lifespan(receive, send)
            self.close()
        else:
            await receive()
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})

    @property
    def has_prefixes(self) -> bool:
        """Whether requests go to prefixes of the address at which this application itself is."""
        return bool(self._prefixes)

    def prefix(self, model: ServedModel) -> bytes:
        """What is put before the path of this model's requests."""
        return self._prefixes.get(model.deployment, "").encode()

    def known_path(self, model: ServedModel, head: RequestHead) -> ServedModel | Answer:
        """The model, or what its guard would answer: a request for no public path starts no replica behind a prefix."""
        if self.router.is_public(model, head):
            return model
        return error_answer(HTTPStatus.NOT_FOUND, "not_found", "There is no such path.")

    def close(self) -> None:
        """Close idle connections."""
        self.pool.trim(now=asyncio.get_running_loop().time(), most=0)
        if self._trimming is not None:
            self._trimming.cancel()
            self._trimming = None

    def trim(self) -> None:
        """Close connections that were idle too long, now and then as long as there are any."""
        loop = asyncio.get_running_loop()
        self.pool.trim(now=loop.time())
        if self._trimming is None and self.pool.open:
            self._trimming = loop.call_later(IDLE_S / 2, self._trim_again)

    def _trim_again(self) -> None:
        self._trimming = None
        self.trim()


class _Request:
    """One request.

    Args:
        gateway: that serves it.
        scope: of ASGI, as are the next two.
        receive: reads its body, and then waits for the client's end.
        send: sends its answer.
    """

    def __init__(self, gateway: AsgiGateway, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway = gateway
        self._scope, self._receive, self._send = scope, receive, send
        self._body: list[bytes] | None = []
        self._payload, self._scanning = bytearray(), True
        self._size = 0
        self._read_all = False
        self._came, self._joined = asyncio.Event(), asyncio.Event()
        self._lease: Lease | None = None
        self._carrier: Upstream | None = None
        self._answer: EngineAnswer | None = None

    async def serve(self) -> None:
        """Answer it; end its work at the replica when the client leaves."""
        try:
            head = read_request(request_head(self._scope))
        except BadRequestError as error:
            code = HTTPStatus(error.status).phrase.lower().replace(" ", "_")
            await send_answer(self._send, error_answer(error.status, code, str(error)))
            return
        if self._gateway.has_prefixes and was_forwarded(self._scope):
            message = "The application of this model is not deployed."
            answer = error_answer(HTTPStatus.SERVICE_UNAVAILABLE, "not_serving", message, retry_after_s=_GONE_S)
            await send_answer(self._send, answer, with_body=head.method != b"HEAD")
            return
        reading = asyncio.ensure_future(self._read(head))
        answering = asyncio.ensure_future(self._respond(head))
        try:  # the client's end comes as a message, or as a cancellation
            await asyncio.wait({reading, answering}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            answering.cancel()
            self._end(kept=answering.done() and not answering.cancelled())
        if answering.done():
            answering.result()

    # The request

    async def _read(self, head: RequestHead) -> None:
        """Read the body, pass it on, and return once the client has gone."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            data = cast("bytes", message.get("body", b""))
            more = bool(message.get("more_body"))
            if self._scanning:
                self._payload += data
            if piece := framed(data, more=more) if head.length == CHUNKED else data:
                self._pass_on(piece)
            self._read_all = self._read_all or not more
            self._came.set()
            if self._scanning:
                await asyncio.sleep(
                    0
                )  # a server with more pieces at hand gives them without a pause: look at this one first
            while self._waits_for_replica():
                self._joined.clear()
                await self._joined.wait()
            if self._answer is not None:
                await self._answer.may_send.wait()

    def _waits_for_replica(self) -> bool:
        """Whether to read no further for now."""
        most = MAX_KEPT_BYTES if self._scanning else self._gateway.most_kept
        return self._carrier is None and self._size > most

    def _pass_on(self, data: bytes) -> None:
        """Send a piece of the body, and keep it as long as it may have to be sent again."""
        self._size += len(data)
        if self._body is not None:
            self._body.append(data)
            if self._size > self._gateway.most_kept and self._carrier is not None:
                self._body = None
        if self._carrier is not None:
            self._carrier.write(data)

    # Its way

    async def _respond(self, head: RequestHead) -> None:
        decision = self._gateway.router.decide(head, 0)
        if not isinstance(decision, ServedModel | Answer | PageCall):
            decision = await self._scanned(decision, head)
        self._scanning, self._payload = False, bytearray()
        if isinstance(decision, ServedModel) and self._gateway.has_prefixes:
            decision = self._gateway.known_path(decision, head)
        answer = await self._forwarded(decision, head) if isinstance(decision, ServedModel) else decision
        if isinstance(answer, Answer):
            await send_answer(self._send, answer, with_body=head.method != b"HEAD")

    async def _scanned(self, scanner: Scanner, head: RequestHead) -> ServedModel | Answer:
        """The model that the body names, as soon as it is there."""
        while not scanner.done:
            try:
                scanner.feed(self._payload, ended=self._read_all)
            except BadModelError as error:
                return error_answer(HTTPStatus.BAD_REQUEST, "invalid_model", str(error), param="model")
            if scanner.done:
                break
            if len(self._payload) > MAX_KEPT_BYTES:
                message = "Put `model` before what is large, or name it in the header X-Torpor-Model."
                return error_answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", message)
            self._came.clear()
            await self._came.wait()
        router = self._gateway.router
        return router.unnamed(head) if scanner.model is None else router.named(scanner.model, head)

    async def _forwarded(self, model: ServedModel, head: RequestHead) -> Answer | None:
        """Send it to a replica, and the answer to the client; returns an answer if there is none of a replica."""
        data = request_head(self._scope, self._gateway.prefix(model))
        loop = asyncio.get_running_loop()
        busy_until, pause_s = loop.time() + _BUSY_S, _BUSY_PAUSES_S[0]
        fresh = False
        while True:
            try:
                answer = await self._sent(model, data, Exchange(head), fresh=fresh)
            except NoPlaceError as error:
                return place_answer(error)
            if not await answer.begun():
                if self._may_send_again(head, answer) and not fresh:
                    fresh = True
                    self._end(kept=False)
                    continue
                message = "The engine closed the connection without an answer. Whether it began to answer is unknown."
                return error_answer(HTTPStatus.BAD_GATEWAY, "engine_gone", message, retry_after_s=1)
            if self._body is not None and loop.time() < busy_until and await answer.is_busy():
                self._end(kept=True)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _BUSY_PAUSES_S[1])
                continue
            self._body = None
            await answer.pass_on(self._send)
            return None

    async def _sent(self, model: ServedModel, data: bytes, exchange: Exchange, *, fresh: bool) -> EngineAnswer:
        """Take a lease and a connection, and send what there is of the request.

        Raises:
            NoPlaceError: there is no lease, or no replica takes connections.
        """
        gateway = self._gateway
        for _ in range(_TRIES):
            self._lease = lease = gateway.places.take(model, None) or await gateway.places.acquire(model, None)
            try:
                carrier = (None if fresh else gateway.pool.take(lease.way)) or await gateway.pool.connect(lease.way)
            except (OSError, SnapshotError):
                self._lease = None
                lease.release(failed=True)
                continue
            self._answer = answer = EngineAnswer(carrier, start_fields(lease))
            carrier.begin(exchange, answer)
            carrier.write(b"".join([data, *(self._body or ())]))
            if self._size > gateway.most_kept:
                self._body = None
            self._carrier = carrier
            self._joined.set()
            return answer
        raise NoPlaceError("No replica takes connections.", retry_after_s=1)

    def _may_send_again(self, head: RequestHead, answer: EngineAnswer) -> bool:
        """Whether its connection was an idle one that ended before the request; see `torpor.serving.exchange`."""
        reused = self._carrier is not None and self._carrier.reused
        return reused and self._body is not None and (answer.unread or head.method in IDEMPOTENT)

    def _end(self, *, kept: bool) -> None:
        """Give back what it holds.

        Args:
            kept: whether the connection may be used again, if the answer is complete.
        """
        carrier, self._carrier = self._carrier, None
        answer, self._answer = self._answer, None
        lease, self._lease = self._lease, None
        if answer is not None:
            answer.may_send.set()
        if carrier is not None:
            if kept and answer is not None and answer.complete and self._read_all:
                carrier.end()
                self._gateway.trim()
            else:
                carrier.abort()
        if lease is not None:
            lease.release()


def start_fields(lease: Lease) -> list[tuple[bytes, bytes]]:
    """What an answer's head says of the start that its request met."""
    return [] if lease.start == "serving" else [(b"x-torpor-start", lease.start.encode())]


async def serve_lifespan(receive: Receive, send: Send) -> None:
    """Answer the server's messages at its start and end."""
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            kind = cast("str", (await receive())["type"])
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
