"""A request on its way from an ASGI server to a replica: the scope becomes a head of HTTP/1.1, pieces of a body become chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from torpor.serving.asgi_answer import HOP_BY_HOP
from torpor.serving.heads import BadRequestError

if TYPE_CHECKING:
    from torpor.serving.asgi_answer import Scope

__all__ = ["framed", "request_head", "was_forwarded"]

_FORWARDED = b"x-torpor-forwarded"
"""Says that a request was sent to its model's prefix. One that comes back had no application there, and would come back again."""


def request_head(scope: Scope, prefix: bytes = b"") -> bytes:
    """The request's head as a replica gets it.

    Args:
        scope: of ASGI.
        prefix: what is put before the path.

    Raises:
        BadRequestError: it would be read as more lines than it has.
    """
    root = cast("str", scope.get("root_path") or "").encode()
    target = cast("bytes", scope.get("raw_path") or quote(cast("str", scope["path"])).encode())
    if root and target.startswith(root):
        target = target[len(root) :] or b"/"
    if query := cast("bytes", scope.get("query_string")):
        target += b"?" + query
    lines = [b"%s %s%s HTTP/1.1" % (cast("str", scope["method"]).encode(), prefix, target)]
    given = _headers(scope)
    lines += [b"%s: %s" % (name, value) for name, value in given if name not in HOP_BY_HOP]
    if prefix:
        lines.append(_FORWARDED + b": 1")
    names = {name for name, _ in given}
    if b"transfer-encoding" in names:
        lines.append(b"transfer-encoding: chunked")
    if b"host" not in names and scope.get("http_version") == "1.0":
        lines.append(b"host:")  # the replica gets HTTP/1.1, which needs one; RFC 9112, 3.2 allows an empty one
    head = b"\r\n".join([*lines, b"", b""])
    if not len(lines) + 1 == head.count(b"\r") == head.count(b"\n"):
        raise BadRequestError("The request's first line or a header has a line break in it.")
    return head


def was_forwarded(scope: Scope) -> bool:
    """Whether this is a request that was sent to a prefix before."""
    return any(name == _FORWARDED for name, _ in _headers(scope))


def framed(data: bytes, *, more: bool) -> bytes:
    """A piece of a body as a chunk; the last one with the end."""
    chunk = b"%x\r\n%s\r\n" % (len(data), data) if data else b""
    return chunk if more else chunk + b"0\r\n\r\n"


def _headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    return cast("list[tuple[bytes, bytes]]", scope["headers"])
