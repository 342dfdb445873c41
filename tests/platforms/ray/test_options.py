"""`torpor.platforms.ray.options`: a deployment's numbers as Ray Serve takes them."""

from __future__ import annotations

import mmap
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.platforms.ray.with_ray import needs_ray
from tests.platforms.small import a_deployment
from torpor import ConfigurationError, Deployment, ModalOptions, RayOptions, Scaling
from torpor.platforms.ray.checks import ray_findings
from torpor.platforms.ray.gpu_kinds import accelerator_type
from torpor.platforms.ray.options import (
    MOST_REPLICAS,
    PRELOAD_VARIABLE,
    REGION_LABEL,
    cluster_environment,
    deployment_options,
    ingress_options,
)

DEPLOYMENT = replace(
    a_deployment(gpu="H100!:2"),
    scaling=Scaling(target_concurrency=3, max_concurrency=9, min_containers=1, max_containers=4, scaledown_window_s=60),
    drain_timeout_s=45.0,
    stop_timeout_s=2.5,
    region="eu-west-1",
)


def scaled(**changes: Any) -> Deployment:
    """The deployment with another scaling."""
    return replace(DEPLOYMENT, scaling=replace(DEPLOYMENT.scaling, **changes))


def test_serve_gets_the_deployments_numbers() -> None:
    """Every number that Serve knows comes from one place in the deployment."""
    assert deployment_options(DEPLOYMENT) == {
        "name": "small",
        "autoscaling_config": {
            "min_replicas": 1,
            "max_replicas": 4,
            "target_ongoing_requests": 3,
            "upscale_delay_s": 1.0,
            "downscale_delay_s": 60.0,
            "downscale_to_zero_delay_s": 60.0,
            "metrics_interval_s": 0.5,
            "look_back_period_s": 2.0,
        },
        "max_ongoing_requests": 9,
        "max_queued_requests": 1000,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1.0},
        "graceful_shutdown_timeout_s": 53,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 5.0,
        "health_check_timeout_s": 30.0,
        "ray_actor_options": {
            "num_cpus": 1.0,
            "num_gpus": 2,
            "accelerator_type": "H100",
            "label_selector": {"ray.io/availability-region": "eu-west-1"},
        },
    }


def test_an_engine_on_the_cpu_goes_anywhere() -> None:
    """Without a GPU and a region there is nothing to choose a node by."""
    options = deployment_options(a_deployment())
    assert options["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 0}


def test_a_replica_takes_what_its_deployment_says_of_a_node() -> None:
    """Cores, memory in bytes, and Ray's own name of the GPU where it is given."""
    own = RayOptions(cpus=7.5, memory_mib=2048, accelerator_type="GeForce-RTX-4070-Ti")
    options = deployment_options(replace(DEPLOYMENT, gpu="RTX4070", region=None, ray=own))
    assert options["ray_actor_options"] == {
        "num_cpus": 7.5,
        "num_gpus": 1,
        "memory": 2048 << 20,
        "accelerator_type": "GeForce-RTX-4070-Ti",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cpus": 0}, r"RayOptions.cpus is 0 cores; allowed are more than 0"),
        ({"cpus": "8"}, r"RayOptions.cpus is '8'"),
        ({"memory_mib": 0}, r"RayOptions.memory_mib is 0 MiB; allowed are 1 to"),
        ({"memory_mib": 0.5}, r"RayOptions.memory_mib is 0.5"),
        ({"accelerator_type": "NVIDIA H100"}, r"RayOptions.accelerator_type is 'NVIDIA H100'; write it as"),
    ],
)
def test_a_wrong_option_for_ray_is_refused(given: dict[str, object], message: str) -> None:
    """When the value is made; the error says what is allowed."""
    with pytest.raises(ConfigurationError, match=message):
        RayOptions(**given)  # type: ignore[arg-type]


