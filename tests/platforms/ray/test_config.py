"""`torpor.platforms.ray.config`: the configuration file of Ray Serve."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.platforms.ray.app_files import an_app
from tests.platforms.ray.with_ray import needs_ray
from torpor import ConfigurationError
from torpor.platforms import ray as platform
from torpor.platforms.ray.config import MODEL_BUILDER, Source, as_yaml, serve_config
from torpor.platforms.ray.options import deployment_options
from torpor.platforms.ray.planned import ray_plan
from torpor.platforms.ray.served import served

if TYPE_CHECKING:
    from pathlib import Path


STAYS = "min_containers=1, max_containers=3"


def test_one_app_file_that_never_goes_to_zero_is_served_at_the_root(tmp_path: Path) -> None:
    """Nothing has to choose among models, and no request starts anything."""
    file = an_app(tmp_path, "small", scaling=STAYS)
    [one] = served([file])
    assert serve_config(file, snapshots="s3://b/s", trust="/keys/t.pub", port=8123) == {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8123},
        "applications": [
            {
                "name": "torpor-small",
                "route_prefix": "/",
                "import_path": "torpor.platforms.ray.application:application_from",
                "args": {"app_file": file, "snapshots": "s3://b/s", "trust": "/keys/t.pub"},
                "deployments": [deployment_options(one.app.deployment)],
            }
        ],
    }


def test_one_app_file_that_goes_to_zero_has_the_application_at_the_root_before_it(tmp_path: Path) -> None:
    """Serve itself would start a replica for any path and without a key."""
    file = an_app(tmp_path, "small")
    made = serve_config(file)["applications"]
    assert [(one["name"], one["route_prefix"]) for one in made] == [("torpor-small", "/small"), ("torpor.models", "/")]
    assert made[1]["args"] == {"app_files": [file], "port": 8000}


def test_several_app_files_get_a_prefix_each_and_one_application_that_forwards(tmp_path: Path) -> None:
    """Clients use one address; `model` decides."""
    files = [an_app(tmp_path, "small"), an_app(tmp_path, "large-2")]
    made = serve_config(*files, app_folder="/apps")["applications"]
    assert [(one["name"], one["route_prefix"]) for one in made] == [
        ("torpor-small", "/small"),
        ("torpor-large-2", "/large-2"),
        ("torpor.models", "/"),
    ]
    assert made[2]["import_path"] == "torpor.platforms.ray.application:ingress_from"
    assert made[2]["args"] == {"app_files": ["/apps/small.py", "/apps/large_2.py"], "port": 8000}


def test_the_yaml_reads_back_and_has_no_references(tmp_path: Path) -> None:
    """`serve deploy` gets the same values; a reader finds each where it belongs."""
    made = serve_config(an_app(tmp_path, "small"), an_app(tmp_path, "large"))
    text = as_yaml(made)
    assert yaml.safe_load(text) == made
    assert not re.search(r"[&*]id\d", text)
    assert as_yaml({"a": "one\ntwo\n"}) == "a: |\n  one\n  two\n"


@needs_ray
def test_rays_own_schema_accepts_it(tmp_path: Path) -> None:
    """`ServeDeploySchema`, with every application and deployment in it."""
    import ray

    files = [an_app(tmp_path, "small"), an_app(tmp_path, "large", "gpu='H100!:2', region='eu-west-1'")]
    assert platform.check_with_ray(serve_config(*files, snapshots="s3://b/s")) == ray.__version__


@needs_ray
@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("max_replicas", -1, "max_replicas"),
        ("max_replicas", 0, "max_replicas"),
        ("target_ongoing_requests", 0, "target_ongoing_requests"),
        ("downscale_delay_s", -1, "downscale_delay_s"),
        ("min_replicas", 9, r"min_replicas \(9\)"),
        ("most_replicas", 9, "has no most_replicas in autoscaling_config"),
    ],
)
def test_rays_own_schema_refuses_wrong_scaling(tmp_path: Path, where: str, value: int, message: str) -> None:
    """`check_with_ray` passes on what `AutoscalingConfig` says, and finds what it would ignore."""
    made = serve_config(an_app(tmp_path, "small"))
    made["applications"][0]["deployments"][0]["autoscaling_config"][where] = value  # type: ignore[literal-required]
    with pytest.raises(ConfigurationError, match=message):
        platform.check_with_ray(made)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trust": "/t.pub"}, "name it with snapshots=URL"),
        ({"unsigned": True}, "name it with snapshots=URL"),
        ({"snapshots": "s3://b/s", "trust": "/t.pub", "unsigned": True}, "trust and unsigned exclude each other"),
        ({"snapshots": "snapshots/here"}, "give the URL of a store that every node reaches"),
        ({"snapshots": "s3://b/s", "trust": "t.pub"}, "trust is 't.pub'; give an absolute path"),
        ({"snapshots": "s3://b/s", "identity": "~/me"}, "identity is '~/me'; give an absolute path"),
        ({"snapshots": "s3://key:secret@bucket/s"}, "everybody who sees the cluster's configuration would read it"),
        ({"snapshots": "s3://key:sec/ret@bucket/s"}, "everybody who sees the cluster's configuration would read it"),
        ({"snapshots": "https://token@host/s"}, "everybody who sees the cluster's configuration would read it"),
        ({"snapshots": "s3://"}, "s3:// names no store"),
        ({"snapshots": "s3://a/b::file://c"}, "is no URL of a store"),
        ({"app_folder": "apps"}, "app_folder is 'apps'; give an absolute path"),
        ({"port": 0}, "The port is 0; allowed are 1 to 65535"),
        ({"port": 70_000}, "The port is 70000; allowed are 1 to 65535"),
    ],
)
def test_a_wrong_option_is_refused(tmp_path: Path, given: dict[str, object], message: str) -> None:
    """The error says what was given and what to write."""
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        serve_config(an_app(tmp_path, "small"), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["s3://bucket/a", "abfs://box@account.dfs.core.windows.net/a", "/mnt/a", "s3://[odd/a"])
def test_a_url_without_a_secret_is_taken(url: str) -> None:
    """Azure's container is no user."""
    assert Source(snapshots=url).arguments() == {"snapshots": url}


