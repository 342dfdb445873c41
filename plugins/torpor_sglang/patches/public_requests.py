"""Refuses dangerous public requests before SGLang acts on them.

0.5.6.post2 and 0.5.16 render a caller's `chat_template_kwargs.chat_template` on the event loop: one request with a Jinja loop
stops server and guard. All versions open `file://` and bare paths, fetch media from any address (0.5.23 has
`--allowed-media-domains`, off by default), and accept token ids outside the vocabulary; one of those ends the scheduler.
"""

from __future__ import annotations

import functools
import os
import urllib.request
from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

from torpor import override
from torpor.launcher import ANY_DOMAIN, Patch, PublicRequestRules, after_import
from torpor_sglang.fields import FIELDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType

    from torpor.launcher import PublicRequest, RawRequest

__all__ = [
    "FETCHERS",
    "PATCH",
    "check_downloads",
    "check_messages",
    "check_own_downloads",
    "check_requests",
    "check_responses",
]

_SERVING = "sglang.srt.entrypoints.openai.serving_base"
_RESPONSES = "sglang.srt.entrypoints.openai.serving_responses"
_MESSAGES = "sglang.srt.entrypoints.anthropic.serving"
_NOT_FOUND = 404
_NO_ADAPTERS = "SGLang's Responses API applies no adapters; ask /v1/chat/completions."
_TOKENIZING = ("TokenizeRequest", "DetokenizeRequest")
_MEDIA = "sglang.srt.utils.common"
FETCHERS = tuple(f"sglang.srt.multimodal.processors.{name}" for name in ("inkling", "mimo_v2", "moss_vl"))
"""Processors that fetch media by themselves in 0.5.16; from 0.5.18 on they use `_MEDIA`, and 0.5.6.post2 lacks them."""


class _Model(Protocol):
    vocab_size: int


class _Tokenizer(Protocol):
    model_config: _Model


class _Stored(Protocol):
    """A request of the Responses API."""

    store: bool | None

    @property
    def model_fields_set(self) -> set[str]:
        """The fields that the caller set."""


class _Anthropic(Protocol):
    """The part of the Messages API's handler that this patch uses."""

    openai_serving_chat: _Serving


class _Serving(Protocol):
    """The part of SGLang's route handler that this patch uses."""

    tokenizer_manager: _Tokenizer

    def create_error_response(
        self, message: str, err_type: str = ..., status_code: int = ..., param: str | None = ...
    ) -> object:
        """Build an answer, by default with status 400."""


def check_requests(module: ModuleType) -> None:
    """Check every request of the OpenAI-like routes first (`OpenAIServingBase.handle_request`)."""
    rules = PublicRequestRules.from_environment(FIELDS, os.environ)
    original: Callable[[_Serving, PublicRequest, RawRequest], Awaitable[object]] = (
        module.OpenAIServingBase.handle_request
    )

    @functools.wraps(original)
    async def handle_request(serving: _Serving, request: PublicRequest, raw_request: RawRequest) -> object:
        if unknown := rules.unknown_name(request):
            return _not_found(serving, unknown)
        why = rules.refusal(request, serving.tokenizer_manager.model_config.vocab_size, raw_request.headers)
        if not why and type(request).__name__ in _TOKENIZING:
            why = rules.tokenizing_refusal(request)
        return serving.create_error_response(why) if why else await original(serving, request, raw_request)

    module.OpenAIServingBase.handle_request = handle_request
    if rules.adapters:
        take_names_of_adapters(module, rules)


def take_names_of_adapters(module: ModuleType, rules: PublicRequestRules) -> None:
    """Let a request name an adapter alone, as `/v1/models` lists it: SGLang wants MODEL:ADAPTER, and answers others by MODEL."""
    original: Callable[[object, str], tuple[str, str | None]] = module.OpenAIServingBase._parse_model_parameter  # noqa: SLF001

    @functools.wraps(original)
    def parse(serving: object, model: str) -> tuple[str, str | None]:
        return (rules.served_names[0], model) if model in rules.adapters else original(serving, model)

    module.OpenAIServingBase._parse_model_parameter = parse  # noqa: SLF001


def _not_found(serving: _Serving, message: str) -> object:
    return serving.create_error_response(message, err_type="NotFoundError", status_code=_NOT_FOUND, param="model")


