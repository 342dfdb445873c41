"""One chat request: waits for the server, follows redirects and streams the answer, all within one deadline."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

from torpor.errors import ConfigurationError, EngineRequestError, ServerUnavailableError
from torpor.network.chat_stream import ChatStream
from torpor.network.modal_keys import refused_by_modal
from torpor.network.not_there import TryLaterError, check_connects, check_there
from torpor.network.waking_server import first_model, following, open_async_client, until_there
from torpor.values.addresses import shown_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from torpor.network.chat_stream import ChatResult

__all__ = ["ChatRequest"]

_MAX_REDIRECTS = 20
_QUOTED = 500
_MAX_LINE_BYTES = 4 << 20
_MAX_ANSWER_BYTES = 1 << 30


@dataclass(kw_only=True)
class ChatRequest:
    """A question to a server.

    Attributes:
        root: where the server answers, without a path.
        body: the request as OpenAI's API has it; with the model None, the first that the server lists.
        headers: sent with each request.
        on_text: gets each piece of text as it comes.
        on_wait: told, in one line, why it waits, whenever the reason changes.
    """

    root: str
    body: dict[str, object]
    headers: dict[str, str]
    on_text: Callable[[str], None]
    on_wait: Callable[[str], None]
    _stream: ChatStream = field(init=False)
    _began: float = field(init=False, default_factory=time.monotonic)
    _waiting_for: str = field(init=False, default="no answer")

    def __post_init__(self) -> None:
        self._url = f"{self.root}/v1/chat/completions"
        self._stream = ChatStream(shown_url(self._url))

    async def answered_within(self, timeout_s: float, connect_s: float | None = None) -> ChatResult:
        """Ask until there is an answer, at most `timeout_s` seconds, and `connect_s` while nothing listens there.

        Raises:
            ConfigurationError: the URL is none.
            ServerUnavailableError: no answer in time, or it broke off.
            EngineRequestError: the server refused the request.
        """
        try:
            async with asyncio.timeout(timeout_s), open_async_client(self._url, self.headers) as client:
                return await until_there(lambda: self._answered(client), self._note_wait, connect_s)
        except TimeoutError:
            pieces = len(self._stream.pieces)
            seen = f"the answer stopped after {pieces} pieces of text" if pieces else self._waiting_for
            raise ServerUnavailableError(
                f"No whole answer from {shown_url(self._url)} within {timeout_s:g} s; last seen: {seen}. A cold start can take "
                "minutes: raise the timeout, or look at the server's log."
            ) from None

    def _note_wait(self, reason: str) -> None:
        self._waiting_for = reason
        self.on_wait(reason)

    async def _answered(self, client: httpx.AsyncClient) -> ChatResult:
        if self.body["model"] is None:
            self.body["model"] = await first_model(client, self.root)
        sent = time.monotonic()
        await self._ask_once(client)
        return self._stream.result(self._began, sent, str(self.body["model"]))

    async def _ask_once(self, client: httpx.AsyncClient) -> None:
        request = client.build_request("POST", self._url, json=self.body)
        try:
            for _ in range(_MAX_REDIRECTS):
                response = await client.send(request, stream=True)
                try:
                    next_request = following(client, response)
                    if next_request is None:
                        await self._read(response)
                        return
                finally:
                    await response.aclose()
                request = next_request
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"The server's URL is {self._url!r}: {error}.") from error
        except httpx.TransportError as error:
            if self._stream.pieces:
                raise ServerUnavailableError(
                    f"The answer from {shown_url(self._url)} broke off after {len(self._stream.pieces)} pieces of text: "
                    f"{type(error).__name__}: {error}. The server may have been stopped; ask again."
                ) from error
            check_connects(error, self._url)
            raise TryLaterError(f"{type(error).__name__}: {error}") from error
        raise ServerUnavailableError(
            f"{shown_url(self._url)} redirected {_MAX_REDIRECTS} times, at last to {shown_url(str(request.url))}."
        )

    async def _read(self, response: httpx.Response) -> None:
        """Read the answer's events.

        Raises:
            TryLaterError: the server is not there yet.
            EngineRequestError: it refuses, or does not send a stream of chat chunks.
        """
        check_there(response)
        if response.status_code != httpx.codes.OK:
            said = (await response.aread()).decode(errors="replace").strip()
            raise EngineRequestError(
                f"{response.request.method} {shown_url(str(response.request.url))} was answered with {response.status_code}: "
                f"{said[:_QUOTED] or 'no text'}" + (f".{step}" if (step := refused_by_modal(response, said)) else "")
            )
        async for line in _lines(response, shown_url(self._url)):
            if text := self._stream.take(line):
                self.on_text(text)
            if self._stream.done:
                return
        raise ServerUnavailableError(
            f"The answer from {shown_url(self._url)} ended without its final event, after {len(self._stream.pieces)} pieces of "
            f"text; its last line was {self._stream.last_line[:_QUOTED]!r}."
        )


async def _lines(response: httpx.Response, url: str) -> AsyncIterator[str]:
    """The lines of an answer.

    Raises:
        EngineRequestError: a line is longer than any chat chunk, or the answer longer than any chat.
    """
    pending, total = b"", 0
    async for piece in response.aiter_bytes():
        *lines, pending = (pending + piece).split(b"\n")
        total += len(piece)
        if len(pending) > _MAX_LINE_BYTES or total > _MAX_ANSWER_BYTES:
            raise EngineRequestError(
                f"{url} sent a line of more than {_MAX_LINE_BYTES} bytes, or an answer of more than {_MAX_ANSWER_BYTES}: that is "
                "no chat. Name the server's root, or ask for fewer tokens."
            )
        for line in lines:
            yield line.rstrip(b"\r").decode(errors="replace")
    if pending:
        yield pending.decode(errors="replace")
