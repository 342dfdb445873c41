"""Read the head of a request or of an answer, strictly: what two parsers could read differently is refused.

The gateway forwards a head as it came, so it must read it as the engine's parser does. It accepts only what RFC 9112 lets a
sender write: CRLF at each line's end, no space before a colon, no folded line, no control character, at most one Content-Length
or `Transfer-Encoding: chunked`, and never both, and one Host from HTTP/1.1 on. The limits are those of the engines
(`torpor.launcher.request_limits`).

One regular expression checks all fields, another one finds those that the gateway reads. httptools takes a third more time here,
because it calls Python for each field, and reads fields that no parser should.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import NamedTuple

from torpor.launcher.request_limits import MAX_HEAD_BYTES, MAX_HEADERS, MAX_TARGET_BYTES

__all__ = [
    "CHUNKED",
    "UNTIL_CLOSE",
    "AnswerHead",
    "BadAnswerError",
    "BadRequestError",
    "RequestHead",
    "head_end",
    "read_answer",
    "read_request",
]

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_REQUEST_LINE = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([!-~]+) HTTP/1\.([01])\r\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: [\t -~\x80-\xff]*)?\r\n")
_FIELDS = re.compile(rb"(?:" + _TOKEN + rb"++:[\t -~\x80-\xff]*+\r\n)*+\r\n")
_READ_OF_REQUEST = re.compile(
    rb"(?i)\n(content-length|transfer-encoding|connection|host|expect|upgrade|content-type|authorization|accept"
    rb"|x-torpor-model|x-torpor-waiting):[\t ]*([^\r]*)"
)
_READ_OF_ANSWER = re.compile(rb"(?i)\n(content-length|transfer-encoding|connection|content-type):[\t ]*([^\r]*)")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_DIGITS = re.compile(rb"\d{1,18}")
_HOST = re.compile(rb"[0-9A-Za-z._~!$&'()*+,;=%:\[\]-]*")  # RFC 3986, 3.2: a host, perhaps with a port; may be empty
_METHODS_BEGIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\r"
_ONCE = (b"host", b"content-length", b"transfer-encoding")
_NO_BODY = (204, 304)
CHUNKED = -1
"""A body's length: it comes in chunks."""
UNTIL_CLOSE = -2
"""An answer's length: it ends with the connection."""


