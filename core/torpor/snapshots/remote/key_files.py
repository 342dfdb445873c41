"""Files with keys: private ones are this user's alone, and their content is never shown."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["read_private", "read_public", "write_private_key"]

_MOST_BYTES = 64 << 10
_OTHERS = 0o077
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def read_private(file: Path, what: str) -> bytes:
    """Read a file with a secret key.

    Args:
        file: a symbolic link is followed.
        what: what it is, for messages.

    Raises:
        ConfigurationError: it cannot be read, belongs to somebody else, or is open to others.
    """
    return _read(file, what, private=True)


def read_public(file: Path, what: str) -> str:
    """Read a file with public keys.

    Raises:
        ConfigurationError: it cannot be read, or others may write to it.
    """
    try:
        return _read(file, what, private=False).decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"The {what} {file} is not a text file; name another.") from None


def write_private_key(file: Path, content: bytes) -> None:
    """Write a new file with a secret key (0600).

    Raises:
        ConfigurationError: it exists, or cannot be written.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
        except OSError:
            with contextlib.suppress(OSError):
                file.unlink()
            raise
    except FileExistsError:
        raise ConfigurationError(f"{file} exists, and a key is never overwritten; name another file.") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be written ({getattr(error, 'strerror', '') or error}).") from error


def _read(file: Path, what: str, *, private: bool) -> bytes:
    try:
        descriptor = os.open(file, _FLAGS)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise ConfigurationError(f"The {what} {file} is not a regular file; name another.")
            _check_owner(file, what, facts, private=private)
            content = os.read(descriptor, _MOST_BYTES + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The {what} {file} cannot be read ({getattr(error, 'strerror', '') or error}); name another file."
        ) from error
    if len(content) > _MOST_BYTES:
        raise ConfigurationError(f"The {what} {file} has more than {_MOST_BYTES} bytes; name another file.")
    return content


def _check_owner(file: Path, what: str, facts: os.stat_result, *, private: bool) -> None:
    if facts.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(f"The {what} {file} belongs to user {facts.st_uid}, not to you; use one of your own.")
    if private and facts.st_mode & _OTHERS:
        raise ConfigurationError(
            f"The {what} {file} is open to other users (mode {facts.st_mode & 0o777:o}); if nobody has read it: chmod 600 {file}"
        )
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(
            f"The {what} {file} may be written to by other users (mode {facts.st_mode & 0o777:o}); if nobody has: "
            f"chmod go-w {file}"
        )
