"""Refuses dangerous public requests before vLLM acts on them.

vLLM itself refuses a caller's template, embeddings and local files unless a flag opens them, and these flags are reserved. It
fetches media from any address, follows redirects, and takes 16384 for `n` (0.32.0 and 0.33.0 envs.py).
"""

from __future__ import annotations

import functools
import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from torpor.launcher import Patch, PublicRequestRules, after_import
from torpor_vllm.fields import FIELDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType

    from torpor.launcher import PublicRequest, RawRequest

__all__ = ["PATCH", "check_pooling", "check_requests", "check_transcriptions"]

_HANDLERS = (
    ("vllm.entrypoints.openai.chat_completion.serving", "OpenAIServingChat", "create_chat_completion"),
    ("vllm.entrypoints.openai.completion.serving", "OpenAIServingCompletion", "create_completion"),
    ("vllm.entrypoints.openai.responses.serving", "OpenAIServingResponses", "create_responses"),
    ("vllm.entrypoints.anthropic.serving", "AnthropicServingMessages", "create_messages"),
    ("vllm.entrypoints.anthropic.serving", "AnthropicServingMessages", "count_tokens"),
    ("vllm.entrypoints.serve.tokenize.serving", "ServingTokenization", "create_tokenize"),
    ("vllm.entrypoints.serve.tokenize.serving", "ServingTokenization", "create_detokenize"),
)
_POOLING = ("vllm.entrypoints.pooling.base.serving", "PoolingBaseServing")
_TRANSCRIPTION = ("vllm.entrypoints.speech_to_text.transcription.serving", "OpenAIServingTranscription")
_TOKENIZING = ("create_tokenize", "create_detokenize")


class _Model(Protocol):
    def get_vocab_size(self) -> int:
        """Return the number of tokens."""


class _Serving(Protocol):
    """The part of vLLM's route handler that this module uses."""

    model_config: _Model

    def create_error_response(
        self, message: str, err_type: str = ..., status_code: HTTPStatus = ..., param: str | None = ...
    ) -> object:
        """Build an answer, by default with status 400."""


def check_requests(module: ModuleType, kind: str, method: str) -> None:
    """Check every request of a route before vLLM handles it."""
    rules = PublicRequestRules.from_environment(FIELDS, os.environ)
    handler = getattr(module, kind)
    original: Callable[[_Serving, PublicRequest, RawRequest | None], Awaitable[object]] = getattr(handler, method)

    @functools.wraps(original)
    async def checked(serving: _Serving, request: PublicRequest, raw_request: RawRequest | None = None) -> object:
        if unknown := rules.unknown_name(request):
            return _not_found(serving, unknown)
        why = _refusal(rules, serving, request, raw_request)
        if not why and method in _TOKENIZING:
            why = rules.tokenizing_refusal(request)
        return serving.create_error_response(why) if why else await original(serving, request, raw_request)

    setattr(handler, method, checked)


def check_pooling(module: ModuleType) -> None:
    """Check every request for vectors, scores and labels. A ValueError becomes an answer with status 400."""
    rules = PublicRequestRules.from_environment(FIELDS, os.environ)
    handler = getattr(module, _POOLING[1])
    original: Callable[[_Serving, PublicRequest, RawRequest | None], Awaitable[object]] = handler.__call__

    @functools.wraps(original)
    async def checked(serving: _Serving, request: PublicRequest, raw_request: RawRequest | None = None) -> object:
        if unknown := rules.unknown_name(request):
            raise _not_found_error(unknown)
        if why := _refusal(rules, serving, request, raw_request):
            raise ValueError(why)
        return await original(serving, request, raw_request)

    handler.__call__ = checked


def check_transcriptions(module: ModuleType) -> None:
    """Check every request for the text of a sound."""
    rules = PublicRequestRules.from_environment(FIELDS, os.environ)
    handler = getattr(module, _TRANSCRIPTION[1])
    original: Callable[[_Serving, bytes, PublicRequest, RawRequest | None], Awaitable[object]]
    original = handler.create_transcription

    @functools.wraps(original)
    async def checked(
        serving: _Serving, audio_data: bytes, request: PublicRequest, raw_request: RawRequest | None = None
    ) -> object:
        if unknown := rules.unknown_name(request):
            return _not_found(serving, unknown)
        if why := _refusal(rules, serving, request, raw_request):
            return serving.create_error_response(why)
        return await original(serving, audio_data, request, raw_request)

    handler.create_transcription = checked


def _refusal(
    rules: PublicRequestRules, serving: _Serving, request: PublicRequest, raw_request: RawRequest | None
) -> str | None:
    return rules.refusal(request, serving.model_config.get_vocab_size(), raw_request.headers if raw_request else None)


def _not_found(serving: _Serving, message: str) -> object:
    return serving.create_error_response(message, "NotFoundError", HTTPStatus.NOT_FOUND, "model")


def _not_found_error(message: str) -> Exception:
    """What vLLM's routes for vectors and scores turn into an answer with status 404; they answer unknown names by the model."""
    from vllm.exceptions import VLLMNotFoundError  # noqa: PLC0415 - the engine's

    error: Exception = VLLMNotFoundError(message)
    return error


def _apply() -> None:
    rules = PublicRequestRules.from_environment(FIELDS, os.environ)
    if rules.media_domains != ("*",):
        os.environ["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] = "0"  # an allowed host leads nowhere else
    for name, kind, method in _HANDLERS:
        after_import(name, functools.partial(check_requests, kind=kind, method=method))
    after_import(_POOLING[0], check_pooling)
    after_import(_TRANSCRIPTION[0], check_transcriptions)


PATCH = Patch(
    name="public-requests",
    reason="a request may name any address that the server then reads, and ask for thousands of answers",
    versions=("0.33.0", "0.32.0"),
    applies=lambda: True,
    apply=_apply,
)
