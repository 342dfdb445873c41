"""Whether snapshots work on this machine: decided by a real small dump and restore, never by `criu check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.snapshots.sandbox import Mode

__all__ = ["Reason", "available", "usable_mode"]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why snapshots cannot be made here, and what to do about it.

    Attributes:
        code: one word for programs: `not_linux`, `criu_missing`, `criu_old`, `not_root`, `user_namespaces`, `apparmor`, `seccomp`,
            `gvisor`, `proc_masked`, `sandbox`, `dump`, `restore`, `answer`.
        seen: what was seen.
        cure: what to install or grant.
        tried: whether the cure was ever tried by this project; an untried one says so in its text.
    """

    code: str
    seen: str
    cure: str
    tried: bool = True

    def __str__(self) -> str:
        raise NotImplementedError


def available(mode: Mode, *, cache: Path, prefix: Path | None = None, fresh: bool = False) -> tuple[Reason, ...]:
    """Why snapshots cannot be made here in this mode; empty when they can.

    A Python process with a listening TCP socket and a child is dumped and restored (less than 1.5 s). The answer is kept
    until the next boot, for this CRIU, this user and this version of Torpor (less than 5 ms).

    Args:
        mode: root or rootless.
        cache: folder for the kept answers, made when missing; for instance `<cache root>/criu`.
        prefix: see `torpor.snapshots.criu.find`.
        fresh: try again, whatever was kept.
    """
    raise NotImplementedError


def usable_mode(*, cache: Path, prefix: Path | None = None) -> tuple[Mode | None, tuple[Reason, ...]]:
    """The mode to use: rootless where it works, else root where that works, else None with the reasons of both."""
    raise NotImplementedError
