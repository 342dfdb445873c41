"""The lease of a request: the right to send it to one replica."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torpor.serving.states import Replica
    from torpor.serving.values import Start, Way

__all__ = ["Granted", "Lender"]


class Lender(Protocol):
    """Who gives leases."""

    def released(self, replica: Replica, *, failed: bool) -> None:
        """A lease was given back."""


class Granted:
    """A lease: the right to send one request to one replica.

    Args:
        lender: who gave it.
        replica: where to.
        way: to the replica.
        start: what the request met.
        waited_s: how long it waited.
    """

    def __init__(self, lender: Lender, replica: Replica, way: Way, start: Start, waited_s: float) -> None:
        self.way, self.start, self.waited_s = way, start, waited_s
        self._lender = lender
        self._replica = replica
        self._released = False

    def release(self, *, failed: bool = False) -> None:
        """Give it back. Harmless to repeat."""
        if not self._released:
            self._released = True
            self._lender.released(self._replica, failed=failed)
