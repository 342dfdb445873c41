"""Decides what a public request may carry, in the engine's process, before the engine acts on the request.

The guard reads no body. These rules see a request after the engine has parsed it and before anything else happens. Each
engine's plugin lists its request fields (`fields.py`); its launcher calls `refusal` for every public request.

The plugin's options set environment variables, which are read once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "ALLOWED_FIELDS_VARIABLE",
    "ANY_DOMAIN",
    "MAX_CHOICES",
    "MAX_CHOICES_VARIABLE",
    "MAX_INPUTS",
    "MAX_INPUTS_VARIABLE",
    "MEDIA_DOMAINS_VARIABLE",
    "REFUSED_FIELDS_VARIABLE",
    "SERVED_NAMES_VARIABLE",
    "PublicRequestRules",
    "RawRequest",
    "RequestFields",
]

MEDIA_DOMAINS_VARIABLE = "TORPOR_MEDIA_DOMAINS"
"""Set by Torpor from the engine plugin's options: hosts from which media may be fetched, separated by commas; `*` allows all."""
MAX_CHOICES_VARIABLE = "TORPOR_MAX_CHOICES"
"""Set by Torpor from the engine plugin's options: answers that one request may ask for (`n` or `best_of` times its prompts)."""
MAX_INPUTS_VARIABLE = "TORPOR_MAX_INPUTS"
"""Set by Torpor from the engine plugin's options: texts that one request of another task than chat may hold."""
ALLOWED_FIELDS_VARIABLE = "TORPOR_ALLOWED_FIELDS"
"""Set by Torpor from the engine plugin's options: request fields that are otherwise refused, separated by commas."""
REFUSED_FIELDS_VARIABLE = "TORPOR_REFUSED_FIELDS"
"""Set by Torpor from the engine plugin's options: further request fields that are refused, separated by commas."""
SERVED_NAMES_VARIABLE = "TORPOR_SERVED_NAMES"
"""Set by Torpor for a model with adapters: its name and theirs, as JSON; a request for another name is refused."""
MAX_CHOICES = 128
MAX_INPUTS = 2048  # what OpenAI's embeddings take
MAX_TOKENIZED = 1 << 20  # letters or ids for /tokenize and /detokenize, which SGLang does on the server's event loop
MAX_LOGPROBS = 20
MAX_GRAMMAR_LETTERS = 64 * 1024
MAX_SCHEMA_DEPTH = 64
MAX_SCHEMA_PARTS = 50_000
MAX_STOPS = 128
MAX_STOP_LETTERS = 4096
MAX_BIASES = 1024
MAX_BIAS = 10_000.0  # finite in 16 bits; more than any model's logits differ
ANY_DOMAIN = "*"
"""Allows media from every host."""
_SHOWN_LETTERS, _SHOWN_NAMES = 200, 50

_TEMPLATE_ARGUMENTS = (
    "chat_template",
    "conversation",
    "max_length",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
)
"""Arguments of transformers' `apply_chat_template` that are not template variables: code, sizes, result formats."""
_TOKEN_LISTS = (
    "allowed_token_ids",
    "documents",
    "input",
    "input_ids",
    "items",
    "label_token_ids",
    "logprob_token_ids",
    "query",
    "stop_token_ids",
    "tokens",
)
_INPUTS = ("data_1", "data_2", "documents", "input", "items", "queries", "text_1", "text_2")
"""Lists of texts, or of lists of token ids, that each cost a forward pass."""
_HOLDING_MEDIA = ("messages", "query", "system", *_INPUTS)
_LOGPROBS = ("logprobs", "top_logprobs", "prompt_logprobs")
_MAX_INTEGER = 2**31 - 1
_MAX_SEED = 2**63 - 1
_MAX_FLOAT = 1e30  # a float of 32 bits ends at 3.4e38
_GRAMMARS = ("regex", "ebnf", "json_schema", "output_config", "response_format", "structured_outputs", "text", "tools")
_MEDIA_TYPES = ("image", "video", "audio", "file")


