"""Refuses dangerous public requests before vLLM acts on them.

vLLM itself refuses a caller's template, embeddings and local files unless a flag opens them, and these flags are reserved. It
fetches media from any address, follows redirects, and takes 16384 for `n` (0.32.0 and 0.33.0 envs.py).
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Protocol

from torpor.launcher import Patch, PublicRequestRules, after_import
from torpor_vllm.fields import FIELDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType

    from torpor.launcher import PublicRequest, RawRequest

__all__ = ["PATCH", "check_requests"]

_HANDLERS = (
    ("vllm.entrypoints.openai.chat_completion.serving", "OpenAIServingChat", "create_chat_completion"),
    ("vllm.entrypoints.openai.completion.serving", "OpenAIServingCompletion", "create_completion"),
)


class _Model(Protocol):
    def get_vocab_size(self) -> int:
        """Return the number of tokens."""


class _Serving(Protocol):
    """The part of vLLM's route handler that this module uses."""

    model_config: _Model

    def create_error_response(self, message: str) -> object:
        """Build an answer with status 400."""


def check_requests(module: ModuleType, kind: str, method: str) -> None:
    """Check every request of a route before vLLM handles it."""
    rules = PublicRequestRules.from_environment(FIELDS, os.environ)
    handler = getattr(module, kind)
    original: Callable[[_Serving, PublicRequest, RawRequest | None], Awaitable[object]] = getattr(handler, method)

    @functools.wraps(original)
    async def checked(serving: _Serving, request: PublicRequest, raw_request: RawRequest | None = None) -> object:
        headers = raw_request.headers if raw_request else None
        if why := rules.refusal(request, serving.model_config.get_vocab_size(), headers):
            return serving.create_error_response(why)
        return await original(serving, request, raw_request)

    setattr(handler, method, checked)


def _apply() -> None:
    rules = PublicRequestRules.from_environment(FIELDS, os.environ)
    if rules.media_domains != ("*",):
        os.environ["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] = "0"  # an allowed host leads nowhere else
    for name, kind, method in _HANDLERS:
        after_import(name, functools.partial(check_requests, kind=kind, method=method))


PATCH = Patch(
    name="public-requests",
    reason="a request may name any address that the server then reads, and ask for thousands of answers",
    versions=("0.33.0", "0.32.0"),
    applies=lambda: True,
    apply=_apply,
)
