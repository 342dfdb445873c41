"""Whatever a deployment says: Ray and KubeRay take what Torpor makes of it, or Torpor refuses it and says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.platforms.ray.custom_resource import refusals
from tests.platforms.ray.with_ray import needs_ray
from tests.platforms.small import a_deployment
from torpor import Deployment, RayOptions, Scaling
from torpor.app_file import App
from torpor.lifecycle import Lifecycle
from torpor.platforms import ray as platform
from torpor.platforms.ray.config import Source, config_of
from torpor.platforms.ray.kubernetes import KubernetesOptions
from torpor.platforms.ray.manifest import service_of
from torpor.platforms.ray.nodes import node_groups
from torpor.platforms.ray.served import as_served
from torpor.values.gpu_names import MODAL, OWN

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

    from torpor.platforms.ray.served import Served

SMALL = a_deployment()
KUBERNETES = KubernetesOptions(image="registry.example/torpor:1")
SOURCE = Source(snapshots="s3://b/s")
SECONDS = st.floats(0.1, 100_000)


@st.composite
def scalings(draw: DrawFn) -> Scaling:
    """Every one that is valid."""
    target, least = draw(st.integers(1, 10_000)), draw(st.integers(0, 300))
    return Scaling(
        target_concurrency=target,
        max_concurrency=draw(st.integers(target, 1_000_000)),
        min_containers=least,
        max_containers=draw(st.none() | st.integers(max(1, least), 100_000)),
        buffer_containers=draw(st.sampled_from([0, 0, 0, 1])),
        scaledown_window_s=draw(st.integers(2, 100_000)),
    )


@st.composite
def deployments(draw: DrawFn) -> Deployment:
    """Every sort of GPU, region and time-out."""
    name = draw(st.none() | st.sampled_from([*MODAL, *OWN]))
    gpu = name and f"{name}{draw(st.sampled_from(['', '!', ':2', '!:8']))}"
    region = draw(
        st.none() | st.from_regex(r"[a-z]{2}-[a-z]{1,60}-\d", fullmatch=True) | st.text("a-_.!()B ü", min_size=1)
    )
    return replace(
        SMALL,
        gpu=gpu,
        gpu_snapshot=None,
        region=region if region and region.strip() else None,
        scaling=draw(scalings()),
        drain_timeout_s=draw(SECONDS),
        stop_timeout_s=draw(SECONDS),
        ray=draw(
            st.none()
            | st.builds(RayOptions, cpus=st.floats(0.01, 4096), memory_mib=st.none() | st.integers(1, 1 << 26))
        ),
    )


def served_of(deployment: Deployment) -> Served:
    """As from an app file."""
    return as_served(App(file=Path("small.py"), deployment=deployment, lifecycle=Lifecycle(deployment)), alone=True)


@given(deployments())
@settings(max_examples=60, deadline=None)
def test_a_deployment_has_sound_options_or_an_error(deployment: Deployment) -> None:
    """Never neither, never both; an error has a cure, and no time-out is shorter than what it has to cover."""
    one = served_of(deployment)
    errors = [finding for finding in one.findings if finding.level == "error"]
    assert (one.options is None) == bool(errors)
    assert all(finding.cure for finding in one.findings)
    if one.options is not None:
        scaling = one.options["autoscaling_config"]
        assert 0 <= scaling["min_replicas"] <= scaling["max_replicas"] >= 1
        assert one.options["graceful_shutdown_timeout_s"] > deployment.drain_timeout_s + deployment.stop_timeout_s
        assert one.options["ray_actor_options"]["num_gpus"] == deployment.gpu_count
        (group,) = node_groups([one])
        assert one.options["ray_actor_options"]["num_cpus"] <= group.cpus
        assert group.least == scaling["min_replicas"]


@needs_ray
@given(deployments())
@settings(max_examples=40, deadline=None)
def test_ray_takes_the_options_of_every_deployment(deployment: Deployment) -> None:
    """Also its label selectors and largest numbers."""
    one = served_of(deployment)
    if one.options is not None:
        assert platform.check_with_ray(config_of([one], SOURCE, host="0.0.0.0", port=8000))


@given(deployments())
@settings(max_examples=20, deadline=None)
def test_kuberay_takes_the_manifest_of_every_deployment(deployment: Deployment) -> None:
    """With a schema that allows no unknown field; every name is one that Kubernetes allows."""
    one = served_of(deployment)
    if one.options is not None:
        assert refusals(service_of([one], KUBERNETES, SOURCE)) == []
