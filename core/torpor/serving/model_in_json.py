"""Find the top-level `"model"` of a JSON body while it arrives, without reading further than that.

The first one decides; then the body's other bytes flow through unread. An engine's parser takes the last one, so a body with two
reaches the engine of the first name. That engine judges it like any request: it asks for its own key and serves its own models. If
the first is an alias, it alone is replaced: the engine sees the last as the client wrote it.

The scanner looks only at strings, brackets, commas and colons. What is no JSON is the engine's to refuse.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from typing import TypeAlias

__all__ = ["MAX_MODEL_BYTES", "BadModelError", "Edit", "JsonModel"]

Edit: TypeAlias = tuple[int, int, bytes]
"""A replacement: index of the first byte, index behind the last one, and what stands there instead."""

MAX_MODEL_BYTES = 1024
"""Bytes of the longest name, as it stands in the body."""

_BOM = b"\xef\xbb\xbf"
_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\]:,]|[^"{}\[\]:,\s]++', re.DOTALL)
_DEEP = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["{}\[\]]', re.DOTALL)
_QUOTE, _OPEN, _CLOSE = b'"', b"{[", b"}]"


class BadModelError(Exception):
    """The body's model is no name."""


class _Expects(Enum):
    """What stands next at the top level."""

    OBJECT = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    MODEL = auto()
    COMMA = auto()


class JsonModel:
    """The scanner of one body.

    Args:
        start: index of the body in the data that `feed` gets.

    Attributes:
        done: whether the answer is known.
        model: the name; None if the body has none, or is no object.
    """

    _span = (0, 0)  # of the name, once it is found

    def __init__(self, start: int = 0) -> None:
        self.done = False
        self.model: str | None = None
        self._start = self._position = start
        self._string_from = -1
        self._depth = 0
        self._expects = _Expects.OBJECT

    def feed(self, body: bytes | bytearray, *, ended: bool) -> None:
        """Go on with the body.

        Args:
            body: all of it that has arrived so far, with what stands before `start`.
            ended: whether it is complete.

        Raises:
            BadModelError: the model is no string, or too long.
        """
        if self._position == self._start:
            if len(body) - self._start < len(_BOM) and not ended:
                return
            if body.startswith(_BOM, self._start):
                self._position += len(_BOM)
        while not self.done and self._position < len(body) and self._advance(body, ended=ended):
            pass
        self.done = self.done or ended

    def edits(self, name: str) -> tuple[Edit, ...]:
        """See `torpor.serving.router.Scanner`. The name is written in ASCII, whatever the body's encoding."""
        return ((*self._span, json.dumps(name).encode("ascii")),)

    def _advance(self, body: bytes | bytearray, *, ended: bool) -> bool:
        """Take tokens until a string is incomplete, the level changes or the data ends; whether to go on."""
        if self._string_from >= 0:
            return self._end_string(body)
        return self._deep(body) if self._depth > 1 else self._top(body, ended=ended)

    def _end_string(self, body: bytes | bytearray) -> bool:
        """Go on in a string whose end had not come."""
        found = _STRING.match(body, self._position)
        self._position = found.end() if found else self._position
        if self._expects is _Expects.MODEL and self._position - self._string_from > MAX_MODEL_BYTES:
            raise BadModelError(f"model has more than {MAX_MODEL_BYTES} bytes.")
        if self._position >= len(body) or body[self._position : self._position + 1] != _QUOTE:
            return False  # its end has not come, or a backslash stands last
        self._position += 1
        begin, self._string_from = self._string_from, -1
        if self._depth == 1:
            self._take(bytes(body[begin : self._position]))
        return True

    def _deep(self, body: bytes | bytearray) -> bool:
        """Skip what is inside of a value."""
        for token in _DEEP.finditer(body, self._position):
            first = token[0][:1]
            if first == _QUOTE:
                if len(token[0]) == 1:
                    self._string_from, self._position = token.start(), token.end()
                    return True
            elif first in _OPEN:
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 1:
                    self._position = token.end()
                    return True
        self._position = len(body)
        return False

    def _top(self, body: bytes | bytearray, *, ended: bool) -> bool:
        """Read keys and skip values."""
        for token in _TOKEN.finditer(body, self._position):
            text = token[0]
            if text == _QUOTE:
                self._string_from, self._position = token.start(), token.end()
                return True
            if token.end() == len(body) and not ended and text[:1] not in b'"{}[]:,':
                self._position = token.start()  # a number or a word may go on
                return False
            self._position = token.end()
            self._take(text)
            if self.done or self._depth > 1:
                return not self.done
        self._position = len(body)
        return False

    def _take(self, text: bytes) -> None:
        """Take one token at the top level, which ends at `_position`."""
        first, expects = text[:1], self._expects
        if expects is _Expects.MODEL:
            self.model = _name(text)
            self._span, self.done = (self._position - len(text), self._position), True
        elif expects is _Expects.OBJECT:
            self.done = first != b"{"
            self._depth, self._expects = 1, _Expects.KEY
        elif first in _OPEN:
            self._depth += 1
            self._expects = _Expects.COMMA
        elif first in _CLOSE:
            self.done = True
        elif first == b",":
            self._expects = _Expects.KEY
        elif first == b":":
            self._expects = _Expects.MODEL if expects is _Expects.COLON else _Expects.VALUE
        elif expects is _Expects.KEY and _is_model(text):
            self._expects = _Expects.COLON
        else:
            self._expects = _Expects.COMMA


def _is_model(key: bytes) -> bool:
    """Whether a key, in quotes, means `model`; its letters may be escaped."""
    if b"\\" not in key:
        return key == b'"model"'
    try:
        return bool(json.loads(key) == "model")
    except ValueError:
        return False


def _name(text: bytes) -> str:
    """The name that a JSON value holds."""
    if text[:1] != _QUOTE:
        raise BadModelError("model has to be a string.")
    if len(text) > MAX_MODEL_BYTES:
        raise BadModelError(f"model has more than {MAX_MODEL_BYTES} bytes.")
    try:
        return str(json.loads(text))
    except ValueError as error:
        raise BadModelError("model is no valid JSON string.") from error
