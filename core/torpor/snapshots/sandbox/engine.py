"""An engine in a sandbox, started or restored."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, ClassVar

from torpor._override import override
from torpor.engine.handle import Engine
from torpor.errors import SnapshotError
from torpor.snapshots.sandbox.sandbox import FIRST_PID

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from torpor.snapshots.sandbox.sandbox import Sandbox

__all__ = ["SandboxEngine"]


class SandboxEngine(Engine):
    """An engine whose tree lives in a sandbox; the sandbox ends with it.

    Args:
        sandbox: with the tree, started or restored.
        replica_id: of its guard.
        guard_key: the guard's lifecycle key; None for an engine without one.
    """

    private_network: ClassVar[bool] = True

    def __init__(self, sandbox: Sandbox, *, replica_id: str, guard_key: str | None) -> None:
        self.sandbox = sandbox
        self.replica_id = replica_id
        self.guard_key = guard_key
        self._pid = 0

    @property
    @override
    def pid(self) -> int:
        if not self._pid:
            with contextlib.suppress(SnapshotError, OSError):  # no file is left to read /proc with
                self._pid = self.sandbox.host_pids().get(FIRST_PID, 0)
        return self._pid

    @override
    def poll(self) -> int | None:
        return self.sandbox.poll()

    @override
    def wait(self, timeout_s: float) -> int | None:
        return self.sandbox.wait(timeout_s)

    @override
    def terminate(self, grace_s: float = 10.0) -> int:
        if grace_s > 0 and self.sandbox.alive and self.sandbox.poll() is None:
            with contextlib.suppress(SnapshotError):  # the tree may have ended meanwhile
                self.sandbox.signal_tree(signal.SIGTERM)
            self.sandbox.wait(grace_s)
        self.sandbox.kill()
        code = self.sandbox.poll()
        return -signal.SIGKILL if code is None else code

    @override
    def log_tail(self) -> tuple[str, ...]:
        return self.sandbox.log_tail()

    @override
    def keep_log(self, folder: Path, replica: str) -> None:
        from torpor.engine.logs import LOG_VARIABLE, new_log  # noqa: PLC0415 - logs: 0.7 ms before CRIU begins

        log = new_log(os.environ.get(LOG_VARIABLE, ""), (folder, replica))
        if log is not None:
            self.sandbox.follow_log(log)
            self.log_path = log.path

    @override
    def captured_pids(self) -> tuple[int, ...]:
        return tuple(pid for inside, pid in self.sandbox.host_pids().items() if inside != 1)

    @override
    def open_socket(self, port: int, timeout_s: float) -> socket.socket:
        try:
            return self.sandbox.connect(port, timeout_s=timeout_s)
        except SnapshotError as error:
            raise ConnectionRefusedError(str(error)) from error
