"""A deployment's numbers as Ray Serve takes them: options of a Serve deployment, and the variables of every Ray process.

Ray is not imported: `deployment_options` gives plain values, for `serve.deployment(**options)` and for a configuration file alike.
Names and meanings are those of ray.serve 2.60 (ray/serve/schema.py, ray/serve/config.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NotRequired, TypedDict

from torpor.platforms.ray.buffering import POLICY
from torpor.platforms.ray.checks import check_for_ray
from torpor.platforms.ray.gpu_kinds import accelerator_type
from torpor.values.ray_options import RayOptions

if TYPE_CHECKING:
    from torpor.deployment import Deployment, Scaling

__all__ = [
    "HA_PROXY_VARIABLE",
    "MIN_DRAINING_S",
    "MOST_REPLICAS",
    "PRELOAD_VARIABLE",
    "QUEUE",
    "REGION_LABEL",
    "ActorOptions",
    "AutoscalingOptions",
    "BackpressureOptions",
    "DeploymentOptions",
    "PolicyOptions",
    "cluster_environment",
    "deployment_options",
    "ingress_options",
]

HA_PROXY_VARIABLE = "RAY_SERVE_ENABLE_HA_PROXY"
PRELOAD_VARIABLE = "RAY_preload_python_modules"
MOST_REPLICAS = 100
"""Replicas at most where `Scaling.max_containers` is None: what Serve itself takes for `num_replicas="auto"`."""
QUEUE = 1000
"""Requests that wait for one replica, or for the first one, at most; as in `torpor serve`. Further ones get 503."""
MIN_DRAINING_S = 5
"""Seconds that a replica which ends stays reachable, so that every HAProxy forgets it first. Serve's default, 30 s, would keep the
GPU as long; HAProxy sends a refused connection elsewhere."""
REGION_LABEL = "ray.io/availability-region"
"""Ray's own label (ray._raylet.RAY_NODE_REGION_KEY). A node gets it from `ray start --labels` or the variable RAY_NODE_REGION."""

_INGRESS_REQUESTS = 1000
_INGRESS_TARGET = 200
_MOST_INGRESSES = 16
_INGRESS_STAYS_S = 120.0
_INGRESS_DRAIN_S = 600.0
"""A replica that goes waits so long for the answers on their way through it."""
_ADD_AFTER_S = 1.0
_LOOK_BACK_S = 2.0
_REPORT_S = 0.5
"""Seconds between reports of ongoing requests, 10 by default; a replica is added only after one."""
_WAIT_LOOP_S = 0.5
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5.0, 30.0
_RETRY_AFTER_S = 1.0
_MARGIN_S = 5.0
_MIB = 1 << 20


class PolicyOptions(TypedDict):
    """Fields of ray.serve.config.AutoscalingPolicy."""

    policy_function: str
    policy_kwargs: dict[str, int]


class AutoscalingOptions(TypedDict):
    """Fields of ray.serve.config.AutoscalingConfig. Times are in seconds; without a policy Serve's own decides."""

    min_replicas: int
    max_replicas: int
    target_ongoing_requests: int
    upscale_delay_s: float
    downscale_delay_s: float
    downscale_to_zero_delay_s: float
    metrics_interval_s: float
    look_back_period_s: float
    policy: NotRequired[PolicyOptions]


class ActorOptions(TypedDict):
    """Fields of `ray_actor_options`: what a replica's node needs to have free; `memory` is in bytes."""

    num_cpus: float
    num_gpus: int
    memory: NotRequired[int]
    accelerator_type: NotRequired[str]
    label_selector: NotRequired[dict[str, str]]


class BackpressureOptions(TypedDict):
    """Fields of ray.serve.config.BackpressureConfig: the answer to a request beyond the queue."""

    status_code: int
    retry_after_s: float


class DeploymentOptions(TypedDict):
    """Keyword arguments of `serve.deployment`, and the fields of ray.serve.schema.DeploymentSchema. Times are in seconds."""

    name: str
    autoscaling_config: AutoscalingOptions
    max_ongoing_requests: int
    max_queued_requests: int
    backpressure_config: BackpressureOptions
    graceful_shutdown_timeout_s: float
    graceful_shutdown_wait_loop_s: float
    health_check_period_s: float
    health_check_timeout_s: float
    ray_actor_options: ActorOptions


