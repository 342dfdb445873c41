"""Decode JSON of a snapshot strictly: each wrong value is refused with its place, what it is, and what is allowed."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, NoReturn

from torpor.errors import DamagedSnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["MOST_BYTES", "NEW_ONE", "Fields", "is_short_path", "parsed", "shown"]

MOST_BYTES = (1 << 63) - 1
"""The largest file size that the kernel can represent."""

NEW_ONE = "take a new snapshot."
"""What to do about a damaged file."""

_SHOWN_CHARACTERS = 60
_TEXT_CHARACTERS = 1 << 20
_PATH_BYTES, _NAME_BYTES = 4096, 255


def parsed(file: Path, data: bytes) -> Fields:
    """Decode a JSON object.

    Raises:
        DamagedSnapshotError: it is not one, a name occurs twice, or a number is not allowed in JSON.
    """
    try:
        content = json.loads(
            data.decode(), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite, parse_int=int
        )
    except RecursionError:
        raise DamagedSnapshotError(f"{file} is damaged: its values are nested too deep; {NEW_ONE}") from None
    except ValueError as error:
        raise DamagedSnapshotError(f"{file} is damaged: it is not JSON ({shown(str(error))}); {NEW_ONE}") from error
    return Fields(content, file)


class Fields:
    """The fields of a JSON object: each is taken with its type and range, and none may be left over.

    Args:
        content: the decoded value.
        file: for messages.
        where: path of this object in the file, e.g. `machine.`; empty for the outermost.

    Raises:
        DamagedSnapshotError: it is not an object.
    """

    def __init__(self, content: object, file: Path, where: str = "") -> None:
        self.file = file
        self._where = where
        if not isinstance(content, dict):
            raise self._refused(where.removesuffix("."), content, "an object")
        self._left: dict[str, object] = content
        self._content: dict[str, object] = dict(content)

    @property
    def content(self) -> Mapping[str, object]:
        """All decoded fields, including those that were taken."""
        return self._content

    def take(self, name: str) -> object:
        """A field of any type."""
        if name not in self._left:
            raise DamagedSnapshotError(f"{self.file} is damaged: its field {self._where}{name} is missing; {NEW_ONE}")
        return self._left.pop(name)

    def text(self, name: str, *, empty: bool = True) -> str:
        """A string."""
        return self._text(name, self.take(name), empty=empty)

    def path(self, name: str) -> str:
        """An absolute path without `..`."""
        value = self.text(name)
        if not value.startswith("/") or "\0" in value or ".." in value.split("/") or not is_short_path(value):
            self.refuse(name, value, "an absolute path without `..`")
        return value

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of the allowed words."""
        value = self.take(name)
        if not isinstance(value, str) or value not in allowed:
            self.refuse(name, value, " or ".join(allowed))
        return value

    def whole(self, name: str, least: int = 0, most: int = MOST_BYTES) -> int:
        """A whole number."""
        return self._whole(name, self.take(name), least, most)

    def number(self, name: str, most: float) -> float:
        """A number, at least 0."""
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            self.refuse(name, value, f"a number from 0 to {most:g}")
        return float(value)

    def digits(self, name: str, most: int) -> str:
        """Hexadecimal digits in pairs, at most `most` of them."""
        value = self.text(name)
        if len(value) > most or len(value) % 2 or value.strip("0123456789abcdef"):
            self.refuse(name, value, f"up to {most} hexadecimal digits")
        return value

    def items(self, name: str) -> list[object]:
        """An array."""
        value = self.take(name)
        if not isinstance(value, list):
            self.refuse(name, value, "an array")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """An array of strings."""
        return tuple(self._text(f"{name}[{at}]", value) for at, value in enumerate(self.items(name)))

    def wholes(self, name: str) -> tuple[int, ...]:
        """An array of whole numbers."""
        return tuple(self._whole(f"{name}[{at}]", value, 0, MOST_BYTES) for at, value in enumerate(self.items(name)))

    def inner(self, name: str) -> Fields:
        """An object."""
        return Fields(self.take(name), self.file, f"{self._where}{name}.")

    def each(self, name: str) -> Iterator[Fields]:
        """An array of objects."""
        for at, value in enumerate(self.items(name)):
            yield Fields(value, self.file, f"{self._where}{name}[{at}].")

    def names(self) -> list[str]:
        """The names of the fields that are left, for an object whose names are data."""
        for name in self._left:
            self._text("", name)  # refuses a name that is not valid text
        return list(self._left)

    def end(self) -> None:
        """Check that every field was taken.

        Raises:
            DamagedSnapshotError: one was not; the message names it.
        """
        for name in self._left:
            raise DamagedSnapshotError(
                f"{self.file} is damaged: it has an unknown field {self._where}{shown(name)}; {NEW_ONE}"
            )

    def refuse(self, name: str, value: object, allowed: str) -> NoReturn:
        """Refuse the value of a field.

        Raises:
            DamagedSnapshotError: always.
        """
        raise self._refused(f"{self._where}{name}", value, allowed)

    def _refused(self, path: str, value: object, allowed: str) -> DamagedSnapshotError:
        field = f"its field {shown(path)}" if path else "it"
        return DamagedSnapshotError(f"{self.file} is damaged: {field} is {shown(value)}, not {allowed}; {NEW_ONE}")

    def _text(self, name: str, value: object, *, empty: bool = True) -> str:
        if not isinstance(value, str) or len(value) > _TEXT_CHARACTERS or not (value or empty):
            self.refuse(name, value, "a string" if empty else "a string that is not empty")
        if not value.isascii():
            try:
                value.encode(errors="surrogateescape")  # a path may be any bytes
            except UnicodeEncodeError:
                self.refuse(name, value, "text: it holds half a character")
        return value

    def _whole(self, name: str, value: object, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(name, value, f"a whole number from {least} to {most}")
        return value


def is_short_path(path: str) -> bool:
    """Whether the kernel accepts a path of that length (path_resolution(7))."""
    return len(path) < _PATH_BYTES and all(len(part) <= _NAME_BYTES for part in path.split("/"))


def shown(value: object, most: int = _SHOWN_CHARACTERS) -> str:
    """A value for a message: in ASCII, on one line, shortened."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:  # noqa: PLR2004 - any bound
        return "a number of many digits"
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or isinstance(value, bool) else None
    text = text or (repr(value)[1:-1] if isinstance(value, str) else repr(value))
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[:most]}..."


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} occurs twice")
    return content


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError("a number is too large")
    return value
