"""How this machine keeps a sleeping server: one small protocol, three backends.

none       keeps nothing: every start is a cold start
standby    keeps the sleeping process; needs no privilege, GPU memory is free
criu       captures the process in a snapshot and ends it; any number of replicas can be restored (`criu_backend`)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from torpor.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torpor.deployment import Deployment
    from torpor.engine.start import Starter
    from torpor.runtime.boot import Boot
    from torpor.snapshots.gpu.placement import GpuPlace

__all__ = ["BACKENDS", "CRIU", "STANDBY_WORKS", "NoSnapshot", "SnapshotBackend", "Standby", "make_backend"]

STANDBY_WORKS = "The backend 'standby' works anywhere: torpor up APP --backend standby"
"""Offered when another backend cannot be used."""


class SnapshotBackend(Protocol):
    """How this machine keeps a sleeping server.

    Attributes:
        name: as in `--backend`.
        process_stays: whether the sleeping engine stays a process.
    """

    name: ClassVar[str]
    process_stays: ClassVar[bool]

    def available(self, deployment: Deployment | None = None) -> tuple[str, ...]:
        """Why it cannot be used here, each reason with its cure; empty if it can.

        Args:
            deployment: what to serve; one with a GPU needs more. None stands for one without special needs.
        """

    def placed(self, deployment: Deployment) -> Deployment:
        """The deployment as its engine gets it: an engine in a network of its own listens on loopback there."""

    def address(self, deployment: Deployment) -> tuple[str, int]:
        """The host and port on which clients reach it.

        Args:
            deployment: from `placed`.
        """

    def prepare(self, deployment: Deployment) -> Starter | None:
        """Prepare a cold start: returns what starts the engine, or None for a child of this process.

        Raises:
            PortInUseError: somebody else has the port.
            SnapshotError: the engine has no place to run in.
        """

    def capture(self, boot: Boot) -> object:
        """Put the engine to sleep and keep it."""

    def restore(self, boot: Boot) -> None:
        """Have the kept engine serve again."""

    def clear(self) -> None:
        """Release the place of an engine that has ended, before `prepare` or `restore`; the public port stays.

        Harmless to repeat.
        """

    def drain(self, limit_s: float) -> int:
        """Let clients of the gateway read their answers; returns how many have not.

        Args:
            limit_s: seconds to wait at most.
        """

    def close(self) -> None:
        """End what the backend itself started, after the engine. Harmless to repeat."""


class NoSnapshot:
    """Keeps nothing: every start is a cold start."""

    name: ClassVar[str] = "none"
    process_stays: ClassVar[bool] = True

    def available(self, deployment: Deployment | None = None) -> tuple[str, ...]:  # noqa: ARG002 - the protocol's
        """Works everywhere."""
        return ()

    def placed(self, deployment: Deployment) -> Deployment:
        """The engine's own server listens on the public port."""
        return deployment

    def address(self, deployment: Deployment) -> tuple[str, int]:
        """Where the engine listens."""
        return deployment.host, deployment.port

    def prepare(self, deployment: Deployment) -> Starter | None:  # noqa: ARG002 - the protocol's
        """The engine is a child of this process."""
        return None

    def capture(self, boot: Boot) -> None:
        """Refuse.

        Raises:
            SnapshotError: always; the message names the backend that can.
        """
        raise SnapshotError(
            f"The backend 'none' keeps nothing, so {boot.deployment.name!r} cannot be put to sleep; use --backend standby."
        )

    def restore(self, boot: Boot) -> None:
        """Refuse.

        Raises:
            SnapshotError: always.
        """
        raise SnapshotError(f"The backend 'none' keeps nothing, so there is no {boot.deployment.name!r} to wake.")

    def clear(self) -> None:
        """Nothing to release."""

    def drain(self, limit_s: float) -> int:  # noqa: ARG002 - the protocol's
        """The engine's own server listens on the public port."""
        return 0

    def close(self) -> None:
        """Nothing to end."""


class Standby:
    """Keeps the sleeping process: GPU memory is free, host memory holds what a wake needs. Needs no privilege."""

    name: ClassVar[str] = "standby"
    process_stays: ClassVar[bool] = True

    def available(self, deployment: Deployment | None = None) -> tuple[str, ...]:  # noqa: ARG002 - the protocol's
        """Works everywhere."""
        return ()

    def placed(self, deployment: Deployment) -> Deployment:
        """The engine's own server listens on the public port."""
        return deployment

    def address(self, deployment: Deployment) -> tuple[str, int]:
        """Where the engine listens."""
        return deployment.host, deployment.port

    def prepare(self, deployment: Deployment) -> Starter | None:  # noqa: ARG002 - the protocol's
        """The engine is a child of this process."""
        return None

    def capture(self, boot: Boot) -> None:
        """Put the engine to sleep; its process stays and no snapshot is written."""
        boot.sleep(for_snapshot=False)

    def restore(self, boot: Boot) -> None:
        """Wake the engine in its own process."""
        boot.wake()

    def clear(self) -> None:
        """Nothing to release."""

    def drain(self, limit_s: float) -> int:  # noqa: ARG002 - the protocol's
        """The engine's own server listens on the public port."""
        return 0

    def close(self) -> None:
        """Nothing to end."""


def _criu(
    *, app_file: Path | None = None, host: str | None = None, port: int | None = None, gpus: Sequence[GpuPlace] = ()
) -> SnapshotBackend:
    from torpor.platforms.local.criu_backend import CriuBackend  # noqa: PLC0415 - 40 ms before an engine without CRIU

    return CriuBackend(app_file=app_file, host=host, port=port, gpus=gpus)


CRIU = "criu"

BACKENDS: dict[str, Callable[[], SnapshotBackend]] = {
    "none": NoSnapshot,
    "standby": Standby,
    CRIU: _criu,
}
"""The snapshot backends by name."""


def make_backend(
    name: str, *, app_file: Path, host: str | None = None, port: int | None = None, gpus: Sequence[GpuPlace] = ()
) -> SnapshotBackend:
    """The backend of that name.

    Args:
        name: of `BACKENDS`.
        app_file: the deployment's app file; a snapshot records it.
        host: address of the gateway, if the backend has one; the deployment's by default.
        port: its port; the deployment's by default.
        gpus: the GPUs that a restored replica may take; by default all.
    """
    if name == CRIU:
        return _criu(app_file=app_file, host=host, port=port, gpus=gpus)
    return BACKENDS[name]()
