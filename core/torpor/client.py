"""A streaming chat client for a server that may still have to wake up.

    result = chat(url, model="Qwen/Qwen3-8B-FP8", prompt="Why is the sky blue?", on_text=print)

One deadline covers everything: the wait for the server, redirects and the whole answer. If a server has
`requires_proxy_auth`, the client reads Modal's proxy token from the environment: see `torpor.network.modal_keys`.

`PROMPT` is a question for a first try.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from torpor.errors import TorporError
from torpor.network.chat_stream import ChatResult
from torpor.values.addresses import checked_url
from torpor.values.client_keys import API_KEY_VARIABLE, AUTHORIZATION_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["PROMPT", "ChatResult", "ask_in_turn", "chat", "errors_told", "main"]

PROMPT = "Why is the sky blue? Answer in three sentences."
_SYSTEM_PROMPTS = (
    "You are a physicist. Be exact, and give numbers with their units.",
    "You are a poet of the sea. Answer in images, and in few words.",
)

_INTERRUPTED = 130


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
        model: the served name; None for the first one that the server lists at `/v1/models`.
        prompt: the user's message.
        system: the system prompt; None for none.
        max_tokens: longest answer, tokens; None leaves it to the server.
        timeout_s: seconds for everything.
        api_key: bearer key; the default is the variable `TORPOR_API_KEY`.
        on_text: called with each piece of text.
        on_wait: told, in one line, why it waits, whenever the reason changes.

    Raises:
        ConfigurationError: the URL is none.
        ServerUnavailableError: no answer in time, or it broke off.
        EngineRequestError: the server refused the request; its words are in the message.
    """
    from torpor.network.chat_request import ChatRequest  # noqa: PLC0415 - httpx: 53 ms of `from torpor import client`

    request = ChatRequest(
        root=checked_url(url),
        body=_body(model, prompt, system, max_tokens),
        headers=_headers(api_key or os.environ.get(API_KEY_VARIABLE)),
        on_text=on_text or (lambda _: None),
        on_wait=on_wait or (lambda _: None),
    )
    return asyncio.run(request.answered_within(timeout_s))


def _headers(key: str | None) -> dict[str, str]:
    return {AUTHORIZATION_HEADER: f"Bearer {key}"} if key else {}


def _body(model: str | None, prompt: str, system: str | None, max_tokens: int | None) -> dict[str, object]:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    longest = {} if max_tokens is None else {"max_tokens": max_tokens}
    return {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **longest}


def ask_in_turn(url: str, *, model: str, prompt: str, twice: bool = True, timeout_s: float = 600.0) -> list[ChatResult]:
    """Ask once, or twice with two different system prompts, and print the answers as they come, with their times.

    Raises:
        TorporError: see `chat`.
    """
    print(f"{url} serves {model}", flush=True)
    results = []
    for system in _SYSTEM_PROMPTS if twice else _SYSTEM_PROMPTS[:1]:
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
