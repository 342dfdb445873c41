"""A plugin that listens: what it hears of each start, and the thread that runs beside its replica.

listener     `Listener`: the two methods that a plugin overrides
events       what it is told
delivery     tells each listener in order, in a thread of its own, with a deadline
background   the threads that run while a replica serves
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.listener.background import Background
    from torpor.listener.delivery import Listeners
    from torpor.listener.events import (
        Draining,
        GpuFacts,
        LifecycleEvent,
        ReplicaReplaced,
        Serving,
        StageEnded,
        StartFailed,
        Stopped,
    )
    from torpor.listener.listener import Listener

__all__ = [
    "Background",
    "Draining",
    "GpuFacts",
    "LifecycleEvent",
    "Listener",
    "Listeners",
    "ReplicaReplaced",
    "Serving",
    "StageEnded",
    "StartFailed",
    "Stopped",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.listener.background": ("Background",),
        "torpor.listener.delivery": ("Listeners",),
        "torpor.listener.events": (
            "Draining",
            "GpuFacts",
            "LifecycleEvent",
            "ReplicaReplaced",
            "Serving",
            "StageEnded",
            "StartFailed",
            "Stopped",
        ),
        "torpor.listener.listener": ("Listener",),
    },
)
