"""`Engine`: the running engine, as plugins and platforms see it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from torpor.values.addresses import LOOPBACK

if TYPE_CHECKING:
    import socket
    from pathlib import Path

__all__ = ["Engine"]


class Engine(ABC):
    """The engine's process tree: the only object with state that crosses a snapshot. `torpor.start_engine` makes one.

    Attributes:
        replica_id: 16 hex digits, new at every cold start and every restore.
        guard_key: the lifecycle key of the guard in front of the engine; None for an engine without one.
        host: the address at which this machine reaches it.
        log_path: the file in which its output is kept; None where there is none.
    """

    replica_id: str
    guard_key: str | None
    host: str = LOOPBACK
    log_path: Path | None = None
    private_network: ClassVar[bool] = False
    """Whether the engine has a network of its own: only `open_socket` reaches its ports."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Process id of the tree's leader."""

    @abstractmethod
    def poll(self) -> int | None:
        """Exit code of the leader (negative: the signal), or None while it runs."""

    @abstractmethod
    def terminate(self, grace_s: float = 10.0) -> int:
        """End the whole tree: SIGTERM to every process, SIGKILL to what is left after `grace_s` seconds.

        Returns:
            The leader's exit code. Calling it again is harmless.
        """

    @abstractmethod
    def wait(self, timeout_s: float) -> int | None:
        """Wait at most `timeout_s` seconds for the leader's end; its exit code, or None when it still runs."""

    @abstractmethod
    def log_tail(self) -> tuple[str, ...]:
        """The last output lines, oldest first."""

    @abstractmethod
    def keep_log(self, folder: Path, replica: str) -> None:
        """Keep the output of a restored engine. A started engine keeps it from its first line on.

        Args:
            folder: of the deployment's logs (`torpor.engine.logs`).
            replica: its name.
        """

    @abstractmethod
    def captured_pids(self) -> tuple[int, ...]:
        """Every process whose memory a snapshot of this engine holds."""

    @abstractmethod
    def open_socket(self, port: int, timeout_s: float) -> socket.socket:
        """Connect to a port of the engine by TCP; the socket's time-out stays `timeout_s` seconds.

        Raises:
            OSError: nobody listens there, or not in time.
        """
