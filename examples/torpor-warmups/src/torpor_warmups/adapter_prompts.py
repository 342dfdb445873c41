"""`AdapterPrompts`: asks each LoRA adapter a prompt of its own trade, before the snapshot and after every wake."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from torpor import (
    CanaryAnswer,
    CanaryQuestion,
    ConfigurationError,
    Finding,
    Plugin,
    check_types,
    hookimpl,
    override,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx
    from torpor import Deployment, Engine

__all__ = ["AdapterPrompts"]


@dataclass(frozen=True, kw_only=True)
class AdapterPrompts(Plugin):
    """Warms up each adapter of `Model.adapters` with a prompt of its own, and has its answer compared after every wake.

    Core asks every adapter one fixed prompt of prose and code. An adapter that was trained for something else may hardly change
    the answer to that; it changes the answer to a prompt as it will really get them.

    Attributes:
        prompts: pairs of an adapter's name and a prompt for it.
        tokens: of each answer that is compared.
    """

    plugin_name: ClassVar[str] = "adapter_prompts"

    prompts: tuple[tuple[str, str], ...]
    tokens: int = 16

    def __post_init__(self) -> None:
        check_types(self)
        names = [name for name, _ in self.prompts]
        if not names or len(set(names)) < len(names) or not all(prompt.strip() for _, prompt in self.prompts):
            raise ConfigurationError(
                f"AdapterPrompts.prompts is {shown(self.prompts)}; give one prompt or more, one for each adapter."
            )
        if self.tokens < 1:
            raise ConfigurationError(f"AdapterPrompts.tokens is {self.tokens}; the lowest allowed value is 1.")

    @override
    def check(self, deployment: Deployment) -> Iterator[Finding]:
        there = deployment.model.adapters
        if unknown := [name for name, _ in self.prompts if name not in there]:
            yield Finding(
                level="error",
                what="adapters",
                seen=f"AdapterPrompts has a prompt for {', '.join(unknown)}, and Model.adapters has {', '.join(there) or 'none'}",
                cure="write the name of an adapter of the model",
            )

    @hookimpl
    @override
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        for name, prompt in self.prompts:
            self._ask(name, prompt, client)

    @override
    def canary_questions(self, deployment: Deployment) -> Iterator[CanaryQuestion]:
        for name, prompt in self.prompts:
            yield CanaryQuestion(name=f"adapter {name}", ask=partial(self._ask, name, prompt))

    def _ask(self, name: str, prompt: str, client: httpx.Client) -> CanaryAnswer:
        """One greedy answer: its tokens and their log probabilities, or its text where the engine gives none."""
        body = {
            "model": name,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.tokens,
            "temperature": 0,
            "logprobs": True,
        }
        answer = client.post("/v1/chat/completions", json=body)
        choice = answer.raise_for_status().json()["choices"][0]
        told = (choice.get("logprobs") or {}).get("content") or []
        if not told:
            return CanaryAnswer(exact=(str(choice["message"]["content"]),))
        return CanaryAnswer(
            exact=tuple(str(token["token"]) for token in told),
            numbers=tuple(float(token["logprob"]) for token in told),
        )