def test_app_files_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    """None at all, one name twice, one path on the nodes twice, a deployment that Ray cannot serve."""
    (tmp_path / "other").mkdir()
    small, twin = an_app(tmp_path, "small"), an_app(tmp_path / "other", "small")
    with pytest.raises(ConfigurationError, match="No app file was given"):
        serve_config()
    with pytest.raises(ConfigurationError, match="both have a deployment named 'small'"):
        serve_config(small, twin)
    large = an_app(tmp_path / "other", "large").replace("large.py", "small.py")
    (tmp_path / "other" / "large.py").rename(large)
    with pytest.raises(ConfigurationError, match=re.escape("would both be /apps/small.py on the nodes")):
        serve_config(small, large, app_folder="/apps")
    with pytest.raises(ConfigurationError, match=r"Ray cannot serve 'bad': Deployment.gpu: 'B200\+'"):
        serve_config(small, an_app(tmp_path, "bad", "gpu='B200+'"))


def test_an_adapter_is_a_model_of_its_own(tmp_path: Path) -> None:
    """Its name stands in the plan, and belongs to one application."""
    small, other, third = (an_app(tmp_path, name) for name in ("small", "other", "third"))
    with open(small, "a") as file:  # noqa: PTH123 - a path as text
        file.write(
            "\nfrom dataclasses import replace\nfrom torpor import Adapter\n"
            "adapters = {'other': Adapter(path='/adapter')}\n"
            "deployment = replace(deployment, model=replace(deployment.model, adapters=adapters))\n"
        )
    planned = ray_plan((small, third), Source()).as_json()["applications"]
    assert [one["adapters"] for one in planned] == [["other"], []]  # type: ignore[attr-defined] # JSON
    with pytest.raises(ConfigurationError, match="both have a model named 'other'"):
        serve_config(small, other)


def test_a_source_without_options_has_no_arguments() -> None:
    """The builder's defaults stay its own."""
    assert Source().arguments() == {}


@needs_ray
@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field")
def test_the_builders_of_a_configuration_take_its_arguments(tmp_path: Path) -> None:
    """Serve imports `import_path` on the head, and calls it with `args`. What it gets has the deployment of the configuration."""
    from ray.serve import Application

    files = [an_app(tmp_path, "small"), an_app(tmp_path, "large")]
    for one in serve_config(*files, snapshots="s3://b/s", trust="/t.pub")["applications"]:
        module, _, name = one["import_path"].partition(":")
        built = getattr(importlib.import_module(module), name)(one["args"])
        assert isinstance(built, Application)
        deployed = built._bound_deployment
        for options in one.get("deployments", []):
            assert deployed.name == options["name"]
            assert deployed.max_ongoing_requests == options["max_ongoing_requests"]


@needs_ray
@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field")
@pytest.mark.parametrize(
    "given",
    [
        {"unsigned": "false"},
        {"unsigned": 1},
        {"app_file": ""},
        {"app_file": None},
        {"snapshots": 1},
        {"snapshot": "s3://b/s"},
    ],
    ids=str,
)
def test_a_builder_refuses_wrong_arguments(tmp_path: Path, given: dict[str, object]) -> None:
    """In a file that somebody wrote by hand, the text "false" must not let unsigned snapshots in."""
    module, _, name = MODEL_BUILDER.partition(":")
    with pytest.raises(ConfigurationError, match="The arguments of the application are"):
        getattr(importlib.import_module(module), name)({"app_file": an_app(tmp_path, "small"), **given})


@needs_ray
@pytest.mark.parametrize("more", [{}, {"unsigned": "false"}])
def test_a_builder_refuses_a_password_and_does_not_repeat_it(tmp_path: Path, more: dict[str, object]) -> None:
    """Serve shows the error to everybody who sees the cluster."""
    module, _, name = MODEL_BUILDER.partition(":")
    given = {"app_file": an_app(tmp_path, "small"), "snapshots": "s3://key:secret@bucket/s", **more}
    with pytest.raises(ConfigurationError) as error:
        getattr(importlib.import_module(module), name)(given)
    assert "secret" not in str(error.value)
