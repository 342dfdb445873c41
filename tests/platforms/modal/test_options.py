"""`torpor.platforms.modal` without a control plane: options, sources, downloads."""

from __future__ import annotations

import copy
import inspect
import pickle
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import modal
import pytest

from tests import ROOT
from tests.platforms.small import Patch, a_deployment, load
from torpor import (
    Adapter,
    BuildStep,
    ConfigurationError,
    Deployment,
    ModalOptions,
    Model,
    Preflight,
    Scaling,
    TorporError,
)
from torpor.lifecycle import Lifecycle
from torpor.platforms.modal import ClsOptions, cls_options, concurrency, download_options, fill_volumes, image
from torpor.platforms.modal.container_image import CONTAINER_REQUIREMENTS, PYTHON_LINK
from torpor.platforms.modal.sources import is_left_out, python_sources
from torpor.testing import StandIn
from torpor_hf_cache import HFCache
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from torpor import Plugin

# --- options ----------------------------------------------------------------------------------------------------------


def test_the_class_gets_the_deployments_numbers() -> None:
    """Every field that Modal knows comes from one place in the deployment."""
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
    beyond = ("cloud", "routing_region", "nonpreemptible", "cpu", "memory", "ephemeral_disk", "secrets")
    assert not any(value for name, value in options.items() if name in beyond)
    assert {name: value for name, value in options.items() if name not in ("image", "volumes", *beyond)} == {
        "gpu": "H100!:2",
        "timeout": 91,
        "startup_timeout": 483,
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
    """A snapshot includes GPU memory only with a GPU and a snapshot, and unless `gpu_snapshot` is off."""
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
    """If a later client drops an option, this test fails before the first deployment does."""
    deployment = a_deployment(gpu="H100!")
    app = modal.App("options")
    decorate = app.cls(**cls_options(deployment))
    assert callable(decorate)
    assert callable(modal.concurrent(**concurrency(deployment)))


def test_a_scaledown_window_beyond_modals_is_an_error() -> None:
    """Modal allows an hour. The message says so and names the field."""
    deployment = replace(a_deployment(), scaling=Scaling(scaledown_window_s=3601))
    with pytest.raises(ConfigurationError, match=r"Scaling.scaledown_window_s is 3601 seconds; Modal allows 2 to 3600"):
        cls_options(deployment)


def test_the_containers_requirements_are_torpors_dependencies() -> None:
    """Each requirement is a line of the project's own dependencies, so the two cannot differ."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(CONTAINER_REQUIREMENTS) <= set(project["dependencies"])
    assert not any("hub" in line or "modal" in line for line in CONTAINER_REQUIREMENTS)


def test_all_users_of_a_deployment_share_one_image() -> None:
    """Modal would build two objects of the same image twice, at the same time."""
    deployment = a_deployment()
    assert image(deployment) is cls_options(deployment)["image"]
    assert image(deployment) is not image(replace(deployment, name="other"))


# --- options that Modal alone has -------------------------------------------------------------------------------------


def test_modals_options_reach_the_class_and_the_download() -> None:
    """Each under Modal's own name. Modal decides what nobody sets."""
    options = ModalOptions(
        cloud="gcp",
        routing_region="eu-west",
        nonpreemptible=True,
        cpu=8,
        memory_mib=65536,
        ephemeral_disk_mib=600_000,
        secrets=("otel",),
        retries=3,
    )
    patch = Patch(volumes=(("/vol/w", "weights"),), steps=(DOWNLOAD,))
    deployment = replace(a_deployment(patch), modal=options, secrets_in_snapshot="warn")
    given = cls_options(deployment)
    names = ("cloud", "routing_region", "nonpreemptible", "cpu", "memory", "ephemeral_disk")
    assert [dict(given)[name] for name in names] == ["gcp", "eu-west", True, 8, 65536, 600_000]
    assert (len(given["secrets"]), download_options(deployment)["retries"]) == (1, 3)
    assert len(download_options(deployment)["secrets"]) == 1  # the step's own, not the class's
    assert callable(modal.App("options").cls(**given))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"requires_proxy_auth": "yes"}, "requires_proxy_auth is 'yes'; allowed: True or False"),
        ({"nonpreemptible": 1}, "nonpreemptible is 1"),
        ({"label": "Qwen"}, "label is 'Qwen'; allowed: 1 to 60 lower-case"),
        ({"label": "-a"}, "label is '-a'"),
        ({"label": ""}, "label is ''"),
        ({"label": "a" * 61}, "label is 'aaa"),
        ({"label": "a.b"}, "label is 'a.b'"),
        ({"label": "a\n"}, r"label is 'a\\n'"),
        ({"custom_domains": "llm.example.com"}, r"a tuple, e.g. custom_domains=\('llm.example.com',\)"),
        ({"custom_domains": None}, "custom_domains is None; allowed: a tuple of names"),
        ({"custom_domains": ("https://llm.example.com",)}, "without https://, port and path"),
        ({"custom_domains": ("llm.example.com:443",)}, "without https://, port and path"),
        ({"custom_domains": ("llm.example.com/v1",)}, "without https://, port and path"),
        ({"custom_domains": ("localhost",)}, "host names in lower case"),
        ({"custom_domains": ("10.0.0.1",)}, "host names in lower case"),
        ({"custom_domains": ("LLM.example.com",)}, "host names in lower case"),
        ({"custom_domains": ("a.example.com", "a.example.com")}, "holds 'a.example.com' twice"),
        ({"custom_domains": ("me--app.modal.run",)}, "write label"),
        ({"custom_domains": (1,)}, "custom_domains is 1"),
        ({"cloud": "azure"}, "cloud is 'azure'; allowed: one of 'aws', 'gcp', 'oci', 'auto', or None"),
        ({"cloud": ""}, "cloud is ''"),
        ({"routing_region": "us east"}, "routing_region is 'us east'"),
        ({"routing_region": ("us-east",)}, "routing_region is"),
        ({"cpu": 0}, "cpu is 0; allowed: cores"),
        ({"cpu": float("nan")}, "cpu is nan"),
        ({"cpu": True}, "cpu is True"),
        ({"cpu": "8"}, "cpu is '8'"),
        ({"memory_mib": 0}, "memory_mib is 0; allowed: MiB"),
        ({"memory_mib": 1.5}, "memory_mib is 1.5"),
        ({"memory_mib": -1}, "memory_mib is -1"),
        (
            {"ephemeral_disk_mib": 3_145_729},
            "ephemeral_disk_mib is 3145729; allowed: MiB, a whole number of 1 to 3145728",
        ),
        ({"ephemeral_disk_mib": True}, "ephemeral_disk_mib is True"),
        ({"secrets": "token"}, r"secrets=\('token',\)"),
        ({"secrets": ("",)}, "secrets is ''"),
        ({"secrets": ("a b",)}, "secrets is 'a b'"),
        ({"writable_volumes": ("a/b",)}, "writable_volumes is 'a/b'"),
        ({"retries": 11}, "retries is 11; allowed: a whole number of 0 to 10"),
        ({"retries": -1}, "retries is -1"),
        ({"retries": True}, "retries is True"),
    ],
)
def test_modal_options_refuses_a_wrong_value_at_once(given: dict[str, object], words: str) -> None:
    """Modal would refuse it after the build, or ignore it. The message names field, value and what is allowed."""
    with pytest.raises(ConfigurationError, match=rf"ModalOptions\..*{words}"):
        ModalOptions(**given)  # type: ignore[arg-type] # one of them is wrong


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "write Deployment.gpu"),
        ("timeout", "write Deployment.startup_timeout_s"),
        ("startup_timeout", "write Deployment.startup_timeout_s"),
        ("enable_memory_snapshot", "write Deployment.snapshot"),
        ("experimental_options", "write Deployment.gpu_snapshot"),
        ("scaledown_window", "write Scaling.scaledown_window_s"),
        ("max_inputs", "write Scaling.max_concurrency"),
        ("region", "write Deployment.region"),
        ("volumes", "ImagePatch.volumes"),
        ("memory", "write memory_mib"),
        ("require_proxy_auth", "there are requires_proxy_auth, label, "),
        ("Label", "there are requires_proxy_auth, label, "),
    ],
)
def test_an_unknown_or_misplaced_option_says_where_it_belongs(name: str, words: str) -> None:
    """Nobody can set what Torpor sets itself. For a misspelt name the message lists all options."""
    with pytest.raises(ConfigurationError, match=rf"ModalOptions has no '{name}'.*{words}"):
        ModalOptions(**{name: 1})  # type: ignore[arg-type] # there is none of that name


