"""`SleepPart`: one kind of an engine's memory in a sleep: whether it is dropped, who restores it, what checks that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.values.field_types import check_types

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SleepPart", "lost_parts"]


@dataclass(frozen=True, kw_only=True)
class SleepPart:
    """One kind of memory of an engine, for one deployment.

    Attributes:
        what: in a few words: `weights`, `KV cache`, ...
        option: the option and value that decide, as they are written: `weights_backup=True`.
        dropped: whether a sleep takes it from where the engine uses it.
        restored_by: who restores it at the wake, and from where; empty where nobody does.
        needed: whether an answer depends on what was in it. A KV cache may start empty.
        checked_by: what notices that it did not come back: `checksum`, `canary`, `acceptance`.

    Raises:
        ConfigurationError: it has no name or no option.
    """

    what: str
    option: str
    dropped: bool
    restored_by: str = ""
    needed: bool = True
    checked_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        if not self.what.strip() or not self.option.strip():
            raise ConfigurationError(
                f"SleepPart has what={self.what!r} and option={self.option!r}: name what a sleep drops, and what decides it."
            )

    @property
    def lost(self) -> bool:
        """Whether the engine would answer without it after a wake."""
        return self.dropped and self.needed and not self.restored_by

    def told(self) -> str:
        """What becomes of it, in one line for people."""
        if not self.dropped:
            return f"{self.what}: kept ({self.option})"
        if not self.restored_by:
            return f"{self.what}: dropped, {'LOST' if self.needed else 'starts empty'} ({self.option})"
        checked = f"; checked by {', '.join(self.checked_by)}" if self.checked_by else ""
        return f"{self.what}: dropped, {self.restored_by} ({self.option}){checked}"


def lost_parts(parts: Iterable[SleepPart]) -> tuple[SleepPart, ...]:
    """Those that a sleep would lose."""
    return tuple(part for part in parts if part.lost)
