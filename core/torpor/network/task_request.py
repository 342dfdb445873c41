"""One request of a task other than `chat`: waits for the server, then reads the whole answer, all within one deadline."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

from torpor.errors import ConfigurationError, EngineRequestError, ServerUnavailableError
from torpor.network.modal_keys import refused_by_modal
from torpor.network.not_there import TryLaterError, check_connects, check_there
from torpor.network.waking_server import first_model, following, open_async_client, until_there, whole_answer
from torpor.values.addresses import shown_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["TaskExchange"]

_MAX_REDIRECTS = 20
_QUOTED = 500
_MAX_ANSWER_BYTES = 256 << 20


@dataclass(kw_only=True)
class TaskExchange:
    """A question to a server whose engine is not known.

    Attributes:
        root: where the server answers, without a path.
        requests: makes the requests for a model's name, as path, body and its type, one for each dialect; the next one is tried
            if a path is not there (404).
        model: the served name; None for the first that the server lists.
        headers: sent with each request.
        on_wait: told, in one line, why it waits, whenever the reason changes.
        connect_s: seconds after which an address where nothing listens is given up; None for the whole deadline.
        waited_s: seconds until the request was sent that got the answer.
    """

    root: str
    requests: Callable[[str], Sequence[tuple[str, bytes, str]]]
    model: str | None
    headers: dict[str, str] = field(default_factory=dict)
    on_wait: Callable[[str], None] = lambda _: None
    connect_s: float | None = None
    waited_s: float = 0.0
    _began: float = field(init=False, default_factory=time.monotonic)
    _waiting_for: str = field(init=False, default="no answer")

    async def answered_within(self, timeout_s: float) -> object:
        """Ask until there is an answer, at most `timeout_s` seconds, and return its decoded JSON.

        Raises:
            ConfigurationError: the URL is none.
            ServerUnavailableError: no answer in time.
            EngineRequestError: the server refused the request, or its answer is no JSON.
        """
        try:
            async with asyncio.timeout(timeout_s), open_async_client(self.root, self.headers) as client:
                return await until_there(lambda: self._answered(client), self._note_wait, self.connect_s)
        except TimeoutError:
            raise ServerUnavailableError(
                f"No whole answer from {shown_url(self.root)} within {timeout_s:g} s; last seen: {self._waiting_for}. A cold "
                "start can take minutes: raise the timeout, or look at the server's log."
            ) from None

    def _note_wait(self, reason: str) -> None:
        self._waiting_for = reason
        self.on_wait(reason)

    async def _answered(self, client: httpx.AsyncClient) -> object:
        if self.model is None:
            self.model = await first_model(client, self.root)
        *others, last = self.requests(self.model)
        for path, content, kind in others:
            self.waited_s = time.monotonic() - self._began
            response = await self._sent(client, path, content, kind)
            if response.status_code != httpx.codes.NOT_FOUND:
                return _decoded(response)
        self.waited_s = time.monotonic() - self._began
        return _decoded(await self._sent(client, *last))

    async def _sent(self, client: httpx.AsyncClient, path: str, content: bytes, kind: str) -> httpx.Response:
        """The whole answer to one request, redirects followed."""
        url = f"{self.root}{path}"
        request = client.build_request("POST", url, content=content, headers={"content-type": kind})
        try:
            for _ in range(_MAX_REDIRECTS):
                response = await client.send(request, stream=True)
                try:
                    check_there(response)
                    next_request = following(client, response)
                    if next_request is None:
                        return await whole_answer(response, _MAX_ANSWER_BYTES)
                finally:
                    await response.aclose()
                if next_request.method == "POST":
                    next_request.headers["content-type"] = kind
                request = next_request
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"The server's URL is {url!r}: {error}.") from error
        except httpx.TransportError as error:
            check_connects(error, url)
            raise TryLaterError(f"{type(error).__name__}: {error}") from error
        raise ServerUnavailableError(
            f"{shown_url(url)} redirected {_MAX_REDIRECTS} times, at last to {shown_url(str(request.url))}."
        )


def _decoded(response: httpx.Response) -> object:
    said = response.text.strip()[:_QUOTED]
    if response.status_code != httpx.codes.OK:
        raise EngineRequestError(
            f"{response.request.method} {shown_url(str(response.request.url))} was answered with "
            f"{response.status_code}: {said or 'no text'}"
            + (f".{step}" if (step := refused_by_modal(response, said)) else "")
        )
    try:
        answer: object = response.json()
    except (ValueError, RecursionError) as error:
        raise EngineRequestError(
            f"{shown_url(str(response.request.url))} was answered with no JSON: {said!r}."
        ) from error
    return answer
