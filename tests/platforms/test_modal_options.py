"""`torpor.platforms.modal` without a control plane: options, sources, downloads."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import modal
import pytest
from tests.platforms.small import Patch, a_deployment, load

from torpor import BuildStep, ConfigurationError, Deployment, Model, Scaling, TorporError
from torpor.lifecycle import Lifecycle
from torpor.platforms.container import CONTAINER_REQUIREMENTS, python_sources
from torpor.platforms.modal import cls_options, concurrency, download_options, fill_volumes, image
from torpor.testing import StandIn

if TYPE_CHECKING:
    from torpor import Plugin

# --- options ----------------------------------------------------------------------------------------------------------


def test_the_class_gets_the_deployments_numbers() -> None:
    """Every field that Modal knows has one place in the deployment."""
    deployment = replace(
        a_deployment(Patch(volumes=(("/vol/w", "weights"),)), gpu="H100!:2"),
        scaling=Scaling(
            target_concurrency=3,
            max_concurrency=9,
            min_containers=1,
            max_containers=4,
            buffer_containers=2,
            scaledown_window_s=60,
        ),
        startup_timeout_s=90.5,
        region="us-east",
    )
    options = cls_options(deployment)
    assert {name: value for name, value in options.items() if name not in ("image", "volumes")} == {
        "gpu": "H100!:2",
        "timeout": 91,
        "startup_timeout": 91,
        "enable_memory_snapshot": True,
        "experimental_options": {"enable_gpu_snapshot": True},
        "min_containers": 1,
        "max_containers": 4,
        "buffer_containers": 2,
        "scaledown_window": 60,
        "region": "us-east",
    }
    assert list(options["volumes"]) == ["/vol/w"]
    assert concurrency(deployment) == {"target_inputs": 3, "max_inputs": 9}


@pytest.mark.parametrize(
    ("gpu", "snapshot", "gpu_snapshot", "wanted"),
    [
        ("H100!", True, None, (True, {"enable_gpu_snapshot": True})),
        ("H100!", True, False, (True, {})),
        ("H100!", False, None, (False, {})),
        (None, True, None, (True, {})),
    ],
)
def test_snapshot_flags_follow_the_deployment(
    gpu: str | None, *, snapshot: bool, gpu_snapshot: bool | None, wanted: tuple[bool, dict[str, bool]]
) -> None:
    """GPU memory goes into the snapshot only with a GPU, a snapshot, and nobody against it."""
    deployment = Deployment(
        name="small",
        model=Model(path="/m"),
        plugins=(Patch(), StandIn()),
        gpu=gpu,
        snapshot=snapshot,
        gpu_snapshot=gpu_snapshot,
    )
    options = cls_options(deployment)
    assert (options["enable_memory_snapshot"], options["experimental_options"]) == wanted


def test_options_are_arguments_that_the_real_client_takes() -> None:
    """An option that a later client drops fails here, not at the first deployment."""
    deployment = a_deployment(gpu="H100!")
    app = modal.App("options")
    decorate = app.cls(**cls_options(deployment))
    assert callable(decorate)
    assert callable(modal.concurrent(**concurrency(deployment)))


def test_a_scaledown_window_beyond_modals_is_an_error() -> None:
    """Modal allows an hour; the message says so and names the field."""
    deployment = replace(a_deployment(), scaling=Scaling(scaledown_window_s=3601))
    with pytest.raises(ConfigurationError, match=r"Scaling.scaledown_window_s is 3601 seconds; Modal allows 2 to 3600"):
        cls_options(deployment)


def test_what_the_container_gets_is_what_torpor_is_tested_with() -> None:
    """The container's requirements are lines of the project's own dependencies, so that there is one truth."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(CONTAINER_REQUIREMENTS) <= set(project["dependencies"])
    assert not any("hub" in line or "modal" in line for line in CONTAINER_REQUIREMENTS)


def test_all_users_of_a_deployment_share_one_image() -> None:
    """Two objects would be two builds of the same image, at the same time."""
    deployment = a_deployment()
    assert image(deployment) is cls_options(deployment)["image"]
    assert image(deployment) is not image(replace(deployment, name="other"))


# --- the image: what cannot be rendered -------------------------------------------------------------------------------


def test_a_deployment_without_a_base_image_is_an_error() -> None:
    """An engine on the CPU of this machine has none; Modal needs one."""
    with pytest.raises(ConfigurationError, match=r"'small' has no base image.*`image` option"):
        image(a_deployment(Patch(base=None)))


