"""A streaming chat client for a server that may still have to wake up.

    result = chat(url, model="Qwen/Qwen3-8B-FP8", prompt="Why is the sky blue?", on_text=print)

It waits through what a sleeping server shows to the outside (refused connections, 503 with or without Retry-After) and
follows the redirects with which Modal keeps a request open beyond 150 seconds (303, to be followed with GET;
modal.com/docs/guide/webhook-timeouts). One deadline covers all of it. Modal's proxy token, which a server with
`requires_proxy_auth` demands, is read from the environment: see `torpor.network.modal_keys`. A server's bearer key is read from
the variable named by `API_KEY_VARIABLE`. `PROMPT` and `SYSTEM_PROMPTS` are what `main` asks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from torpor.errors import ConfigurationError, EngineRequestError, ServerUnavailableError, TorporError
from torpor.network.modal_keys import modal_keys, refused_by_modal, sent_to
from torpor.network.shortage import shortage
from torpor.values.client_keys import API_KEY_VARIABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    import httpx

__all__ = [
    "PROMPT",
    "SYSTEM_PROMPTS",
    "ChatResult",
    "ask_in_turn",
    "chat",
    "checked_url",
    "errors_told",
    "get_when_there",
    "main",
    "next_step_of",
    "open_async_client",
]

T = TypeVar("T")

PROMPT = "Why is the sky blue? Answer in three sentences."
SYSTEM_PROMPTS = (
    "You are a physicist. Be exact, and give numbers with their units.",
    "You are a poet of the sea. Answer in images, and in few words.",
)

_WAITING = frozenset({429, 502, 503, 504})
_KEEPS_METHOD = frozenset({307, 308})
_OK = 200
_MAX_REDIRECTS = 20
_CONNECT_TIMEOUT_S = 10.0
_FIRST_PAUSE_S = 0.25
_MAX_PAUSE_S = 5.0
_QUOTED = 500
_MAX_BODY_BYTES = 1 << 20
_MAX_LINE_BYTES = 4 << 20
_MAX_ANSWER_BYTES = 1 << 30
_FRAMING = ("content-encoding", "content-length", "transfer-encoding")
_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class ChatResult:
    """One answer.

    Attributes:
        text: the whole answer, reasoning included.
        ttft_s: seconds from the call to the first token, waiting for the server included.
        total_s: seconds from the call to the end of the answer.
        tokens: completion tokens as the server counted them; chunks of text where it did not.
        waited_s: seconds from the call until the request was sent that got the answer.
        model: the served name that was asked.
    """

    text: str
    ttft_s: float
    total_s: float
    tokens: int
    waited_s: float
    model: str


def chat(
    url: str,
    *,
    model: str | None,
    prompt: str,
    system: str | None = None,
    max_tokens: int | None = None,
    timeout_s: float = 600.0,
    api_key: str | None = None,
    on_text: Callable[[str], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> ChatResult:
    """Ask once and stream the answer.

    Args:
        url: where the server answers, without a path.
        model: the served name; None for the first that the server lists at `/v1/models`.
        prompt: the user's message.
        system: the system prompt; None for none.
        max_tokens: longest answer, tokens; None leaves it to the server.
        timeout_s: seconds for everything: waiting for the server, redirects, the whole answer.
        api_key: bearer key; the default is the variable `TORPOR_API_KEY`.
        on_text: gets each piece of text as it comes.
        on_wait: told, in one line, why it waits, whenever the reason changes.

    Raises:
        ConfigurationError: the URL is none.
        ServerUnavailableError: no answer within `timeout_s`, or it broke off.
        EngineRequestError: the server refused the request; its words are in the message.
    """
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    body: dict[str, object] = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    key = api_key or os.environ.get(API_KEY_VARIABLE)
    root = checked_url(url)
    question = _Question(
        url=f"{root}/v1/chat/completions",
        models_url=f"{root}/v1/models",
        body=body,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        on_text=on_text or (lambda _: None),
        on_wait=on_wait or (lambda _: None),
    )
    return asyncio.run(question.ask_within(timeout_s))


def checked_url(url: str) -> str:
    """A server's URL, without a slash at its end.

    Raises:
        ConfigurationError: it is none.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"The server's URL is {url!r}; it has to begin with http:// or https://.")
    try:
        where = urlsplit(url)
        wrong = "it names no host" if not where.hostname else "port 0 is none" if where.port == 0 else ""
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise ConfigurationError(
            f"The server's URL is {url!r}: {wrong}. It has to be like http://HOST:PORT, with a port from 1 to 65535."
        )
    return url.rstrip("/")


