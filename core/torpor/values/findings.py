"""`Finding`: the result of a check: what was seen, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torpor.errors import ConfigurationError
from torpor.values.field_types import check_types, shown

__all__ = ["Finding", "Level"]

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check.

    Attributes:
        level: `error`: it will not work; `warning`: it may fail, or costs time at every start; `ok`: no problem.
        what: the thing that was checked, in one or two words.
        seen: what was seen.
        cure: what to do; empty if nothing has to be done.
        plugin: name of the plugin that found it; empty for core. Core sets it.

    Raises:
        ConfigurationError: the level is unknown, or a text is empty.
    """

    level: Level
    what: str
    seen: str
    cure: str = ""
    plugin: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        if self.level not in get_args(Level):
            raise ConfigurationError(
                f"Finding.level is {shown(self.level)}; allowed: {', '.join(map(repr, get_args(Level)))}."
            )
        if not self.what.strip() or not self.seen.strip():
            raise ConfigurationError("Finding.what and Finding.seen have to say what was looked at, and what was seen.")
