"""`Listener`: what a plugin overrides to hear of its replicas. No hook: core never waits for a listener during a start."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import threading

    from torpor.listener.events import LifecycleEvent, Serving

__all__ = ["LISTENER_METHODS", "LONGEST_DEADLINE_S", "Listener", "listens"]

LISTENER_METHODS = ("on_event", "while_serving")
LONGEST_DEADLINE_S = 600.0
"""The most that `Listener.listener_deadline_s` may be."""


class Listener:
    """Two methods that a plugin overrides to hear of its replicas, and to run beside them.

    Attributes:
        listener_deadline_s: seconds for one event, for all events that are left when a replica sleeps or ends, and for
            `while_serving` to return; at most `LONGEST_DEADLINE_S`.
    """

    listener_deadline_s: ClassVar[float] = 5.0

    def on_event(self, event: LifecycleEvent) -> None:
        """Hear what becomes of a replica: stages, failures, serving, draining, its end.

        This is no hook and takes no `@hookimpl`. Events of a replica come in order, one at a time.

        When:
            At cold, woken and restored starts, on every platform. All events were heard when a sleep or an end is over.
        Where:
            In a thread of core's own, in the process that starts the engine. No start waits for it.

        Returns:
            Nothing. What it raises is logged as `listener_failed`, and the start goes on.
        Must not:
            Talk to the engine. If it takes longer than `listener_deadline_s`, it is logged and hears nothing more.

        Example:
            A plugin that prints how long each start took until it served:

                @override
                def on_event(self, event: LifecycleEvent) -> None:
                    match event:
                        case Serving(replica=name, boot=kind):
                            print(f"{name} serves after a {kind} start", flush=True)
                        case StartFailed(replica=name, stage=stage, error=error):
                            print(f"{name} failed in {stage}: {error}", flush=True)
        """

    def while_serving(self, serving: Serving, ending: threading.Event) -> None:
        """Run beside a replica from the time it serves until it drains.

        This is no hook and takes no `@hookimpl`. It starts again after every wake.

        When:
            In a thread of its own for each replica, after `Serving`. It may return at any time.
        Where:
            In the process that starts the engine. No such thread runs while a snapshot is taken.

        Returns:
            Nothing. What it raises is logged as `background_failed`; the replica serves on.
        Must not:
            Ignore `ending`: if it has not returned `listener_deadline_s` seconds later, it is logged, left alone, and never
            started again in this process.

        Example:
            A plugin that says every minute that the replica lives:

                @override
                def while_serving(self, serving: Serving, ending: threading.Event) -> None:
                    while not ending.wait(60):
                        print(f"{serving.replica} serves", flush=True)
        """


def listens(plugin: object, method: str) -> bool:
    """Whether a plugin overrides one of `LISTENER_METHODS`."""
    return isinstance(plugin, Listener) and getattr(type(plugin), method) is not getattr(Listener, method)
