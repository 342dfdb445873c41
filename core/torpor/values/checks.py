"""Refuses numbers and texts that no option, build step or image can hold; an error names the field and its value."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.values.bounds import LONGEST_S
from torpor.values.field_types import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "LINE_BREAK",
    "check_env",
    "check_retries",
    "check_seconds",
    "check_texts",
    "check_volume",
    "check_words",
    "one_line",
]

LINE_BREAK = re.compile(r"[\0\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
"""NUL, which no argument or variable can hold, and every character that some program takes for the end of a line."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VOLUME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_MOST_RETRIES = 1000


def check_volume(option: str, name: str) -> None:
    """Refuse an invalid volume name.

    Args:
        option: class and field, for the message.
        name: the value.

    Raises:
        ConfigurationError: names the option and the value.
    """
    if not _VOLUME.fullmatch(name):
        raise ConfigurationError(
            f"{option} is {shown(name)}; it has to be a volume's name, without '/': letters, digits, '-', '_' and '.', 64 at most."
        )


def check_seconds(option: str, seconds: float) -> None:
    """Refuse a time that is not above 0, or longer than 30 days.

    Args:
        option: class and field, for the message.
        seconds: the value.

    Raises:
        ConfigurationError: names the option and the value.
    """
    if not 0 < seconds <= LONGEST_S:
        raise ConfigurationError(
            f"{option} is {seconds!r} seconds; it has to be above 0, and at most {LONGEST_S:.0f} (30 days)."
        )


def check_retries(option: str, retries: int) -> None:
    """Refuse a number of further attempts below 0 or above 1000.

    Args:
        option: class and field, for the message.
        retries: the value.

    Raises:
        ConfigurationError: names the option and the value.
    """
    if not 0 <= retries <= _MOST_RETRIES:
        raise ConfigurationError(f"{option} is {retries}; allowed are 0 to {_MOST_RETRIES} further attempts.")


def one_line(where: str, value: object) -> str:
    """Return the value, which has to be text on one line.

    Raises:
        ConfigurationError: it is no text, or has a line break.
    """
    if not isinstance(value, str):
        raise ConfigurationError(f"{where} holds {value!r}, a {type(value).__name__}; it has to be text.")
    if found := LINE_BREAK.search(value):
        raise ConfigurationError(
            f"{where} has {_named(found)} in {shown(value)}; it becomes part of one line of a Dockerfile. Write it on one line."
        )
    return value


def check_texts(where: str, values: Iterable[object]) -> None:
    """Refuse what is no text on one line.

    Raises:
        ConfigurationError: names the field and the value.
    """
    for value in values:
        one_line(where, value)


def check_words(where: str, words: Iterable[object]) -> None:
    """Refuse what no argument of a command can hold.

    Raises:
        ConfigurationError: names the field and the word.
    """
    for word in words:
        if not isinstance(word, str) or "\0" in word:
            raise ConfigurationError(f"{where} holds {shown(word)}; an argument is text without NUL.")


def check_env(where: str, env: Mapping[str, str]) -> None:
    """Refuse names that no variable can have, and values of several lines. A value may be a secret, so no error shows it.

    Raises:
        ConfigurationError: names the field and the variable.
    """
    for name, value in env.items():
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise ConfigurationError(
                f"{where} has the name {shown(name)}; a variable's name is made of letters, digits and '_', and does not begin "
                "with a digit."
            )
        if found := LINE_BREAK.search(str(value)):
            raise ConfigurationError(
                f"{where}: {name} has {_named(found)} at character {found.start() + 1}; it becomes part of a Dockerfile's line. "
                "Write it on one line, or put the text into a file and name the file."
            )


def _named(found: re.Match[str]) -> str:
    return "NUL" if found.group() == "\0" else "a line break"