@pytest.mark.fault("a build step's command has a line break", area="recipe", outcome="refused")
@pytest.mark.parametrize("line_break", ["\n", "\r", "\u2028", "\x85", "\v"], ids=ascii)
def test_a_line_break_in_a_step_is_an_error(line_break: str) -> None:
    """A RUN line ends at a line break, whatever the quotes: the rest would be another Dockerfile command."""
    step = BuildStep(name="odd", argv=("sh", "-c", f"a{line_break}b"), order=10, timeout_s=5)
    with pytest.raises(ConfigurationError, match="'odd' has a line break in"):
        image(a_deployment(Patch(steps=(step,))))


def test_a_source_that_is_not_on_this_machine_is_an_error() -> None:
    """Modal would say so at deploy time only, and not who asked for it."""
    with pytest.raises(ConfigurationError, match=r"Plugin 'patch' needs the Python source 'not_there'.*pip install"):
        image(a_deployment(Patch(python_sources=("not_there",))))


def test_a_plugin_whose_folder_went_away_is_an_error(tmp_path: Path) -> None:
    """An editable install outlives its folder: the package is known, its files are gone."""
    package = load(tmp_path, "from torpor import Plugin\n\nclass Gone(Plugin):\n    plugin_name = 'gone'\n")
    plugin: Plugin = package.Gone()
    Path(str(package.__file__)).unlink()
    deployment = replace(a_deployment(), plugins=(Patch(), StandIn(), plugin))
    with pytest.raises(ConfigurationError, match=f"Plugin 'gone' needs the Python source '{package.__name__}'"):
        image(deployment)


def test_sources_are_torpor_the_plugins_packages_and_what_they_ask_for(tmp_path: Path) -> None:
    """Top-level packages, each once, in the order of the plugins; nothing else of this machine."""
    module = load(tmp_path, "from torpor import Plugin\n\nclass Third(Plugin):\n    plugin_name = 'third'\n")
    third: Plugin = module.Third()
    deployment = replace(a_deployment(Patch(python_sources=("httpx",))), plugins=(Patch(), StandIn(), third))
    recipe = Lifecycle(deployment).recipe()
    assert python_sources(deployment, recipe) == ("torpor", "tests", module.__name__)
    asked = replace(deployment, plugins=(Patch(python_sources=("httpx",)), StandIn()))
    assert python_sources(asked, Lifecycle(asked).recipe()) == ("torpor", "tests", "httpx")


# --- downloads --------------------------------------------------------------------------------------------------------


DOWNLOAD = BuildStep(
    name="download",
    argv=("true",),
    order=10,
    timeout_s=30.0,
    retries=1,
    volumes={"/vol/w": "weights"},
    secrets=("token",),
)


def test_the_download_function_gets_what_its_steps_need() -> None:
    """The serving volumes, the steps' secrets once each, and the time for all attempts; never a GPU."""
    compile_step = BuildStep(
        name="compile", argv=("cc",), order=20, timeout_s=9, gpu=True, volumes={"/vol/k": "kernels"}
    )
    second = replace(DOWNLOAD, name="second", timeout_s=5.0, retries=0)
    steps = (DOWNLOAD, compile_step, second)
    options = download_options(a_deployment(Patch(volumes=(("/vol/w", "weights"),), steps=steps), gpu="H100!"))
    assert list(options["volumes"]) == ["/vol/w"]
    assert len(options["secrets"]) == 1
    assert options["timeout"] == 65
    assert "gpu" not in options


def test_a_download_function_without_anything_to_download_is_an_error() -> None:
    """A step that fills only a cache of the build is no download."""
    deployment = a_deployment(Patch(steps=(DOWNLOAD,)))
    with pytest.raises(ConfigurationError, match="no build step that fills a volume of the serving class"):
        download_options(deployment)


def test_filling_the_volumes_runs_the_steps_and_a_failure_says_which(tmp_path: Path) -> None:
    """The same command as in the build, with the step's environment; a failed step is no success of the function."""
    volume = tmp_path / "w"
    volume.mkdir()
    failing = replace(
        DOWNLOAD,
        argv=("sh", "-c", f'echo "$WHO" > {volume}/who; exit 3'),
        env={"WHO": "me"},
        volumes={str(volume): "weights"},
        retries=0,
    )
    deployment = a_deployment(Patch(volumes=((str(volume), "weights"),), steps=(failing,)))
    with pytest.raises(TorporError, match="'download' failed with exit code 3"):
        fill_volumes(deployment)
    assert (volume / "who").read_text() == "me\n"