def check_responses(module: ModuleType) -> None:
    """Check every request of the Responses API, and store no answer: the memory would grow for ever."""
    rules = PublicRequestRules.from_environment(FIELDS, os.environ)
    original: Callable[[_Serving, _Stored, RawRequest | None], Awaitable[object]]
    original = module.OpenAIServingResponses.create_responses

    @functools.wraps(original)
    async def create_responses(serving: _Serving, request: _Stored, raw_request: RawRequest | None = None) -> object:
        if unknown := rules.unknown_name(request):
            return _not_found(serving, unknown)
        if getattr(request, "model", None) in rules.adapters:
            return serving.create_error_response(_NO_ADAPTERS)
        headers = raw_request.headers if raw_request else None
        if why := rules.refusal(request, serving.tokenizer_manager.model_config.vocab_size, headers):
            return serving.create_error_response(why)
        request.store = False
        return await original(serving, request, raw_request)

    module.OpenAIServingResponses.create_responses = create_responses


def check_messages(module: ModuleType) -> None:
    """Check every request of the Messages API, which calls the chat route's parts without its check."""
    rules = PublicRequestRules.from_environment(FIELDS, os.environ)
    for method in ("handle_messages", "handle_count_tokens"):
        original: Callable[[_Anthropic, PublicRequest, RawRequest], Awaitable[object]]
        original = getattr(module.AnthropicServing, method)
        setattr(module.AnthropicServing, method, _checked(original, rules))


def _checked(
    original: Callable[[_Anthropic, PublicRequest, RawRequest], Awaitable[object]], rules: PublicRequestRules
) -> Callable[[_Anthropic, PublicRequest, RawRequest], Awaitable[object]]:
    @functools.wraps(original)
    async def checked(serving: _Anthropic, request: PublicRequest, raw_request: RawRequest) -> object:
        if unknown := rules.unknown_name(request):
            return _not_found(serving.openai_serving_chat, unknown)
        vocabulary = serving.openai_serving_chat.tokenizer_manager.model_config.vocab_size
        if why := rules.refusal(request, vocabulary, raw_request.headers):
            return serving.openai_serving_chat.create_error_response(why)
        return await original(serving, request, raw_request)

    return checked


def check_downloads(module: ModuleType) -> None:
    """Check redirects like addresses, or do not follow them."""
    rules = PublicRequestRules.from_environment(FIELDS, os.environ)
    if hasattr(module, "_assert_media_url_allowed"):  # 0.5.23, which calls it at each redirect

        def check(url: str) -> None:
            if why := rules.media_refusal(url):
                raise ValueError(why)

        module._assert_media_url_allowed = check  # type: ignore[attr-defined] # noqa: SLF001 - SGLang's
    elif rules.media_domains != (ANY_DOMAIN,):
        setattr(module, "requests", _NoRedirects(getattr(module, "requests")))  # noqa: B009, B010 - SGLang's, of two versions
        if hasattr(module, "get_mm_http_session"):  # 0.5.16
            session: Callable[[], object] = getattr(module, "get_mm_http_session")  # noqa: B009
            setattr(module, "get_mm_http_session", lambda: _NoRedirects(session()))  # noqa: B010


def check_own_downloads(module: ModuleType) -> None:
    """Let processors that fetch media themselves follow no redirect."""
    if PublicRequestRules.from_environment(FIELDS, os.environ).media_domains == (ANY_DOMAIN,):
        return
    if hasattr(module, "requests"):
        setattr(module, "requests", _NoRedirects(getattr(module, "requests")))  # noqa: B009, B010 - SGLang's
    if hasattr(module, "urllib"):
        request = SimpleNamespace(urlopen=urllib.request.build_opener(_NoRedirectHandler).open)
        setattr(module, "urllib", SimpleNamespace(request=request))  # noqa: B010 - nothing else of it is used


class _NoRedirectHandler(urllib.request.HTTPRedirectHandler):
    """Turns a redirect into an error."""

    @override
    def redirect_request(self, *_: object) -> None:
        """Make no second request."""


class _NoRedirects:
    """The module `requests`, or one of its sessions, which returns a redirect instead of following it."""

    def __init__(self, client: object) -> None:
        self._client = client

    def get(self, url: str, **options: object) -> object:
        """Fetch this address only."""
        get: Callable[..., object] = self._client.get  # type: ignore[attr-defined]
        return get(url, **{**options, "allow_redirects": False})

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)


def _apply() -> None:
    after_import(_SERVING, check_requests)
    after_import(_RESPONSES, check_responses)
    after_import(_MESSAGES, check_messages)
    after_import(_MEDIA, check_downloads)
    for name in FETCHERS:
        after_import(name, check_own_downloads)


PATCH = Patch(
    name="public-requests",
    reason=(
        "a request could contain a template that stops the event loop, files and addresses that the server would read, or a "
        "token id that ends the scheduler"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.18", "0.5.23"),
    applies=lambda: True,
    apply=_apply,
)