class BadRequestError(Exception):
    """A head that the gateway refuses.

    Args:
        message: what is wrong.
        status: of the answer.
    """

    def __init__(self, message: str, status: int = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = int(status)


class BadAnswerError(Exception):
    """An engine's answer that is not HTTP."""


class RequestHead(NamedTuple):
    """The head of a request.

    Attributes:
        method: as sent.
        target: as sent.
        fields: the fields that the gateway reads, names in lower case; the last one counts if a field is repeated.
        length: of the body, bytes; `CHUNKED` if it comes in chunks.
        keep_alive: whether the client may send another request after it.
        minor: of the HTTP version: 0 or 1.
    """

    method: bytes
    target: bytes
    fields: dict[bytes, bytes]
    length: int
    keep_alive: bool
    minor: int


class AnswerHead(NamedTuple):
    """The head of an answer.

    Attributes:
        status: three digits.
        fields: the fields that the gateway reads, names in lower case.
        length: of the body, bytes; `CHUNKED` or `UNTIL_CLOSE`.
        keep_alive: whether the engine takes another request on the connection.
        line_end: index of the first field.
    """

    status: int
    fields: dict[bytes, bytes]
    length: int
    keep_alive: bool
    line_end: int


def head_end(data: bytes | bytearray, searched: int = 0) -> int:
    """The index behind the blank line that ends a request's head; -1 if it has not come yet.

    Args:
        data: from the first byte of the head on.
        searched: how many bytes were searched before.

    Raises:
        BadRequestError: this is no HTTP, has another blank line than CRLF CRLF, or is longer than a head may be.
    """
    if data[0] not in _METHODS_BEGIN:
        raise BadRequestError("Invalid HTTP request received.")
    end = data.find(b"\r\n\r\n", max(0, searched - 3))
    if end < 0 and _BLANK_LINE.search(data, max(0, searched - 2)):
        raise BadRequestError("A line of the request's head does not end in CRLF.")
    if end > MAX_HEAD_BYTES or (end < 0 and len(data) > MAX_HEAD_BYTES):
        raise BadRequestError(
            f"A request's head may have {MAX_HEAD_BYTES} bytes.", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        )
    return end + 4 if end >= 0 else -1


def read_request(head: bytes) -> RequestHead:
    """Read a whole head, blank line included.

    Raises:
        BadRequestError: it breaks a rule of this module.
    """
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise BadRequestError("The request's first line is invalid.")
    method, target, minor = line[1], line[2], line[3] == b"1"
    if len(target) > MAX_TARGET_BYTES:
        raise BadRequestError(f"A request's target may have {MAX_TARGET_BYTES} bytes.", HTTPStatus.REQUEST_URI_TOO_LONG)
    if _FIELDS.fullmatch(head, line.end()) is None:
        raise BadRequestError("A header of the request is invalid.")
    if head.count(b"\n") > MAX_HEADERS + 2:
        raise BadRequestError(f"A request may have {MAX_HEADERS} headers.", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    fields = _fields(_READ_OF_REQUEST, head, line.end() - 1)
    if method.upper() == b"CONNECT":
        raise BadRequestError("CONNECT is not possible here.", HTTPStatus.METHOD_NOT_ALLOWED)
    length = (
        _length(fields, chunked_allowed=minor) if b"content-length" in fields or b"transfer-encoding" in fields else 0
    )
    _check_host(fields, required=minor)
    keep_alive = _keeps_alive(fields, minor=minor) and b"upgrade" not in fields
    return RequestHead(method, target, fields, length, keep_alive, int(minor))


def read_answer(head: bytes, method: bytes) -> AnswerHead:
    """Read a whole head of an answer, blank line included.

    Args:
        head: from the status line on.
        method: of the request.

    Raises:
        BadAnswerError: it is no HTTP, or its length is ambiguous.
    """
    line = _STATUS_LINE.match(head)
    if line is None or _FIELDS.fullmatch(head, line.end()) is None:
        raise BadAnswerError("The engine's answer is not HTTP.")
    try:
        fields = _fields(_READ_OF_ANSWER, head, line.end() - 1)
        minor, status = line[1] == b"1", int(line[2])
        if status < HTTPStatus.OK or status in _NO_BODY or method == b"HEAD":
            length = 0
        elif b"content-length" in fields or b"transfer-encoding" in fields:
            length = _length(fields, chunked_allowed=minor)
        else:
            length = UNTIL_CLOSE
    except BadRequestError as error:
        raise BadAnswerError("The length of the engine's answer is ambiguous.") from error
    return AnswerHead(status, fields, length, length != UNTIL_CLOSE and _keeps_alive(fields, minor=minor), line.end())


def _fields(names: re.Pattern[bytes], head: bytes, start: int) -> dict[bytes, bytes]:
    """The fields with these names, from the line feed at `start` on."""
    found: dict[bytes, bytes] = {}
    for given, value in names.findall(head, start):
        name = given.lower()
        if name in found:
            if name in _ONCE:
                raise BadRequestError(f"The header {name.decode()} is repeated.")
            if name == b"connection":
                value = found[name] + b"," + value  # noqa: PLW2901 - a list in several lines
        found[name] = value.rstrip(b" \t")
    return found


def _check_host(fields: dict[bytes, bytes], *, required: bool) -> None:
    """RFC 9112, 3.2: a server answers 400 if Host is missing from HTTP/1.1 on, or is none."""
    host = fields.get(b"host")
    if host is None and required:
        raise BadRequestError("A request of HTTP/1.1 needs the header Host.")
    if host and _HOST.fullmatch(host) is None:
        raise BadRequestError("The header Host is no host, or no host and port.")


def _length(fields: dict[bytes, bytes], *, chunked_allowed: bool) -> int:
    """The length of a body that has one of the two fields."""
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if coding is None:
        if length is None or _DIGITS.fullmatch(length) is None:
            raise BadRequestError("The header content-length is not a number.")
        return int(length)
    if length is not None:
        raise BadRequestError("A body has either content-length or transfer-encoding.")
    if coding.lower() != b"chunked" or not chunked_allowed:
        raise BadRequestError("The only transfer-encoding is chunked, from HTTP/1.1 on.")
    return CHUNKED


def _keeps_alive(fields: dict[bytes, bytes], *, minor: bool) -> bool:
    """Whether the connection goes on after this message."""
    given = fields.get(b"connection")
    if given is None:
        return minor
    options = [option.strip() for option in given.lower().split(b",")]
    return b"close" not in options and (minor or b"keep-alive" in options)