@dataclass(frozen=True, kw_only=True)
class RequestFields:
    """A decision for every field of an engine's public requests, in all supported versions.

    Args:
        plain: harmless fields: they can only slow down the caller's own request, or make it fail.
        bounded: fields that `PublicRequestRules` checks.
        refused: fields that public callers may not use; pairs of a reason and its fields.
        plain_headers: harmless headers of the engine, in lower case.
        refused_headers: headers with the effect of a refused field; pairs of a reason and its headers.
    """

    plain: tuple[str, ...]
    bounded: tuple[str, ...]
    refused: tuple[tuple[str, tuple[str, ...]], ...]
    plain_headers: tuple[str, ...] = ()
    refused_headers: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def all(self) -> tuple[str, ...]:
        """Every field."""
        return (*self.plain, *self.bounded, *(name for _, names in self.refused for name in names))


class RawRequest(Protocol):
    """A Starlette request."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; names in any case."""


class PublicRequest(Protocol):
    """A request parsed by pydantic."""

    @property
    def model_fields_set(self) -> set[str]:
        """The fields that the caller set."""


@dataclass(frozen=True, kw_only=True)
class PublicRequestRules:
    """The refused fields and headers, and the limits.

    Args:
        refused: fields, each with the reason.
        refused_headers: headers, each with the reason.
        media_domains: hosts from which media may be fetched; `*` allows all.
        max_choices: answers that one request may ask for.
        max_inputs: texts that one request may hold, for tasks other than chat.
        served_names: of a model with adapters: its own name first; empty for a model without.
    """

    refused: Mapping[str, str]
    refused_headers: Mapping[str, str]
    media_domains: tuple[str, ...] = ()
    max_choices: int = MAX_CHOICES
    max_inputs: int = MAX_INPUTS
    served_names: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, fields: RequestFields, environ: Mapping[str, str]) -> PublicRequestRules:
        """The rules for an engine's fields and this process's environment."""
        allowed = _words(environ.get(ALLOWED_FIELDS_VARIABLE, ""))
        refused = {name: why for why, names in fields.refused for name in names if name not in allowed}
        refused |= dict.fromkeys(_words(environ.get(REFUSED_FIELDS_VARIABLE, "")), "this deployment does not take it")
        return cls(
            refused=refused,
            refused_headers={
                name: why for why, names in fields.refused_headers for name in names if name not in allowed
            },
            media_domains=_words(environ.get(MEDIA_DOMAINS_VARIABLE, "").lower()),
            max_choices=int(environ.get(MAX_CHOICES_VARIABLE, "") or MAX_CHOICES),
            max_inputs=int(environ.get(MAX_INPUTS_VARIABLE, "") or MAX_INPUTS),
            served_names=tuple(json.loads(environ.get(SERVED_NAMES_VARIABLE, "") or "[]")),
        )

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the model's adapters."""
        return self.served_names[1:]

    def unknown_name(self, request: PublicRequest) -> str | None:
        """Why the model that a request names is not served; None if it is, or if none is named.

        Only of a model with adapters: an engine may answer an unknown name by the model itself.
        """
        name = getattr(request, "model", None) if "model" in request.model_fields_set else None
        if not self.served_names or not name or name in self.served_names:
            return None
        shown = f"{name[:_SHOWN_LETTERS]!r}" if isinstance(name, str) else f"a {type(name).__name__}"
        there = ", ".join(self.served_names[:_SHOWN_NAMES])
        more = f" and {len(self.served_names) - _SHOWN_NAMES} more" if len(self.served_names) > _SHOWN_NAMES else ""
        return f"The model {shown} does not exist; there are: {there}{more}."

    def refusal(self, request: PublicRequest, vocabulary: int, headers: Mapping[str, str] | None = None) -> str | None:
        """Why a request is refused; None if it may pass.

        Args:
            request: the parsed request.
            vocabulary: number of the model's tokens.
            headers: the request's headers.
        """
        return (
            self._refused_field(request)
            or self._refused_header(headers or {})
            or _template_refusal(request)
            or self._choices_refusal(request)
            or self._inputs_refusal(request)
            or _token_refusal(request, vocabulary)
            or _logprobs_refusal(request)
            or _number_refusal(request)
            or _list_refusal(request)
            or _grammar_refusal(request)
            or self._media_refusal(request)
        )

    def tokenizing_refusal(self, request: PublicRequest) -> str | None:
        """Why a request for the tokenizer alone is refused, besides `refusal`: it would hold up the event loop."""
        for name in ("prompt", "tokens"):
            size = _letters(getattr(request, name, None))
            if size > MAX_TOKENIZED:
                return f"{name} may have {MAX_TOKENIZED} letters or token ids, not {size}."
        return None

    def media_refusal(self, url: str) -> str | None:
        """Why media from this address is refused; None for data: URLs and allowed hosts."""
        if url.startswith("data:"):
            return None
        if not url.startswith(("http://", "https://")):
            return "Media has to be a data: URL or come from an allowed host by http(s); this server opens no files."
        if self.media_domains == (ANY_DOMAIN,):
            return None
        host = _host(url)
        if host is None or host not in self.media_domains:
            allowed = ", ".join(self.media_domains) or "none"
            return (
                f"Media is not fetched from {host or 'this address'}; allowed hosts: {allowed}. Send it as a data: URL."
            )
        return None

    def _refused_field(self, request: PublicRequest) -> str | None:
        for name in request.model_fields_set:
            if name in self.refused and getattr(request, name, None) not in (None, False):
                return f"The field {name} is refused: {self.refused[name]}."
        return None

    def _refused_header(self, headers: Mapping[str, str]) -> str | None:
        for name, why in self.refused_headers.items():
            if name in headers:
                return f"The header {name} is refused: {why}."
        return None

    def _choices_refusal(self, request: PublicRequest) -> str | None:
        each = max(_number(request, "n"), _number(request, "best_of"))
        asked = each * _prompts(getattr(request, "prompt", None))
        if asked > self.max_choices:
            return f"One request may ask for {self.max_choices} answers (n times prompts), not {asked}."
        return None

    def _inputs_refusal(self, request: PublicRequest) -> str | None:
        for name in _INPUTS:
            if (count := _prompts(getattr(request, name, None))) > self.max_inputs:
                return f"{name} may hold {self.max_inputs} texts, not {count}."
        return None

    def _media_refusal(self, request: PublicRequest) -> str | None:
        for part in _media_parts(request):
            if _names_a_cache_entry(part):
                return "The uuid of a part is refused: it names a cache entry, and so another caller's media."
            for url in _urls(part):
                if why := self.media_refusal(url):
                    return why
        return None


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _host(url: str) -> str | None:
    """The host of an address that all parsers read the same way; None for any other address."""
    if any(letter <= " " or letter in "\\@" or letter > "~" for letter in url):
        return None
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _number(request: PublicRequest, name: str) -> int:
    value = getattr(request, name, None)
    return value if isinstance(value, int) else 1


