"""The threads of `Listener.while_serving`: they begin when a replica serves, and end before it sleeps or ends."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from torpor.deployment import plugin_name
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from torpor.listener.delivery import Listeners
    from torpor.listener.events import Serving
    from torpor.listener.listener import Listener

__all__ = ["Background"]


class Background:
    """The threads beside one replica.

    Args:
        listeners: of the deployment; those with `while_serving` run.
    """

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners
        self._ending = threading.Event()
        self._threads: list[tuple[Listener, threading.Thread]] = []

    def begin(self, serving: Serving) -> None:
        """Start one thread for each plugin, but for those that did not end in time once. Harmless to repeat while they run."""
        if self._threads:
            return
        self._ending = threading.Event()
        for plugin in self._listeners.background:
            if plugin in self._listeners.unending:  # each wake would leave one more thread behind
                continue
            name = f"torpor-{plugin_name(plugin)}-while-serving"
            thread = threading.Thread(target=_run, args=(plugin, serving, self._ending), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads, or the interpreter ends; the replica serves on
                _log_failure(plugin, serving, error)
            else:
                self._threads.append((plugin, thread))

    def end(self) -> None:
        """Have all threads end, and wait for each up to its deadline. Harmless to repeat."""
        self._ending.set()
        threads, self._threads = self._threads, []
        began = time.monotonic()
        for plugin, thread in threads:
            limit_s = 0.0 if plugin in self._listeners.unending else plugin.listener_deadline_s
            thread.join(max(0.0, began + limit_s - time.monotonic()))
            if thread.is_alive():
                self._listeners.unending.add(plugin)
                log(
                    "warning",
                    "background_not_ended",
                    plugin=plugin_name(plugin),
                    error=f"while_serving did not return within {plugin.listener_deadline_s:g} s; it is not started again",
                )


def _run(plugin: Listener, serving: Serving, ending: threading.Event) -> None:
    try:
        plugin.while_serving(serving, ending)
    except BaseException as error:
        _log_failure(plugin, serving, error)


def _log_failure(plugin: Listener, serving: Serving, error: BaseException) -> None:
    said = f"{type(error).__name__}: {error}"
    log("warning", "background_failed", plugin=plugin_name(plugin), replica=serving.replica, error=said)