def test_a_value_without_a_name_is_refused_with_how_to_write_it() -> None:
    """Python's own error would name no option."""
    with pytest.raises(
        ConfigurationError, match=r"takes its options by name, and True has none; write e\.g\. ModalOptions\("
    ):
        ModalOptions(True)  # type: ignore[call-arg]


def test_every_argument_of_modals_class_has_one_place() -> None:
    """A new argument of a later client fails here. It becomes an option, or gets a reason why it is none."""
    taken = set(inspect.signature(modal.App.cls).parameters) - {"self"}
    added_by_hand = {
        *("network_file_systems", "proxy", "i6pn", "restrict_modal_access", "_experimental_restrict_output"),
    }
    own = set(ClsOptions.__annotations__)
    assert own <= taken
    assert taken - own - added_by_hand <= {"retries", *refused_names()}
    web = set(inspect.signature(modal.web_server).parameters)
    assert web == {"port", "startup_timeout", "label", "custom_domains", "requires_proxy_auth"}


def refused_names() -> set[str]:
    """The names that `ModalOptions` refuses, each with its own reason."""
    refused = set()
    for name in inspect.signature(modal.App.cls).parameters:
        try:
            ModalOptions(**{name: None})  # type: ignore[arg-type] # whatever there is
        except ConfigurationError as error:
            if "there are " not in str(error):
                refused.add(name)
    return refused