def _prompts(prompt: object) -> int:
    """The number of prompts: one text or list of tokens is one prompt, a list of anything else is several."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def _letters(value: object) -> int:
    """The letters of a text or of several, or the number of token ids."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(1 if isinstance(item, int) else _letters(item) for item in value)
    return 0


def _template_refusal(request: PublicRequest) -> str | None:
    given = getattr(request, "chat_template_kwargs", None)
    if isinstance(given, dict):
        for name in _TEMPLATE_ARGUMENTS:
            if name in given:
                return f"chat_template_kwargs.{name} is refused: the template and its tokens are the server's."
    return None


def _token_refusal(request: PublicRequest, vocabulary: int) -> str | None:
    for name in ("prompt", *_TOKEN_LISTS):
        for token in _tokens(getattr(request, name, None)):
            if not 0 <= token < vocabulary:
                return f"{name} holds the token id {token}; ids are 0 to {vocabulary - 1}."
    return None


def _tokens(value: object) -> Iterator[int]:
    for item in value if isinstance(value, list) else ():
        if isinstance(item, list):
            yield from _tokens(item)
        elif isinstance(item, int):
            yield item


def _logprobs_refusal(request: PublicRequest) -> str | None:
    for name in _LOGPROBS:
        value = getattr(request, name, None)
        if isinstance(value, int) and not -1 < value <= MAX_LOGPROBS:
            return f"{name} may be 0 to {MAX_LOGPROBS}, not {value}."
    return None


def _number_refusal(request: PublicRequest) -> str | None:
    """Refuse numbers that do not fit into the engine's tensors: one of them ends its scheduler."""
    for name in request.model_fields_set:
        value = getattr(request, name, None)
        limit = _MAX_SEED if name == "seed" else _MAX_INTEGER
        if isinstance(value, int) and not -limit <= value <= limit:
            return f"{name} may be {-limit} to {limit}, not {value}."
        if isinstance(value, float) and not -_MAX_FLOAT <= value <= _MAX_FLOAT:
            return f"{name} has to be a number up to {_MAX_FLOAT:g}, not {value}."
    return None


