"""Files that a command writes at its end: checked before the work, written after it."""

from __future__ import annotations

import os
from pathlib import Path

from torpor.cli.terminal import result
from torpor.errors import ConfigurationError

__all__ = ["STANDARD_OUTPUT", "check_output", "write_output"]

STANDARD_OUTPUT = "-"


def check_output(option: str, name: str, *, makes_folders: bool = False) -> None:
    """Check that a file can be written, before the work whose result goes there.

    Args:
        option: the option that named it, for the message.
        name: the path; `-` for standard output, empty for none.
        makes_folders: whether the writer creates missing folders.

    Raises:
        ConfigurationError: its folder is missing or not writable, or it is a folder itself.
    """
    if name in ("", STANDARD_OUTPUT):
        return
    file = Path(name)
    try:
        if file.is_dir():
            raise ConfigurationError(f"{option} {name} is a folder; give the path of a file.")
        exists, folder = file.exists(), file.parent
        while makes_folders and not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise ConfigurationError(
                f"{option} {name}: there is no folder {folder}; create it, or choose another path."
            )
    except (OSError, ValueError) as error:  # a name that is too long, a loop of links
        raise ConfigurationError(
            f"{option} {name} cannot be written: {getattr(error, 'strerror', None) or error}; choose another path."
        ) from error
    if not os.access(file if exists else folder, os.W_OK):
        raise ConfigurationError(f"{option} {name} is not writable for you; choose another path.")


def write_output(option: str, name: str, text: str) -> None:
    """Write a result; arguments as of `check_output`.

    Raises:
        ConfigurationError: it cannot be written after all.
    """
    if name == STANDARD_OUTPUT:
        result(text, end="")
    elif name:
        try:
            Path(name).write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise ConfigurationError(f"{option} {name} cannot be written: {error.strerror}.") from error
