"""Tells every listener of a deployment what happens, in order.

Each listening plugin has one queue for all replicas of its deployment. A thread takes events out of it, and ends when it is
empty, so that no idle thread is in a snapshot. A start only puts events in. `flush` waits until all were heard; who is not done
within its deadline is given up, for good: it can delay a sleep or an end once, and no start at all.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from torpor.deployment import plugin_name
from torpor.listener.listener import Listener, listens
from torpor.telemetry.events import log
from torpor.telemetry.observers import observers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.listener.events import LifecycleEvent

__all__ = ["MOST_WAITING", "Listeners"]

MOST_WAITING = 1000
"""The most events that wait for one listener; a further one is dropped, and that is logged once."""


class Listeners:
    """The listening plugins of one deployment. Threads may share it.

    Attributes:
        background: those that run beside each replica (`torpor.listener.background`).
        unending: those of them that did not end in time once; nobody waits for them or starts them again.

    Args:
        deployment: its name.
        plugins: all plugins, in their order; those that override `Listener.on_event` hear.
    """

    def __init__(self, deployment: str, plugins: Sequence[object]) -> None:
        self._ears = [
            _Ear(deployment, plugin)
            for plugin in plugins
            if isinstance(plugin, Listener) and listens(plugin, "on_event")
        ]
        self.background = [
            plugin for plugin in plugins if isinstance(plugin, Listener) and listens(plugin, "while_serving")
        ]

        self.unending: set[Listener] = set()

    def tell(self, event: LifecycleEvent) -> None:
        """Put an event into every queue; returns at once."""
        for ear in self._ears:
            ear.tell(event)

    def flush(self) -> None:
        """Wait until every listener has heard all, or was given up."""
        for ear in self._ears:
            ear.flush()


class _Ear:
    """The queue of one listener.

    Args:
        deployment: its name.
        plugin: the listener.
    """

    def __init__(self, deployment: str, plugin: Listener) -> None:
        self._deployment = deployment
        self._plugin = plugin
        self._name = plugin_name(plugin)
        self._deadline_s = plugin.listener_deadline_s
        self._changed = threading.Condition()
        self._waiting: deque[LifecycleEvent] = deque()
        self._hearing: tuple[LifecycleEvent, float] | None = None  # and since when
        self._runs = self._deaf = self._dropped = False

    def tell(self, event: LifecycleEvent) -> None:
        with self._changed:
            if self._deaf or self._hung():
                return
            if len(self._waiting) >= MOST_WAITING:
                self._drop(event)
                return
            self._waiting.append(event)
            if not self._runs:
                self._begin()

    def _begin(self) -> None:
        """Start the thread. Without one what waits is dropped: a start must not fail for a listener. With the lock."""
        self._runs = True
        try:
            threading.Thread(target=self._run, name=f"torpor-{self._name}-events", daemon=True).start()
        except RuntimeError as error:  # no more threads, or the interpreter ends
            self._runs = False
            event = self._waiting[-1]
            self._waiting.clear()
            self._failed("dropped", event, f"{error}; {type(event).__name__} is dropped")

    def flush(self) -> None:
        until = time.monotonic() + self._deadline_s
        with self._changed:
            while self._runs and not self._deaf:
                if (left_s := until - time.monotonic()) <= 0:
                    self._give_up("late")
                    return
                self._changed.wait(left_s)

    def _run(self) -> None:
        """Hear what waits; ends when nothing does."""
        while True:
            with self._changed:
                self._hearing = None
                if self._deaf or not self._waiting:
                    self._runs = False
                    self._changed.notify_all()
                    return
                event = self._waiting.popleft()
                self._hearing = event, time.monotonic()
            try:
                self._plugin.on_event(event)
            except BaseException as error:
                self._failed("raised", event, f"{type(error).__name__}: {error}")

    def _hung(self) -> bool:
        """Whether the event that it hears takes too long; it is given up then. With the lock."""
        if self._hearing is None or time.monotonic() - self._hearing[1] <= self._deadline_s:
            return False
        self._give_up("hung")
        return True

    def _give_up(self, what: str) -> None:
        """Tell it nothing more. With the lock."""
        self._deaf = True
        self._waiting.clear()
        self._changed.notify_all()
        event = self._hearing[0] if self._hearing else None
        self._failed(what, event, f"not done within {self._deadline_s:g} s; it hears nothing more")

    def _drop(self, event: LifecycleEvent) -> None:
        """Drop an event, with one line in the log. With the lock."""
        if not self._dropped:
            self._dropped = True
            self._failed("dropped", event, f"{MOST_WAITING} events wait already; further ones are dropped")

    def _failed(self, what: str, event: LifecycleEvent | None, error: str) -> None:
        told = type(event).__name__ if event is not None else ""
        replica = event.replica if event is not None else ""
        log("warning", "listener_failed", plugin=self._name, event_heard=told, replica=replica, what=what, error=error)
        for observer in observers():
            observer.listener_failed(self._deployment, self._name, what)
