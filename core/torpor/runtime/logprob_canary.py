"""The canary of log probabilities: what the model thinks of every token of a prompt, and of the first tokens of its answer.

A damage can leave a greedy answer as it is and change all others: the most likely token stays the most likely one. Its log
probability does not stay. `benchmarks/canary.py` measures both.

One prompt holds several texts, and is asked by itself: what runs beside a request changes the kernels that work on it, and so
the numbers. Each name that the engine serves is asked, adapters included. How far the numbers of equal questions lie apart is
learnt before the sleep; what is further apart after a wake is a difference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

from torpor.errors import CanaryError, EngineRequestError
from torpor.runtime.canary_tolerance import warn_of_wide
from torpor.telemetry.events import log
from torpor.values.canary_answers import GeneratedToken, TokenLogprobs
from torpor.values.finite import is_finite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import httpx

    from torpor.deployment import Deployment

__all__ = ["KINDS", "PROMPT", "Difference", "LogprobCanary", "difference"]

PROMPT = "\n".join(
    (
        "Name the months of the year, in order.",
        "The quick brown fox jumps over the lazy dog; 3.14159 is close to pi.",
        'def add(a, b):\n    return a + b  # {"ok": true}',
        "Größe, café, 東京, мир: voilà!",
        "A server sleeps in a snapshot and wakes in seconds.",
    )
)
TOKENS, DRAFT_TOKENS = 4, 32
"""Tokens of the answer, without and with a draft model: fewer would not tell how many guesses are right."""
ASKS = 4
"""How often each name is asked before the sleep."""
LEAST_DIFFERENCE = 1e-5
"""Numbers that differ by no more than this are the same: the engine's own arithmetic is coarser."""
SPREADS = 3.0
"""How many times as far apart as equal questions before the sleep the numbers have to be, to be a difference."""
WIDE = 0.1
"""A tolerance, in nats, with which the canary misses a quarter of single damages (`benchmarks/canary.py`); the log warns of it."""
LEAST_ACCEPTANCE = 0.7
"""The share of the recorded acceptance that a draft model has to reach."""
_DIGITS = 6
_MOST_MODELS, _MOST_NUMBERS = 1000, 100_000


class _Recorded(NamedTuple):
    """What was recorded of one name.

    Attributes:
        model: the name.
        tokens: of the answer.
        spread: how far the numbers of equal questions were apart.
        seen: the first answer.
    """

    model: str
    tokens: int
    spread: float
    seen: TokenLogprobs

    @property
    def tolerance(self) -> float:
        """What may lie between the recorded numbers and those after a wake."""
        return max(LEAST_DIFFERENCE, SPREADS * self.spread)


class Difference(NamedTuple):
    """The largest difference of two answers.

    Attributes:
        size: in nats; infinite where one of the two is no number.
        where: the place, for the message.
    """

    size: float
    where: str


