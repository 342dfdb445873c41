"""What Ray would serve: applications, routes, nodes, and what is refused, with the reason. Nothing is started."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from torpor.platforms.ray.names import INGRESS
from torpor.platforms.ray.nodes import NodeGroup, node_groups
from torpor.platforms.ray.options import cluster_environment
from torpor.platforms.ray.served import Served, by_model, served

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.platforms.ray.config import Source

__all__ = ["RayPlan", "ray_plan"]


@dataclass(frozen=True, kw_only=True)
class RayPlan:
    """What Ray would serve.

    Attributes:
        apps: in the order of the app files.
        source: where replicas find app files and snapshots.
        groups: the nodes that replicas need.
        environment: variables that every Ray process has to have from its start.
    """

    apps: tuple[Served, ...]
    source: Source
    groups: tuple[NodeGroup, ...]
    environment: dict[str, str]

    @property
    def refused(self) -> tuple[str, ...]:
        """Names of the deployments that Ray cannot serve."""
        return tuple(one.app.deployment.name for one in self.apps if one.options is None)

    @property
    def by_model(self) -> str:
        """The application that forwards by `model`; empty for a single app file that never goes to zero, which is served at `/`."""
        return INGRESS if by_model(self.apps) else ""

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "applications": [_as_json(one, self.source) for one in self.apps],
            "by_model": self.by_model or None,
            "refused": list(self.refused),
            "nodes": [asdict(group) for group in self.groups],
            "environment": self.environment,
            "source": asdict(self.source),
        }


def ray_plan(files: Sequence[str | Path], source: Source) -> RayPlan:
    """Import app files and find out how Ray would serve them.

    Raises:
        ConfigurationError: an app file cannot be used, or two do not go together. What Ray cannot serve is in the plan.
    """
    apps = served(files)
    return RayPlan(apps=apps, source=source, groups=node_groups(apps), environment=cluster_environment())


def _as_json(one: Served, source: Source) -> dict[str, object]:
    deployment = one.app.deployment
    return {
        "name": one.application,
        "deployment": deployment.name,
        "model": deployment.model.served_name,
        "adapters": list(deployment.model.adapters),
        "app_file": source.file(one.app.file),
        "route_prefix": one.route_prefix,
        "options": one.options,
        "findings": [asdict(finding) for finding in one.findings],
    }
