"""What a canary gets to compare: log probabilities of tokens from an engine, or the answer to a plugin's own question."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

__all__ = ["CanaryAnswer", "CanaryQuestion", "GeneratedToken", "TokenLogprobs"]


class GeneratedToken(NamedTuple):
    """One token that the engine generated.

    Attributes:
        token: its text or id, as the engine writes it.
        top: log probabilities of the most likely tokens at its place, the largest first.
    """

    token: str
    top: tuple[float, ...]


class TokenLogprobs(NamedTuple):
    """What an engine computed for one prompt and a greedy answer of a few tokens.

    Attributes:
        prompt: the log probability of each token of the prompt after its first one.
        generated: the tokens of the answer.
        acceptance: tokens for each step of the model, where a draft model guesses ahead; None without one.
    """

    prompt: tuple[float, ...]
    generated: tuple[GeneratedToken, ...]
    acceptance: float | None = None


class CanaryAnswer(NamedTuple):
    """The answer to a plugin's own question; it stands in the snapshot's manifest, so it may hold no secret.

    Attributes:
        exact: texts that have to be equal after a wake, e.g. a checksum.
        numbers: finite numbers that may differ as much as those of equal questions before the sleep did.
    """

    exact: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()


class CanaryQuestion(NamedTuple):
    """One question of a plugin's own (`Plugin.canary_questions`).

    Attributes:
        name: its name among the plugin's questions.
        ask: asks the engine through the lifecycle's client, which carries the key of the guard. It gives the same answer each
            time, or raises.
        least_difference: numbers that differ by no more than this are the same.
    """

    name: str
    ask: Callable[[httpx.Client], CanaryAnswer]
    least_difference: float = 1e-3
