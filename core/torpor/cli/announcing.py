"""How a command that serves reports its state to others.

`torpor status` reads a file (`torpor.platforms.local.running`); the service manager listens on a socket.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from torpor.platforms.local.running import Process, RunFile
from torpor.platforms.local.service_manager import ServiceManager
from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from torpor.deployment import Deployment
    from torpor.engine.handle import Engine
    from torpor.platforms.local.replicas import Replicas
    from torpor.platforms.local.server import LocalServer
    from torpor.runtime.boot import Boot
    from torpor.runtime.supervision import ReplicaEvent

__all__ = ["Announcement", "replica_facts"]

_UNDER_WAY = ("replica_ended", "wake_failed", "restore_failed", "restart_failed")


class Announcement:
    """Reports what this command serves, from its start to its end.

    Args:
        command: what a user typed, without `torpor`.
    """

    def __init__(self, command: str) -> None:
        self._file = RunFile(command)
        self._manager = ServiceManager()
        self._lock = threading.Lock()
        self._of: dict[str, object] = {}
        self._look: Callable[[], tuple[int, list[dict[str, object]]]] = lambda: (self._restarting, [])
        self._state = "starting"
        self._wanted = 1
        self._restarting = 0
        self._event = ("", 0.0)

    def starting(
        self, deployment: Deployment, *, app_file: Path | str, backend: str, url: str, snapshot: Path | None
    ) -> None:
        """The start of a deployment begins."""
        self._of = {
            "deployment": deployment.name,
            "model": deployment.model.served_name,
            "app_file": os.path.abspath(app_file),  # noqa: PTH100 - as it is named, links too
            "backend": backend,
            "url": url,
            "snapshot": "" if snapshot is None else os.path.realpath(snapshot),
        }
        self._write("starting")

    def replicas_serve(self, replicas: Replicas, *, url: str, wanted: int) -> None:
        """Restored replicas serve.

        Args:
            replicas: of one snapshot.
            url: where they answer.
            wanted: how many there should be.
        """
        self._wanted = wanted
        self._look = lambda: _of_replicas(replicas, wanted)
        if not self._of:
            self._of = _of_snapshot(replicas)
        self._serves(url)

    def engine_serves(self, server: LocalServer, *, url: str = "") -> None:
        """The engine of a local server serves, or serves again.

        Args:
            server: what serves.
            url: where it answers; by default where it did before.
        """
        self._restarting = 0
        self._look = lambda: (self._restarting, _replicas(server))
        self._serves(url)

    def _serves(self, url: str) -> None:
        self._of["url"] = url or self._of["url"]
        self._write("serving")
        self._manager.ready(f"serving {self._of['model']} on {self._of['url']}")

    def asleep(self) -> None:
        """Its engine was put to sleep."""
        self._write("asleep")
        self._manager.status("asleep")

    def event(self, event: ReplicaEvent) -> None:
        """Something happened to a replica by itself."""
        said = event.described().partition("\n")[0].removesuffix(" Its last lines:").removesuffix(".")
        self._event = (said, time.time())
        self._restarting = int(event.event in _UNDER_WAY)
        self._write(self._state)
        self._manager.status(said)

    def ending(self) -> None:
        """A signal asked for the end: requests in flight are finished first."""
        self._write("ending")
        self._manager.stopping()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The command ends. Harmless to repeat."""
        self._file.close()

    def _write(self, state: str) -> None:
        with self._lock:
            self._state = state
            restarting, replicas = self._look()
            self._file.write(
                {
                    **self._of,
                    "state": state,
                    "wanted": self._wanted,
                    "restarting": restarting,
                    "last_event": self._event[0],
                    "last_event_at": self._event[1],
                    "replicas": replicas,
                }
            )


def _of_snapshot(replicas: Replicas) -> dict[str, object]:
    """What a restore knows about its deployment."""
    manifest = replicas.manifest
    return {
        "deployment": manifest.deployment.name,
        "model": manifest.served_name,
        "app_file": manifest.app_file,
        "backend": "criu",
        "snapshot": str(replicas.folder),
    }


def _of_replicas(replicas: Replicas, wanted: int) -> tuple[int, list[dict[str, object]]]:
    """How many are being restored (one that just came may still count there), and those that serve."""
    serving = replicas.serving
    return min(replicas.restarting, max(0, wanted - len(serving))), [
        replica_facts(one.replica.name, one.boot) for one in serving
    ]


def _replicas(server: LocalServer) -> list[dict[str, object]]:
    """Its one replica, while it runs."""
    boot = server.boot
    alive = boot.engine is not None and boot.engine.poll() is None
    return [replica_facts(server.deployment.name, boot)] if alive else []


def replica_facts(name: str, boot: Boot) -> dict[str, object]:
    """A replica, as `torpor status` reads it (`torpor.platforms.local.running.RunningReplica`)."""
    engine = boot.running_engine
    records = [record for record in boot.report.records if record.stage != Stage.FIRST_REQUESTS]
    return {
        "name": name,
        "pid": engine.pid,
        "leader": _leader(engine)._asdict(),
        "replica_id": engine.replica_id,
        "boot": boot.kind,
        "reason": boot.reason,
        "restarts": boot.restarts,
        "gpus": list(boot.gpus),
        "since": records[-1].ended_at if records else time.time(),
        "log": str(engine.log_path or ""),
    }


def _leader(engine: Engine) -> Process:
    """The process whose tree is the whole replica: in a sandbox, the first one."""
    sandbox = getattr(engine, "sandbox", None)
    return Process.of(engine.pid if sandbox is None else sandbox.pid)
