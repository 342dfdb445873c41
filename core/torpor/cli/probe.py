"""`torpor probe`: wait for a server, stream one answer, print its times."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from torpor.cli.terminal import result as write
from torpor.cli.terminal import say
from torpor.client import chat
from torpor.errors import ConfigurationError, EngineRequestError
from torpor.values.bounds import checked_count, checked_seconds
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from torpor.client import ChatResult

__all__ = ["checked_timeout", "key_from", "run_probe"]

_MAX_TOKENS = 1_000_000


def run_probe(
    url: str, *, model: str, prompt: str, max_tokens: int, key_env: str, timeout_s: float, as_json: bool
) -> None:
    """Ask once; stream the answer to standard output, print everything else to standard error.

    Args:
        url: where the server answers, without a path.
        model: the served name; empty for the first that the server lists.
        prompt: the question.
        max_tokens: longest answer, tokens.
        key_env: environment variable with the bearer key; empty for `TORPOR_API_KEY`, if it is set.
        timeout_s: seconds for all of it.
        as_json: print the answer and its times as JSON.

    Raises:
        ConfigurationError: an option is wrong.
        ServerUnavailableError: no answer in time.
        EngineRequestError: the server refuses, or its answer has no text.
    """
    checked_count("--max-tokens", max_tokens, most=_MAX_TOKENS, what="tokens")
    result = chat(
        url,
        model=model or None,
        prompt=prompt,
        max_tokens=max_tokens,
        timeout_s=checked_timeout(timeout_s),
        api_key=key_from(key_env),
        on_text=None if as_json else (lambda text: write(plain(text), end="")),
        on_wait=_say_why,
    )
    if not result.text:
        raise EngineRequestError(f"{url} answered without any text. Allow more tokens: --max-tokens.")
    if as_json:
        write(json.dumps({**asdict(result), "tokens_per_s": _rate(result)}, indent=2))
    else:
        write()
        say(_line(result))


def checked_timeout(timeout_s: float) -> float:
    """A finite, positive deadline.

    Raises:
        ConfigurationError: it is not.
    """
    return checked_seconds("--timeout", timeout_s)


def key_from(variable: str) -> str | None:
    """The bearer key in an environment variable; None without a variable's name.

    Raises:
        ConfigurationError: the variable is not set, or its value does not fit into a header.
    """
    if not variable:
        return None
    key = os.environ.get(variable, "")
    if not key or not all("!" <= letter <= "~" for letter in key):
        seen = "is not set" if not key else "holds other characters than visible ASCII"
        raise ConfigurationError(f"--key-env names {variable!r}, which {seen}. Put the bearer key into it.")
    return key


def _rate(result: ChatResult) -> float | None:
    """Tokens per second after the first one; None for one token, or an answer in one piece."""
    seconds = result.total_s - result.ttft_s
    return (result.tokens - 1) / seconds if result.tokens > 1 and seconds > 0 else None


def _line(result: ChatResult) -> str:
    rate = _rate(result)
    speed = "" if rate is None else f", {rate:.1f} tokens/s"
    return (
        f"{result.model}: first token after {result.ttft_s:.3f} s ({result.waited_s:.3f} s of it waiting for the server), "
        f"{result.tokens} tokens in {result.total_s:.3f} s{speed}"
    )


def _say_why(reason: str) -> None:
    say(f"waiting: {reason}")
