"""Speculative decoding: `Draft` says what guesses the next tokens, which the model then checks all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torpor.errors import ConfigurationError
from torpor.values.field_types import check_types, shown
from torpor.values.model_source import check_source

__all__ = ["DRAFT_METHODS", "Draft", "DraftMethod"]

DraftMethod = Literal["model", "eagle", "eagle3", "ngram"]
"""What guesses.

    model    a small model with the vocabulary of the large one
    eagle    a head that was trained for this model, EAGLE or EAGLE-2
    eagle3   the same, EAGLE-3
    ngram    nothing but the prompt and the answer so far: what followed these tokens before
"""

DRAFT_METHODS: tuple[DraftMethod, ...] = get_args(DraftMethod)
"""All of them."""

_MOST_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What guesses ahead of a model. The answers stay the model's own; a draft changes how fast they come.

    Attributes:
        method: `model`, `eagle`, `eagle3` or `ngram`.
        repo_id: `owner/name` on the Hugging Face hub; give this or `path`, and neither for `ngram`.
        revision: the commit of `repo_id`, 40 hex digits.
        path: a local folder with the draft's weights, in place of `repo_id`.
        tokens: guesses for each step of the model.
    """

    method: DraftMethod = "model"
    repo_id: str | None = None
    revision: str | None = None
    path: str | None = None
    tokens: int = 4

    def __post_init__(self) -> None:
        check_types(self)
        if self.method not in DRAFT_METHODS:
            raise ConfigurationError(
                f"Draft.method is {shown(self.method)}; there are {', '.join(map(repr, DRAFT_METHODS))}."
            )
        if not 1 <= self.tokens <= _MOST_TOKENS:
            raise ConfigurationError(
                f"Draft.tokens is {self.tokens}; a draft guesses 1 to {_MOST_TOKENS} tokens for each step of the model."
            )
        if self.method != "ngram":
            check_source("Draft", "a draft model", repo_id=self.repo_id, revision=self.revision, path=self.path)
        elif given := [name for name in ("repo_id", "revision", "path") if getattr(self, name) is not None]:
            raise ConfigurationError(
                f"Draft.{given[0]} is {shown(getattr(self, given[0]))}, and the method 'ngram' has no weights: leave it out, or "
                f"name another method ({', '.join(repr(method) for method in DRAFT_METHODS if method != 'ngram')})."
            )

    @property
    def source(self) -> str:
        """The repository or the folder; empty for `ngram`."""
        return self.repo_id or self.path or ""
