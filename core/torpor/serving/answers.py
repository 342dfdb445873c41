"""The gateway's own answers, whole: errors in the form that OpenAI clients read, and the list of models."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torpor.serving.values import NoPlaceError, ServedModel

__all__ = ["Answer", "error_answer", "model_answer", "models_answer", "no_model", "no_such_model", "place_answer"]

_MOST_NAMES = 50


class Answer:
    """A whole answer.

    Args:
        status: HTTP status.
        body: whole.
        content_type: of the body.
        headers: further ones.
    """

    def __init__(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self._content_type = content_type
        self._headers = dict(headers or {})

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """Its headers for an ASGI server, names in lower case."""
        own = {**self._headers, "Content-Type": self._content_type, "Content-Length": str(len(self.body))}
        return [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in own.items()]

    def encoded(self, *, closes: bool, with_body: bool = True) -> bytes:
        """The bytes of the answer.

        Args:
            closes: whether the connection ends with it.
            with_body: false for HEAD.
        """
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = ""
        lines = [f"HTTP/1.1 {self.status} {phrase}"]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        lines += [f"Content-Type: {self._content_type}", f"Content-Length: {len(self.body)}"]
        lines += ["Connection: close"] if closes else []
        head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
        return head + self.body if with_body else head


def error_answer(
    status: int, code: str, message: str, *, param: str | None = None, retry_after_s: float = 0.0
) -> Answer:
    """An error.

    Args:
        status: HTTP status.
        code: for programs.
        message: for people.
        param: the field of the request that it is about.
        retry_after_s: value of Retry-After, rounded up to whole seconds; 0 for none.
    """
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    headers = {"Retry-After": str(math.ceil(retry_after_s))} if retry_after_s > 0 else {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Answer(status, json.dumps({"error": error}).encode(), headers=headers)


def place_answer(error: NoPlaceError) -> Answer:
    """Why there is no place for a request."""
    return error_answer(error.status, error.code, str(error), retry_after_s=error.retry_after_s)


def models_answer(models: Iterable[ServedModel]) -> Answer:
    """The answer of `GET /v1/models`."""
    listed = [_told(model) for model in models if model.listed]
    return Answer(HTTPStatus.OK, json.dumps({"object": "list", "data": listed}).encode())


def model_answer(model: ServedModel) -> Answer:
    """The answer of `GET /v1/models/NAME`."""
    return Answer(HTTPStatus.OK, json.dumps(_told(model)).encode())


def no_such_model(name: str, models: Iterable[ServedModel]) -> Answer:
    """404 with what there is."""
    return error_answer(
        HTTPStatus.NOT_FOUND, "model_not_found", f"There is no model {name!r} here; {_there_is(models)}.", param="model"
    )


def no_model(models: Iterable[ServedModel]) -> Answer:
    """400: several models are served, and the request names none."""
    message = (
        f"The request names no model; {_there_is(models)}. Name one in the body's field `model`, in the header X-Torpor-Model, or "
        "in the query as ?model=NAME."
    )
    return error_answer(HTTPStatus.BAD_REQUEST, "no_model", message, param="model")


def _there_is(models: Iterable[ServedModel]) -> str:
    names = sorted(model.name for model in models if model.listed)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"served are {', '.join(names[:_MOST_NAMES])}{more}" if names else "none is served"


def _told(model: ServedModel) -> dict[str, object]:
    told: dict[str, object] = {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owner,
    }
    return {**told, "state": model.state} if model.state else told
