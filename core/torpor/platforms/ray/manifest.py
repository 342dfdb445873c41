"""The manifest of a RayService, for KubeRay: a Ray cluster on Kubernetes that serves app files.

    print(as_yaml(ray_service("apps/small.py", image="registry.example/torpor:1", snapshots="s3://bucket/snapshots")))

Fields are those of the custom resource RayService, ray.io/v1 (KubeRay 1.7). Groups of workers have no pod while nobody asks
anything, unless a deployment has `min_containers`; Ray's autoscaler adds and removes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.platforms.ray.config import PORT, Source, as_yaml, config_of
from torpor.platforms.ray.nodes import NodeGroup, node_groups
from torpor.platforms.ray.options import REGION_LABEL
from torpor.platforms.ray.pods import head_template, worker_template
from torpor.platforms.ray.served import served
from torpor.values.addresses import EVERYWHERE
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torpor.platforms.ray.kubernetes import KubernetesOptions
    from torpor.platforms.ray.pods import Yaml
    from torpor.platforms.ray.served import Served

__all__ = ["manifest_findings", "ray_service", "service_of"]

_IDLE_S = 60
"""Seconds after which a node without a replica is given back; the replica itself stayed for `scaledown_window_s`."""
_AFTER_STOP_S = 10


def ray_service(*files: str | Path, kubernetes: KubernetesOptions, source: Source | None = None) -> Yaml:
    """The RayService of app files.

    Args:
        files: app files, each with one deployment.
        kubernetes: image, names, and which machines.
        source: where replicas find app files and snapshots; by default the files' own paths, and no snapshots.

    Raises:
        ConfigurationError: an app file or an option cannot be used, or Ray cannot serve a deployment.
    """
    return service_of(served(files), kubernetes, source or Source())


def service_of(apps: Sequence[Served], kubernetes: KubernetesOptions, source: Source) -> Yaml:
    """The RayService of app files that were imported already; see `ray_service`."""
    config = config_of(apps, source, host=EVERYWHERE, port=PORT)
    _check_store(source, kubernetes)
    groups = node_groups(apps)
    _check_selectors(groups, kubernetes)
    metadata: Yaml = {"name": kubernetes.name}
    if kubernetes.namespace:
        metadata["namespace"] = kubernetes.namespace
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata,
        "spec": {
            "serveConfigV2": as_yaml(config),
            "rayClusterConfig": {
                "rayVersion": kubernetes.ray_version,
                "enableInTreeAutoscaling": True,
                "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": _IDLE_S},
                "headGroupSpec": {
                    "rayStartParams": {},
                    "resources": {"CPU": "0"},
                    "template": head_template(kubernetes, port=PORT),
                },
                "workerGroupSpecs": [_workers(group, apps, kubernetes, source) for group in groups],
            },
        },
    }


def manifest_findings(apps: Sequence[Served], kubernetes: KubernetesOptions, source: Source) -> tuple[Finding, ...]:
    """What somebody should know before they apply the manifest; all are warnings."""
    return tuple(_findings(apps, kubernetes, source))


def _findings(apps: Sequence[Served], kubernetes: KubernetesOptions, source: Source) -> Iterator[Finding]:
    for group in node_groups(apps):
        selected = any(one.group in ("", group.name) for one in kubernetes.node_selectors)
        if group.kind is not None and not selected:
            yield _warning(
                f"group {group.name}",
                f"takes any machine with a GPU, and its replicas want {group.kind}",
                f"name the machines' label: --node-selector {group.name}:KEY=VALUE",
            )
        if group.memory_mib is None:
            yield _warning(
                f"group {group.name}",
                "its pods have no memory limit, because a deployment does not say what it takes",
                f"set RayOptions.memory_mib in {', '.join(map(repr, group.deployments))}",
            )
        if source.snapshots and not group.gpus:
            yield _warning(
                f"group {group.name}",
                "its pods restore as root, and only snapshots that were captured as root",
                "capture them with `torpor snapshot create --mode root`",
            )
    if not source.snapshots:
        yield _warning("snapshots", "no store is named, so every replica starts cold", "name it: --snapshots URL")


def _workers(group: NodeGroup, apps: Sequence[Served], kubernetes: KubernetesOptions, source: Source) -> Yaml:
    """`resources` says what a node of the group will offer: the autoscaler has to know it while there is none."""
    offers: dict[str, str] = {"CPU": str(group.cpus)}
    if group.memory_mib is not None:
        offers["memory"] = f"{group.memory_mib}Mi"
    if group.gpus:
        offers["GPU"] = str(group.gpus)
    if group.kind is not None:
        offers[f"accelerator_type:{group.kind}"] = "1"
    members = [one for one in apps if one.app.deployment.name in group.deployments]
    stop_s = max(one.options["graceful_shutdown_timeout_s"] for one in members if one.options is not None)
    return {
        "groupName": group.name,
        "replicas": group.least,
        "minReplicas": group.least,
        "maxReplicas": group.most,
        **({"labels": {REGION_LABEL: group.region}} if group.region else {}),
        "rayStartParams": {},
        "resources": offers,
        "template": worker_template(
            group,
            kubernetes,
            port=PORT,
            stop_s=int(stop_s) + _AFTER_STOP_S,
            restores=any(one.restores(source.snapshots) for one in members),
        ),
    }


def _check_store(source: Source, kubernetes: KubernetesOptions) -> None:
    """Refuse a store in a folder that no pod has. Below the cache there is one, whatever the machine mounts there."""
    folder = source.snapshots.removeprefix("file://")
    if folder.startswith("/") and not folder.startswith(f"{kubernetes.cache.rstrip('/')}/"):
        raise ConfigurationError(
            f"The store {source.snapshots} is a folder, and pods have only {kubernetes.cache} of their machine; name a store like "
            "s3://bucket/snapshots, or mount it on every machine below that folder."
        )


def _check_selectors(groups: Sequence[NodeGroup], kubernetes: KubernetesOptions) -> None:
    names = [group.name for group in groups]
    for one in kubernetes.node_selectors:
        if one.group and one.group not in names:
            raise ConfigurationError(
                f"The node selector {one.group}:{one.key}={one.value} is for a group that does not exist; there are "
                f"{', '.join(names)}."
            )
        if not one.group and not any(group.gpus for group in groups):
            raise ConfigurationError(
                f"The node selector {one.key}={one.value} is for groups with GPUs, and no deployment has one; name a group, e.g. "
                f"{names[0]}:{one.key}={one.value}."
            )


def _warning(what: str, seen: str, cure: str) -> Finding:
    return Finding(level="warning", what=what, seen=seen, cure=cure)
