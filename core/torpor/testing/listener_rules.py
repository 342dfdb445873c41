"""Rules about a listener: what it does with every event, and that it ends in time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

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
from torpor.listener.listener import Listener, listens
from torpor.telemetry.records import BOOT_KINDS, BootKind, StageRecord, described
from torpor.telemetry.stages import LIFECYCLE_STAGES
from torpor.testing.failing import broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torpor.deployment import Deployment

__all__ = ["ListenerRules", "every_event"]

_SERVES_S = 0.05
_ID = "0123456789abcdef"
_GPU = GpuFacts(number=0, uuid="GPU-01234567-89ab-cdef-0123-456789abcdef", name="NVIDIA H200")


class ListenerRules:
    """Rules about `on_event` and `while_serving`. They call both, so a plugin under test needs no server behind it."""

    def test_hears_every_event(self, plugin: object, deployment: Deployment) -> None:
        """`on_event` takes every event of cold, woken and restored starts, well or not, and raises at none."""
        if not isinstance(plugin, Listener) or not listens(plugin, "on_event"):
            return
        for event in every_event(deployment):
            took = _Call(lambda event=event: plugin.on_event(event))  # type: ignore[misc] # mypy knows no type of a default
            if failure := took.failure(plugin.listener_deadline_s):
                broken(
                    f"{type(plugin).__name__}.on_event {failure} at {type(event).__name__} of a {event.boot} start.",
                    rule="a listener takes every event in time; core logs a failure, and a late listener hears nothing more.",
                    cure="handle the events that you know and ignore the others; hand slow work to while_serving, or a queue.",
                )

    def test_ends_with_the_replica(self, plugin: object, deployment: Deployment) -> None:
        """`while_serving` returns in time once `ending` is set, at once or a moment after it began."""
        if not isinstance(plugin, Listener) or not listens(plugin, "while_serving"):
            return
        serving = next(event for event in every_event(deployment) if isinstance(event, Serving))
        for pause_s in (0.0, _SERVES_S):
            ending = threading.Event()
            took = _Call(lambda ending=ending: plugin.while_serving(serving, ending))  # type: ignore[misc] # as above
            ending.wait(pause_s)
            ending.set()
            if failure := took.failure(plugin.listener_deadline_s):
                broken(
                    f"{type(plugin).__name__}.while_serving {failure} after its replica drained.",
                    rule="while_serving returns within listener_deadline_s once `ending` is set: it must not outlive its replica.",
                    cure="wait with ending.wait(seconds) in place of time.sleep, and give every request a timeout.",
                )


class _Call:
    """A call in a thread of its own, which a test does not wait for at its end."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error

    def failure(self, deadline_s: float) -> str:
        """How it failed, as the rest of a sentence; empty if it returned in time."""
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            return f"did not return within {deadline_s:g} s"
        return f"raises {described(self._error)}" if self._error is not None else ""


def every_event(deployment: Deployment) -> Iterator[LifecycleEvent]:
    """One event of each class for each kind of start, and each stage with a good and a failed record."""
    error = RuntimeError("made for the contract")
    for kind in BOOT_KINDS:
        facts = _Facts(deployment, kind)
        for stage in LIFECYCLE_STAGES:
            yield facts.event(StageEnded, record=_record(deployment, kind, stage, None))
            yield facts.event(StageEnded, record=_record(deployment, kind, stage, error))
        yield facts.event(StartFailed, stage=LIFECYCLE_STAGES[0], error=error)
        yield facts.event(Serving, restore_count=0)
        yield facts.event(ReplicaReplaced, reason="engine ended", restarts=1)
        yield facts.event(Draining)
        yield facts.event(Stopped, exit_code=0)
        yield facts.event(Stopped, exit_code=None)


class _Facts:
    """What all events of one start say."""

    def __init__(self, deployment: Deployment, kind: BootKind) -> None:
        self._common: Mapping[str, object] = {
            "deployment": deployment,
            "replica": f"{deployment.name}-1",
            "replica_id": _ID,
            "boot": kind,
            "gpus": (_GPU,),
        }

    def event(self, make: Callable[..., LifecycleEvent], **more: object) -> LifecycleEvent:
        return make(**self._common, at=time.time(), **more)


def _record(deployment: Deployment, kind: BootKind, stage: str, error: BaseException | None) -> StageRecord:
    return StageRecord(
        stage=stage,
        seconds=0.1,
        boot=kind,
        replica_id=_ID,
        restore_count=0,
        ended_at=time.time(),
        ok=error is None,
        error=described(error),
        deployment=deployment.name,
        replica=f"{deployment.name}-1",
    )
