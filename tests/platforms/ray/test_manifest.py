"""`torpor.platforms.ray.manifest`: the RayService for KubeRay, held against KubeRay's and Ray's own schemas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

import pytest
import yaml

from tests.platforms.ray.app_files import an_app
from tests.platforms.ray.custom_resource import changed, refusals
from tests.platforms.ray.with_ray import needs_ray
from torpor import ConfigurationError
from torpor.platforms import ray as platform
from torpor.platforms.ray.config import ServeConfig, Source
from torpor.platforms.ray.kubernetes import KubernetesOptions, NodeSelector, Toleration
from torpor.platforms.ray.manifest import manifest_findings, ray_service
from torpor.platforms.ray.pods import CAPABILITIES
from torpor.platforms.ray.served import served

if TYPE_CHECKING:
    from pathlib import Path

    from tests.platforms.ray.custom_resource import Json

KUBERNETES = KubernetesOptions(
    image="registry.example/torpor:1",
    namespace="models",
    node_selectors=(NodeSelector.parse("h100-x2-eu-west-1:gpu.example/kind=h100"), NodeSelector.parse("zone=a")),
    tolerations=(Toleration.parse("spot=yes:NoExecute"), Toleration.parse("any")),
    service_account="store-reader",
    secret="bucket-keys",
)
SOURCE = Source(snapshots="s3://b/s", trust="/etc/torpor/trusted.pub", app_folder="/apps")
WORKER = "spec.rayClusterConfig.workerGroupSpecs.0"


@pytest.fixture
def manifest(tmp_path: Path) -> Json:
    """Of two deployments: one on two GPUs of a region, one on the CPU."""
    large = an_app(
        tmp_path,
        "large",
        "gpu='H100!:2', region='eu-west-1', drain_timeout_s=60.0, ray=RayOptions(cpus=7.5, memory_mib=65_536)",
    )
    return ray_service(large, an_app(tmp_path, "small"), kubernetes=KUBERNETES, source=SOURCE)


def at(manifest: Json, path: str) -> object:
    """What is at a dotted path."""
    node: object = manifest
    for part in path.split("."):
        node = node[int(part)] if isinstance(node, list) else cast("Json", node)[part]
    return node


def config_in(manifest: Json) -> ServeConfig:
    """The configuration of Serve in it."""
    return cast("ServeConfig", yaml.safe_load(cast("str", at(manifest, "spec.serveConfigV2"))))


def test_kuberay_accepts_it(manifest: Json) -> None:
    """With a schema that allows no unknown field."""
    assert refusals(manifest) == []


@needs_ray
def test_ray_accepts_the_configuration_in_it(manifest: Json) -> None:
    """`ServeDeploySchema` reads what KubeRay hands on."""
    assert platform.check_with_ray(config_in(manifest))


def test_a_group_offers_what_its_deployments_ask_for(manifest: Json) -> None:
    """The autoscaler adds a node only if a replica would fit on it, and knows that before there is one."""
    assert at(manifest, f"{WORKER}.groupName") == "h100-x2-eu-west-1"
    assert at(manifest, f"{WORKER}.resources") == {
        "CPU": "8",
        "memory": "65536Mi",
        "GPU": "2",
        "accelerator_type:H100": "1",
    }
    assert at(manifest, f"{WORKER}.labels") == {"ray.io/availability-region": "eu-west-1"}
    actor = config_in(manifest)["applications"][0]["deployments"][0]["ray_actor_options"]
    assert actor["label_selector"] == {"ray.io/availability-region": "eu-west-1"}
    assert [at(manifest, f"{WORKER}.{name}Replicas") for name in ("min", "max")] == [0, 3]


def test_a_worker_pod_has_room_for_ray_beside_its_replica(manifest: Json) -> None:
    """A core and 2 GiB more than the replica takes; memory and GPUs are limits, cores are not."""
    container = f"{WORKER}.template.spec.containers.0"
    assert at(manifest, f"{container}.resources") == {
        "requests": {"cpu": "9", "memory": "67584Mi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "67584Mi", "nvidia.com/gpu": "2"},
    }


def test_a_worker_goes_to_the_machines_that_were_named(manifest: Json) -> None:
    """Region, selectors for all groups with GPUs, selectors of the group; taints of GPUs, and those that were given."""
    spec = f"{WORKER}.template.spec"
    assert at(manifest, f"{spec}.nodeSelector") == {
        "topology.kubernetes.io/region": "eu-west-1",
        "zone": "a",
        "gpu.example/kind": "h100",
    }
    assert at(manifest, f"{spec}.tolerations") == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoExecute"},
        {"key": "any", "operator": "Exists"},
    ]
    cpu = cast("Json", at(manifest, "spec.rayClusterConfig.workerGroupSpecs.1.template.spec"))
    assert "nodeSelector" not in cpu


def test_a_pod_stays_until_its_replica_has_drained(manifest: Json) -> None:
    """Kubernetes kills it only after Serve would: drain 60 s, stop 10 s, margins of 5 and 10 s."""
    assert at(manifest, f"{WORKER}.template.spec.terminationGracePeriodSeconds") == 85


def test_only_pods_that_restore_get_privileges(tmp_path: Path, manifest: Json) -> None:
    """Four capabilities, never `privileged`; none for the head, and none where every start is cold."""
    assert at(manifest, f"{WORKER}.template.spec.containers.0.securityContext") == {
        "runAsUser": 0,
        "capabilities": {"add": list(CAPABILITIES)},
        "seccompProfile": {"type": "Unconfined"},
        "appArmorProfile": {"type": "Unconfined"},
    }
    head = cast("Json", at(manifest, "spec.rayClusterConfig.headGroupSpec.template.spec.containers.0"))
    assert "securityContext" not in head
    cold = (
        ray_service(an_app(tmp_path, "small"), kubernetes=KUBERNETES_PLAIN),
        ray_service(an_app(tmp_path, "small", "snapshot=False"), kubernetes=KUBERNETES_PLAIN, source=SOURCE),
    )
    for one in cold:
        assert at(one, f"{WORKER}.template.spec.containers.0.securityContext") == {"runAsUser": 0}


def test_every_pod_has_image_account_secret_and_the_variables_of_ray(manifest: Json) -> None:
    """`ray start` reads the variables; the cache is a folder of the machine, so the next pod there finds it."""
    for group in ("spec.rayClusterConfig.headGroupSpec", WORKER):
        spec = cast("Json", at(manifest, f"{group}.template.spec"))
        container = cast("list[Json]", spec["containers"])[0]
        assert spec["serviceAccountName"] == "store-reader"
        assert container["image"] == "registry.example/torpor:1"
        assert container["envFrom"] == [{"secretRef": {"name": "bucket-keys"}}]
        assert {"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"} in cast("list[Json]", container["env"])
    assert {"name": "TORPOR_CACHE", "value": "/var/lib/torpor"} in cast("list[Json]", container["env"])
    assert spec["volumes"] == [
        {"name": "torpor-cache", "hostPath": {"path": "/var/lib/torpor", "type": "DirectoryOrCreate"}}
    ]


KUBERNETES_PLAIN = KubernetesOptions(image="registry.example/torpor:1")

BROKEN: dict[str, tuple[str, object, str]] = {
    "an unknown field of the cluster": (
        "spec.rayClusterConfig.workerGroupSpec",
        [],
        "'workerGroupSpec' was unexpected",
    ),
    "an unknown field of the service": ("spec.serveConfig", "x", "'serveConfig' was unexpected"),
    "containers that are no list": (
        f"{WORKER}.template.spec.containers",
        "x",
        "containers: 'x' is not of type 'array'",
    ),
    "a container without a name": (f"{WORKER}.template.spec.containers.0.name", ..., "'name' is a required property"),
    "a group without its largest size": (f"{WORKER}.maxReplicas", ..., "'maxReplicas' is a required property"),
    "a group's size as text": (f"{WORKER}.minReplicas", "0", "minReplicas: '0' is not of type 'integer'"),
    "an autoscaler that does not exist": (
        "spec.rayClusterConfig.autoscalerOptions.version",
        "v3",
        "version: 'v3' is not one of ['v1', 'v2']",
    ),
    "a privilege at the wrong place": (f"{WORKER}.template.spec.capabilities", {}, "'capabilities' was unexpected"),
    "a variable's value as a number": (
        f"{WORKER}.template.spec.containers.0.env.0.value",
        1,
        "value: 1 is not of type 'string'",
    ),
    "no head": ("spec.rayClusterConfig.headGroupSpec", ..., "'headGroupSpec' is a required property"),
    "a label as a number": (f"{WORKER}.labels", {"ray.io/availability-region": 1}, "1 is not of type 'string'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_manifest_is_found_by_the_schema(manifest: Json, what: str) -> None:
    """So the test that the manifest is accepted can fail; the message names the field."""
    path, value, message = BROKEN[what]
    found = refusals(changed(manifest, path, value))
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": ""}, "The image is ''; write it like registry.example/torpor:1"),
        ({"image": "a b:1"}, "The image is 'a b:1'; write it like"),
        ({"image": "registry.example:5000/torpor"}, "whose content can change from node to node"),
        ({"image": "torpor:latest"}, "whose content can change from node to node"),
        ({"name": "Torpor"}, "The name is 'Torpor'; allowed are 1 to 47 lower-case letters"),
        ({"name": "1torpor"}, "beginning with a letter"),
        ({"name": "t" * 48}, "allowed are 1 to 47"),
        ({"namespace": "my_models"}, "The namespace is 'my_models'; allowed are 1 to 63"),
        ({"cache": "var/lib"}, "The cache is 'var/lib'; give an absolute path"),
        ({"cache": "/"}, "The cache is '/'; give an absolute path"),
        ({"service_account": "a b"}, "The service account is 'a b'"),
        ({"secret": "-x"}, "The secret is '-x'"),
        ({"ray_version": "2.60"}, "The Ray version is '2.60'; give the image's, e.g. 2.60.0"),
    ],
)
def test_a_wrong_option_is_refused_before_a_manifest_is_made(given: dict[str, str], message: str) -> None:
    """The error says what was given, and what to write."""
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        KubernetesOptions(**{"image": "torpor:1", **given})  # type: ignore[arg-type]


@pytest.mark.parametrize("image", ["torpor:1", "a.example:5000/x/y:v1.2", "torpor@sha256:" + "0" * 64])
def test_an_image_with_a_tag_or_a_digest_is_accepted(image: str) -> None:
    """A registry's port is no tag."""
    assert KubernetesOptions(image=image).image == image