def test_options_for_ray_are_checked_with_the_deployment() -> None:
    """A kind of GPU needs a GPU, and the options are a value of their own class."""
    with pytest.raises(ConfigurationError, match=r"accelerator_type is 'H100', and Deployment.gpu is None"):
        replace(a_deployment(), ray=RayOptions(accelerator_type="H100"))
    with pytest.raises(ConfigurationError, match=r"Deployment.ray is .*; it has to be RayOptions"):
        replace(a_deployment(), ray={"cpus": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("least", "most", "expected"), [(0, None, MOST_REPLICAS), (150, None, 150), (0, 1, 1), (2, 7, 7)]
)
def test_serve_always_gets_a_largest_number_of_replicas(least: int, most: int | None, expected: int) -> None:
    """Serve knows no "as many as needed"."""
    scaling = deployment_options(scaled(min_containers=least, max_containers=most))["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (least, expected)


@pytest.mark.parametrize(("drain_s", "expected"), [(0.5, 13), (5.0, 13), (100.0, 108)])
def test_serve_kills_a_replica_only_after_drain_and_stop(drain_s: float, expected: float) -> None:
    """The drain is at least as long as HAProxy may still send requests (5 s); then come the engine's end and a margin of 5 s."""
    deployment = replace(DEPLOYMENT, drain_timeout_s=drain_s)
    assert deployment_options(deployment)["graceful_shutdown_timeout_s"] == expected


@pytest.mark.parametrize(
    ("changed", "what", "cure"),
    [
        (replace(DEPLOYMENT, region="eu west"), "Deployment.region", "use 1 to 63 letters"),
        (replace(DEPLOYMENT, region="in(a, b)"), "Deployment.region", "use 1 to 63 letters"),
        (replace(DEPLOYMENT, region="!eu"), "Deployment.region", "use 1 to 63 letters"),
        (replace(DEPLOYMENT, gpu="B200+"), "Deployment.gpu", "name one, e.g. 'B200'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_ray_cannot_do_is_refused(changed: Deployment, what: str, cure: str) -> None:
    """The error names the field, and what to change."""
    with pytest.raises(ConfigurationError) as caught:
        deployment_options(changed)
    assert what in str(caught.value)
    assert cure in str(caught.value)


def test_everything_that_is_refused_is_told_at_once() -> None:
    """Nobody has to correct one field after the other."""
    with pytest.raises(ConfigurationError, match=r"region.*gpu"):
        deployment_options(replace(DEPLOYMENT, region="!", gpu="B200+"))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (scaled(max_containers=None), "Scaling.max_containers"),
        (replace(DEPLOYMENT, gpu="A100-80GB"), "Deployment.gpu"),
        (replace(DEPLOYMENT, gpu="XYZ1", unlisted_gpu=True), "Deployment.gpu"),
        (replace(DEPLOYMENT, host="0.0.0.0"), "Deployment.host"),
        (replace(DEPLOYMENT, snapshot=False, gpu_snapshot=False), "Deployment.snapshot"),
        (replace(DEPLOYMENT, max_restarts=1), "Deployment.max_restarts"),
        (replace(DEPLOYMENT, modal=ModalOptions(requires_proxy_auth=True)), "ModalOptions.requires_proxy_auth"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_harmless_difference_is_told(changed: Deployment, what: str) -> None:
    """It is a warning with a cure, and the options are made all the same."""
    assert [(finding.level, finding.what) for finding in ray_findings(changed)] == [("warning", what)]
    assert all(finding.cure for finding in ray_findings(changed))
    assert deployment_options(changed)["name"] == "small"


@pytest.mark.parametrize(("gpu", "unlisted"), [("B200+", False), ("XYZ1", True)])
def test_rays_own_name_of_a_gpu_settles_what_kind_is_meant(gpu: str, unlisted: bool) -> None:
    """With it, neither a guess nor a refusal is left."""
    deployment = replace(DEPLOYMENT, gpu=gpu, unlisted_gpu=unlisted, ray=RayOptions(accelerator_type="B200"))
    assert ray_findings(deployment) == ()


def test_nothing_is_told_of_an_ordinary_deployment() -> None:
    """A message that always comes is not read."""
    assert ray_findings(DEPLOYMENT) == ()


def test_every_ray_process_gets_haproxy_mode() -> None:
    """A variable's value is text."""
    assert cluster_environment() == {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
        "RAY_preload_python_modules": "torpor.platforms.ray.preloaded",
    }


CARDS = {
    "H100": "NVIDIA H100 80GB HBM3",
    "H200": "NVIDIA H200",
    "GH200": "NVIDIA GH200 480GB",
    "L40S": "NVIDIA L40S",
    "A10G": "NVIDIA A10G",
    "T4": "Tesla T4",
    "V100": "Tesla V100-SXM2-16GB",
    "A100": "NVIDIA A100-SXM4-80GB",
    "A6000": "NVIDIA RTX A6000",
    "A4500": "NVIDIA RTX A4500",
    "RTX-PRO-6000": "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    "RTX6000": "NVIDIA RTX 6000 Ada Generation",
    "RTX8000": "Quadro RTX 8000",
    "RTX4090": "NVIDIA GeForce RTX 4090",
    "RTX2070": "NVIDIA GeForce RTX 2070",
}
"""A deployment's name of a GPU, and the driver's."""


@needs_ray
@pytest.mark.parametrize("gpu", CARDS)
def test_a_kind_of_gpu_is_what_ray_makes_of_the_drivers_name(gpu: str) -> None:
    """A replica is placed on a node that offers exactly this name."""
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    assert accelerator_type(gpu) == NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(CARDS[gpu])


@pytest.mark.parametrize(
    ("gpu", "kind"),
    [(None, None), ("any", None), ("any:2", None), ("h100!:8", "H100"), ("A100-40GB", "A100-40G"), ("A2", "A2")],
)
def test_a_kind_of_gpu_is_without_count_and_mark(gpu: str | None, kind: str | None) -> None:
    """`any` asks for no kind."""
    assert accelerator_type(gpu) == kind


@needs_ray
@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field")
def test_ray_takes_the_options() -> None:
    """Serve's own schema accepts them, Serve or the raylet reads these variables, and Ray's nodes have this label."""
    import ray
    from ray._raylet import RAY_NODE_REGION_KEY
    from ray.serve._private import constants
    from ray.serve.schema import DeploymentSchema

    DeploymentSchema.model_validate(ingress_options())
    read = DeploymentSchema.model_validate(deployment_options(DEPLOYMENT))
    assert read.model_dump(exclude_unset=True)["autoscaling_config"]["max_replicas"] == 4
    source = Path(constants.__file__).read_text()
    assert [name for name in cluster_environment() if f'"{name}"' not in source] == [PRELOAD_VARIABLE]
    with (Path(ray.__file__).parent / "core/src/ray/raylet/raylet").open("rb") as raylet:
        assert mmap.mmap(raylet.fileno(), 0, access=mmap.ACCESS_READ).find(PRELOAD_VARIABLE.encode()) >= 0
    assert REGION_LABEL == RAY_NODE_REGION_KEY


def test_the_options_need_no_ray() -> None:
    """`torpor ray plan` works on a laptop without it."""
    program = "import sys, torpor.platforms.ray as platform; platform.deployment_options; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
