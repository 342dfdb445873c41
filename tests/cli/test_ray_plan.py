"""`torpor ray plan` and `torpor ray manifest`, as a user sees them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.command_line import torpor
from tests.platforms.ray.app_files import an_app
from tests.platforms.ray.custom_resource import refusals
from tests.platforms.ray.with_ray import needs_ray
from torpor import ConfigurationError
from torpor.cli import ray_plan
from torpor.cli.ray_manifest import Pods, StoreOnNodes, run_ray_manifest
from torpor.cli.ray_plan import run_ray_plan
from torpor.platforms import ray as platform
from torpor.platforms.ray.config import serve_config

if TYPE_CHECKING:
    from pathlib import Path

LARGE = "gpu='H100!:2', region='eu-west-1', ray=RayOptions(cpus=7.5, memory_mib=65_536)"
STORE = StoreOnNodes(snapshots="s3://b/s", app_folder="/apps")
PODS = Pods(image="", node_selector=[], toleration=[], secret="")


@pytest.fixture
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop without Ray."""
    monkeypatch.setattr(ray_plan, "find_spec", lambda _name: None)


without_ray = pytest.mark.usefixtures("_no_ray")


@pytest.fixture
def apps(tmp_path: Path) -> list[str]:
    """Two app files: on two GPUs of a region, and on the CPU."""
    return [an_app(tmp_path, "large", LARGE), an_app(tmp_path, "small")]


@without_ray
def test_a_plan_shows_what_would_run(apps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each application with route and options, the nodes, the variables, and what was not checked."""
    run_ray_plan(apps, snapshots="s3://b/s", app_folder="/apps", as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "torpor-large",
        "  app       /apps/large.py",
        "  model     large",
        "  route     /large",
        "  replicas  0 to 3; one more at 10 requests each, one fewer after 300 s without need",
        "  requests  100 at once for a replica; 1000 may wait, others get 503",
        "  each      7.5 CPU, 2 x H100, 65536 MiB, ray.io/availability-region=eu-west-1",
        "  starts    restored from the newest snapshot that fits its node, else cold",
        "  ends      within 45 s",
        "torpor-small",
        "  app       /apps/small.py",
        "  model     small",
        "  route     /small",
        "  replicas  0 to 3; one more at 10 requests each, one fewer after 300 s without need",
        "  requests  100 at once for a replica; 1000 may wait, others get 503",
        "  each      4 CPU, 8192 MiB",
        "  starts    restored from the newest snapshot that fits its node, else cold",
        "  ends      within 45 s",
        "torpor.models",
        "  route     /: forwards each request by its `model`",
        "nodes h100-x2-eu-west-1",
        "  each      8 CPU, 2 x H100, 65536 MiB, in eu-west-1",
        "  number    0 to 3, one for each replica of large",
        "nodes cpu",
        "  each      4 CPU, 8192 MiB",
        "  number    0 to 3, one for each replica of small",
        "every Ray process, from its start",
        "  RAY_SERVE_ENABLE_HA_PROXY=1",
        "  RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=5",
        "  RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0",
        "  RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP=0",
        "  RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=2",
        "  RAY_preload_python_modules=torpor.platforms.ray.preloaded",
        "Ray Serve is not installed here, so its own schemas did not read the options.",
    ]


@without_ray
def test_a_plan_shows_what_is_refused_beside_the_rest(
    tmp_path: Path, apps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the reason and the cure; the command ends with 2."""
    bad = an_app(tmp_path, "bad", "gpu='B200+', region='eu west'")
    with pytest.raises(SystemExit) as ended:
        run_ray_plan([*apps, bad], snapshots="", app_folder="", as_json=False)
    assert ended.value.code == 2
    shown = capsys.readouterr().out
    assert "  Deployment.region: 'eu west' cannot be" in shown
    assert "      -> name one, e.g. 'B200', or set RayOptions.accelerator_type\n" in shown
    assert "  starts    cold\n" in shown
    assert shown.endswith("refused: bad\n")


@without_ray
def test_a_plan_as_json_has_the_same_values(
    tmp_path: Path, apps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """For programs; a refused deployment has no options."""
    bad = an_app(tmp_path, "bad", "gpu='B200+'")
    with pytest.raises(SystemExit):
        run_ray_plan([*apps, bad], snapshots="", app_folder="", as_json=True)
    plan = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["options"] is None) for one in plan["applications"]] == [
        ("torpor-large", False),
        ("torpor-small", False),
        ("torpor-bad", True),
    ]
    assert plan["refused"] == ["bad"]
    assert plan["checked_with_ray"] is None
    assert plan["nodes"][0] == {
        "name": "h100-x2-eu-west-1",
        "kind": "H100",
        "gpus": 2,
        "region": "eu-west-1",
        "cpus": 8,
        "memory_mib": 65536,
        "least": 0,
        "most": 3,
        "deployments": ["large"],
    }


