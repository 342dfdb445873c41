"""`Engine`: the running engine, as plugins and platforms see it."""

from __future__ import annotations

import contextlib
import os
import socket
from abc import ABC, abstractmethod
from contextvars import ContextVar
from typing import TYPE_CHECKING, ClassVar, Protocol

from torpor.values.addresses import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torpor.guard import GuardRules

__all__ = ["CLIENT_VARIABLES", "Engine", "Starter", "engines_started_by", "inherited_environment"]

CLIENT_VARIABLES = frozenset({"TORPOR_API_KEY", "TORPOR_MODAL_KEY", "TORPOR_MODAL_SECRET"})
"""What commands that ask a server read (`torpor.client`, `torpor.network.modal_keys`): no engine gets it, and so no snapshot."""


class Starter(Protocol):
    """Starts engines in a place of its own, e.g. in a sandbox that can be snapshotted."""

    def __call__(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None, guard: GuardRules | None
    ) -> Engine:
        """Start a command; the arguments are those of `Engine.start`."""


_starter: ContextVar[Starter | None] = ContextVar("starter", default=None)


class Engine(ABC):
    """The engine's process tree: the only object with state that crosses a snapshot.

    Attributes:
        replica_id: 16 hex digits, new at every cold start.
        guard_key: the lifecycle key of the guard in front of the engine; None for an engine without one.
        host: the address at which this machine reaches it.
        log_path: the file in which its output is kept; None where there is none.
    """

    replica_id: str
    guard_key: str | None
    host: str = LOOPBACK
    log_path: Path | None = None
    private_network: ClassVar[bool] = False
    """Whether its ports are its own, reached by `open_socket` alone, whoever else listens on this machine's."""

    @staticmethod
    def start(
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        guard: GuardRules | None = None,
    ) -> Engine:
        """Start a command as the leader of its own session, with its output drained from the first byte on.

        Args:
            argv: the command and its arguments; no shell.
            env: variables set over the caller's own environment, of which `CLIENT_VARIABLES` are left out.
            cwd: working folder; the caller's by default.
            guard: rules for the guard in the engine's server process. With them the child gets the guard's boot
                document through an inherited pipe (`TORPOR_BOOT_FD`) and has to read it.

        Returns:
            The started engine. It may have ended already: `poll` says so.

        Raises:
            ConfigurationError: there is no such program, or it may not be run.
        """
        if (starter := _starter.get()) is not None:
            return starter(argv, env=env or {}, cwd=cwd, guard=guard)
        from torpor.engine.process import EngineProcess  # noqa: PLC0415 - process.py implements this class

        return EngineProcess(argv, env=env or {}, cwd=cwd, guard=guard)

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

    def keep_log(self, folder: Path, replica: str) -> None:  # noqa: B027 - an engine that is started here has it already
        """Keep the output of an engine that a snapshot brought back; one that is started here keeps it from its start on.

        Args:
            folder: of the deployment's logs (`torpor.engine.logs`).
            replica: its name.
        """

    def captured_pids(self) -> tuple[int, ...]:
        """Every process that a snapshot of this engine holds: its tree, and this process, whose child it is."""
        from torpor.engine.process import session_members  # noqa: PLC0415 - process.py implements this class

        tree = session_members(self.pid) if self.pid else []
        return (os.getpid(), *(process.pid for process in tree))

    def open_socket(self, port: int, timeout_s: float) -> socket.socket:
        """A TCP connection to a port of the engine's, at the address where it listens; its time-out stays `timeout_s` seconds.

        Raises:
            OSError: nobody listens there, or not in time.
        """
        return socket.create_connection((self.host, port), timeout_s)


def inherited_environment() -> dict[str, str]:
    """What an engine gets of this process's environment."""
    return {name: value for name, value in os.environ.items() if name not in CLIENT_VARIABLES}


@contextlib.contextmanager
def engines_started_by(starter: Starter | None) -> Iterator[None]:
    """Have `Engine.start` use a starter inside the block; None stands for a child process of this one."""
    token = _starter.set(starter)
    try:
        yield
    finally:
        _starter.reset(token)