def test_options_of_modal_are_a_value() -> None:
    """Equal, hashable, picklable, replaceable; a list becomes a tuple."""
    given = ModalOptions(custom_domains=["a.example.com"], label="a", retries=2)  # type: ignore[arg-type] # as users write
    assert given == pickle.loads(pickle.dumps(given)) == copy.deepcopy(given)
    assert hash(given) == hash(replace(given))
    assert given.changed() == {"custom_domains": ("a.example.com",), "label": "a", "retries": 2}
    with pytest.raises(ConfigurationError, match="cloud is 'x'"):
        replace(given, cloud="x")


def test_deployment_modal_must_be_modal_options() -> None:
    """A dictionary would skip the checks."""
    with pytest.raises(ConfigurationError, match=r"Deployment.modal is \{'label': 'a'\}; it has to be ModalOptions"):
        replace(a_deployment(), modal={"label": "a"})  # type: ignore[arg-type] # that is what it is about


@pytest.mark.fault("a secret is given to a serving container that is snapshotted", area="secrets", outcome="refused")
def test_a_secret_for_the_serving_container_is_refused_before_anything_is_built() -> None:
    """The start in the container would refuse it too, but only after the build."""
    options = ModalOptions(secrets=("hf-token",))
    with pytest.raises(ConfigurationError, match=r"'hf-token' to the serving container.*in every snapshot"):
        replace(a_deployment(), modal=options)
    assert replace(a_deployment(snapshot=False), modal=options).modal is options


def test_a_volume_that_is_not_mounted_cannot_be_writable() -> None:
    """With a misspelt name the right volume would stay read-only, and a write would fail while serving."""
    deployment = replace(
        a_deployment(Patch(volumes=(("/vol/w", "weights"),))), modal=ModalOptions(writable_volumes=("weight",))
    )
    with pytest.raises(
        ConfigurationError, match=r"names 'weight', which the serving container does not mount.*'weights'"
    ):
        cls_options(deployment)


# --- the image: what cannot be rendered -------------------------------------------------------------------------------


def test_a_deployment_without_a_base_image_is_an_error() -> None:
    """Modal needs a base image; an engine on this machine's CPU has none."""
    with pytest.raises(ConfigurationError, match=r"'small' has no base image.*`image` option"):
        image(a_deployment(Patch(base=None)))