@without_ray
def test_one_file_named_twice_is_one(apps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As `torpor serve` has it."""
    run_ray_plan([apps[1], apps[1]], snapshots="", app_folder="", as_json=True)
    plan = json.loads(capsys.readouterr().out)
    assert [one["route_prefix"] for one in plan["applications"]] == ["/small"]
    assert plan["by_model"] == "torpor.models"


@without_ray
def test_a_manifest_for_serve_is_its_configuration(apps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """On standard output alone; what is not checked is told beside it."""
    run_ray_manifest(apps, store=STORE, kubernetes=False, pods=PODS)
    shown = capsys.readouterr()
    assert yaml.safe_load(shown.out) == serve_config(*apps, snapshots="s3://b/s", app_folder="/apps")
    assert shown.err == "note: Ray Serve is not installed here, so its own schemas did not read the options\n"


@without_ray
def test_a_manifest_for_kubernetes_is_a_rayservice(apps: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """KubeRay's schema accepts it; warnings go to standard error."""
    pods = Pods(
        image="registry.example/torpor:1",
        name="models",
        namespace="llm",
        cache="/srv/torpor",
        node_selector=["h100-x2-eu-west-1:kind=h100"],
        toleration=["spot"],
        service_account="reader",
        secret="keys",
        ray_version="2.60.0",
    )
    run_ray_manifest(apps, store=STORE, kubernetes=True, pods=pods)
    shown = capsys.readouterr()
    made = yaml.safe_load(shown.out)
    assert refusals(made) == []
    assert made["metadata"] == {"name": "models", "namespace": "llm"}
    assert yaml.safe_load(made["spec"]["serveConfigV2"])["applications"][0]["args"]["app_file"] == "/apps/large.py"
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == ["warning", "note"]


@without_ray
@pytest.mark.parametrize(
    ("pods", "kubernetes", "message"),
    [
        (PODS, True, "--kubernetes needs --image"),
        ({**PODS, "image": "x:1", "toleration": ["a"]}, False, r"--image, --toleration: for Kubernetes alone"),
        ({**PODS, "image": "x"}, True, "give a tag"),
        ({**PODS, "image": "x:1", "node_selector": ["cpu"]}, True, r"The node selector is 'cpu'; write"),
    ],
    ids=["no image", "not for Kubernetes", "no tag", "node selector"],
)
def test_a_wrong_option_prints_no_manifest(
    apps: list[str], pods: Pods, kubernetes: bool, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that the output goes to stays empty."""
    with pytest.raises(ConfigurationError, match=message):
        run_ray_manifest(apps, store=STORE, kubernetes=kubernetes, pods=pods)
    assert capsys.readouterr().out == ""


@needs_ray
def test_where_ray_is_installed_its_schemas_read_the_options(
    apps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan says which Ray it was, and a manifest for another one says that, too."""
    import ray

    run_ray_plan(apps, snapshots="", app_folder="", as_json=True)
    assert json.loads(capsys.readouterr().out)["checked_with_ray"] == ray.__version__
    pods = Pods(**{**PODS, "image": "x:1", "ray_version": "9.9.9"})
    run_ray_manifest(apps[1:], store=STORE, kubernetes=True, pods=pods)
    assert "note: the image has Ray 9.9.9" in capsys.readouterr().err


def test_ray_without_serve_is_told(
    apps: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install ray` alone brings no Serve; the plan is shown all the same."""

    def fail(config: object) -> str:
        raise ModuleNotFoundError("No module named 'starlette'")

    monkeypatch.setattr(ray_plan, "find_spec", lambda _name: object())
    monkeypatch.setitem(vars(platform), "check_with_ray", fail)
    run_ray_plan(apps, snapshots="", app_folder="", as_json=True)
    shown = capsys.readouterr()
    assert json.loads(shown.out)["checked_with_ray"] is None
    assert shown.err == "note: Ray is installed here, and Ray Serve cannot be imported: No module named 'starlette'\n"


@pytest.mark.slow
def test_the_commands_print_to_files(apps: list[str]) -> None:
    """As a user runs them: YAML on standard output, an error as one paragraph with exit code 2."""
    made = torpor("ray", "manifest", *apps, "--kubernetes", "--image", "x:1", "--node-selector", "cpu:zone=a")
    assert made.returncode == 0, made.stderr
    assert yaml.safe_load(made.stdout)["kind"] == "RayService"
    refused = torpor("ray", "manifest", *apps, "--kubernetes")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("torpor: ConfigurationError: --kubernetes needs --image")
