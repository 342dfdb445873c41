"""Checks numbers that a command takes, and says which are allowed."""

from __future__ import annotations

import math

from torpor.errors import ConfigurationError

__all__ = ["LONGEST_S", "checked_count", "checked_seconds"]

LONGEST_S = 30 * 24 * 3600.0
"""No command waits longer than a month."""


def checked_count(option: str, value: int, *, most: int, what: str, least: int = 1) -> int:
    """A number of things within bounds.

    Args:
        option: with its dashes.
        value: as given.
        most: the largest that is allowed.
        what: the things, in plural.
        least: the smallest that is allowed.

    Raises:
        ConfigurationError: it is out of bounds.
    """
    if not least <= value <= most:
        raise ConfigurationError(f"{option} is {value}; allowed are {least} to {most} {what}.")
    return value


def checked_seconds(option: str, value: float, *, zero: bool = False) -> float:
    """A number of seconds, above zero and at most a month.

    Args:
        option: with its dashes.
        value: as given.
        zero: whether zero is allowed too.

    Raises:
        ConfigurationError: it is out of bounds, infinite or NaN.
    """
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0)) and value <= LONGEST_S):
        least = "0" if zero else "more than 0"
        raise ConfigurationError(
            f"{option} is {value:g}; it has to be a number of seconds: {least}, and at most {LONGEST_S:.0f} (30 days)."
        )
    return value
