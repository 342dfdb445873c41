"""What a user asks for, for each deployment: how long it stays, how many replicas, how many requests may wait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torpor.serving.sizes import Size

__all__ = ["Capture", "Keep", "Terms", "wanted_replicas"]

Keep = Literal["on disk", "asleep"]
"""The lowest state to which idle time lets a deployment fall. The budget may still end what sleeps."""

Capture = Literal["when idle", "never"]
"""Whether a deployment that started cold is captured in a snapshot once it is idle."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of one deployment.

    Attributes:
        name: of the deployment.
        idle_s: seconds without a request after which it falls one state.
        keep: the lowest state to which idle time lets it fall.
        pinned: it keeps its state: neither idle time nor another deployment's need lets it fall.
        can_sleep: whether its engine can sleep in memory.
        capture: whether a cold start is captured once idle.
        capture_after_s: idle seconds before the capture.
        queue: requests that may wait at once.
        deadline_s: seconds that a request waits at most.
        target: requests in flight or waiting, for each replica, above which another replica is asked for.
        most_requests: requests that one replica takes at most.
        least: replicas kept serving without traffic.
        most: replicas at most.
        buffer: further idle replicas while there is traffic.
        gpu_count: how many GPUs one replica takes.
        size: of a serving replica, at least; it counts before the first start, too.
    """

    name: str
    idle_s: float = 300.0
    keep: Keep = "on disk"
    pinned: bool = False
    can_sleep: bool = True
    capture: Capture = "when idle"
    capture_after_s: float = 5.0
    queue: int = 1000
    deadline_s: float = 600.0
    target: int = 10
    most_requests: int = 100
    least: int = 0
    most: int = 1
    buffer: int = 0
    gpu_count: int = 0
    size: Size | None = None


def wanted_replicas(terms: Terms, requests: int) -> int:
    """How many replicas should serve.

    Args:
        terms: of the deployment.
        requests: in flight and waiting, together.
    """
    wanted = -(-requests // terms.target)
    if requests:
        wanted += terms.buffer
    return min(max(wanted, terms.least), terms.most)
