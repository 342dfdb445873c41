"""Requests to a server that may still have to wake: what counts as not there yet, how long to wait, which redirects to follow.

A server that is not there yet refuses connections, or answers 429, 502, 503 or 504, with or without Retry-After. Modal keeps
a request open beyond 150 seconds by a redirect that has to be followed with GET (303; modal.com/docs/guide/webhook-timeouts).
The deadline over everything is the caller's, and so is a shorter one for an address where nothing listens
(`torpor.network.CONNECT_S`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import httpx

from torpor._override import override
from torpor.errors import ConfigurationError, EngineRequestError, ServerUnavailableError
from torpor.network.modal_keys import modal_keys, refused_by_modal, sent_to
from torpor.network.not_there import CONNECT_TIMEOUT_S, NobodyThereError, TryLaterError, check_connects, check_there
from torpor.network.proxies import is_loopback
from torpor.values.addresses import shown_url
from torpor.values.client_keys import AUTHORIZATION_HEADER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = [
    "first_model",
    "following",
    "get_once",
    "get_when_there",
    "open_async_client",
    "until_there",
    "whole_answer",
]

T = TypeVar("T")

_KEEPS_METHOD = frozenset({307, 308})
_FIRST_PAUSE_S = 0.25
_MAX_PAUSE_S = 5.0
_MAX_BODY_BYTES = 1 << 20
_QUOTED = 500
_FRAMING = ("content-encoding", "content-length", "transfer-encoding")


class OutwardClient(httpx.AsyncClient):
    """httpx's client, which reaches loopback addresses without a proxy, also after a redirect."""

    @override
    def _transport_for_url(self, url: httpx.URL) -> httpx.AsyncBaseTransport:
        # NO_PROXY in httpx takes host names only, and 127.0.0.0/8 is a network.
        return self._transport if is_loopback(url.host) else super()._transport_for_url(url)


def open_async_client(
    url: str, headers: Mapping[str, str] | None = None, *, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """A client without a deadline over an answer; httpx's own deadlines would be one per socket operation.

    If the environment holds Modal's proxy token, the client sends it with each request to that server; see
    `torpor.network.modal_keys`.

    Args:
        url: of the server; one on this machine is asked without a proxy.
        headers: sent with each request.
        transport: carries the requests in place of sockets.

    Raises:
        ConfigurationError: the environment names a proxy that cannot be used, or holds half a proxy token of Modal.
    """
    keys = modal_keys()

    def opened(*, trust_env: bool) -> httpx.AsyncClient:
        return OutwardClient(
            transport=transport,
            event_hooks={"request": [sent_to(url, keys)]} if keys else None,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            headers=headers,
            limits=httpx.Limits(max_connections=None),
            follow_redirects=False,
            trust_env=trust_env,
        )

    try:
        return opened(trust_env=True)
    except (ImportError, ValueError, httpx.InvalidURL) as error:  # e.g. ALL_PROXY=socks5://..., which needs a package
        if is_loopback(urlsplit(url).hostname or ""):
            return opened(trust_env=False)
        raise ConfigurationError(
            f"{shown_url(url)} cannot be asked through the proxy that the environment names: {error} Look at HTTP_PROXY, "
            "HTTPS_PROXY and ALL_PROXY, or name the server in NO_PROXY."
        ) from error


async def get_when_there(
    client: httpx.AsyncClient, url: str, *, on_wait: Callable[[str], None], connect_s: float | None = None
) -> httpx.Response:
    """GET until the server is there, and return its answer.

    Args:
        client: of `open_async_client`.
        url: what to get; redirects are followed.
        on_wait: told, in one line, why it waits, whenever the reason changes.
        connect_s: see `until_there`.

    Raises:
        ConfigurationError: the URL is none.
        ServerUnavailableError: it redirects without end, or no connection can be made.
    """
    return await until_there(lambda: get_once(client, url), on_wait, connect_s)


async def get_once(client: httpx.AsyncClient, url: str) -> httpx.Response:
    """GET once, redirects followed.

    Raises:
        TryLaterError: the server is not there yet.
        ConfigurationError: the URL is none.
        ServerUnavailableError: it redirects without end.
    """
    try:
        async with client.stream("GET", url, follow_redirects=True) as streamed:
            response = await whole_answer(streamed)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"The server's URL is {url!r}: {error}.") from error
    except httpx.TooManyRedirects as error:
        raise ServerUnavailableError(f"{shown_url(url)} redirects without end: {error}") from error
    except httpx.TransportError as error:
        check_connects(error, url)
        raise TryLaterError(f"{type(error).__name__}: {error}") from error
    check_there(response)
    return response


