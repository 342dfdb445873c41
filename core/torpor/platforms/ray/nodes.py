"""The nodes that deployments need: what each has to have, and how many there are at least and at most."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.values.ray_options import RayOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torpor.platforms.ray.options import DeploymentOptions
    from torpor.platforms.ray.served import Served

__all__ = ["NodeGroup", "node_groups"]

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]+")
_LONGEST_NAME = 40


@dataclass(frozen=True, kw_only=True)
class NodeGroup:
    """Nodes of one sort, each for one replica of any of the group's deployments.

    Attributes:
        name: lower-case letters, digits and dashes.
        kind: accelerator type, as Ray names it; None for any, or for no GPU.
        gpus: GPUs of a node.
        region: of the nodes; None for anywhere.
        cpus: cores for a replica, the largest among the deployments.
        memory_mib: memory for a replica, likewise, MiB; None if a deployment does not say it.
        least: nodes while nobody asks anything.
        most: nodes when every deployment has all its replicas.
        deployments: names.
    """

    name: str
    kind: str | None
    gpus: int
    region: str | None
    cpus: int
    memory_mib: int | None
    least: int
    most: int
    deployments: tuple[str, ...]


def node_groups(apps: Sequence[Served]) -> tuple[NodeGroup, ...]:
    """The nodes for deployments: a group for each kind of GPU, number of GPUs and region. Refused deployments are left out."""
    sorts: dict[tuple[str | None, int, str | None], list[Served]] = {}
    for one in apps:
        if one.options is not None:
            deployment, actor = one.app.deployment, one.options["ray_actor_options"]
            key = (actor.get("accelerator_type"), deployment.gpu_count, deployment.region)
            sorts.setdefault(key, []).append(one)
    groups: list[NodeGroup] = []
    for (kind, gpus, region), members in sorts.items():
        name = _name(kind, gpus, region, taken={group.name for group in groups})
        groups.append(_group(name, kind, gpus, region, members))
    return tuple(groups)


def _group(name: str, kind: str | None, gpus: int, region: str | None, members: Sequence[Served]) -> NodeGroup:
    wanted = [one.app.deployment.ray or RayOptions() for one in members]
    memory = [own.memory_mib for own in wanted if own.memory_mib is not None]
    scaling = [options["autoscaling_config"] for options in _options(members)]
    return NodeGroup(
        name=name,
        kind=kind,
        gpus=gpus,
        region=region,
        cpus=max(math.ceil(own.cpus) for own in wanted),
        memory_mib=max(memory) if len(memory) == len(wanted) else None,
        least=sum(one["min_replicas"] for one in scaling),
        most=sum(one["max_replicas"] for one in scaling),
        deployments=tuple(one.app.deployment.name for one in members),
    )


def _options(members: Iterable[Served]) -> list[DeploymentOptions]:
    return [one.options for one in members if one.options is not None]


def _name(kind: str | None, gpus: int, region: str | None, *, taken: set[str]) -> str:
    """`h100`, `h100-x2-eu-west-1`, `cpu`; with a number where two would be the same."""
    parts = [kind or ("gpu" if gpus else "cpu"), f"x{gpus}" if gpus > 1 else "", region or ""]
    plain = _NOT_IN_A_NAME.sub("-", "-".join(filter(None, parts)).lower())[:_LONGEST_NAME].strip("-")
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}-{number}", number + 1
    return name
