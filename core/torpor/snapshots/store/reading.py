"""Read the files of a snapshot, which may be damaged or hostile.

A file is opened once, relative to its folder's descriptor, and checked on its own descriptor: a regular file of this user that
nobody else may write, not a link, a pipe or a device. Size and time are bounded. JSON is decoded strictly. For each wrong value
`Fields` says where it is, what it is, and what is allowed.

A restore reads a manifest before it imports anything else, so this module imports only `json`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import time
from typing import TYPE_CHECKING, NoReturn

from torpor.errors import DamagedSnapshotError
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = [
    "MOST_BYTES",
    "NEW_ONE",
    "Fields",
    "check_owned",
    "is_short_path",
    "opened_file",
    "opened_folder",
    "opened_snapshot",
    "parsed",
    "plain",
    "read_json",
    "read_part",
    "shown",
]

MOST_BYTES = (1 << 63) - 1
"""The largest file size that the kernel can represent."""

NEW_ONE = "take a new snapshot."
"""What to do about a damaged file."""

_OTHERS_WRITE = 0o022
_READ_S = 20.0
_PIECE_BYTES = 1 << 20
_SHOWN_CHARACTERS = 60
_TEXT_CHARACTERS = 1 << 20
_PATH_BYTES, _NAME_BYTES = 4096, 255
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def opened_folder(folder: Path) -> int:
    """A descriptor of a folder; a link to one is refused.

    Raises:
        OSError: there is none.
    """
    return os.open(folder, _FLAGS | os.O_DIRECTORY)


@contextlib.contextmanager
def opened_snapshot(folder: Path, part: str) -> Iterator[int]:
    """A descriptor of a snapshot's folder, closed after the block.

    Args:
        folder: the snapshot.
        part: name of the file that every snapshot has.

    Raises:
        DamagedSnapshotError: there is no folder, or the block did not find that file.
    """
    try:
        folder_fd = opened_folder(folder)
        try:
            yield folder_fd
        finally:
            os.close(folder_fd)
    except FileNotFoundError:
        raise DamagedSnapshotError(
            f"{folder} holds no snapshot: there is no {part} in it. `torpor snapshot create APP {folder}` takes one."
        ) from None
    except OSError as error:
        raise DamagedSnapshotError(
            f"{folder} holds no snapshot: it cannot be opened as a folder ({error.strerror})."
        ) from error


def opened_file(name: str, folder_fd: int, *, closed: bool = True) -> tuple[int, os.stat_result]:
    """Open a file of a snapshot and check it on its descriptor; the caller closes that.

    Args:
        name: path under the folder; the caller has checked every part but the last.
        folder_fd: of the folder.
        closed: refuse a file that others may write to.

    Raises:
        FileNotFoundError: there is none.
        DamagedSnapshotError: it is not a regular file, belongs to another user, or others may write to it. The message is the
            rest of a sentence about the file.
        OSError: it cannot be opened.
    """
    # The error for a link (O_NOFOLLOW) or a device without a driver would not say which of them it is.
    check_owned(os.stat(name, dir_fd=folder_fd, follow_symlinks=False), stat.S_IFREG, closed=closed)
    descriptor = os.open(name, _FLAGS, dir_fd=folder_fd)
    try:
        facts = os.fstat(descriptor)
        check_owned(facts, stat.S_IFREG, closed=closed)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, facts


def check_owned(facts: os.stat_result, kind: int, *, closed: bool = True) -> None:
    """Check that a file or folder is of the right kind, belongs to this user, and nobody else may write to it.

    Args:
        facts: its status.
        kind: `stat.S_IFREG` or `stat.S_IFDIR`.
        closed: refuse what others may write to.

    Raises:
        DamagedSnapshotError: the message is the rest of a sentence about the file.
    """
    seen = stat.S_IFMT(facts.st_mode)
    if seen != kind:
        wanted = "a regular file" if kind == stat.S_IFREG else "a folder"
        raise DamagedSnapshotError(f"is {_KINDS.get(seen, 'a regular file')}, not {wanted}")
    if facts.st_uid != os.geteuid():
        raise DamagedSnapshotError(f"belongs to user {facts.st_uid}, not to you ({os.geteuid()})")
    if closed and facts.st_mode & _OTHERS_WRITE:
        raise DamagedSnapshotError(
            f"may be written to by other users (mode {facts.st_mode & 0o7777:o}); if nobody has: chmod -R go= on the snapshot"
        )


def read_json(folder: Path, name: str, folder_fd: int, *, most: int, closed: bool = True) -> Fields:
    """Read a JSON object from a file of a snapshot.

    Args:
        folder: the snapshot, for messages.
        name: of the file.
        folder_fd: descriptor of the folder.
        most: the largest size allowed, bytes.
        closed: refuse a file that others may write to.

    Raises:
        FileNotFoundError: there is none.
        DamagedSnapshotError: it cannot be used; the message names file and field.
    """
    file = folder / name
    try:
        descriptor, facts = opened_file(name, folder_fd, closed=closed)
        try:
            data = _content(descriptor, facts.st_size, most)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except DamagedSnapshotError as error:
        raise DamagedSnapshotError(f"{file} cannot be used: it {error}; {NEW_ONE}") from None
    except OSError as error:
        raise DamagedSnapshotError(f"{file} cannot be read ({error.strerror or error}); {NEW_ONE}") from error
    return parsed(file, data)


def read_part(folder: Path, name: str, *, most: int) -> Fields:
    """Read a JSON object from a file of a snapshot; see `read_json`.

    Raises:
        FileNotFoundError: there is none.
        OSError: the folder cannot be opened.
        DamagedSnapshotError: the file cannot be used; the message names file and field.
    """
    folder_fd = opened_folder(folder)
    try:
        return read_json(folder, name, folder_fd, most=most)
    finally:
        os.close(folder_fd)


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


def _content(descriptor: int, size: int, most: int) -> bytes:
    """The content of a file, within a size limit and a deadline (a network disk or FUSE may hang)."""
    if size > most:
        raise DamagedSnapshotError(f"has {size} bytes; at most {most} are read")
    parts, got, deadline = [], 0, time.monotonic() + _READ_S
    while part := os.read(descriptor, min(_PIECE_BYTES, most + 1 - got)):
        parts.append(part)
        got += len(part)
        if got > most:
            raise DamagedSnapshotError(f"has more than {most} bytes, the most that is read")
        if time.monotonic() > deadline:
            raise DamagedSnapshotError(f"was not read after {_READ_S:g} s")
    return b"".join(parts)


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
