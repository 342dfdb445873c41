"""Ray Serve: deployments on a cluster, each to zero and back.

Options, configuration and manifest are plain values; they need no Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.platforms.ray.application import RayApplication, application, application_from, applications
    from torpor.platforms.ray.cluster import connected
    from torpor.platforms.ray.config import Source, serve_config
    from torpor.platforms.ray.kubernetes import KubernetesOptions
    from torpor.platforms.ray.manifest import ray_service
    from torpor.platforms.ray.options import DeploymentOptions, cluster_environment, deployment_options
    from torpor.platforms.ray.schema import check_with_ray

__all__ = [
    "DeploymentOptions",
    "KubernetesOptions",
    "RayApplication",
    "Source",
    "application",
    "application_from",
    "applications",
    "check_with_ray",
    "cluster_environment",
    "connected",
    "deployment_options",
    "ray_service",
    "serve_config",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.platforms.ray.application": ("RayApplication", "application", "application_from", "applications"),
        "torpor.platforms.ray.cluster": ("connected",),
        "torpor.platforms.ray.config": ("Source", "serve_config"),
        "torpor.platforms.ray.kubernetes": ("KubernetesOptions",),
        "torpor.platforms.ray.manifest": ("ray_service",),
        "torpor.platforms.ray.options": ("DeploymentOptions", "cluster_environment", "deployment_options"),
        "torpor.platforms.ray.schema": ("check_with_ray",),
    },
)