@pytest.mark.parametrize("text", ["", "key", "key=", "=value", "a b=c", "H100:key=value", ":key=value", "key=-"])
def test_a_wrong_node_selector_is_refused(text: str) -> None:
    """The error shows how to write one."""
    with pytest.raises(ConfigurationError, match=re.escape("write [GROUP:]KEY=VALUE")):
        NodeSelector.parse(text)


@pytest.mark.parametrize("text", ["", "=x", "a b", "key:Never", "key=v:", "key=v!"])
def test_a_wrong_toleration_is_refused(text: str) -> None:
    """The error shows how to write one."""
    with pytest.raises(ConfigurationError, match=re.escape("write KEY[=VALUE][:EFFECT]")):
        Toleration.parse(text)


def test_a_node_selector_for_no_group_is_refused(tmp_path: Path) -> None:
    """It would have no effect, and replicas would go anywhere."""
    small = an_app(tmp_path, "small")
    for text, message in (("h100:a=b", "for a group that does not exist; there are cpu"), ("a=b", "write")):
        options = KubernetesOptions(image="torpor:1", node_selectors=(NodeSelector.parse(text),))
        with pytest.raises(ConfigurationError, match=message if text != "a=b" else "for groups with GPUs"):
            ray_service(small, kubernetes=options)


