"""What `torpor doctor` and `torpor plan` say about one thing: what was seen, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level"]

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `error`: it will not work; `warning`: it may fail, or costs time at every start; `ok`: nothing has to be done.
        what: one word or two.
        seen: what was seen.
        cure: what to do; empty when nothing has to be done.
    """

    level: Level
    what: str
    seen: str
    cure: str = ""
