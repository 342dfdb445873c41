"""Find the field `model` of a multipart form (RFC 7578) while it arrives: audio transcriptions come so.

The first one decides, as in JSON. Files before it are skipped.
"""

from __future__ import annotations

import re

from torpor.serving.model_in_json import MAX_MODEL_BYTES, BadModelError, Edit

__all__ = ["FormModel", "boundary_of"]

_BOUNDARY = re.compile(rb'(?i)multipart/form-data\s*;(?:.*;)?\s*boundary=(?:"([^"]{1,200})"|([^\s";,]{1,200}))')
_DISPOSITION = re.compile(rb"(?im)^content-disposition:[\t ]*form-data[\t ]*;([^\r\n]*)")
_NAME = re.compile(rb'(?i)(?:^|;)[\t ]*name=(?:"([^"]*)"|([^\s";]+))')
_FILE = re.compile(rb"(?i)(?:^|;)[\t ]*filename\*?=")
_LENGTH = re.compile(rb"(?im)^content-length:[\t ]*(\d+)")  # of a part: RFC 7578 has none, some clients send it
_MAX_PART_HEAD = 8 * 1024


def boundary_of(content_type: bytes) -> bytes | None:
    """The boundary of a form's Content-Type; None if it is no form."""
    found = _BOUNDARY.match(content_type)
    return (found[1] or found[2]) if found else None


class FormModel:
    """The scanner of one form.

    Args:
        boundary: between its parts.
        start: index of the body in the data that `feed` gets.

    Attributes:
        done: whether the answer is known.
        model: the name; None if the form has none.
    """

    def __init__(self, boundary: bytes, start: int = 0) -> None:
        self.done = False
        self.model: str | None = None
        self._line = b"--" + boundary
        self._start = self._position = start
        self._value_from = -1
        self._value_to = -1
        self._length_at: tuple[int, int] | None = None
        self._in_head = False

    def feed(self, body: bytes | bytearray, *, ended: bool) -> None:
        """Go on with the body.

        Args:
            body: all of it that has arrived so far, with what stands before `start`.
            ended: whether it is complete.

        Raises:
            BadModelError: the model is no name, or too long.
        """
        while not self.done and (self._read_head(body) if self._in_head else self._find_part(body)):
            pass
        self.done = self.done or ended

    def edits(self, name: str) -> tuple[Edit, ...]:
        """See `torpor.serving.router.Scanner`. A length in the part's head is corrected as well."""
        value = name.encode()
        edit = (self._value_from, self._value_to, value)
        return (edit,) if self._length_at is None else (edit, (*self._length_at, b"%d" % len(value)))

    def _find_part(self, body: bytes | bytearray) -> bool:
        """Look for the line between two parts; whether it came."""
        separator = self._line if self._position == self._start else b"\r\n" + self._line
        begin = body.find(separator, self._position)
        if self._value_from >= 0:
            stop = begin if begin >= 0 else max(self._value_from, len(body) - len(separator))
            if stop - self._value_from > MAX_MODEL_BYTES:
                raise BadModelError(f"model has more than {MAX_MODEL_BYTES} bytes.")
        if begin < 0:
            if self._position > self._start:
                self._position = max(self._position, len(body) - len(separator))
            elif len(body) - self._start > _MAX_PART_HEAD:
                self.done = True  # what stands before the first part is never that long
            return False
        end = begin + len(separator)
        if len(body) < end + 2:
            return False
        if self._value_from >= 0:
            self._take(bytes(body[self._value_from : begin]))
            self._value_to = begin
        self.done = self.done or body[end : end + 2] != b"\r\n"
        self._position, self._in_head = end, True
        return True

    def _read_head(self, body: bytes | bytearray) -> bool:
        """Read the head of a part; whether it came."""
        end = body.find(b"\r\n\r\n", self._position)
        if end < 0:
            self.done = len(body) - self._position > _MAX_PART_HEAD
            return False
        head = bytes(body[self._position : end])
        disposition = _DISPOSITION.search(head)
        named = _NAME.search(disposition[1]) if disposition else None
        is_model = bool(
            named and (named[1] or named[2]) == b"model" and disposition and not _FILE.search(disposition[1])
        )
        self._value_from = end + 4 if is_model else -1
        if is_model and (length := _LENGTH.search(head)):
            self._length_at = (self._position + length.start(1), self._position + length.end(1))
        self._position, self._in_head = end + 4, False
        return True

    def _take(self, value: bytes) -> None:
        try:
            self.model, self.done = value.decode("utf-8"), True
        except UnicodeDecodeError as error:
            raise BadModelError("model is no UTF-8.") from error
