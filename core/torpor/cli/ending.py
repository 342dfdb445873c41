"""How a command that serves ends: it finishes requests in flight first, and says how many it waits for."""

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
    """A server: a `LocalServer` or `Replicas`."""

    def drain(self, on_wait: Callable[[int], None] | None = None) -> int:
        """Finish requests in flight; return how many were cut off."""


def drained(server: Draining, signals: Signals) -> None:
    """Finish requests in flight, and say so.

    Args:
        server: it serves.
        signals: a second one ends the wait.
    """

    def say(text: str) -> None:
        if not signals.hung_up:
            terminal_say(text)

    was_cut = server.drain(
        lambda waiting: say(f"finishing {waiting} request(s) in flight; a second signal ends them at once")
    )
    if was_cut:
        say(f"{was_cut} request(s) took longer than Deployment.drain_timeout_s and were cut off")


def finished_or_ended(then: Callable[[], None] | None, signals: Signals, drain: Callable[[], None]) -> None:
    """Run a function until it returns or a signal asks for the end; then drain.

    Args:
        then: runs in a thread of its own; what it raises is raised here.
        signals: what they asked for.
        drain: finishes requests in flight, also the one of `then`.
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
