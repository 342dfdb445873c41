"""Ray Serve: deployments on a cluster, each to zero and back.

Options, configuration and manifest are plain values; they need no Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.platforms.ray.options import DeploymentOptions, cluster_environment, deployment_options

__all__ = ["DeploymentOptions", "cluster_environment", "deployment_options"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {"torpor.platforms.ray.options": ("DeploymentOptions", "cluster_environment", "deployment_options")},
)
