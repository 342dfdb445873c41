"""A streaming chat client for a server that may still have to wake up.

    result = chat(url, model="Qwen/Qwen3-8B-FP8", prompt="Why is the sky blue?", on_text=print)

One deadline covers everything: the wait for the server, redirects and the whole answer. If a server has
`requires_proxy_auth`, the client reads Modal's proxy token from the environment: see `torpor.network.modal_keys`.

`ask` asks a server of another task: an embedding, a ranking, scores, labels, a completion or a transcription.

    vectors = ask(url, task="embed", texts=["a river", "a lake"]).answer["vectors"]

`PROMPT` is a question for a first try.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor import network
from torpor.errors import ConfigurationError, EngineRequestError, TorporError
from torpor.network.chat_stream import ChatResult
from torpor.tasks.answers import read_answer
from torpor.tasks.questions import question
from torpor.tasks.routes import DIALECTS, TASKS
from torpor.values.addresses import checked_url
from torpor.values.client_keys import API_KEY_VARIABLE, AUTHORIZATION_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torpor.network.task_request import TaskExchange
    from torpor.tasks.routes import Task

__all__ = ["PROMPT", "ChatResult", "TaskResult", "ask", "ask_in_turn", "chat", "errors_told", "main"]

PROMPT = "Why is the sky blue? Answer in three sentences."
"""A question for a first try."""

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
    connect_s: float | None = None,
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
        connect_s: seconds after which an address where nothing listens is given up; None for all of `timeout_s`.
        api_key: bearer key; the default is the variable `TORPOR_API_KEY`.
        on_text: called with each piece of text.
        on_wait: told, in one line, why it waits, whenever the reason changes.

    Raises:
        ConfigurationError: the URL is none.
        ServerUnavailableError: no answer in time, or it broke off.
        EngineRequestError: the server refused the request; its words are in the message.
    """
    request = network.ChatRequest(
        root=checked_url(url),
        body=_body(model, prompt, system, max_tokens),
        headers=_headers(api_key or os.environ.get(API_KEY_VARIABLE)),
        on_text=on_text or (lambda _: None),
        on_wait=on_wait or (lambda _: None),
    )
    return asyncio.run(request.answered_within(timeout_s, connect_s))


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One answer of a task other than `chat`.

    Attributes:
        answer: what it says, by `torpor.tasks.answers`: `text`, `vectors`, `order` and `scores`, or `labels` and `scores`.
        total_s: seconds from the call to the whole answer, waiting for the server included.
        waited_s: seconds from the call until the request was sent that got the answer.
        model: the served name that was asked.
    """

    answer: Mapping[str, object]
    total_s: float
    waited_s: float
    model: str


def ask(
    url: str,
    *,
    task: Task,
    texts: Sequence[str] = (),
    query: str = "",
    sound: bytes = b"",
    model: str | None = None,
    timeout_s: float = 600.0,
    connect_s: float | None = None,
    api_key: str | None = None,
    on_wait: Callable[[str], None] | None = None,
    fields: Mapping[str, object] | None = None,
) -> TaskResult:
    """Ask a server of a task other than `chat` once.

    Args:
        url: where the server answers, without a path.
        task: `generate`, `embed`, `rerank`, `score`, `classify` or `transcribe`.
        texts: the prompt of `generate`, inputs of `embed` and `classify`, documents of `rerank`, texts of `score`.
        query: what `rerank` and `score` compare the texts with.
        sound: a sound file, for `transcribe`.
        model: the served name; None for the first one that the server lists at `/v1/models`.
        timeout_s: seconds for everything.
        connect_s: seconds after which an address where nothing listens is given up; None for all of `timeout_s`.
        api_key: bearer key; the default is the variable `TORPOR_API_KEY`.
        on_wait: told, in one line, why it waits, whenever the reason changes.
        fields: further fields of the request, e.g. `{"max_tokens": 8}`.

    Raises:
        ConfigurationError: the URL is none, or what the task needs is missing.
        ServerUnavailableError: no answer in time.
        EngineRequestError: the server refused the request, or answered something else.
    """
    _check_question(task, texts, query, sound)
    asked = {"texts": texts, "query": query, "sound": sound, **(fields or {})}
    exchange = _exchange(checked_url(url), task, asked, model)
    exchange.headers = _headers(api_key or os.environ.get(API_KEY_VARIABLE))
    exchange.on_wait, exchange.connect_s = on_wait or exchange.on_wait, connect_s
    return _answered(exchange, task, timeout_s)


def _exchange(url: str, task: Task, asked: Mapping[str, object], model: str | None) -> TaskExchange:
    return network.TaskExchange(
        root=url,
        requests=lambda name: [question(task, route, model=name, **asked) for route in DIALECTS[task]],  # type: ignore[arg-type] # of `ask`
        model=model,
    )


def _answered(exchange: TaskExchange, task: Task, timeout_s: float) -> TaskResult:
    began = time.monotonic()
    payload = asyncio.run(exchange.answered_within(timeout_s))
    try:
        answer = read_answer(task, payload)
    except ValueError as error:
        raise EngineRequestError(
            f"{exchange.root} sent no answer of the task {task!r} ({error}): {str(payload)[:500]!r}."
        ) from error
    return TaskResult(
        answer=answer, total_s=time.monotonic() - began, waited_s=exchange.waited_s, model=str(exchange.model)
    )


def _check_question(task: str, texts: Sequence[str], query: str, sound: bytes) -> None:
    if task not in TASKS or task == "chat":
        others = ", ".join(repr(one) for one in TASKS if one != "chat")
        raise ConfigurationError(f"task is {task!r}; `ask` takes {others}, and `chat` is for chats.")
    if isinstance(texts, str):
        raise ConfigurationError("texts is one text; give a list of texts, e.g. texts=['a river'].")
    if task == "transcribe" and not sound:
        raise ConfigurationError("The task 'transcribe' needs a sound: give the bytes of a sound file, sound=...")
    if task != "transcribe" and not texts:
        raise ConfigurationError(f"The task {task!r} needs texts: give at least one, texts=[...].")
    if task == "generate" and len(texts) > 1:
        raise ConfigurationError(f"The task 'generate' takes one prompt, not {len(texts)}.")
    if task in ("rerank", "score") and not query:
        raise ConfigurationError(f"The task {task!r} needs a query to compare the texts with: query=...")


def _headers(key: str | None) -> dict[str, str]:
    return {AUTHORIZATION_HEADER: f"Bearer {key}"} if key else {}


def _body(model: str | None, prompt: str, system: str | None, max_tokens: int | None) -> dict[str, object]:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    longest = {} if max_tokens is None else {"max_tokens": max_tokens}
    return {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **longest}


def ask_in_turn(
    url: str,
    *,
    model: str,
    prompt: str,
    twice: bool = True,
    timeout_s: float = 600.0,
    connect_s: float | None = network.CONNECT_S,
) -> list[ChatResult]:
    """Ask once, or twice with two different system prompts, and print the answers as they come, with their times.

    Raises:
        TorporError: see `chat`.
    """
    print(f"{url} serves {model}", flush=True)
    results = []
    for system in _SYSTEM_PROMPTS if twice else _SYSTEM_PROMPTS[:1]:
        print(f"\nsystem: {system}\nuser: {prompt}\nassistant: ", end="", flush=True)
        result = chat(
            url,
            model=model,
            prompt=prompt,
            system=system,
            timeout_s=timeout_s,
            connect_s=connect_s,
            on_text=_show,
            on_wait=_tell,
        )
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
