"""The canary of chats: one greedy answer of a few tokens. It takes milliseconds, and shows lost memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.errors import CanaryError, EngineRequestError
from torpor.runtime.recorded_adapters import adapters_problem, adapters_summary, recorded_names
from torpor.values.field_types import shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    import httpx

    from torpor.deployment import Deployment

__all__ = ["KINDS", "MAX_TOKENS", "PROMPT", "TextCanary"]

PROMPT = "Name the months of the year, in order."
MAX_TOKENS = 16
_OK = 200
_SHOWN = 80


class TextCanary:
    """Asks through the engine's chat route. It records `prompt`, `tokens` (of the answer) and `text` (reasoning included).

    Beside them stand `adapters`, if there are any: the same of each, by its name.
    """

    def record(self, deployment: Deployment, client: httpx.Client) -> Mapping[str, object]:
        """Ask each served name once."""
        first, *others = deployment.engine.served_names(deployment, client)
        adapters = {name: self._asked(name, client) for name in others}
        return {**self._asked(first, client), **({"adapters": adapters} if adapters else {})}

    def _asked(self, model: str, client: httpx.Client) -> Mapping[str, object]:
        response = client.post(
            "/v1/chat/completions",
            json={
                "model": model,
                "messages": [{"role": "user", "content": PROMPT}],
                "max_tokens": MAX_TOKENS,
                "temperature": 0.0,
            },
        )
        if response.status_code != _OK:
            raise EngineRequestError(
                f"The canary request to {model!r} got {response.status_code} from {response.request.url}: {response.text[:500]!r}."
            )
        try:
            answer = response.json()
            message = answer["choices"][0]["message"]
            tokens = int(answer["usage"]["completion_tokens"])
            text = (message.get("reasoning_content") or "") + (message.get("content") or "")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise EngineRequestError(
                f"The canary request got 200, but no chat completion ({type(error).__name__}: {error}): {response.text[:500]!r}."
            ) from error
        return {"prompt": PROMPT, "tokens": tokens, "text": text}

    def check(self, recorded: Mapping[str, object], deployment: Deployment, client: httpx.Client) -> None:
        """Ask each recorded name once, and demand the same answer."""
        answers = recorded_names(recorded, deployment)
        for name, one in answers.items():
            if (seen := self._asked(name, client)) != one:
                others = [other for other, answer in answers.items() if other != name and answer == seen]
                self._refuse(name, one, seen, others)

    @staticmethod
    def _refuse(name: str, recorded: Mapping[str, object], seen: Mapping[str, object], others: list[str]) -> NoReturn:
        old_text, new_text = str(recorded["text"]), str(seen["text"])
        common = next(
            (at for at, (old, new) in enumerate(zip(old_text, new_text, strict=False)) if old != new),
            min(len(old_text), len(new_text)),
        )
        raise CanaryError(
            f"After the wake {name!r} answers {PROMPT!r} differently: recorded {recorded['tokens']} tokens {old_text!r}, "
            f"now {seen['tokens']} tokens {new_text!r} (they part at character {common}). "
            f"{f'It answers as {others[0]!r} did: another adapter, or none, is applied. ' if others else ''}"
            "The memory did not come back as it was; check that the engine keeps its weights while it sleeps, or loads them again, "
            "and that it wakes all that it put to sleep. canary_mismatch='warn' would let it serve all the same."
        )

    def problem(self, recorded: Mapping[str, object]) -> str:
        """Every field has its type."""
        return self._problem(recorded) or adapters_problem(recorded, self._problem)

    @staticmethod
    def _problem(recorded: Mapping[str, object]) -> str:
        for name in ("prompt", "text"):
            if not isinstance(recorded.get(name), str):
                return f"{name} is {shown(recorded.get(name))}, not a string"
        if type(recorded.get("tokens")) is not int:
            return f"tokens is {shown(recorded.get('tokens'))}, not a whole number"
        return ""

    def summary(self, recorded: Mapping[str, object]) -> str:
        """The beginning of the answer."""
        text = str(recorded["text"])
        return repr(text[:_SHOWN]) + " ..." * (len(text) > _SHOWN) + adapters_summary(recorded)


KINDS = {"text": TextCanary()}