def test_what_somebody_should_know_before_they_apply_it_is_told(tmp_path: Path) -> None:
    """Machines of any kind, no limit of memory, snapshots of another mode, no snapshots at all."""
    apps = served([an_app(tmp_path, "large", "gpu='H100'"), an_app(tmp_path, "small", "")])
    found = [
        (finding.what, finding.seen.split(",")[0]) for finding in manifest_findings(apps, KUBERNETES_PLAIN, SOURCE)
    ]
    assert found == [
        ("group h100", "takes any machine with a GPU"),
        ("group h100", "its pods have no memory limit"),
        ("group cpu", "its pods have no memory limit"),
        ("group cpu", "its pods restore as root"),
    ]
    told = manifest_findings(served([an_app(tmp_path, "small")]), KUBERNETES_PLAIN, Source())
    assert [finding.what for finding in told] == ["snapshots"]


@pytest.mark.parametrize("store", ["/mnt/snapshots", "file:///mnt/snapshots", "/var/lib/torpor"])
def test_a_store_that_no_pod_has_is_refused(tmp_path: Path, store: str) -> None:
    """A folder of this machine is none of the pods'; below the cache a machine may have mounted one."""
    small = an_app(tmp_path, "small")
    with pytest.raises(ConfigurationError, match=f"The store {store} is a folder, and pods have only /var/lib/torpor"):
        ray_service(small, kubernetes=KUBERNETES_PLAIN, source=Source(snapshots=store))
    assert ray_service(small, kubernetes=KUBERNETES_PLAIN, source=Source(snapshots="/var/lib/torpor/store"))


def test_groups_have_names_of_their_own(tmp_path: Path) -> None:
    """Also where two regions read alike."""
    files = [
        an_app(tmp_path, f"app-{number}", f"gpu='L4', region={region!r}")
        for number, region in enumerate(["eu.west", "eu-west"])
    ]
    made = ray_service(*files, kubernetes=KUBERNETES_PLAIN)
    groups = cast("list[Json]", at(made, "spec.rayClusterConfig.workerGroupSpecs"))
    assert [group["groupName"] for group in groups] == ["l4-eu-west", "l4-eu-west-2"]
