"""Pod templates of a RayService: the head, and a group of workers.

A worker that restores a snapshot needs more than a container has by default. It is not `privileged`. A small dump and restore
(`torpor.snapshots.criu.probe`) fails without each of the first three:

    SYS_ADMIN              makes the namespaces of a replica, and mounts in them
    NET_ADMIN              brings up the loopback of its network
    SYS_TIME               sets the clock of its time namespace to the capture's
    SYS_PTRACE             seizes its processes where Yama restricts ptrace to children
    seccomp Unconfined     a filter would be dumped and restored with the engine's processes
    AppArmor Unconfined    container runtimes' default profile refuses mounts

Restores are root's: a rootless one needs a /proc that is not masked, and with a GPU there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.platforms.ray.options import cluster_environment

if TYPE_CHECKING:
    from torpor.platforms.ray.kubernetes import KubernetesOptions, Toleration
    from torpor.platforms.ray.nodes import NodeGroup

__all__ = ["CAPABILITIES", "head_template", "worker_template"]

Yaml = dict[str, object]

CAPABILITIES = ("SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "SYS_TIME")
"""On top of a container's default ones; see `torpor.snapshots.criu.probe`."""

_HEAD_CPUS, _HEAD_MEMORY = "2", "4Gi"
_RAYS_CPUS, _RAYS_MEMORY_MIB = 1, 2048
"""Of each worker pod, beside its replica: raylet, agents, proxy."""
_GPU = "nvidia.com/gpu"
_VOLUME = "torpor-cache"
_SERVE = "serve"


def head_template(options: KubernetesOptions, *, port: int) -> Yaml:
    """The head's pod: control and a proxy, never an engine, so it needs no privilege.

    Args:
        options: image, service account and secret.
        port: of Serve.
    """
    resources = {"cpu": _HEAD_CPUS, "memory": _HEAD_MEMORY}
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, _SERVE: port}
    container: Yaml = {
        "name": "ray-head",
        "image": options.image,
        "ports": [{"name": name, "containerPort": number} for name, number in ports.items()],
        "env": _variables(cluster_environment()),
        **_from_secret(options),
        "resources": {"requests": resources, "limits": resources},
    }
    return {"spec": {**_account(options), "restartPolicy": "Never", "containers": [container]}}


def worker_template(group: NodeGroup, options: KubernetesOptions, *, port: int, stop_s: int, restores: bool) -> Yaml:
    """A worker's pod: one replica and its engine.

    Args:
        group: what it has to have.
        options: image, cache, and which machines.
        port: of Serve.
        stop_s: seconds that its replica may take to end.
        restores: whether it restores snapshots.
    """
    container: Yaml = {
        "name": "ray-worker",
        "image": options.image,
        "ports": [{"name": _SERVE, "containerPort": port}],
        "env": _variables({**cluster_environment(), "TORPOR_CACHE": options.cache}),
        **_from_secret(options),
        "resources": _resources(group),
        "securityContext": _privileges() if restores else {"runAsUser": 0},
        "readinessProbe": _readiness(port),
        "volumeMounts": [{"name": _VOLUME, "mountPath": options.cache}],
    }
    spec: Yaml = {
        **_account(options),
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": stop_s,
        "containers": [container],
        "volumes": [{"name": _VOLUME, "hostPath": {"path": options.cache, "type": "DirectoryOrCreate"}}],
    }
    if selector := _selector(group, options):
        spec["nodeSelector"] = selector
    if tolerations := _tolerations(group, options):
        spec["tolerations"] = tolerations
    return {"spec": spec}


def _privileges() -> Yaml:
    return {
        "runAsUser": 0,
        "capabilities": {"add": list(CAPABILITIES)},
        "seccompProfile": {"type": "Unconfined"},
        "appArmorProfile": {"type": "Unconfined"},
    }


def _resources(group: NodeGroup) -> Yaml:
    """CPU is only requested: a limit would throttle a start, which takes every core for seconds."""
    requests: Yaml = {"cpu": str(group.cpus + _RAYS_CPUS)}
    limits: Yaml = {}
    if group.memory_mib is not None:
        requests["memory"] = limits["memory"] = f"{group.memory_mib + _RAYS_MEMORY_MIB}Mi"
    if group.gpus:
        requests[_GPU] = limits[_GPU] = str(group.gpus)
    return {"requests": requests, **({"limits": limits} if limits else {})}


def _readiness(port: int) -> Yaml:
    """Ready while this pod's proxy answers: then the service sends requests. KubeRay's own probe needs wget in the image."""
    return {
        "httpGet": {"path": "/-/healthz", "port": port},
        "initialDelaySeconds": 5,
        "periodSeconds": 5,
        "timeoutSeconds": 2,
        "failureThreshold": 1,
    }


def _variables(given: dict[str, str]) -> list[Yaml]:
    return [{"name": name, "value": value} for name, value in given.items()]


def _from_secret(options: KubernetesOptions) -> Yaml:
    return {"envFrom": [{"secretRef": {"name": options.secret}}]} if options.secret else {}


def _account(options: KubernetesOptions) -> Yaml:
    return {"serviceAccountName": options.service_account} if options.service_account else {}


def _selector(group: NodeGroup, options: KubernetesOptions) -> dict[str, str]:
    """Labels of the machines; those that name the group come last, and win."""
    everywhere = {one.key: one.value for one in options.node_selectors if not one.group and group.gpus}
    here = {one.key: one.value for one in options.node_selectors if one.group == group.name}
    region = {"topology.kubernetes.io/region": group.region} if group.region else {}
    return {**region, **everywhere, **here}


def _tolerations(group: NodeGroup, options: KubernetesOptions) -> list[Yaml]:
    own: list[Yaml] = [{"key": _GPU, "operator": "Exists", "effect": "NoSchedule"}] if group.gpus else []
    return [*own, *map(_toleration, options.tolerations)]


def _toleration(one: Toleration) -> Yaml:
    wanted: Yaml = (
        {"key": one.key, "operator": "Equal", "value": one.value}
        if one.value
        else {"key": one.key, "operator": "Exists"}
    )
    return {**wanted, "effect": one.effect} if one.effect else wanted
