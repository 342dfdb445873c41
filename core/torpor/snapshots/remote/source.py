"""A snapshot of a store as a start is given it: its URL, whom to trust, and what opens it. This module imports nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torpor.snapshots.remote.values import Trust

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Source"]


class Source(NamedTuple):
    """A snapshot of a store.

    Attributes:
        url: of the snapshot.
        trust: whose snapshots may run here.
        identity: file with an age identity, for an encrypted snapshot.
    """

    url: str
    trust: Trust = Trust()
    identity: Path | None = None
