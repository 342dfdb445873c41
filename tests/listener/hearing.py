"""Listeners for tests. Plugins hold no state, so what they heard is in this module, for one test."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torpor import Plugin, hookimpl, override
from torpor.listener import LifecycleEvent, Serving, StageEnded, StartFailed

if TYPE_CHECKING:
    import httpx

    from torpor import Deployment, Engine

__all__ = ["BESIDE", "HEARD", "Broken", "Deaf", "Hears", "told"]

HEARD: list[LifecycleEvent] = []
BESIDE: list[str] = []
RELEASED = threading.Event()
"""Lets a hung listener go on, at the end of a test."""


def told(events: list[LifecycleEvent]) -> list[str]:
    """Events in a few words, in order."""
    return [_words(event) for event in events]


def _words(event: LifecycleEvent) -> str:
    match event:
        case StageEnded(record=record):
            return f"{record.stage}{'' if record.ok else ' failed'}"
        case StartFailed(stage=stage):
            return f"StartFailed in {stage}"
        case _:
            return type(event).__name__


@dataclass(frozen=True, kw_only=True)
class Hears(Plugin):
    """Notes every event, and the life of its thread."""

    plugin_name: ClassVar[str] = "hears"
    listener_deadline_s: ClassVar[float] = 5.0

    @hookimpl
    @override
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        """Nothing to do."""

    @override
    def on_event(self, event: LifecycleEvent) -> None:
        HEARD.append(event)

    @override
    def while_serving(self, serving: Serving, ending: threading.Event) -> None:
        BESIDE.append(f"{serving.boot} began")
        ending.wait(30)
        BESIDE.append(f"{serving.boot} ended")


@dataclass(frozen=True, kw_only=True)
class Broken(Hears):
    """Raises at every event, and beside the replica."""

    plugin_name: ClassVar[str] = "broken"

    @override
    def on_event(self, event: LifecycleEvent) -> None:
        HEARD.append(event)
        raise SystemExit("no")

    @override
    def while_serving(self, serving: Serving, ending: threading.Event) -> None:
        raise RuntimeError("no")


@dataclass(frozen=True, kw_only=True)
class Deaf(Hears):
    """Hangs at the first event, and ignores the end."""

    plugin_name: ClassVar[str] = "deaf"
    listener_deadline_s: ClassVar[float] = 0.2

    @override
    def on_event(self, event: LifecycleEvent) -> None:
        HEARD.append(event)
        RELEASED.wait(30)

    @override
    def while_serving(self, serving: Serving, ending: threading.Event) -> None:
        RELEASED.wait(30)