def deployment_options(deployment: Deployment) -> DeploymentOptions:
    """Options of the Serve deployment whose replicas each own one engine.

    `max_ongoing_requests` is the limit of the replica's guard. The guard counts a request a little longer than Serve does, and a
    whole batch can end in one step; no head-room below the limit is enough for that. So the replica sends a request again that its
    guard refuses with `too_many_requests`.

    The health check only has to find a replica that hangs: one whose engine has ended exits by itself.

    Raises:
        ConfigurationError: Ray Serve has no counterpart to something that the deployment asks for (`check_for_ray`).
    """
    check_for_ray(deployment)
    scaling = deployment.scaling
    return DeploymentOptions(
        name=deployment.name,
        autoscaling_config=_autoscaling(scaling),
        max_ongoing_requests=scaling.max_concurrency,
        max_queued_requests=QUEUE,
        backpressure_config=BackpressureOptions(status_code=503, retry_after_s=_RETRY_AFTER_S),
        graceful_shutdown_timeout_s=_shutdown_s(deployment),
        graceful_shutdown_wait_loop_s=_WAIT_LOOP_S,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        ray_actor_options=_actor_options(deployment),
    )


def ingress_options() -> DeploymentOptions:
    """Options of the Serve deployment that reads `model`.

    It always has a replica: a request at zero meets nothing else of Torpor's. 32 streams of 20 tokens a second take 5 % of a core
    of it, so `_INGRESS_TARGET` requests take less than a third of one; a node is no bound, since it takes no CPU in Ray's books.
    """
    return DeploymentOptions(
        name="models",
        autoscaling_config=AutoscalingOptions(
            min_replicas=1,
            max_replicas=_MOST_INGRESSES,
            target_ongoing_requests=_INGRESS_TARGET,
            upscale_delay_s=_ADD_AFTER_S,
            downscale_delay_s=_INGRESS_STAYS_S,
            downscale_to_zero_delay_s=_INGRESS_STAYS_S,
            metrics_interval_s=_REPORT_S,
            look_back_period_s=_LOOK_BACK_S,
        ),
        max_ongoing_requests=_INGRESS_REQUESTS,
        max_queued_requests=QUEUE,
        backpressure_config=BackpressureOptions(status_code=503, retry_after_s=_RETRY_AFTER_S),
        graceful_shutdown_timeout_s=_INGRESS_DRAIN_S,
        graceful_shutdown_wait_loop_s=_WAIT_LOOP_S,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        ray_actor_options=ActorOptions(num_cpus=0, num_gpus=0),
    )


def cluster_environment() -> dict[str, str]:
    """Variables that every Ray process has to have from its start: `ray start` reads them, a running cluster does not.

    HAProxy mode passes requests 4 times as fast as Serve's own proxy. A replica only forwards: it needs no second thread for
    that, and no second event loop for calls that it does not make. Serve replaces a proxy, or the manager of HAProxy, after three
    failed checks: in 6 s instead of 30, during which its node answers nothing. Source: ray/serve/_private/constants.py. A worker
    imports what a replica needs before it gets work (`torpor.platforms.ray.preloaded`; ray/_private/workers/default_worker.py).
    """
    return {
        HA_PROXY_VARIABLE: "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(MIN_DRAINING_S),
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        PRELOAD_VARIABLE: "torpor.platforms.ray.preloaded",
    }


def _autoscaling(scaling: Scaling) -> AutoscalingOptions:
    window_s = float(scaling.scaledown_window_s)
    options = AutoscalingOptions(
        min_replicas=scaling.min_containers,
        max_replicas=scaling.max_containers or max(MOST_REPLICAS, scaling.min_containers),
        target_ongoing_requests=scaling.target_concurrency,
        upscale_delay_s=_ADD_AFTER_S,
        downscale_delay_s=window_s,
        downscale_to_zero_delay_s=window_s,
        metrics_interval_s=_REPORT_S,
        look_back_period_s=_LOOK_BACK_S,
    )
    if scaling.buffer_containers:
        options["policy"] = PolicyOptions(policy_function=POLICY, policy_kwargs={"replicas": scaling.buffer_containers})
    return options


def _shutdown_s(deployment: Deployment) -> float:
    """Seconds from the decision to end a replica until Serve kills it: drain, then the engine's end, with a margin."""
    draining_s = max(deployment.drain_timeout_s, MIN_DRAINING_S)
    return math.ceil(draining_s + deployment.stop_timeout_s + _MARGIN_S)


def _actor_options(deployment: Deployment) -> ActorOptions:
    own = deployment.ray or RayOptions()
    options = ActorOptions(num_cpus=own.cpus, num_gpus=deployment.gpu_count)
    if own.memory_mib is not None:
        options["memory"] = own.memory_mib * _MIB
    if (kind := own.accelerator_type or accelerator_type(deployment.gpu)) is not None:
        options["accelerator_type"] = kind
    if deployment.region is not None:
        options["label_selector"] = {REGION_LABEL: deployment.region}
    return options
