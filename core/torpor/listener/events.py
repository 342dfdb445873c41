"""What a listener is told of a replica. Each event is a value of its own class, so `match` can tell them apart.

StageEnded        a stage of a start, a sleep or a wake is over, well or not
StartFailed       a cold start, a wake or a restore failed
Serving           public requests are let in; after every cold start and every wake
ReplicaReplaced   the replica that serves replaces one that ended or did not wake
Draining          the replica lets no new request in: before a sleep, and before its end
Stopped           its engine has ended
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.telemetry.records import BootKind, StageRecord

__all__ = [
    "EVENTS",
    "Draining",
    "GpuFacts",
    "LifecycleEvent",
    "ReplicaReplaced",
    "Serving",
    "StageEnded",
    "StartFailed",
    "Stopped",
]


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """A GPU of a replica.

    Attributes:
        number: in the driver's order, from 0; `nvidia-smi` shows it.
        uuid: from the driver.
        name: e.g. `NVIDIA H200`.
    """

    number: int
    uuid: str
    name: str


@dataclass(frozen=True, kw_only=True)
class LifecycleEvent:
    """What every event says.

    Attributes:
        deployment: what the replica serves.
        replica: the replica's name; each replica of a snapshot has its own.
        replica_id: 16 hex digits; empty before the launch.
        boot: the kind of its latest start.
        gpus: its GPUs; empty without a GPU, where CUDA chose among several, and on Modal early in a wake: no wake waits for them.
        at: Unix time, seconds.
    """

    deployment: Deployment
    replica: str
    replica_id: str
    boot: BootKind
    gpus: tuple[GpuFacts, ...]
    at: float


@dataclass(frozen=True, kw_only=True)
class StageEnded(LifecycleEvent):
    """A stage is over.

    Attributes:
        record: its record; `record.ok` says whether it succeeded.
    """

    record: StageRecord


@dataclass(frozen=True, kw_only=True)
class StartFailed(LifecycleEvent):
    """A start failed. Another one may follow: see `ReplicaReplaced`.

    Attributes:
        stage: in which it failed.
        error: as core raises it, with what the engine said.
    """

    stage: str
    error: BaseException


@dataclass(frozen=True, kw_only=True)
class Serving(LifecycleEvent):
    """The replica takes public requests from now on.

    Attributes:
        restore_count: how often it woke so far.
    """

    restore_count: int


@dataclass(frozen=True, kw_only=True)
class ReplicaReplaced(LifecycleEvent):
    """The replica serves in place of another one; `Serving` came before.

    Attributes:
        reason: what became of the other one: `engine ended` or `wake failed`.
        restarts: how often this replica was started again so far.
    """

    reason: str
    restarts: int


@dataclass(frozen=True, kw_only=True)
class Draining(LifecycleEvent):
    """The replica lets no new request in, and finishes those in flight."""


@dataclass(frozen=True, kw_only=True)
class Stopped(LifecycleEvent):
    """The engine has ended: on purpose, by a failure, or by itself.

    Attributes:
        exit_code: the engine's; negative for a signal; None if unknown.
    """

    exit_code: int | None


EVENTS: tuple[type[LifecycleEvent], ...] = (StageEnded, StartFailed, Serving, ReplicaReplaced, Draining, Stopped)
