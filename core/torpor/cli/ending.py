"""How a command that serves ends: requests in flight are finished first, and it says how many it waits for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from torpor.cli.terminal import say as terminal_say

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.cli.interrupts import Signals

__all__ = ["drained", "finished_or_ended"]

_LOOK_S = 0.05


class Draining(Protocol):
    """What serves: a `LocalServer` or `Replicas`."""

    def drain(self, on_wait: Callable[[int], None] | None = None) -> int:
        """Finish requests in flight; how many were cut off."""


def drained(server: Draining, signals: Signals) -> None:
    """Finish what is in flight, and say so.

    Args:
        server: what serves.
        signals: a second one ends the wait.
    """

    def say(text: str) -> None:
        if not signals.hung_up:
            terminal_say(text)

    was_cut = server.drain(
        lambda waiting: say(f"finishing {waiting} request(s) in flight; a second signal ends them at once")
    )
    if was_cut:
        say(f"{was_cut} request(s) were not over in time (Deployment.drain_timeout_s) and were cut off")


def finished_or_ended(then: Callable[[], None] | None, signals: Signals, drain: Callable[[], None]) -> None:
    """Do something while a signal may ask for the end; then drain.

    Args:
        then: runs in a thread of its own; what it raises is raised here.
        signals: what was asked for.
        drain: finishes what is in flight, `then`'s own request too.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            if then is not None:
                then()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive() and not signals.end:
        thread.join(_LOOK_S)
    if signals.end:
        drain()
        while thread.is_alive():
            thread.join(_LOOK_S)
    if failed:
        raise failed[0]
