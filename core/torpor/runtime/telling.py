"""Tells a deployment's listeners what becomes of one replica; does nothing if there is none.

`torpor.listener` imports its modules on first use, so a restore without listeners imports none of them.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol, TypeVar

from torpor import listener
from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torpor.deployment import Deployment
    from torpor.engine.handle import Engine
    from torpor.lifecycle import Lifecycle
    from torpor.listener.background import Background
    from torpor.listener.delivery import Listeners
    from torpor.listener.events import GpuFacts, LifecycleEvent
    from torpor.telemetry.records import BootKind, StageRecord

__all__ = ["Place", "Telling", "gpu_facts", "tell_failed_restore"]

_NOT_A_START = (Stage.DRAIN, Stage.PRE_SNAPSHOT)
_Event = TypeVar("_Event", bound="LifecycleEvent")


class Place(Protocol):
    """A GPU of this machine, as `torpor.snapshots.gpu` has it."""

    @property
    def number(self) -> int:
        """In the driver's order."""

    @property
    def uuid(self) -> str:
        """From the driver."""

    @property
    def name(self) -> str:
        """From the driver."""


class Told(Protocol):
    """What events say of a boot."""

    deployment: Deployment
    replica: str
    engine: Engine | None
    places: Sequence[Place]
    restore_count: int
    reason: str
    restarts: int

    @property
    def kind(self) -> BootKind:
        """The kind of its latest start."""


class Telling:
    """What the listeners hear of one boot.

    Args:
        boot: of the replica.
        listeners: of its deployment; None if there are none.
    """

    def __init__(self, boot: Told, listeners: Listeners | None) -> None:
        self._boot = boot
        self._listeners = listeners
        self._background: Background | None = None
        self._serving = self._replaced = False
        self._stopped: Engine | None = None
        self._changing = threading.RLock()  # a stop may come from another thread than a wake

    def stage_ended(self, record: StageRecord, failure: BaseException | None = None) -> None:
        """A stage is over.

        Args:
            record: its record.
            failure: why it failed; None if it did not.
        """
        if self._listeners is None:
            return
        with self._changing:
            self._tell(listener.StageEnded, record=record, replica_id=record.replica_id)
            if failure is not None and record.stage not in _NOT_A_START:
                self._tell(listener.StartFailed, stage=record.stage, error=failure, replica_id=record.replica_id)

    def serving(self) -> None:
        """The replica serves from now on. Not told of an engine that has ended meanwhile."""
        if self._listeners is None:
            return
        with self._changing:
            if self._stopped is None or self._stopped is not self._boot.engine:
                self._tell_serving(self._listeners)

    def _tell_serving(self, listeners: Listeners) -> None:
        boot = self._boot
        told = self._tell(listener.Serving, restore_count=boot.restore_count)
        self._serving = True
        if boot.reason and not self._replaced:
            self._replaced = True
            self._tell(listener.ReplicaReplaced, reason=boot.reason, restarts=boot.restarts)
        if self._background is None:
            self._background = listener.Background(listeners)
        self._background.begin(told)

    def draining(self) -> None:
        """The replica lets no new request in. Told once until it serves again."""
        if self._listeners is None:
            return
        with self._changing:
            if self._serving:
                self._serving = False
                self._tell(listener.Draining)
                self._end_background()

    def stopped(self, exit_code: int | None) -> None:
        """The engine has ended. Told once for each engine."""
        engine = self._boot.engine
        if self._listeners is None or engine is None:
            return
        with self._changing:
            if self._stopped is not engine:
                self._serving, self._stopped = False, engine
                self._end_background()
                self._tell(listener.Stopped, exit_code=exit_code)

    def flush(self) -> None:
        """Wait until every listener has heard all, at most its deadline."""
        if self._listeners is not None:
            self._listeners.flush()

    def _end_background(self) -> None:
        if self._background is not None:
            self._background.end()

    def _tell(self, kind: Callable[..., _Event], *, replica_id: str | None = None, **facts: object) -> _Event:
        assert self._listeners is not None
        boot = self._boot
        own_id = boot.engine.replica_id if boot.engine is not None else ""
        values: dict[str, object] = {
            "deployment": boot.deployment,
            "replica": boot.replica,
            "replica_id": own_id if replica_id is None else replica_id,
            "boot": boot.kind,
            "gpus": gpu_facts(boot.places),
            "at": time.time(),
            **facts,
        }
        event = kind(**values)
        self._listeners.tell(event)
        return event


def tell_failed_restore(
    lifecycle: Lifecycle, listeners: Listeners, record: StageRecord, failure: BaseException
) -> None:
    """Tell the listeners of a restore that failed before there was a boot.

    Args:
        lifecycle: of the deployment.
        listeners: its listeners.
        record: of the restore.
        failure: why it failed.
    """
    at, boot, replica, deployment = record.ended_at, record.boot, record.replica, lifecycle.deployment
    listeners.tell(
        listener.StageEnded(
            deployment=deployment, replica=replica, replica_id="", boot=boot, gpus=(), at=at, record=record
        )
    )
    listeners.tell(
        listener.StartFailed(
            deployment=deployment,
            replica=replica,
            replica_id="",
            boot=boot,
            gpus=(),
            at=at,
            stage=record.stage,
            error=failure,
        )
    )


def gpu_facts(places: Iterable[Place]) -> tuple[GpuFacts, ...]:
    """The GPUs of a replica, as events hold them."""
    return tuple(listener.GpuFacts(number=one.number, uuid=one.uuid, name=one.name) for one in places)
