"""Decide where a request goes: to a model, to a page of the gateway's own, or nowhere.

The name of the model is looked for in this order; the first that is there counts:

    header X-Torpor-Model     the body is not read, unless the header names an alias
    query ?model=NAME         likewise; for requests without a body, and for a browser's preflight
    form field `model`        multipart/form-data
    JSON key "model"          every other body
    the only deployment       if there is one only

A body that names an alias gets the name that the engine knows; see `torpor.serving.alias_in_body`. If the header or the query names
an alias, the body is read as far as the gateway holds bodies: it may name an alias as well.
"""

from __future__ import annotations

import functools
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeAlias
from urllib.parse import parse_qs, unquote

from torpor.guard.keys import BEARER_HEADER, BearerKeys
from torpor.guard.protocol import CONTROL, HEALTH
from torpor.serving.answers import (
    Answer,
    error_answer,
    model_answer,
    models_answer,
    no_model,
    no_such_model,
)
from torpor.serving.heads import CHUNKED
from torpor.serving.model_in_form import FormModel, boundary_of
from torpor.serving.model_in_json import JsonModel
from torpor.serving.values import ServedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.serving.heads import RequestHead
    from torpor.serving.model_in_json import Edit
    from torpor.serving.values import Pages, Places

__all__ = ["MODELS", "Decision", "PageCall", "Router", "Scanner"]

MODELS = "/v1/models"
"""Where the list of models is."""

_NO_KEY = (HTTPStatus.UNAUTHORIZED, "invalid_api_key", "A valid bearer key is needed.")
_NOT_SERVING = (HTTPStatus.SERVICE_UNAVAILABLE, "not_serving", "No model is served here now.")


class Scanner(Protocol):
    """Looks for the model in a body while it arrives."""

    done: bool
    model: str | None

    def feed(self, body: bytes | bytearray, *, ended: bool) -> None:
        """Go on with the body.

        Raises:
            BadModelError: its model is no name.
        """

    def edits(self, name: str) -> tuple[Edit, ...]:
        """What to replace in the data so far to have the body name this model, the last place first.

        Args:
            name: in place of `model`, which was found.
        """


class PageCall:
    """A request for one of the gateway's pages.

    Args:
        path: without the query.
        query: behind the question mark.
    """

    def __init__(self, path: str, query: str) -> None:
        self.path, self.query = path, query


Decision: TypeAlias = ServedModel | Answer | PageCall | Scanner
"""Where a request goes: to this model, nowhere but this answer, to a page, or to the model that its body names."""