@pytest.mark.fault("a build step's command has a line break", area="recipe", outcome="refused")
@pytest.mark.parametrize("line_break", ["\n", "\r", "\u2028", "\x85", "\v"], ids=ascii)
def test_a_line_break_in_a_step_is_an_error(line_break: str) -> None:
    """A RUN line ends at a line break, even inside quotes. The rest would be another Dockerfile command."""
    step = BuildStep(name="odd", argv=("sh", "-c", f"a{line_break}b"), order=10, timeout_s=5)
    with pytest.raises(ConfigurationError, match="'odd' has a line break in"):
        image(a_deployment(Patch(steps=(step,))))


def test_a_source_that_is_not_on_this_machine_is_an_error() -> None:
    """Modal would report it only at deploy time, without naming the plugin."""
    with pytest.raises(ConfigurationError, match=r"Plugin 'patch' needs the Python source 'not_there'.*pip install"):
        image(a_deployment(Patch(python_sources=("not_there",))))


def test_a_plugin_whose_folder_went_away_is_an_error(tmp_path: Path) -> None:
    """After an editable install the package stays known when its files are gone."""
    package = load(tmp_path, "from torpor import Plugin\n\nclass Gone(Plugin):\n    plugin_name = 'gone'\n")
    plugin: Plugin = package.Gone()
    Path(str(package.__file__)).unlink()
    deployment = replace(a_deployment(), plugins=(Patch(), StandIn(), plugin))
    with pytest.raises(ConfigurationError, match=f"Plugin 'gone' needs the Python source '{package.__name__}'"):
        image(deployment)


def test_sources_are_torpor_the_plugins_packages_and_what_they_ask_for(tmp_path: Path) -> None:
    """They are top-level packages, each once, in the order of the plugins."""
    module = load(tmp_path, "from torpor import Plugin\n\nclass Third(Plugin):\n    plugin_name = 'third'\n")
    third: Plugin = module.Third()
    deployment = replace(a_deployment(Patch(python_sources=("httpx",))), plugins=(Patch(), StandIn(), third))
    recipe = Lifecycle(deployment).recipe()
    assert python_sources(deployment, recipe) == ("torpor", "tests", module.__name__)
    asked = replace(deployment, plugins=(Patch(python_sources=("httpx",)), StandIn()))
    assert python_sources(asked, Lifecycle(asked).recipe()) == ("torpor", "tests", "httpx")


