"""The canary: one greedy answer, recorded before the sleep and compared after every wake.

A wake can fail without an error: with lost weights, stale CUDA graphs or a corrupt KV pool the engine answers fluent nonsense.
A greedy answer of a few tokens takes milliseconds and shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.errors import CanaryError, EngineRequestError

if TYPE_CHECKING:
    import httpx

    from torpor.deployment import Deployment

__all__ = ["Canary", "ask_canary", "compare_canary"]

PROMPT = "Name the months of the year, in order."
MAX_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A greedy answer.

    Attributes:
        prompt: what was asked.
        tokens: number of tokens in the answer, at most `MAX_TOKENS`.
        text: of the answer, reasoning included.
    """

    prompt: str
    tokens: int
    text: str


def ask_canary(deployment: Deployment, client: httpx.Client) -> Canary:
    """Ask for the canary through the engine's chat route.

    Raises:
        EngineRequestError: the engine answered with an error, or not with a chat completion.
    """
    response = client.post(
        "/v1/chat/completions",
        json={
            "model": deployment.model.served_name,
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0.0,
        },
    )
    if response.status_code != 200:  # noqa: PLR2004 - HTTP's own number
        raise EngineRequestError(
            f"The canary request got {response.status_code} from {response.request.url}: {response.text[:500]!r}."
        )
    try:
        answer = response.json()
        message = answer["choices"][0]["message"]
        tokens = int(answer["usage"]["completion_tokens"])
        text = (message.get("reasoning_content") or "") + (message.get("content") or "")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise EngineRequestError(
            f"The canary request got 200, but no chat completion ({type(error).__name__}: {error}): {response.text[:500]!r}."
        ) from error
    return Canary(prompt=PROMPT, tokens=tokens, text=text)


def compare_canary(recorded: Canary, seen: Canary) -> None:
    """Check that the answer is the recorded one.

    Raises:
        CanaryError: the answers differ; the message shows both, and where they begin to differ.
    """
    if seen == recorded:
        return
    common = next(
        (at for at, (old, new) in enumerate(zip(recorded.text, seen.text, strict=False)) if old != new),
        min(len(recorded.text), len(seen.text)),
    )
    raise CanaryError(
        f"After the wake the engine answers {PROMPT!r} differently: recorded {recorded.tokens} tokens {recorded.text!r}, "
        f"now {seen.tokens} tokens {seen.text!r} (they part at character {common}). The memory did not come back as it was; "
        "check that the engine keeps its weights while it sleeps, or loads them again, and that it wakes all that it put to "
        "sleep. canary_mismatch='warn' would let it serve all the same."
    )