class LogprobCanary:
    """Asks through `EnginePlugin.ask_logprobs`. It records the answers of every served name, and how far they were apart."""

    def record(self, deployment: Deployment, client: httpx.Client) -> Mapping[str, object]:
        """Ask several times, each time with an empty prefix cache."""
        names = deployment.engine.served_names(deployment, client)
        learnt = [_learnt(name, deployment, client) for name in names]
        _check_adapters(deployment, learnt)
        return {"prompt": PROMPT, "models": [_written(one) for one in learnt]}

    def check(self, recorded: Mapping[str, object], deployment: Deployment, client: httpx.Client) -> None:
        """Ask once, and demand the same numbers."""
        models = _read(recorded)
        for one in models:
            try:
                seen = deployment.engine.ask_logprobs(
                    deployment, client, model=one.model, prompt=str(recorded["prompt"]), tokens=one.tokens
                )
            except NotImplementedError as error:
                raise CanaryError(
                    f"After the wake {one.model!r} gives no log probabilities, which it gave before its sleep: {error}. Look for "
                    "that name in the engine's log: an adapter may be gone. canary_mismatch='warn' would let it serve all the same."
                ) from error
            except EngineRequestError as error:
                raise EngineRequestError(f"After the wake {one.model!r} gives no answer. {error}") from error
            _compare(one, seen, [other for other in models if other is not one])

    def problem(self, recorded: Mapping[str, object]) -> str:
        """Every field has its type, and every number is finite."""
        try:
            if not isinstance(recorded.get("prompt"), str):
                return "prompt is no string"
            models = [one.model for one in _read(recorded)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return f"models is not what a canary of log probabilities records: {type(error).__name__} {error}"
        return "" if models else "models is empty"

    def summary(self, recorded: Mapping[str, object]) -> str:
        """How many numbers of which names, and the tolerance."""
        return "; ".join(
            f"{one.model}: log probabilities of {len(one.seen.prompt)} + {len(one.seen.generated)} tokens, "
            f"tolerance {one.tolerance:.1g}"
            + (f", acceptance {one.seen.acceptance:.2f}" if one.seen.acceptance else "")
            for one in _read(recorded)
        )


KINDS = {"logprobs": LogprobCanary()}


def _learnt(model: str, deployment: Deployment, client: httpx.Client) -> _Recorded:
    """Ask one name several times."""
    tokens = TOKENS
    first = _asked(model, deployment, client, tokens)
    if first.acceptance is not None:
        tokens = DRAFT_TOKENS
        first = _asked(model, deployment, client, tokens)
    others = [_asked(model, deployment, client, tokens) for _ in range(ASKS - 1)]
    spread = max(difference(first, other).size for other in others)
    if not math.isfinite(spread):
        raise EngineRequestError(
            f"The canary asked {model!r} the same {ASKS} times before the sleep, and the answers cannot be compared: "
            f"{difference(first, others[-1]).where}. An engine whose answers are no numbers cannot be checked after a wake."
        )
    recorded = _Recorded(model, tokens, spread, first)
    warn_of_wide(recorded.tolerance, WIDE, deployment=deployment.name, question=model)
    return recorded


def _asked(model: str, deployment: Deployment, client: httpx.Client, tokens: int) -> TokenLogprobs:
    deployment.engine.forget_prompts(client)
    answer = deployment.engine.ask_logprobs(deployment, client, model=model, prompt=PROMPT, tokens=tokens)
    if not answer.prompt or not answer.generated or not all(map(math.isfinite, _numbers(answer))):
        raise EngineRequestError(
            f"The canary asked {model!r}, and the engine gave {len(answer.prompt)} log probabilities of the prompt and "
            f"{len(answer.generated)} generated tokens; all have to be finite numbers. The model is broken before its sleep."
        )
    return answer


def _check_adapters(deployment: Deployment, learnt: Sequence[_Recorded]) -> None:
    """Demand that each adapter answers otherwise than the model and than each other adapter, before any sleep.

    Raises:
        EngineRequestError: one does not, and `canary_mismatch` is `fail`.
    """
    for place, one in enumerate(learnt):
        for other in learnt[:place] if one.model in deployment.model.adapters else ():
            if difference(one.seen, other.seen).size > max(one.tolerance, other.tolerance):
                continue
            seen = (
                f"The adapter {one.model!r} answers like {other.model!r}: the log probabilities of both are equal. The engine does "
                "not apply it, or it changes nothing: look for its name in the engine's log, and whether it was trained."
            )
            if deployment.canary_mismatch == "fail":
                raise EngineRequestError(f"{seen} canary_mismatch='warn' would let it serve all the same.")
            log("warning", "adapter_without_effect", deployment=deployment.name, adapter=one.model, detail=seen)


def _compare(recorded: _Recorded, seen: TokenLogprobs, others: Sequence[_Recorded]) -> None:
    found = difference(recorded.seen, seen)
    if not found.size <= recorded.tolerance:
        like = next((other.model for other in others if difference(other.seen, seen).size <= other.tolerance), None)
        raise CanaryError(
            f"After the wake {recorded.model!r} has other log probabilities than before its sleep: {found.where}. Equal questions "
            f"before the sleep were at most {recorded.spread:.2g} apart, and {recorded.tolerance:.2g} is allowed. "
            f"{f'It answers as {like!r} did: another adapter, or none, is applied. ' if like else ''}The memory did "
            "not come back as it was; check that the engine keeps its weights while it sleeps, or loads them again, and that it "
            "wakes all that it put to sleep. canary_mismatch='warn' would let it serve all the same."
        )
    least = LEAST_ACCEPTANCE * (recorded.seen.acceptance or 0.0)
    if seen.acceptance is not None and seen.acceptance < least:
        raise CanaryError(
            f"After the wake the draft model of {recorded.model!r} guesses worse: {seen.acceptance:.2f} tokens for each step, "
            f"{recorded.seen.acceptance:.2f} before the sleep, and at least {least:.2f} are wanted. Its weights did not come back: "
            "keep them while the engine sleeps. canary_mismatch='warn' would let it serve all the same, slowly."
        )
    if seen.acceptance is None and recorded.seen.acceptance is not None:
        raise CanaryError(f"After the wake {recorded.model!r} answers without its draft model. Take a new snapshot.")


def difference(one: TokenLogprobs, other: TokenLogprobs) -> Difference:
    """The largest difference. After two equally likely tokens the answers part, and what follows says nothing."""
    lengths = [(len(answer.prompt), len(answer.generated)) for answer in (one, other)]
    if lengths[0] != lengths[1]:
        was, now = ("%d log probabilities of the prompt and %d generated tokens" % length for length in lengths)  # noqa: UP031
        return Difference(math.inf, f"it had {was}, and now {now}")
    largest = Difference(0.0, "")
    for place, old, new in _places(one, other):
        size = abs(old - new)
        if not size <= largest.size:  # not a number counts as the largest difference
            largest = Difference(size if size == size else math.inf, f"{place} had {old:.6g}, and now {new:.6g}")  # noqa: PLR0124
    return largest


def _places(one: TokenLogprobs, other: TokenLogprobs) -> Iterator[tuple[str, float, float]]:
    """Pairs of numbers that belong together, with their place."""
    for number, (old, new) in enumerate(zip(one.prompt, other.prompt, strict=True), start=2):
        yield f"token {number} of the prompt", old, new
    for number, (was, now) in enumerate(zip(one.generated, other.generated, strict=True), start=1):
        for rank, (old, new) in enumerate(zip(was.top, now.top, strict=False), start=1):
            yield f"choice {rank} for token {number} of the answer", old, new
        if was.token != now.token:
            return


def _numbers(answer: TokenLogprobs) -> Iterator[float]:
    yield from answer.prompt
    for token in answer.generated:
        yield from token.top


def _written(one: _Recorded) -> dict[str, object]:
    """The record as JSON."""
    return {
        "model": one.model,
        "tokens": one.tokens,
        "spread": one.spread,
        "prompt": [round(number, _DIGITS) for number in one.seen.prompt],
        "generated": [
            {"token": token.token, "top": [round(number, _DIGITS) for number in token.top]}
            for token in one.seen.generated
        ],
        "acceptance": one.seen.acceptance,
    }


def _read(recorded: Mapping[str, object]) -> list[_Recorded]:
    """The records from JSON.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is not what `_written` wrote.
    """
    models = cast("Sequence[Mapping[str, object]]", recorded["models"])
    if not isinstance(models, list) or len(models) > _MOST_MODELS:
        raise TypeError("it is no list of models")
    return [_read_one(one) for one in models]


def _read_one(one: Mapping[str, object]) -> _Recorded:
    model, tokens, acceptance = one["model"], one["tokens"], one["acceptance"]
    if not isinstance(model, str) or type(tokens) is not int or not 1 <= tokens <= _MOST_NUMBERS:
        raise TypeError("model is a name, tokens a whole number from 1 on")
    generated = cast("Sequence[Mapping[str, object]]", one["generated"])
    if not isinstance(generated, list):
        raise TypeError("generated is a list of tokens")
    seen = TokenLogprobs(
        _finite(one["prompt"]),
        tuple(GeneratedToken(str(token["token"]), _finite(token["top"])) for token in generated),
        None if acceptance is None else _finite([acceptance])[0],
    )
    return _Recorded(model, tokens, _finite([one["spread"]])[0], seen)


def _finite(numbers: object) -> tuple[float, ...]:
    if not isinstance(numbers, list) or len(numbers) > _MOST_NUMBERS:
        raise TypeError("a list of numbers is wanted")
    for number in numbers:
        if not is_finite(number):
            raise ValueError(f"{number!r} is no finite number")
    return tuple(map(float, numbers))
