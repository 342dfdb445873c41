"""An engine in a sandbox: what a start in one gives, and what a restore brings back."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from typing import TYPE_CHECKING, ClassVar

from torpor._override import override
from torpor.engine.environment import REPLICA_ID_VARIABLE, inherited_environment
from torpor.engine.handle import Engine
from torpor.errors import SnapshotError
from torpor.snapshots.sandbox.sandbox import FIRST_PID

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torpor.deployment import Deployment
    from torpor.guard import GuardRules
    from torpor.snapshots.sandbox.sandbox import Sandbox

__all__ = ["SandboxEngine", "SandboxStarter"]

_BOOT_FD = 3
_NO_IO_URING = {"UV_USE_IO_URING": "0", "USE_LIBUV": "0"}
"""CRIU cannot dump an io_uring: uvloop 0.21 heeds the first (0.23 does not), torch's TCPStore the second.

As root a seccomp filter denies it to whatever an engine loads; rootless CRIU can dump no process under a filter.
"""


class SandboxEngine(Engine):
    """An engine whose tree lives in a sandbox; the sandbox ends with it.

    Args:
        sandbox: with the tree in it, started or restored.
        replica_id: what its guard calls itself.
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
            with contextlib.suppress(SnapshotError):
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
            with contextlib.suppress(SnapshotError):  # it may end between the question and the signal
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
        from torpor.engine.logs import LOG_VARIABLE, new_log  # noqa: PLC0415 - beside CRIU's work

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


class SandboxStarter:
    """Starts engines in a sandbox: `torpor.engine.start.engines_started_by(SandboxStarter(sandbox, deployment))`.

    The environment is the caller's own with the engine's over it, as for a child process. It becomes part of every image,
    so what looks like a secret in it is found now, not after minutes of a start. As root it starts
    under `torpor.snapshots.sandbox.engine_filter`; otherwise it is only asked not to use io_uring.

    Args:
        sandbox: empty; one engine is started in it.
        deployment: whose engine; it says what becomes of a secret.
        captured: whether a snapshot of it may be taken; secrets matter then alone.
    """

    def __init__(self, sandbox: Sandbox, deployment: Deployment, *, captured: bool = True) -> None:
        self.sandbox = sandbox
        self._captured = captured
        self._deployment = deployment

    def __call__(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None, guard: GuardRules | None
    ) -> SandboxEngine:
        """Start the engine; the arguments are those of `start_engine`.

        Raises:
            ConfigurationError: there is no such program, or it may not be run.
            SnapshotError: a secret would be in the snapshot (see `Deployment.secrets_in_snapshot`).
        """
        from torpor.engine.logs import LOG_VARIABLE, new_log  # noqa: PLC0415
        from torpor.guard import BOOT_FD_VARIABLE, boot_document_json  # noqa: PLC0415
        from torpor.network.proxies import past_proxies  # noqa: PLC0415
        from torpor.runtime.captured_secrets import check_environments  # noqa: PLC0415 - a restore has no use for it

        replica_id = secrets.token_hex(8)
        key = secrets.token_urlsafe(32) if guard else None
        full_env = {**inherited_environment(), **_NO_IO_URING, **env, REPLICA_ID_VARIABLE: replica_id}
        full_env |= past_proxies(full_env)
        if self._captured:
            check_environments(self._deployment, [full_env], command_lines=[argv])
        files: dict[int, bytes] = {}
        log = new_log(full_env.get(LOG_VARIABLE, ""))
        if log is not None:
            self.sandbox.follow_log(log)
        if guard and key:
            files[_BOOT_FD] = boot_document_json(key=key, replica_id=replica_id, rules=guard).encode()
            full_env[BOOT_FD_VARIABLE] = str(_BOOT_FD)
        self.sandbox.spawn(argv, env=full_env, cwd=cwd, files=files, filtered=self.sandbox.mode == "root")
        engine = SandboxEngine(self.sandbox, replica_id=replica_id, guard_key=key)
        engine.log_path = log.path if log else None
        _ = engine.pid  # looked up while it lives, for messages after its end
        return engine
