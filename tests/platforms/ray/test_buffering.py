"""`torpor.platforms.ray.buffering`: how many replicas Serve is asked for, with idle ones ahead of traffic."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tests.platforms.ray.with_ray import needs_ray
from tests.platforms.small import a_deployment
from torpor import Scaling
from torpor.platforms.ray.buffering import POLICY, Buffer
from torpor.platforms.ray.options import deployment_options


@dataclass
class Context:
    """What Serve tells a policy: so many requests, ten for a replica."""

    total_num_requests: float
    current_num_replicas: int = 1
    target_num_replicas: int = 1

    def __post_init__(self) -> None:
        self.config = self

    def get_target_ongoing_requests(self) -> float:
        """For each replica."""
        return 10


@pytest.mark.parametrize(
    ("context", "wanted"),
    [
        (Context(0.0), 0),
        (Context(0.3), 3),
        (Context(10.0), 3),
        (Context(10.5), 4),
        (Context(95.0, current_num_replicas=3), 12),
        (Context(5.0, current_num_replicas=0, target_num_replicas=1), 1),
    ],
    ids=lambda value: str(getattr(value, "total_num_requests", value)),
)
def test_two_more_than_the_requests_need_while_there_are_any(context: Context, wanted: int) -> None:
    """None without requests, so that the deployment goes to zero; Serve itself makes the first at zero."""
    assert Buffer(2)(context) == (wanted, {})


@needs_ray
@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field")
def test_serve_takes_the_policy_and_bounds_what_it_asks() -> None:
    """Serve imports it by its name and makes it with its arguments; `max_containers` is the most."""
    from ray.serve.config import AutoscalingConfig

    deployment = replace(a_deployment(), scaling=Scaling(target_concurrency=10, max_containers=3, buffer_containers=2))
    options = deployment_options(deployment)["autoscaling_config"]
    assert options["policy"] == {"policy_function": POLICY, "policy_kwargs": {"replicas": 2}}
    config = AutoscalingConfig(**options)
    config.policy.serialize_policy()
    policy = config.policy.get_policy()
    policy = policy(**config.policy.policy_kwargs) if isinstance(policy, type) else policy
    assert policy(Context(10.0)) == (3, {})
