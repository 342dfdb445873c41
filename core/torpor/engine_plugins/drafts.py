"""Speculative decoding as an engine's flags: which words ask for it, and that only one place does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torpor.deployment import Deployment

__all__ = ["check_draft_words", "draft_findings", "speculative_words"]

_FLAGS = ("--speculative", "-sc")
"""How the flags of vLLM and SGLang begin; vLLM's short form, too."""


def speculative_words(words: Sequence[str]) -> tuple[str, ...]:
    """The flags among words of a command line that ask for speculative decoding."""
    return tuple(word for word in words if word.startswith(_FLAGS))


def check_draft_words(deployment: Deployment, words: Sequence[str], *, giver: str) -> None:
    """Refuse flags for speculative decoding beside `Model.draft`.

    Args:
        deployment: with or without a draft.
        words: flags that somebody gives.
        giver: who, for the message.

    Raises:
        ConfigurationError: names the flag.
    """
    if deployment.model.draft is not None and (given := speculative_words(words)):
        raise ConfigurationError(
            f"{giver} has {given[0].partition('=')[0]}, and Model.draft is set as well: give one of the two. Model.draft is "
            "fetched and checked like the weights; flags are for what it does not have."
        )


def draft_findings(deployment: Deployment, words: Sequence[str], *, giver: str, compares: bool) -> Iterator[Finding]:
    """What is wrong with a deployment's draft, for `plan` and `doctor`.

    Args:
        deployment: with or without a draft.
        words: further flags of the engine.
        giver: who gives those.
        compares: whether the canary can see the acceptance.
    """
    try:
        check_draft_words(deployment, words, giver=giver)
    except ConfigurationError as error:
        yield Finding(level="error", what="draft", seen=str(error), cure="drop one of the two")
    if not compares and (deployment.model.draft is not None or speculative_words(words)):
        yield Finding(
            level="warning",
            what="draft",
            seen="metrics are off, and the canary takes from them how many guesses of the draft are right",
            cure="leave metrics on: with lost draft weights every answer stays right, and only the speed is gone",
        )