class _TryLaterError(Exception):
    """The server is not there yet; `pause_s` is what it asked for, if it did."""

    def __init__(self, reason: str, pause_s: float | None = None) -> None:
        super().__init__(reason)
        self.pause_s = pause_s


class _Answer:
    """What has come so far, from lines of server-sent events in OpenAI's chat format."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.first_at: float | None = None
        self.tokens: int | None = None
        self.done = False
        self.last_line = ""

    def take(self, line: str, url: str) -> str:
        """Take a line of the stream and return the text in it.

        Raises:
            EngineRequestError: the line is an error, or no chat chunk.
        """
        self.last_line = line or self.last_line
        field, _, value = line.partition(":")
        if field != "data":
            return ""
        if value.strip() == "[DONE]":
            self.done = True
            return ""
        try:
            chunk = json.loads(value)
            if "error" in chunk:
                raise EngineRequestError(f"{url} answered with an error: {json.dumps(chunk['error'])[:_QUOTED]}")
            deltas = [choice["delta"] for choice in chunk["choices"]]
            text = "".join((delta.get("reasoning_content") or "") + (delta.get("content") or "") for delta in deltas)
            if usage := chunk.get("usage"):
                self.tokens = int(usage["completion_tokens"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise EngineRequestError(
                f"{url} sent something that is no chat chunk ({type(error).__name__}: {error}): {value.strip()[:_QUOTED]!r}."
            ) from error
        if text:
            self.first_at = self.first_at or time.monotonic()
            self.pieces.append(text)
        return text

    def result(self, began: float, sent: float, model: str) -> ChatResult:
        """The finished answer; times count from `began`."""
        ended = time.monotonic()
        return ChatResult(
            waited_s=sent - began,
            model=model,
            text="".join(self.pieces),
            ttft_s=(self.first_at or ended) - began,
            total_s=ended - began,
            tokens=len(self.pieces) if self.tokens is None else self.tokens,
        )


@dataclass
class _Question:
    url: str
    models_url: str
    body: dict[str, object]
    headers: dict[str, str]
    on_text: Callable[[str], None]
    on_wait: Callable[[str], None]
    _answer: _Answer = field(init=False, default_factory=_Answer)
    _began: float = field(init=False, default_factory=time.monotonic)
    _waiting_for: str = field(init=False, default="no connection was made")

    async def ask_within(self, timeout_s: float) -> ChatResult:
        """Try until there is an answer, at most `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask()
        except TimeoutError:
            pieces = len(self._answer.pieces)
            seen = f"the answer stopped after {pieces} pieces of text" if pieces else self._waiting_for
            raise ServerUnavailableError(
                f"No whole answer from {self.url} within {timeout_s:g} s; last seen: {seen}. A cold start can take minutes: "
                "raise the timeout, or look at the server's log."
            ) from None

    async def _ask(self) -> ChatResult:
        async with open_async_client(self.url, self.headers) as client:
            return await _until_there(lambda: self._answered(client), self._note_wait)

    def _note_wait(self, reason: str) -> None:
        self._waiting_for = reason
        self.on_wait(reason)

    async def _answered(self, client: httpx.AsyncClient) -> ChatResult:
        if self.body["model"] is None:
            self.body["model"] = await self._first_model(client)
        sent = time.monotonic()
        await self._try_once(client)
        return self._answer.result(self._began, sent, str(self.body["model"]))

    async def _first_model(self, client: httpx.AsyncClient) -> str:
        """The first name that the server lists (OpenAI's API, `GET /v1/models`).

        Raises:
            _TryLaterError: the server is not ready.
            EngineRequestError: it refuses, or lists nothing.
        """
        import httpx  # noqa: PLC0415

        response = await _get(client, self.models_url)
        try:
            return str(response.raise_for_status().json()["data"][0]["id"])
        except (httpx.HTTPStatusError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            said = response.text.strip()[:_QUOTED]
            raise EngineRequestError(
                f"GET {self.models_url} was answered with {response.status_code} and names no model: {said!r}."
                + (next_step_of(response, said) or " Name the served model yourself.")
            ) from error

    async def _try_once(self, client: httpx.AsyncClient) -> None:
        import httpx  # noqa: PLC0415

        request = client.build_request("POST", self.url, json=self.body)
        try:
            for _ in range(_MAX_REDIRECTS):
                response = await client.send(request, stream=True)
                try:
                    following = _redirect(client, response)
                    if following is None:
                        await self._read(response)
                        return
                finally:
                    await response.aclose()
                request = following
        except httpx.InvalidURL as error:
            raise ConfigurationError(f"The server's URL is {self.url!r}: {error}.") from error
        except httpx.TransportError as error:
            if self._answer.pieces:
                raise ServerUnavailableError(
                    f"The answer from {self.url} broke off after {len(self._answer.pieces)} pieces of text: "
                    f"{type(error).__name__}: {error}. The server may have been stopped; ask again."
                ) from error
            _check_means(error, self.url)
            raise _TryLaterError(f"{type(error).__name__}: {error}") from error
        raise ServerUnavailableError(f"{self.url} redirected {_MAX_REDIRECTS} times, at last to {request.url}.")

    async def _read(self, response: httpx.Response) -> None:
        """Read the answer's events.

        Raises:
            _TryLaterError: the server is not ready.
            EngineRequestError: it refuses, or what comes is no stream of chat chunks.
        """
        _check_there(response)
        if response.status_code != _OK:
            said = (await response.aread()).decode(errors="replace").strip()
            raise EngineRequestError(
                f"{response.request.method} {response.request.url} was answered with {response.status_code}: "
                f"{said[:_QUOTED] or 'no text'}" + (f".{step}" if (step := next_step_of(response, said)) else "")
            )
        async for line in _lines(response, self.url):
            if text := self._answer.take(line, self.url):
                self.on_text(text)
            if self._answer.done:
                return
        raise ServerUnavailableError(
            f"The answer from {self.url} ended without its final event, after {len(self._answer.pieces)} pieces of text; "
            f"its last line was {self._answer.last_line[:_QUOTED]!r}."
        )


def next_step_of(response: httpx.Response, said: str) -> str:
    """What mends a refusal of Modal's own door; empty for a refusal of the server."""
    return refused_by_modal(response.status_code, said, sent="Modal-Key" in response.request.headers)


def open_async_client(
    url: str, headers: Mapping[str, str] | None = None, *, transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """A client without a deadline over an answer: that is asyncio's; httpx's own would be one per socket operation.

    Modal's proxy token goes with each request to that server, if the environment holds one; see `torpor.network.modal_keys`.

    Args:
        url: of the server; one on this machine is asked past every proxy.
        headers: sent with each request.
        transport: what carries the requests, in place of sockets.

    Raises:
        ConfigurationError: the environment names a proxy that cannot be used, or holds half a proxy token of Modal.
    """
    import httpx  # noqa: PLC0415 - only asking needs it

    from torpor.network.outward_client import OutwardClient  # noqa: PLC0415
    from torpor.network.proxies import is_loopback  # noqa: PLC0415

    keys = modal_keys()

    def opened(*, trust_env: bool) -> httpx.AsyncClient:
        return OutwardClient(
            transport=transport,
            event_hooks={"request": [sent_to(url, keys)]} if keys else None,
            timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
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
            f"{url} cannot be asked through the proxy that the environment names: {error} Look at HTTP_PROXY, HTTPS_PROXY and "
            "ALL_PROXY, or name the server in NO_PROXY."
        ) from error


async def get_when_there(client: httpx.AsyncClient, url: str, *, on_wait: Callable[[str], None]) -> httpx.Response:
    """GET until somebody answers who is not waking up any more. The deadline is the caller's.

    Args:
        client: of `open_async_client`.
        url: what to get; redirects are followed.
        on_wait: told, in one line, why it waits, whenever the reason changes.

    Raises:
        ConfigurationError: the URL is none.
        ServerUnavailableError: it redirects without end.
    """
    return await _until_there(lambda: _get(client, url), on_wait)


async def _get(client: httpx.AsyncClient, url: str) -> httpx.Response:
    import httpx  # noqa: PLC0415

    try:
        async with client.stream("GET", url, follow_redirects=True) as streamed:
            response = await _bounded(streamed, url)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"The server's URL is {url!r}: {error}.") from error
    except httpx.TooManyRedirects as error:
        raise ServerUnavailableError(f"{url} redirects without end: {error}") from error
    except httpx.TransportError as error:
        _check_means(error, url)
        raise _TryLaterError(f"{type(error).__name__}: {error}") from error
    _check_there(response)
    return response


async def _lines(response: httpx.Response, url: str) -> AsyncIterator[str]:
    """The lines of an answer, of which each has an end and all together, too.

    Raises:
        EngineRequestError: one is longer than any chat chunk, or there are more than any answer has.
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


async def _bounded(streamed: httpx.Response, url: str) -> httpx.Response:
    """The whole answer, which has an end.

    Raises:
        EngineRequestError: it is longer than any that is asked for here.
    """
    import httpx  # noqa: PLC0415

    body = bytearray()
    async for piece in streamed.aiter_bytes():
        body += piece
        if len(body) > _MAX_BODY_BYTES:
            raise EngineRequestError(
                f"GET {url} is answered with more than {_MAX_BODY_BYTES} bytes. Give the URL of a server behind Torpor's guard, "
                "without a path."
            )
    headers = [(name, value) for name, value in streamed.headers.multi_items() if name.lower() not in _FRAMING]
    return httpx.Response(streamed.status_code, headers=headers, content=bytes(body), request=streamed.request)


def _check_means(error: Exception, url: str) -> None:
    """Raise for a request that this process lacks the means for: waiting would not help.

    Raises:
        ServerUnavailableError: it has too few descriptors, for one.
    """
    if shortage(error):
        raise ServerUnavailableError(f"{url} could not be asked: {error}.") from error


def _check_there(response: httpx.Response) -> None:
    """Raise `_TryLaterError` for the answer of a server that is not ready."""
    if response.status_code in _WAITING:
        raise _TryLaterError(
            f"the server answers {response.status_code}", _retry_after(response.headers.get("Retry-After", ""))
        )


async def _until_there(step: Callable[[], Awaitable[T]], on_wait: Callable[[str], None]) -> T:
    """Repeat a step, with pauses that grow, until it no longer says to try later."""
    pause_s, reason = _FIRST_PAUSE_S, ""
    while True:
        try:
            return await step()
        except _TryLaterError as later:
            if str(later) != reason:
                reason = str(later)
                on_wait(reason)
            wanted_s = later.pause_s
        await asyncio.sleep(pause_s if wanted_s is None else wanted_s)
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)


def _redirect(client: httpx.AsyncClient, response: httpx.Response) -> httpx.Request | None:
    """The request to send next, or None when the response is the answer."""
    location = response.headers.get("Location")
    if location is None or not response.is_redirect:
        return None
    target = response.request.url.join(location)
    # As browsers do, and httpx itself: a key is for the host that it was given for.
    foreign = (target.scheme, target.host, target.port) != (
        response.request.url.scheme,
        response.request.url.host,
        response.request.url.port,
    )
    if response.status_code in _KEEPS_METHOD and response.request.method == "POST":
        kind = {"Content-Type": "application/json"}
        request = client.build_request("POST", target, content=response.request.content, headers=kind)
    else:
        request = client.build_request("GET", target)
    if foreign:
        request.headers.pop("Authorization", None)
    return request


def _retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks for (a number, or an HTTP date); None for none."""
    try:
        if value.strip().isdecimal():
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def ask_in_turn(url: str, *, model: str, prompt: str, twice: bool = True, timeout_s: float = 600.0) -> list[ChatResult]:
    """Ask once, or twice with two different system prompts, and print the answers as they come, with their times.

    Raises:
        TorporError: see `chat`.
    """
    print(f"{url} serves {model}", flush=True)
    results = []
    for system in SYSTEM_PROMPTS if twice else SYSTEM_PROMPTS[:1]:
        print(f"\nsystem: {system}\nuser: {prompt}\nassistant: ", end="", flush=True)
        result = chat(url, model=model, prompt=prompt, system=system, timeout_s=timeout_s, on_text=_show, on_wait=_tell)
        print(
            f"\n[time to first token {result.ttft_s:.2f} s, {result.tokens} tokens in {result.total_s:.2f} s]",
            flush=True,
        )
        results.append(result)
    return results


def main(find_url: Callable[[], str], *, model: str, argv: Sequence[str] | None = None) -> None:
    """The command line of an app file that is run as a script: find the server, ask it, print the answers.

    Args:
        find_url: says where the server answers; its errors are this command's.
        model: the served name.
        argv: arguments; those of the process by default.

    Raises:
        SystemExit: it failed; see `errors_told`.
    """
    parser = argparse.ArgumentParser(description="Ask the deployed server and print its answers.")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--twice", action=argparse.BooleanOptionalAction, default=True, help="two system prompts")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for each answer")
    options = parser.parse_args(argv)
    with errors_told():
        ask_in_turn(find_url(), model=model, prompt=options.prompt, twice=options.twice, timeout_s=options.timeout)


@contextlib.contextmanager
def errors_told() -> Iterator[None]:
    """Print one of Torpor's errors as a line and leave with its exit code; `modal run` would show a page of traceback.

    Raises:
        SystemExit: in place of a `TorporError` or Ctrl-C.
    """
    try:
        yield
    except TorporError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _tell(reason: str) -> None:
    print(f"[waiting: {reason}]", file=sys.stderr, flush=True)