def _list_refusal(request: PublicRequest) -> str | None:
    """Bound lists that an engine walks at every token or tokenizes on its event loop: they would delay all requests."""
    for name in ("stop", "stop_sequences", "bad_words"):
        value = getattr(request, name, None)
        words = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        if len(words) > MAX_STOPS or any(isinstance(word, str) and len(word) > MAX_STOP_LETTERS for word in words):
            return f"{name} may have {MAX_STOPS} entries of {MAX_STOP_LETTERS} letters."
    biases = getattr(request, "logit_bias", None)
    if isinstance(biases, dict) and len(biases) > MAX_BIASES:
        return f"logit_bias may have {MAX_BIASES} entries, not {len(biases)}."
    for bias in biases.values() if isinstance(biases, dict) else ():
        if isinstance(bias, int | float) and not -MAX_BIAS <= bias <= MAX_BIAS:
            return f"logit_bias may hold {-MAX_BIAS:g} to {MAX_BIAS:g}, not {bias:g}."
    return None


def _grammar_refusal(request: PublicRequest) -> str | None:
    """Bound grammars: a schema 400 levels deep took more than 25 s of a core to compile (SGLang 0.5.23)."""
    for name in _GRAMMARS:
        value = getattr(request, name, None)
        if isinstance(value, str) and name == "json_schema":
            try:
                value = json.loads(value) if len(value) <= MAX_GRAMMAR_LETTERS else value
            except (ValueError, RecursionError):
                return f"{name} is no JSON that can be read."
        if isinstance(value, str) and len(value) > MAX_GRAMMAR_LETTERS:
            return f"{name} may have {MAX_GRAMMAR_LETTERS} letters, not {len(value)}."
        if not _is_small(value):
            return f"{name} may have {MAX_SCHEMA_DEPTH} levels, {MAX_SCHEMA_PARTS} parts and {MAX_GRAMMAR_LETTERS} letters in one."
    return None


def _is_small(value: object) -> bool:
    """Whether a schema keeps the limits; checked level by level, so that depth cannot overflow the stack."""
    level, parts = [value], 0
    for _ in range(MAX_SCHEMA_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list | tuple):
                below += item
            elif isinstance(item, str):
                if len(item) > MAX_GRAMMAR_LETTERS:
                    return False
            elif hasattr(item, "__dict__"):  # a model, or a record
                below += vars(item).values()
        if not below:
            return True
        parts += len(below)
        if parts > MAX_SCHEMA_PARTS:
            return False
        level = below
    return False


def _media_parts(request: PublicRequest) -> Iterator[object]:
    """The parts of all messages and inputs, as JSON values."""
    for name in _HOLDING_MEDIA:
        for part in _parts(getattr(request, name, None)):
            yield part.model_dump() if hasattr(part, "model_dump") else part


def _names_a_cache_entry(part: object) -> bool:
    """Whether a part names its entry in vLLM's media cache: vLLM reuses an entry by its name, without a check."""
    if not isinstance(part, dict):
        return False
    return any(name == "uuid" and value is not None for name, value in part.items())


def _parts(value: object) -> Iterator[object]:
    """The parts of a message or an input, or of a list of them; a message with text alone has none."""
    if isinstance(value, list):
        for item in value:
            yield from _parts(item)
    elif value is not None and not isinstance(value, str | int | float):
        content = value.get("content") if isinstance(value, dict) else getattr(value, "content", None)
        if content is None:
            yield value
        elif not isinstance(content, str):
            if not isinstance(content, list) and isinstance(value, dict):
                content = value["content"] = list(content)  # pydantic's own iterator gives its items only once
            yield from cast("Iterable[object]", content)


def _urls(part: object, *, media: bool = False) -> Iterator[str]:
    if hasattr(part, "model_dump"):
        part = part.model_dump()
    if isinstance(part, str):
        if media:
            yield part
    elif isinstance(part, dict):
        for name, value in part.items():
            if name == "url" or name.endswith("_url"):
                yield from _urls(value, media=True)
            elif name in _MEDIA_TYPES or isinstance(value, dict | list):
                yield from _urls(value, media=name in _MEDIA_TYPES)
    elif isinstance(part, list):
        for value in part:
            yield from _urls(value, media=media)
