"""Deploy on a running Ray cluster, say what runs there, and remove it again. Ray itself is never started or stopped here.

    with connected("auto") as cluster:
        cluster.deploy(applications("apps/small.py"), port=8000)
        cluster.status()
        cluster.remove()

An application of somebody else is never touched; `torpor.platforms.ray.names` says which are Torpor's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, NamedTuple

import ray
from ray import serve
from ray._private.services import canonicalize_bootstrap_address
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from torpor.errors import ConfigurationError, EngineTimeoutError, ServerUnavailableError, TorporError
from torpor.platforms.ray.address import NO_CLUSTER, reachable
from torpor.platforms.ray.names import INGRESS, deployment_name, is_ours
from torpor.platforms.ray.routes import check_routes, in_steps, routes_of
from torpor.values.plain_text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torpor.platforms.ray.application import RayApplication

__all__ = ["Cluster", "ClusterStatus", "ServedHere", "connected"]

_LOOK_S = 0.2
_GONE_S = 60.0
_SAID = 400


class ServedHere(NamedTuple):
    """One application of Torpor's.

    Attributes:
        name: of the deployment; `models` for the one that forwards by model.
        application: its name in Serve.
        status: of the application, as Serve has it: `RUNNING`, `DEPLOYING`, `DEPLOY_FAILED`, `UNHEALTHY`, `DELETING`.
        message: what Serve says about it.
        replicas: how many are in each state, such as `RUNNING`, `STARTING`.
        since: Unix time of its deployment, seconds.
    """

    name: str
    application: str
    status: str
    message: str
    replicas: dict[str, int]
    since: float


class ClusterStatus(NamedTuple):
    """What runs on the cluster.

    Attributes:
        nodes: how many are alive.
        cpus: of all of them.
        gpus: of all of them.
        proxies: state of Serve's proxy on each node that has one, by the node's address.
        served: Torpor's applications.
        others: names of the other applications of this Serve instance.
    """

    nodes: int
    cpus: float
    gpus: float
    proxies: dict[str, str]
    served: tuple[ServedHere, ...]
    others: tuple[str, ...]


class Cluster:
    """A cluster that this process is connected to; see `connected`."""

    def deploy(
        self,
        wanted: Sequence[RayApplication],
        *,
        host: str,
        port: int,
        location: str,
        limit_s: float,
        tell: Callable[[str], None],
    ) -> None:
        """Deploy applications, and wait until each runs: with `min_containers` 0 at once, else with that many replicas.

        Args:
            wanted: what to deploy; an application of the same name is replaced.
            host: for Serve's HTTP address, if Serve does not run yet; see `torpor.platforms.ray.address.check_serve_host`.
            port: of that address.
            location: `EveryNode` or `HeadOnly`: where requests come in, if Serve does not run yet.
            limit_s: seconds to wait at most.
            tell: called with one line when something changes.

        Raises:
            ConfigurationError: Serve listens on another port, refuses an application, or another one would lose its route.
            EngineTimeoutError: not all run in time; what was deployed stays.
        """
        serve.start(http_options={"host": host, "port": port, "location": location})
        client = _get_global_client()
        if (listens := client.http_config.port) != port:
            raise ConfigurationError(
                f"Serve runs on this cluster already, on port {listens}, and requests are to come in on port {port}. Give "
                f"--port {listens}. Nothing was deployed."
            )
        names = {one.name for one in wanted}
        self._wait_gone(names, deleting=True)
        check_routes({one.name: one.route_prefix for one in wanted}, routes_of(client.get_serve_details()))
        for step in in_steps(wanted):
            _run(step)
        self._wait_running(names, limit_s, tell)

    def status(self) -> ClusterStatus:
        """What runs now."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        address = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in alive}
        total = ray.cluster_resources()
        seen = serve.status()
        served = [_served(name, one) for name, one in seen.applications.items() if is_ours(name)]
        return ClusterStatus(
            nodes=len(alive),
            cpus=float(total.get("CPU", 0)),
            gpus=float(total.get("GPU", 0)),
            proxies={
                address.get(node, node): str(getattr(state, "value", state)) for node, state in seen.proxies.items()
            },
            served=tuple(sorted(served)),
            others=tuple(sorted(name for name in seen.applications if not is_ours(name))),
        )

    def remove(self, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Remove Torpor's applications, and wait until they are gone; returns the names of what was removed.

        Args:
            names: of deployments; by default all. The one that forwards by model goes with the last of the others.

        Raises:
            ConfigurationError: there is no such application; nothing was removed.
            TorporError: one is not gone in time.
        """
        here = {one.name: one for one in self.status().served}
        if unknown := sorted(set(names) - here.keys()):
            raise ConfigurationError(
                f"No deployment {', '.join(unknown)} is served on this cluster; there are: {', '.join(here) or 'none'}."
            )
        going = [one for name, one in here.items() if not names or name in names]
        left = [one for one in here.values() if one not in going and one.application != INGRESS]
        if not left:
            going = list(here.values())
        for one in going:
            serve.delete(one.application, _blocking=False)
        self._wait_gone({one.application for one in going})
        return tuple(one.name for one in going)

    def _wait_gone(self, names: set[str], *, deleting: bool = False) -> None:
        """Wait until these applications are gone; with `deleting`, those of them that Serve deletes now."""
        deadline = time.monotonic() + _GONE_S
        while waiting := {
            name
            for name, one in serve.status().applications.items()
            if name in names and (not deleting or one.status == "DELETING")
        }:
            if time.monotonic() > deadline:
                raise TorporError(
                    f"Still there after {_GONE_S:g} s: {', '.join(sorted(waiting))}. Look at `torpor ray status`."
                )
            time.sleep(_LOOK_S)

    def _wait_running(self, names: set[str], limit_s: float, tell: Callable[[str], None]) -> None:
        deadline, told = time.monotonic() + limit_s, dict[str, str]()
        while True:
            now = {one.application: one for one in self.status().served if one.application in names}
            for name, one in now.items():
                line = f"{one.name}: {one.status}{f' ({one.message})' if one.message else ''}"
                if told.get(name) != line:
                    told[name] = line
                    tell(line)
                if one.status == "DEPLOY_FAILED":
                    raise TorporError(f"Ray Serve gave {one.name} up: {one.message or 'it says no more'}.")
            if {name for name, one in now.items() if one.status == "RUNNING"} == names:
                return
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(names - {name for name, one in now.items() if one.status == "RUNNING"}))
                raise EngineTimeoutError(
                    f"Not running after {limit_s:g} s: {missing}. They stay deployed; `torpor ray status` follows them, and "
                    "`torpor ray down` removes them."
                )
            time.sleep(_LOOK_S)


@contextlib.contextmanager
def connected(address: str = "auto") -> Iterator[Cluster]:
    """Connect to a running cluster from one of its nodes, and disconnect at the end. Its processes stay.

    Args:
        address: of the cluster's head (`HOST:PORT`), or `auto` for the one that runs on this machine or that RAY_ADDRESS names.

    Raises:
        ConfigurationError: it is no such address.
        ServerUnavailableError: no cluster is there, or this machine is none of its nodes.
    """
    wanted = reachable(address)
    if wanted == "auto":
        _check_found_here()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        ray.init(address=wanted, namespace="serve", log_to_driver=False, logging_level="error", configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError) as error:
        where = "on this machine" if wanted == "auto" else f"at {wanted}"
        raise ServerUnavailableError(
            f"No Ray cluster can be used {where}: {_said(error)}. Run this on a node of the cluster. {NO_CLUSTER}"
        ) from error
    try:
        yield Cluster()
    finally:
        ray.shutdown()


def _check_found_here() -> None:
    """Check the address that Ray itself finds for `auto`: a cluster that ended without a word leaves its address behind.

    Ray would try that one for minutes (2.60.0: it answered nothing after 150 seconds).

    Raises:
        ServerUnavailableError: nobody listens there.
    """
    with contextlib.suppress(ConnectionError, ValueError, OSError):  # of none, `ray.init` tells at once
        if found := canonicalize_bootstrap_address("auto"):
            reachable(found)


def _run(applications: Sequence[RayApplication]) -> None:
    """Have Serve deploy them; it goes on by itself.

    Raises:
        ConfigurationError: Serve refuses one.
    """
    targets = [serve.RunTarget(one.application, name=one.name, route_prefix=one.route_prefix) for one in applications]
    try:
        serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    except (RayServeException, ValueError, TypeError) as error:
        raise ConfigurationError(f"Ray Serve refuses this: {_said(error)}") from error


def _served(name: str, seen: object) -> ServedHere:
    deployments: dict[str, object] = getattr(seen, "deployments", {})
    replicas: dict[str, int] = {}
    messages = [str(getattr(seen, "message", ""))]
    for one in deployments.values():
        messages.append(str(getattr(one, "message", "")))
        for state, count in getattr(one, "replica_states", {}).items():
            replicas[str(getattr(state, "value", state))] = int(count)
    return ServedHere(
        name="models" if name == INGRESS else deployment_name(name),
        application=name,
        status=str(getattr(getattr(seen, "status", ""), "value", "")),
        message=one_line(" ".join(filter(None, messages)))[:_SAID],
        replicas=replicas,
        since=float(getattr(seen, "last_deployed_time_s", 0.0)),
    )


def _said(error: BaseException) -> str:
    return one_line(str(error) or type(error).__name__)[:_SAID].rstrip(".")
