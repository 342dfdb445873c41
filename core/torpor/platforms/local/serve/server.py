"""Several deployments at one address of this machine, from the start to the end.

server = ServeHere(["a.py", "b.py"], config=Path("serve.toml"))
server.start()      # listens; nothing is started but what is pinned, or has min_containers
server.reload()     # new configuration: adds, removes and changes deployments, and leaves the others alone
server.drain()
server.stop()
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.platforms.local.metrics.collector import CommandMetrics
from torpor.platforms.local.metrics.figures import of_serve
from torpor.platforms.local.metrics.server import MetricsServer, metrics_address
from torpor.platforms.local.serve.app_files import AppFiles, file_stamp
from torpor.platforms.local.serve.conductor import Conductor, Served
from torpor.platforms.local.serve.configuration import Configuration, read_configuration
from torpor.platforms.local.serve.control import Control
from torpor.platforms.local.serve.engine_here import Ways
from torpor.platforms.local.serve.kept_sizes import KeptSizes
from torpor.platforms.local.serve.planned import Plan, Planned, plan_of
from torpor.serving.gateway import HttpGateway
from torpor.values.addresses import LOOPBACK, url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from torpor.platforms.local.metrics.figures import Figures
    from torpor.runtime.boot import Boot
    from torpor.runtime.supervision import ReplicaEvent

__all__ = ["DEFAULT_PORT", "ServeHere"]

DEFAULT_PORT = 8000
_KEY_BYTES = 32


class ServeHere:
    """A server of several deployments on this machine.

    Args:
        files: app files.
        config: the configuration's file; None for defaults.
        host: address to listen on; by default as configured, else 127.0.0.1.
        port: port to listen on; by default as configured, else 8000.
        tell: called with lines for people, in any thread.
        on_change: called after the state of a deployment has changed, in the gateway's thread.
        engine_metrics: whether the engines' own metrics are passed on.

    Attributes:
        plan: what is served.
        key: a key of the control paths, made for this server; the configuration may allow others.

    Raises:
        ConfigurationError: what is to be served does not fit together, or not on this machine.
    """

    def __init__(
        self,
        files: Sequence[str],
        *,
        config: Path | None = None,
        host: str | None = None,
        port: int | None = None,
        tell: Callable[[str], None] = lambda _: None,
        on_change: Callable[[], None] = lambda: None,
        engine_metrics: bool = False,
    ) -> None:
        self._files, self._config, self._tell = tuple(files), config, tell
        self._apps = AppFiles()
        self._configuration = read_configuration(config)
        self.plan: Plan = plan_of(self._files, self._configuration, self._apps)
        self.key = secrets.token_urlsafe(_KEY_BYTES)
        self.conductor = Conductor(self.plan.fleet(), tell=tell, on_change=on_change, forget=self._forget)
        self.control = Control(self.conductor, key=self.key, key_sha256=self._configuration.server.key_sha256)
        self._metrics = CommandMetrics(self._figures, engines=engine_metrics)
        self._metrics_server: MetricsServer | None = None
        self.control.metrics = self._metrics.text
        table = self._configuration.server
        self.host = host or table.host or LOOPBACK
        self._gateway = HttpGateway(
            self.conductor,
            host=self.host,
            port=(port if port is not None else table.port) or DEFAULT_PORT,
            pages=self.control,
        )
        self._stamps = self._seen()
        self._stopping = threading.Lock()
        self._stopped = False

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that clients connect to."""
        return self.host, self._gateway.port

    def start(self) -> None:
        """Listen.

        Raises:
            PortInUseError: somebody else listens there.
            ConfigurationError: this user may not listen there, or this machine has no such address.
        """
        self._gateway.start()
        self._gateway.call(self._begin())

    def show_metrics(self, given: str) -> str:
        """Show the metrics at an address of their own, too; returns its URL.

        Args:
            given: as of `metrics_address`.

        Raises:
            PortInUseError: somebody else listens there.
            ConfigurationError: it is no address, or nobody can listen there.
        """
        host, port = metrics_address(given)
        self._metrics_server = MetricsServer(self._metrics, host=host, port=port)
        return url(host, self._metrics_server.port)

    def reload(self) -> bool:
        """Read the configuration and the app files again, if any has changed. A broken one is told, and the old one stays.

        Returns:
            Whether a new configuration is in force.

        Raises:
            ConfigurationError: the new one is wrong; nothing has changed.
        """
        self._stamps = self._seen()
        configuration = read_configuration(self._config)
        plan = plan_of(self._files, configuration, self._apps)
        self._gateway.call(self._change(plan, configuration))
        self._stamps = self._seen()
        return True

    @property
    def changed_on_disk(self) -> bool:
        """Whether the configuration or an app file has changed since it was read."""
        return self._seen() != self._stamps

    def drain(self, on_wait: Callable[[int], None] | None = None) -> int:
        """Refuse new requests, and wait for those in flight, at most the longest `drain_timeout_s`.

        Args:
            on_wait: called with how many are in flight, if any.

        Returns:
            How many were cut off.
        """
        if (waiting := self._gateway.in_flight) and on_wait:
            on_wait(waiting)
        limit_s = max(one.app.deployment.drain_timeout_s for one in self.plan.deployments)
        self._gateway.call(self.conductor.drain())
        return self._gateway.drain(limit_s)

    def status(self) -> list[dict[str, object]]:
        """Every deployment with its state, for JSON."""

        async def look() -> list[dict[str, object]]:
            return self.control.deployments()

        return self._gateway.call(look())

    def _figures(self) -> Sequence[Figures]:
        snapshots = {one.name: one.snapshot for one in self.plan.deployments}
        return of_serve(self.status(), snapshots=snapshots, boots=self.boots)

    def boots(self, deployment: str) -> list[tuple[str, Boot]]:
        """The name and boot of each replica that serves or sleeps."""
        return self.conductor.boots(deployment)

    def stop(self) -> None:
        """End every replica and close the port. Harmless to repeat."""
        with self._stopping:
            if self._stopped:
                return
            self._stopped = True
            if self._metrics_server is not None:
                self._metrics_server.stop()
            self._metrics.close()
            if self._gateway.loop.is_running():
                self.conductor.stop()
                self._gateway.call(self._close())
            self._gateway.stop()

    async def _begin(self) -> None:
        self.conductor.begin(asyncio.get_running_loop())
        self.conductor.serve([self._served(one) for one in self.plan.deployments])

    async def _change(self, plan: Plan, configuration: Configuration) -> None:
        """Add, change and remove deployments."""
        fleet, before = self.conductor.fleet, {one.name: one for one in self.plan.deployments}
        fleet.budget = plan.budget
        for one in plan.deployments:
            old = before.pop(one.name, None)
            renewed = old is not None and not one.same_engine(old)
            one.put_in(fleet, renewed=renewed)
            if old is None or renewed:
                self._tell(f"{one.name}: {'changed' if renewed else 'added'}")
        for name in before:
            fleet.remove(name)
            self._tell(f"{name}: removed")
        self.plan, self._configuration = plan, configuration
        self.control.allow(configuration.server.key_sha256)
        self.conductor.serve([self._served(one) for one in plan.deployments])

    async def _close(self) -> None:
        self.conductor.close()

    def _served(self, one: Planned) -> Served:
        def event(happened: ReplicaEvent) -> None:
            self._tell(happened.described())

        ways = Ways(app=one.app, snapshot=one.snapshot, tell=self._tell, on_event=event)
        return Served(name=one.name, models=one.models, ways=ways, sizes=KeptSizes(one.app.deployment))

    def _forget(self, way: object) -> None:
        self._gateway.close_idle(way)  # type: ignore[arg-type]

    def _seen(self) -> tuple[object, ...]:
        files = [*map(str, self._files), *map(str, self._configuration.apps)]
        read = {*map(Path, files), *self._apps.files()}
        return tuple(map(file_stamp, [*([self._config] if self._config else []), *sorted(read)]))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
