"""What the fleet wants done. Its owner does it, and tells the fleet when it is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from torpor.serving.states import Replica, Waiter

__all__ = ["Action", "Capture", "End", "Grant", "Refuse", "Sleep", "Start", "Wake"]


class Start(NamedTuple):
    """Start a replica: restore it, or start it cold. Then call `Fleet.serves` or `Fleet.failed`."""

    replica: Replica


class Wake(NamedTuple):
    """Wake a sleeping replica. Then call `Fleet.serves` or `Fleet.failed`."""

    replica: Replica


class Sleep(NamedTuple):
    """Put a replica to sleep in memory. Then call `Fleet.sleeps`, or `Fleet.gone` if it did not survive."""

    replica: Replica


class Capture(NamedTuple):
    """Capture a replica in a snapshot; it sleeps afterwards. Then call `Fleet.captured`, or `Fleet.gone`."""

    replica: Replica


class End(NamedTuple):
    """End a replica. Then call `Fleet.gone`."""

    replica: Replica


class Grant(NamedTuple):
    """Send this request to this replica. Call `Fleet.release` when it is over."""

    waiter: Waiter
    replica: Replica


class Refuse(NamedTuple):
    """Refuse this request.

    Attributes:
        waiter: the request.
        code: `late`, `failed`, `removed` or `closing`.
        message: for the client.
        retry_after_s: seconds after which it may try again; 0 for never.
    """

    waiter: Waiter
    code: str
    message: str
    retry_after_s: float


Action: TypeAlias = Start | Wake | Sleep | Capture | End | Grant | Refuse
