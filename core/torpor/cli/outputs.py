"""Files that a command writes at its end: looked at before the work, written after it."""

from __future__ import annotations

import os
from pathlib import Path

from torpor.cli.terminal import result
from torpor.errors import ConfigurationError

__all__ = ["STANDARD_OUTPUT", "check_output", "write_output"]

STANDARD_OUTPUT = "-"


def check_output(option: str, name: str) -> None:
    """Make sure that a file can be written, before the work whose result goes there.

    Args:
        option: what named it, for the message.
        name: the path; `-` for standard output, empty for none.

    Raises:
        ConfigurationError: its folder is missing or closed, or it is a folder itself.
    """
    if name in ("", STANDARD_OUTPUT):
        return
    file = Path(name)
    if file.is_dir():
        raise ConfigurationError(f"{option} {name} is a folder; give the path of a file.")
    if not file.parent.is_dir():
        raise ConfigurationError(f"{option} {name}: there is no folder {file.parent}; make it, or choose another path.")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigurationError(f"{option} {name} may not be written by you; choose another path.")


def write_output(option: str, name: str, text: str) -> None:
    """Write a result; arguments as of `check_output`.

    Raises:
        ConfigurationError: it cannot be written all the same.
    """
    if name == STANDARD_OUTPUT:
        result(text, end="")
    elif name:
        try:
            Path(name).write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise ConfigurationError(f"{option} {name} cannot be written: {error.strerror}.") from error
