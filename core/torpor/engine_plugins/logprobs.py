"""Log probabilities by the OpenAI completions route: `echo` gives those of the prompt, with those of the answer in one list."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from torpor.errors import EngineRequestError
from torpor.values.canary_answers import GeneratedToken, TokenLogprobs
from torpor.values.finite import is_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import httpx

__all__ = ["TOP_CHOICES", "ask_completion", "finite_or_nan", "listed_names", "read_logprobs"]

TOP_CHOICES = 5
"""How many choices for each token of the answer are compared."""
_OK, _BAD_REQUEST = 200, 400


def ask_completion(client: httpx.Client, *, model: str, prompt: str, tokens: int, engine: str) -> TokenLogprobs:
    """Ask `/v1/completions` for a prompt's log probabilities and a greedy answer.

    Args:
        client: bound to the engine, with the lifecycle key.
        model: the name to ask.
        prompt: plain text.
        tokens: length of the answer.
        engine: the engine's name, for messages.

    Raises:
        NotImplementedError: the engine refuses to give any, as it is configured.
        EngineRequestError: the engine gave any other answer.
    """
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "echo": True,
        "logprobs": TOP_CHOICES,
    }
    return read_logprobs(_read, client.post("/v1/completions", json=body), engine=engine)


def read_logprobs(read: Callable[[object], TokenLogprobs], response: httpx.Response, *, engine: str) -> TokenLogprobs:
    """Read an engine's answer.

    Args:
        read: takes the answer's JSON apart.
        response: the engine's.
        engine: its name, for messages.

    Raises:
        NotImplementedError: the engine refuses to give any, as it is configured; its status is 400.
        EngineRequestError: its status is another one, or it holds no log probabilities.
    """
    path = response.request.url.path
    if response.status_code == _BAD_REQUEST:
        raise NotImplementedError(f"{engine}'s {path} refuses log probabilities with 400: {response.text[:500]!r}")
    if response.status_code != _OK:
        raise EngineRequestError(
            f"The canary request got {response.status_code} from {engine}'s {path}: {response.text[:500]!r}."
        )
    try:
        return read(response.json())
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise EngineRequestError(
            f"The canary request got 200 from {engine}'s {path}, but no log probabilities "
            f"({type(error).__name__}: {error}): {response.text[:500]!r}."
        ) from error


def _read(answer: object) -> TokenLogprobs:
    fields = cast("Mapping[str, object]", answer)
    choice = cast("Sequence[Mapping[str, object]]", fields["choices"])[0]
    logprobs = cast("Mapping[str, Sequence[object]]", choice["logprobs"])
    length = cast("int", cast("Mapping[str, object]", fields["usage"])["prompt_tokens"])
    tops = cast("Sequence[Mapping[str, object]]", logprobs["top_logprobs"])[length:]
    return TokenLogprobs(
        tuple(finite_or_nan(number) for number in logprobs["token_logprobs"][1:length]),
        tuple(
            GeneratedToken(str(token), tuple(sorted(map(finite_or_nan, top.values()), reverse=True)[:TOP_CHOICES]))
            for token, top in zip(logprobs["tokens"][length:], tops, strict=True)
        ),
    )


def finite_or_nan(number: object) -> float:
    """A number of an engine's answer; engines write null for what is none."""
    return float(number) if is_finite(number) else math.nan


def listed_names(response: httpx.Response, wanted: Sequence[str]) -> tuple[str, ...]:
    """The names in an answer of `/v1/models`, the deployment's own first.

    Args:
        response: the engine's.
        wanted: what it has to list: the model's own name, then its adapters'.

    Raises:
        EngineRequestError: it is no list of models, or lacks one of these.
    """
    try:
        names = [str(model["id"]) for model in response.json()["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        names = []
    missing = [name for name in wanted if name not in names]
    if response.status_code != _OK or missing:
        raise EngineRequestError(
            f"The engine answered GET /v1/models with {response.status_code} {response.text[:500]!r}; it has to list "
            f"{', '.join(map(repr, missing or wanted))}."
        )
    return (*wanted, *(name for name in dict.fromkeys(names) if name not in wanted))
