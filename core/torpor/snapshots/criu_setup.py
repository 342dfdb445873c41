"""CRIU 4.2 in a private prefix: no root, nothing of the system touched.

The Debian packages of CRIU and of every library under it, down to the C library, are fetched from the mirror that the
machine's own apt sources name, checked against a lock of SHA-256 sums, and unpacked; CRIU then runs through its own loader.
When a locked file has left the mirror (Debian keeps one version per suite), apt resolves and checks the suite's present
one by its signature instead, with a state folder of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torpor.snapshots.criu import Criu

__all__ = ["install", "remove"]


def install(
    prefix: Path,
    *,
    mirror: str | None = None,
    timeout_s: float = 300.0,
    again: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> Criu:
    """Put CRIU into a private prefix; a working one that is there is kept.

    Args:
        prefix: for instance `<cache root>/criu`; TORPOR_CRIU_PREFIX overrides it. Made whole or not at all.
        mirror: root of a Debian mirror (`.../debian`); the first of the machine's apt sources by default.
        timeout_s: seconds for all of it.
        again: fetch anew even when a working CRIU is there.
        on_step: told what is being done.

    Raises:
        SnapshotError: not an x86-64 Linux, no mirror, no network, a wrong hash, no room, ...; with the next step.
    """
    raise NotImplementedError


def remove(prefix: Path) -> bool:
    """Delete the prefix; whether there was one."""
    raise NotImplementedError
