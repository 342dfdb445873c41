"""`torpor ray up`, `status` and `down`: deployments on a running Ray cluster."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from torpor.cli.layout import Layout
from torpor.cli.terminal import claim_output, result, say, say_live
from torpor.errors import ConfigurationError
from torpor.platforms import ray as on_ray
from torpor.platforms.ray.address import check_serve_host, reachable
from torpor.platforms.ray.snapshot_store import SnapshotStore, check_store_files, check_store_url
from torpor.snapshots.remote.location import names_store
from torpor.values.addresses import MAX_PORT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.cli.options import StoreOptions
    from torpor.platforms.ray.cluster import ClusterStatus, ServedHere

__all__ = ["run_ray_down", "run_ray_status", "run_ray_up"]

_FIELD = 13


def run_ray_up(
    files: Sequence[str],
    address: str,
    *,
    host: str,
    port: int,
    head_only: bool,
    timeout_s: float,
    **store: Unpack[StoreOptions],
) -> None:
    """Deploy app files and wait until they run.

    Raises:
        ConfigurationError: an app file or an option cannot be used; nothing was deployed.
        ServerUnavailableError: there is no such cluster.
        EngineTimeoutError: not all run in time.
    """
    claim_output()
    if not 0 < port <= MAX_PORT:
        raise ConfigurationError(f"--port is {port}; allowed are 1 to {MAX_PORT}.")
    if timeout_s <= 0:
        raise ConfigurationError(f"--timeout is {timeout_s:g}; it has to be more than 0 seconds.")
    given = _store(**store)
    if note := check_serve_host(host):
        say(note)
    address = _checked(address)
    wanted = on_ray.applications(*files, store=given, port=port)
    with on_ray.connected(address) as cluster:
        location = "HeadOnly" if head_only else "EveryNode"
        cluster.deploy(wanted, host=host, port=port, location=location, limit_s=timeout_s, tell=say_live)
    for one in wanted:
        result(f"{one.route_prefix}  {one.name}")


def _store(*, snapshots: str, trust: Path | None, unsigned: bool, identity: Path | None) -> SnapshotStore:
    """The store as nodes find it; files of keys have the same path on each, and are read here first."""
    if not snapshots and (trust or unsigned or identity):
        raise ConfigurationError("--trust, --unsigned and --identity are for a store; name it with --snapshots URL.")
    if snapshots and not names_store(snapshots):
        snapshots = str(Path(snapshots).absolute())
    check_store_url(snapshots)
    keys, own = (str(file.absolute()) if file else "" for file in (trust, identity))
    store = SnapshotStore(snapshots, keys, unsigned, own)
    check_store_files(store)
    return store


def run_ray_status(address: str, *, as_json: bool) -> None:
    """Say what runs on the cluster.

    Raises:
        ServerUnavailableError: there is no such cluster.
    """
    claim_output()
    address = _checked(address)
    with on_ray.connected(address) as cluster:
        status = cluster.status()
    if as_json:
        told = status._asdict() | {"served": [one._asdict() for one in status.served]}
        result(json.dumps(told, indent=2))
    else:
        _show(status)


def run_ray_down(names: Sequence[str], address: str) -> None:
    """Remove deployments of Torpor's from the cluster.

    Raises:
        ConfigurationError: there is no such deployment.
        ServerUnavailableError: there is no such cluster.
    """
    claim_output()
    address = _checked(address)
    with on_ray.connected(address) as cluster:
        removed = cluster.remove(names)
    result(f"removed: {', '.join(removed) or 'none'}")


def _checked(address: str) -> str:
    """The cluster's address, if Ray is installed and somebody listens there."""
    if find_spec("ray") is None:
        raise ConfigurationError(
            "Ray is not installed in this Python environment. Install it, here and on every node: pip install 'torpor[ray]'"
        )
    return reachable(address)


def _show(status: ClusterStatus) -> None:
    layout = Layout()
    gpus = f", {status.gpus:g} GPUs" if status.gpus else ""
    layout.field("nodes".ljust(_FIELD), f"{status.nodes}, {status.cpus:g} CPUs{gpus}")
    proxies = ", ".join(f"{where} {state}" for where, state in status.proxies.items())
    layout.field("proxies".ljust(_FIELD), proxies or "none: Serve does not run")
    for one in status.served:
        layout.field("", _line(one))
        if one.message:
            layout.field("  message".ljust(_FIELD), one.message)
    if not status.served:
        layout.field("", "no deployment of Torpor's is served")
    if status.others:
        layout.field("others".ljust(_FIELD), ", ".join(status.others))


def _line(one: ServedHere) -> str:
    replicas = ", ".join(f"{count} {state}" for state, count in sorted(one.replicas.items())) or "none"
    hours, seconds = divmod(max(0, int(time.time() - one.since)), 3600)
    return f"{one.name}: {one.status} for {hours}:{seconds // 60:02}:{seconds % 60:02}, replicas: {replicas}"