async def until_there(
    step: Callable[[], Awaitable[T]], on_wait: Callable[[str], None], connect_s: float | None = None
) -> T:
    """Repeat a step, with growing pauses, as long as it raises `TryLaterError`.

    Args:
        step: what is repeated.
        on_wait: told, in one line, why it waits, whenever the reason changes.
        connect_s: seconds after which an address to which no connection can be made is given up; None for never.

    Raises:
        ServerUnavailableError: no connection could be made in all that time.
    """
    pause_s, reason, nobody_since = _FIRST_PAUSE_S, "", None
    while True:
        try:
            return await step()
        except TryLaterError as later:
            if str(later) != reason:
                reason = str(later)
                on_wait(reason)
            wait_s = pause_s if later.pause_s is None else later.pause_s
            now = time.monotonic()
            nobody_since = (nobody_since or now) if isinstance(later, NobodyThereError) else None
            if connect_s is not None and nobody_since is not None:
                left_s = nobody_since + connect_s - now
                if left_s <= 0:
                    raise ServerUnavailableError(
                        f"{reason[0].upper()}{reason[1:]}, for {connect_s:g} s. Start the server, or correct its address."
                    ) from later
                wait_s = min(wait_s, left_s)
        await asyncio.sleep(wait_s)
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)


def following(client: httpx.AsyncClient, response: httpx.Response) -> httpx.Request | None:
    """The request that follows a redirect; None if the response is the answer."""
    location = response.headers.get("Location")
    if location is None or not response.is_redirect:
        return None
    asked = response.request
    target = asked.url.join(location)
    if response.status_code in _KEEPS_METHOD and asked.method == "POST":
        kind = {"Content-Type": "application/json"}
        request = client.build_request("POST", target, content=asked.content, headers=kind)
    else:
        request = client.build_request("GET", target)
    # Browsers and httpx do the same: a key is for the server that it was given for.
    if (target.scheme, target.host, target.port) != (asked.url.scheme, asked.url.host, asked.url.port):
        request.headers.pop(AUTHORIZATION_HEADER, None)
    return request


async def first_model(client: httpx.AsyncClient, root: str) -> str:
    """The first name that the server lists (OpenAI's API, `GET /v1/models`).

    Args:
        client: of `open_async_client`.
        root: where the server answers, without a path.

    Raises:
        TryLaterError: the server is not there yet.
        EngineRequestError: it refuses, or lists nothing.
    """
    url = f"{root}/v1/models"
    response = await get_once(client, url)
    try:
        return str(response.raise_for_status().json()["data"][0]["id"])
    except (httpx.HTTPStatusError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        said = response.text.strip()[:_QUOTED]
        raise EngineRequestError(
            f"GET {shown_url(url)} was answered with {response.status_code} and names no model: {said!r}."
            + (refused_by_modal(response, said) or " Name the served model yourself.")
        ) from error


async def whole_answer(streamed: httpx.Response, most: int = _MAX_BODY_BYTES) -> httpx.Response:
    """The whole answer.

    Args:
        streamed: whose body is not read yet.
        most: bytes that it may have.

    Raises:
        EngineRequestError: it is longer than any answer that is asked for here.
    """
    request = streamed.request
    body = bytearray()
    async for piece in streamed.aiter_bytes():
        body += piece
        if len(body) > most:
            raise EngineRequestError(
                f"{request.method} {request.url} is answered with more than {most} bytes. Give the URL of a server behind Torpor's "
                "guard, without a path."
            )
    headers = [(name, value) for name, value in streamed.headers.multi_items() if name.lower() not in _FRAMING]
    return httpx.Response(streamed.status_code, headers=headers, content=bytes(body), request=request)
