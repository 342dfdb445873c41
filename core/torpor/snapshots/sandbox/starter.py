"""Starts an engine in a sandbox."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from torpor.engine.environment import REPLICA_ID_VARIABLE, inherited_environment
from torpor.engine.logs import LOG_VARIABLE, new_log
from torpor.guard import BOOT_FD_VARIABLE, boot_document_json
from torpor.network.proxies import past_proxies
from torpor.runtime.captured_secrets import check_environments
from torpor.snapshots.sandbox.engine import SandboxEngine

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torpor.deployment import Deployment
    from torpor.guard import GuardRules
    from torpor.snapshots.sandbox.sandbox import Sandbox

__all__ = ["SandboxStarter"]

_BOOT_FD = 3
_NO_IO_URING = {"UV_USE_IO_URING": "0", "USE_LIBUV": "0"}
"""Asks an engine not to use io_uring, which CRIU cannot dump: the first asks uvloop 0.21 (not 0.23), the second torch's TCPStore.

As root a seccomp filter denies io_uring. Rootless CRIU cannot dump a process under a filter, so asking is all that is left.
"""


class SandboxStarter:
    """Starts engines in a sandbox: `torpor.engine.start.engines_started_by(SandboxStarter(sandbox, deployment))`.

    The engine gets this process's environment and its own variables. The environment becomes part of every image, so secrets in it
    are looked for now and not minutes later, at the capture. As root the engine starts under
    `torpor.snapshots.sandbox.engine_filter`.

    Args:
        sandbox: an empty one, for one engine.
        deployment: of the engine; it says what to do about a secret.
        captured: whether a snapshot may be captured of it; otherwise secrets do not matter.
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
            SecretFoundError: a secret would be in the snapshot (see `Deployment.secrets_in_snapshot`).
        """
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
        _ = engine.pid  # looked up and kept while the engine lives, for messages after its end
        return engine