@pytest.mark.parametrize(
    ("package", "file", "left_out"),
    [
        ("torpor", "boot.py", False),
        ("torpor", "__init__.py", False),
        ("torpor", "platforms/modal/server.py", False),
        ("torpor", "py.typed", True),
        ("torpor", "scaffold/templates/plugin.py", True),
        ("torpor", "scaffold/__init__.py", True),
        ("torpor", "__pycache__/boot.py", True),
        ("torpor", "testing/__init__.py", False),  # this process has imported it
        ("other", "cli/main.py", False),  # only Torpor's own commands are known to be useless in a container
        ("other", "tests/fixtures.py", True),
        ("other", "inner/conftest.py", True),
        ("other", "test_it.py", True),
        ("other", "testing.py", False),
        ("other", "latest.py", False),
        ("tests", "platforms/small.py", False),
    ],
)
def test_commands_tests_and_data_stay_on_this_machine(
    package: str, file: str, *, left_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But modules that the deploying process has imported are uploaded."""
    monkeypatch.delitem(sys.modules, "torpor.scaffold", raising=False)  # of another test
    assert is_left_out(package, PurePosixPath(file)) == left_out


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
    """It gets the serving volumes, each secret of the steps once, and the time for all attempts; never a GPU."""
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


def test_adapters_are_downloaded_to_the_volume_of_the_weights() -> None:
    """A step for each; the serving container mounts that volume alone."""
    adapters = {"sql": Adapter(repo_id="owner/sql", revision="0" * 40), "law": Adapter(path="/models/law")}
    made = Deployment(
        name="support",
        model=Model(repo_id="owner/base", revision="1" * 40, adapters=adapters),
        plugins=(HFCache(timeout_s=100.0, retries=0), VLLM(eager=True)),
        gpu="H100!",
    )
    options = download_options(made)
    assert (list(options["volumes"]), options["timeout"]) == (["/vol/huggingface-cache"], 200)
    assert list(cls_options(made)["volumes"]) == ["/vol/huggingface-cache"]


def test_a_download_function_without_anything_to_download_is_an_error() -> None:
    """A step that fills only a cache of the build does not count."""
    deployment = a_deployment(Patch(steps=(DOWNLOAD,)))
    with pytest.raises(ConfigurationError, match="no build step that fills a volume of the serving class"):
        download_options(deployment)


def test_filling_the_volumes_runs_the_steps_and_a_failure_says_which(tmp_path: Path) -> None:
    """The command and environment are those of the build. If a step fails, the function fails."""
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


# --- how long a start may take ----------------------------------------------------------------------------------------


def test_modal_gives_a_start_the_sum_of_its_stages_limits() -> None:
    """Cold start, sleep, wake, and the cold start after a failed wake. Otherwise Modal ends it before Torpor says why."""
    check = Preflight(name="weights", argv=("true",), timeout_s=50, cure="none")
    deployment = replace(
        a_deployment(Patch(preflight=(check,))),
        startup_timeout_s=600,
        warmup_timeout_s=500,
        drain_timeout_s=30,
        sleep_timeout_s=120,
        wake_timeout_s=90,
        stop_timeout_s=7,
    )
    cold = 50 + 600 + 2 * 500
    around = 60 + 10  # between the stages, and to open the guard
    snapshot = (30 + 20) + 120 + 2 * 90
    assert cls_options(deployment)["startup_timeout"] == cold + snapshot + 7 + cold + around
    assert (
        cls_options(replace(deployment, cold_start_on_failed_wake=False))["startup_timeout"] == cold + snapshot + around
    )
    assert cls_options(replace(deployment, snapshot=False))["startup_timeout"] == cold + around
    assert cls_options(deployment)["timeout"] == 600


LONG = {
    "ready": replace(a_deployment(), startup_timeout_s=90_000),
    "warmup": replace(a_deployment(), warmup_timeout_s=50_000),
    "post_restore": replace(a_deployment(), wake_timeout_s=50_000),
}


@pytest.mark.parametrize("stage", LONG)
def test_a_start_longer_than_modals_day_is_an_error(stage: str) -> None:
    """Modal allows 24 hours. The message names each stage's share."""
    with pytest.raises(ConfigurationError, match=r"Modal allows 86400 \(24 hours\)\. Lower"):
        cls_options(LONG[stage])


# --- a base image without `python` ------------------------------------------------------------------------------------


@pytest.mark.parametrize("has", ["python3", "python3 of a virtual environment", "python", "nothing"])
@pytest.mark.fault("a base image has python3 and no python", area="image", outcome="held")
def test_an_image_with_python3_alone_gets_a_python(tmp_path: Path, has: str) -> None:
    """The link leads to the same interpreter with its packages. An existing `python` stays; an image with neither fails."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("dirname", "ln", "sh"):
        (folder / name).symlink_to(str(shutil.which(name)))
    path = [folder]
    if has == "python3 of a virtual environment":
        path.insert(0, tmp_path / "venv" / "bin")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
        (path[0] / "python").unlink()
    elif has != "nothing":
        (folder / has).symlink_to(sys.executable)
    env = {"PATH": ":".join(map(str, path))}
    made = subprocess.run([str(folder / "sh"), "-c", PYTHON_LINK], env=env, capture_output=True, text=True, check=False)
    if has == "nothing":
        assert (made.returncode, made.stderr.count("neither python nor python3")) == (1, 1)
        return
    assert (made.returncode, made.stderr) == (0, "")
    if has == "python":
        assert (folder / "python").readlink() == Path(sys.executable)
        return
    code = "import sys; print(sys.prefix)"
    shown = [subprocess.run([str(path[0] / name), "-c", code], env=env, capture_output=True, check=True).stdout
             for name in ("python", "python3")]  # fmt: skip
    assert shown[0] == shown[1]
