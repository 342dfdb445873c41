"""Before a server ends: finish requests in flight, and cut off the rest at a deadline."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torpor.runtime.boot import Boot

__all__ = ["drain"]

_JOIN_S = 0.1  # signals are handled in between


def drain(
    boots: Sequence[Boot],
    *,
    limit_s: float,
    on_wait: Callable[[int], None] | None = None,
    port: Callable[[float], int] | None = None,
) -> int:
    """Have all engines refuse new requests and finish those in flight, at the same time.

    Args:
        boots: of the engines. One that sleeps, has ended or has no guard is not waited for.
        limit_s: seconds until what is left is cut off.
        on_wait: called with how many requests are in flight, if any.
        port: `drain` of the gateway before them: waits up to so many seconds until clients have read their answers, and
            returns how many have not.

    Returns:
        How many requests were cut off.
    """
    deadline = time.monotonic() + limit_s
    waiting = sum(boot.in_flight() for boot in boots)
    if waiting and on_wait:
        on_wait(waiting)
    was_cut: list[int] = []
    threads = [threading.Thread(target=_drain_one, args=(boot, limit_s, was_cut), daemon=True) for boot in boots]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(_JOIN_S)
    left = port(max(0.0, deadline - time.monotonic())) if port else 0
    return max(sum(was_cut), left)


def _drain_one(boot: Boot, limit_s: float, was_cut: list[int]) -> None:
    was_cut.append(boot.drain(limit_s))
