"""Idle replicas ahead of traffic on Ray: an autoscaling policy that Serve's controller imports and asks. It needs no Ray.

Serve adds bounds, delays and the start from zero itself (ray/serve/autoscaling_policy.py, 2.60).
"""

from __future__ import annotations

import math
from typing import Protocol

__all__ = ["POLICY", "Buffer"]


class _Config(Protocol):
    """Of an autoscaling context; see ray.serve.config.AutoscalingConfig."""

    def get_target_ongoing_requests(self) -> float:
        """Requests for each replica."""


class _Context(Protocol):
    """What the policy reads of ray.serve.config.AutoscalingContext."""

    @property
    def current_num_replicas(self) -> int:
        """Running."""

    @property
    def target_num_replicas(self) -> int:
        """What Serve works towards."""

    @property
    def config(self) -> _Config:
        """Of the deployment."""

    @property
    def total_num_requests(self) -> float:
        """Running and queued, the average of the last seconds."""


class Buffer:
    """Asks for `replicas` more than the requests need, while there are any; as `torpor.serving.terms.wanted_replicas`.

    Args:
        replicas: that stay idle.
    """

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas

    def __call__(self, ctx: _Context) -> tuple[float, dict[str, object]]:
        """The wanted number of replicas, and no state of its own."""
        if not ctx.current_num_replicas:
            return ctx.target_num_replicas, {}
        needed = ctx.total_num_requests / ctx.config.get_target_ongoing_requests()
        return (math.ceil(needed) + self._replicas if needed else 0), {}


POLICY = f"{__name__}:{Buffer.__name__}"
"""Its name in a configuration."""