class Router:
    """Decides for each request.

    Args:
        places: the models.
        pages: the gateway's own; None if there are none.
    """

    def __init__(self, places: Places, pages: Pages | None = None) -> None:
        self._places = places
        self._pages = pages

    def decide(self, head: RequestHead, body_start: int) -> Decision:
        """Where a request goes.

        Args:
            head: of the request.
            body_start: index of the body in the data that a scanner will get.
        """
        if self._pages is None and not self._places.by_model:
            return self._checked(self._places.default(), head)
        path, query = _path(head.target)
        if self._pages is not None and path.startswith(self._pages.prefix):
            return PageCall(path, query)
        if not self._places.by_model:
            return self._checked(self._places.default(), head)
        return self._own(path, head) or self._by_head(query, head) or self.scanner(head, body_start)

    def named(self, name: str, head: RequestHead) -> ServedModel | Answer:
        """The model that a request names, or why it does not get it."""
        model = self._places.find(name)
        if model is None:
            known = self._open_to(head)
            return no_such_model(name, known) if known or not self._places.models() else error_answer(*_NO_KEY)
        return self._checked(model, head)

    def unnamed(self, head: RequestHead) -> ServedModel | Answer:
        """The model of a request that names none, or why there is none."""
        default = self._places.default()
        if default is None and (models := self._places.models()):
            known = self._open_to(head)
            return no_model(known) if known or not models else error_answer(*_NO_KEY)
        return self._checked(default, head)

    def engine_name(self, name: str | None, model: ServedModel) -> str:
        """The name that a body has to have for the engine of this model; empty if it can stay as it is.

        Args:
            name: what the body names; None if it names nothing.
            model: that the request goes to, by an alias in the body, the header or the query.
        """
        if name is None:
            return ""
        found = model if name == model.name else self._places.find(name)
        return found.alias_of if found is not None and found.deployment == model.deployment else ""

    def scanner(self, head: RequestHead, body_start: int) -> Scanner:
        """What finds the model in the body; arguments as for `decide`."""
        boundary = boundary_of(head.fields.get(b"content-type", b""))
        body_start = 0 if head.length == CHUNKED else body_start  # a scanner gets chunks without their framing
        return FormModel(boundary, body_start) if boundary else JsonModel(body_start)

    def starts(self, model: ServedModel, head: RequestHead) -> bool:
        """Whether a request starts an engine that does not serve: one for a public path, and no preflight without a key."""
        if head.method == b"OPTIONS" and model.key_sha256:
            return False
        return self.is_public(model, head)

    def is_public(self, model: ServedModel, head: RequestHead) -> bool:
        """Whether a request is for a public path of its model's engine; the guard answers 404 to any other."""
        return not model.public_paths or _path(head.target)[0] in model.public_paths

    def _by_head(self, query: str, head: RequestHead) -> ServedModel | Answer | None:
        """What a header or the query names; also for a request without a body."""
        if (named := head.fields.get(b"x-torpor-model")) is not None:
            return self.named(named.decode("utf-8", "replace"), head)
        if query and (names := parse_qs(query).get("model")):
            return self.named(names[0], head)
        return self.unnamed(head) if head.length == 0 else None

    def _own(self, path: str, head: RequestHead) -> Answer | None:
        """The answer to what the gateway answers itself."""
        if path.startswith(CONTROL):
            return error_answer(HTTPStatus.NOT_FOUND, "not_found", "There is no such path.")
        if path in HEALTH:
            return Answer(HTTPStatus.OK, b'{"status": "ok"}')
        reads = head.method in (b"GET", b"HEAD")
        if not reads or (path != MODELS and not path.startswith(MODELS + "/")):
            return None
        known = self._open_to(head)
        if not known and self._places.models():
            return error_answer(*_NO_KEY)
        if path == MODELS:
            return models_answer(known)
        name = unquote(path.removeprefix(MODELS + "/"))
        model = self._places.find(name)
        return model_answer(model) if model is not None and _fits(model, head) else no_such_model(name, known)

    def _open_to(self, head: RequestHead) -> Sequence[ServedModel]:
        """The models that this request may ask for."""
        return [model for model in self._places.models() if _fits(model, head)]

    def _checked(self, model: ServedModel | None, head: RequestHead) -> ServedModel | Answer:
        if model is None:
            return error_answer(*_NOT_SERVING, retry_after_s=1)
        return model if not model.key_sha256 or _fits(model, head) else error_answer(*_NO_KEY)


def _path(target: bytes) -> tuple[str, str]:
    """Path and query of a request's target, which may be a whole URL (RFC 9112, 3.2.2)."""
    text = target.decode("ascii")
    if not text.startswith("/") and "://" in text:
        text = "/" + text.partition("://")[2].partition("/")[2]
    path, _, query = text.partition("?")
    return path, query


def _fits(model: ServedModel, head: RequestHead) -> bool:
    """Whether a request carries a key of the model, or the model has none.

    A browser's preflight carries no key. The engine's guard judges it; the gateway starts no engine for it.
    """
    if not model.key_sha256 or head.method == b"OPTIONS":
        return True
    key = head.fields.get(BEARER_HEADER)
    return key is not None and _keys(model.key_sha256).fit({}, {BEARER_HEADER: key})


@functools.lru_cache(maxsize=1024)
def _keys(sha256: tuple[str, ...]) -> BearerKeys:
    return BearerKeys(sha256)
