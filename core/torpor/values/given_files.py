"""Reads files that a user names in a command, whatever they turn out to be."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MOST_BYTES", "is_shallow", "read_given"]

MOST_BYTES = 64 << 20
"""The longest report, records or plan that is read; real ones have some kilobytes."""

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
_MOST_LEVELS = 50


def read_given(file: Path, wanted: str, *, name: str = "", most: int = MOST_BYTES) -> bytes:
    """Content of a regular file. Links are followed; a pipe or device is refused without waiting for it.

    Args:
        file: as the user named it.
        wanted: sentences that say what to give; they end the message.
        name: its name in messages; by default its path.
        most: bytes that it may have.

    Raises:
        ConfigurationError: it cannot be read, is no regular file or too long.
    """
    name = name or str(file)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as stream:
            kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
            if kind != stat.S_IFREG:
                raise ConfigurationError(f"{name} is {_KINDS.get(kind, 'no regular file')}, not a file. {wanted}")
            data = stream.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        raise ConfigurationError(
            f"{name} cannot be read: {getattr(error, 'strerror', None) or error}. {wanted}"
        ) from error
    if len(data) > most:
        raise ConfigurationError(f"{name} has more than {most >> 20} MB. {wanted}")
    return data


def is_shallow(value: object) -> bool:
    """Whether a value from JSON is nested no deeper than Torpor's own files."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        level = [
            part
            for each in level
            if isinstance(each, dict | list)
            for part in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return True
    return False
