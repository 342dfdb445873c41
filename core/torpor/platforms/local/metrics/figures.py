"""What is read at each scrape, for every kind of command that serves."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from torpor.errors import SnapshotError
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.memory import gpu_bytes, tree_bytes
from torpor.platforms.local.replicas import Replicas
from torpor.platforms.local.running import Process
from torpor.snapshots.store.paths import snapshot_folder
from torpor.snapshots.store.stored import inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torpor.platforms.local.server import LocalServer
    from torpor.runtime.boot import Boot

__all__ = ["STATES", "CommandFigures", "Figures", "Source", "of_serve", "snapshot_of"]

STATES = ("on disk", "starting", "serving", "capturing", "sleeping", "asleep", "waking", "ending")
"""Of deployments and replicas; `torpor.serving.states` says what each means."""

_MEMORY_FOR_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One deployment at one moment.

    Attributes:
        deployment: its name.
        state: of `STATES`.
        replicas: how many are in each state.
        in_flight: requests that its replicas work on.
        waiting: requests in its queue.
        memory: bytes by place, `host` or `gpu`.
        snapshot: its snapshot's folder; None if it has none.
        boots: its replicas by name, for the engines' own metrics.
    """

    deployment: str
    state: str
    replicas: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0
    waiting: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)
    snapshot: Path | None = None
    boots: Sequence[tuple[str, Boot]] = ()


class Source(Protocol):
    """Where figures come from."""

    def __call__(self) -> Sequence[Figures]:
        """Those of every deployment now."""


def of_serve(
    deployments: Sequence[Mapping[str, object]],
    *,
    snapshots: Mapping[str, Path | None],
    boots: Callable[[str], Sequence[tuple[str, Boot]]],
) -> Sequence[Figures]:
    """The deployments of `torpor serve`.

    Args:
        deployments: as its status tells them.
        snapshots: the snapshot's folder of each, by name.
        boots: the replicas of a deployment that serve or sleep, by its name.
    """
    return [_served(told, snapshots, boots) for told in deployments]


def _served(
    told: Mapping[str, object], snapshots: Mapping[str, Path | None], boots: Callable[[str], Sequence[tuple[str, Boot]]]
) -> Figures:
    name, replicas = str(told["name"]), told["replicas"]
    assert isinstance(replicas, list)
    states = [str(replica["state"]) for replica in replicas]
    return Figures(
        deployment=name,
        state=str(told["state"]),
        replicas={state: states.count(state) for state in set(states)},
        in_flight=sum(int(replica["in_flight"]) for replica in replicas),
        waiting=int(str(told["waiting"])),
        memory={
            "host": sum(int(replica["memory_bytes"]) for replica in replicas),
            "gpu": sum(int(held) for replica in replicas for held in replica["gpus"].values()),
        },
        snapshot=snapshots.get(name),
        boots=boots(name),
    )


class CommandFigures:
    """The one deployment of `torpor up` or `snapshot restore`.

    Args:
        name: of the deployment.
        started: what serves, at the time of a call; None while it starts.
    """

    def __init__(self, name: str, started: Callable[[], LocalServer | Replicas | None]) -> None:
        self._name = name
        self._started = started
        self._memory: tuple[float, dict[str, int]] = (-_MEMORY_FOR_S, {})

    def __call__(self) -> Sequence[Figures]:
        """Its figures now."""
        started = self._started()
        if started is None:
            return [Figures(deployment=self._name, state="starting", snapshot=snapshot_folder(self._name))]
        told = _of_replicas(started) if isinstance(started, Replicas) else _of_server(started)
        return [replace(told, memory=self._memory_of([boot for _, boot in told.boots]))]

    def _memory_of(self, boots: Sequence[Boot]) -> dict[str, int]:
        """What the process trees of these replicas take. Not at each scrape: reading the map of a large process takes a while."""
        if time.monotonic() - self._memory[0] >= _MEMORY_FOR_S:
            self._memory = time.monotonic(), _memory(boots)
        return self._memory[1]


def _of_replicas(replicas: Replicas) -> Figures:
    boots = [(one.replica.name, one.boot) for one in replicas.serving]
    return Figures(
        deployment=replicas.manifest.deployment.name,
        state="serving" if boots else "starting",
        replicas={"serving": len(boots), "starting": replicas.restarting},
        in_flight=replicas.in_flight,
        snapshot=replicas.folder,
        boots=boots,
    )


def _of_server(server: LocalServer) -> Figures:
    boot, backend = server.boot, server.backend
    alive = boot.engine is not None and boot.engine.poll() is None
    state = "asleep" if alive and boot.asleep else "serving" if alive and boot.serving else "starting"
    return Figures(
        deployment=server.deployment.name,
        state=state,
        replicas={state: 1},
        in_flight=backend.in_flight if isinstance(backend, CriuBackend) else boot.in_flight() if boot.serving else 0,
        snapshot=backend.folder(server.deployment) if isinstance(backend, CriuBackend) else None,
        boots=[(boot.replica, boot)] if alive else [],
    )


def _memory(boots: Sequence[Boot]) -> dict[str, int]:
    leaders = [_leader(boot) for boot in boots]
    gpus = [gpu_bytes(leader) for leader, boot in zip(leaders, boots, strict=True) if boot.deployment.gpu is not None]
    return {
        "host": sum(tree_bytes(leader) or 0 for leader in leaders),
        "gpu": sum(held for one in gpus for held in one.values()),
    }


def _leader(boot: Boot) -> Process:
    engine = boot.running_engine
    sandbox = getattr(engine, "sandbox", None)
    return Process.of(engine.pid if sandbox is None else sandbox.pid)


def snapshot_of(folder: Path) -> tuple[int, float] | None:
    """Bytes of a snapshot, and the Unix time of its capture; None if there is none that can be read."""
    try:
        manifest = inspect(folder)
    except SnapshotError:
        return None
    return sum(file.size for file in manifest.files.values()), manifest.captured_at
