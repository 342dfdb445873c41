"""`Deployment`, `Model` and `Scaling` refuse bad values, and the message says what to change."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError, dataclass, field
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from torpor import (
    ConfigurationError,
    Deployment,
    Engine,
    EnginePlugin,
    ImagePatch,
    Model,
    Plugin,
    Scaling,
    hookimpl,
    start_engine,
)
from torpor.testing import StandIn
from torpor.values.gpu_names import is_this_gpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor import Recipe

REVISION = "220b46e3b2180893580a4454f21f22d3ebb187d3"
HUB = Model(repo_id="Qwen/Qwen3-8B-FP8", revision=REVISION)


@dataclass(frozen=True, kw_only=True)
class Extra(Plugin):
    """A plugin that accompanies an engine."""

    plugin_name = "extra"
    words: tuple[str, ...] = ()

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch()


@dataclass(frozen=True, kw_only=True)
class OtherEngine(EnginePlugin):
    """A second plugin that launches an engine."""

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
        return start_engine(("true",))


class Undeclared:
    """An engine plugin that is no `EnginePlugin` and answers no questions about its engine."""

    plugin_name = "undeclared"

    @hookimpl
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
        return start_engine(("true",))


def a_deployment(**fields: object) -> Deployment:
    """A valid deployment with the given fields changed."""
    return Deployment(**{"name": "tiny", "model": HUB, "plugins": (StandIn(),), **fields})  # type: ignore[arg-type]


BAD_DEPLOYMENTS: dict[str, tuple[Callable[[], object], str]] = {
    "name with capitals": (
        lambda: a_deployment(name="Tiny"),
        r"Deployment.name is 'Tiny'; allowed are 1 to 64 lower-case",
    ),
    "empty name": (lambda: a_deployment(name=""), r"Deployment.name is ''; allowed"),
    "name that ends with a dash": (lambda: a_deployment(name="tiny-"), r"Deployment.name is 'tiny-'"),
    "GPU with a count of its own making": (
        lambda: a_deployment(gpu="H100 x2"),
        r"gpu is 'H100 x2'; write it like 'H100'",
    ),
    "too many GPUs": (lambda: a_deployment(gpu="H100!:9"), r"gpu is 'H100!:9'"),
    "privileged port": (lambda: a_deployment(port=80), r"Deployment.port is 80; allowed are 1024 to 65535"),
    "port too high": (lambda: a_deployment(port=65536), r"Deployment.port is 65536"),
    "no time to start": (lambda: a_deployment(startup_timeout_s=0), r"startup_timeout_s is 0 seconds; .* above 0"),
    "negative time to drain": (lambda: a_deployment(drain_timeout_s=-1.5), r"drain_timeout_s is -1.5 seconds"),
    "time that is none": (lambda: a_deployment(wake_timeout_s=float("nan")), r"wake_timeout_s is nan seconds"),
    "unknown mismatch policy": (lambda: a_deployment(canary_mismatch="ignore"), r"'ignore'; allowed: 'fail', 'warn'"),
    "unknown policy for secrets": (
        lambda: a_deployment(secrets_in_snapshot="ask"),
        r"secrets_in_snapshot is 'ask'; allowed: 'refuse', 'warn'",
    ),
    "GPU snapshot without a GPU": (
        lambda: a_deployment(gpu_snapshot=True),
        r"gpu_snapshot needs a gpu and snapshot=True",
    ),
    "GPU snapshot without a snapshot": (
        lambda: a_deployment(gpu="H100", snapshot=False, gpu_snapshot=True),
        r"gpu_snapshot needs a gpu and snapshot=True",
    ),
    "class in place of an instance": (
        lambda: a_deployment(plugins=(StandIn,)),
        r"holds the class StandIn; write StandIn\(\)",
    ),
    "name in place of an instance": (
        lambda: a_deployment(plugins=("sglang", StandIn())),
        r"holds the text 'sglang', which has no hooks; import the plugin's class and put an instance of it there",
    ),
    "same plugin twice": (
        lambda: a_deployment(plugins=(Extra(), Extra(words=("a",)), StandIn())),
        r"holds 'extra' twice; remove one of the two",
    ),
    "no plugin": (
        lambda: a_deployment(plugins=()),
        r"'tiny' has no engine: .*none given.*implements launch. Add an engine's plugin",
    ),
    "no engine": (lambda: a_deployment(plugins=(Extra(),)), r"'tiny' has no engine: none of its plugins \(extra\)"),
    "second engine": (
        lambda: a_deployment(plugins=(StandIn(), OtherEngine())),
        r"has 2 engines \(standin, otherengine\); exactly one plugin may implement launch. Remove the others",
    ),
    "engine that answers nothing": (
        lambda: a_deployment(plugins=(Undeclared(),)),
        "Plugin 'undeclared' implements launch, but its class does not derive from torpor.EnginePlugin",
    ),
    "model's name that reads as a flag": (
        lambda: Model(path="/m", served_name="--trust-remote-code"),
        r"served_name is '--trust-remote-code'; .* as a flag. Write 'trust-remote-code'",
    ),
    "path that reads as a flag": (lambda: Model(path="-m"), r"Model.path is '-m'; .* as a flag. Write './-m'"),
    "folder whose name reads as a flag": (lambda: Model(path="/models/-m"), r"Model.served_name is '-m'"),
    "repository that reads as a flag": (lambda: Model(repo_id="-a/b", revision=REVISION), r"repo_id is '-a/b'"),
    "folder without a name": (lambda: Model(path="//"), r"Model.path is '//', which has no last part.*served_name"),
    "model's name that is no text": (
        lambda: Model(path="/m", served_name="m\ud800"),
        r"served_name is 'm\\ud800'; .* no request can carry",
    ),
    "folder whose name is no text": (lambda: Model(path="/m\udcff"), r"Model.served_name is 'm\\udcff'"),
    "region that is no text": (lambda: a_deployment(region="\udcff"), r"Deployment.region is '\\udcff'"),
    "no model": (Model, r"either repo_id .* or path"),
    "two models": (lambda: Model(repo_id="a/b", revision=REVISION, path="/m"), r"either repo_id .* or path"),
    "repository without an owner": (
        lambda: Model(repo_id="qwen3", revision=REVISION),
        r"repo_id is 'qwen3'; .* 'owner/name'",
    ),
    "no revision": (lambda: Model(repo_id="a/b"), r"revision is None; it has to be a commit of a/b, 40 lower-case hex"),
    "branch as revision": (
        lambda: Model(repo_id="a/b", revision="main"),
        r"revision is 'main'.*branches and tags move.*History",
    ),
    "short revision": (lambda: Model(repo_id="a/b", revision=REVISION[:12]), r"revision is '220b46e3b218'"),
    "revision with capitals": (lambda: Model(repo_id="a/b", revision=REVISION.upper()), r"40 lower-case hex"),
    "revision of a folder": (
        lambda: Model(path="/m", revision=REVISION),
        r"revision goes with repo_id; a local path has none",
    ),
    "maximum below target": (
        lambda: Scaling(target_concurrency=20, max_concurrency=10),
        r"max_concurrency is 10 requests, below target_concurrency \(20\): raise the maximum or lower the target",
    ),
    "no concurrency": (
        lambda: Scaling(target_concurrency=0),
        r"target_concurrency is 0 requests; the lowest allowed value is 1",
    ),
    "negative replicas": (
        lambda: Scaling(min_containers=-1),
        r"min_containers is -1 replicas; the lowest allowed value is 0",
    ),
    "fewer replicas than the minimum": (
        lambda: Scaling(min_containers=3, max_containers=2),
        r"max_containers is 2 replicas; the lowest allowed value is 3",
    ),
    "negative buffer": (lambda: Scaling(buffer_containers=-2), r"buffer_containers is -2 replicas"),
    "no scale-down window": (lambda: Scaling(scaledown_window_s=1), r"scaledown_window_s is 1 seconds; .* is 2"),
}


@pytest.mark.parametrize("name", BAD_DEPLOYMENTS)
def test_a_bad_value_is_refused_with_what_to_change(name: str) -> None:
    """One paragraph names field, value and what is allowed. The command exits with 2."""
    make, says = BAD_DEPLOYMENTS[name]
    with pytest.raises(ConfigurationError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("make", [lambda: a_deployment(prot=1), lambda: StandIn(falt=None)])  # type: ignore[call-arg]
def test_an_unknown_field_or_option_is_refused_by_name(make: Callable[[], object]) -> None:
    """Dataclasses raise the error; `torpor` turns it into a paragraph (`torpor.app_file`)."""
    with pytest.raises(TypeError, match=r"unexpected keyword argument '(prot|falt)'"):
        make()


def test_a_deployment_is_a_value() -> None:
    """Equal fields make equal deployments. It can be pickled, and nobody can change it."""
    one, two = a_deployment(gpu="H100!"), a_deployment(gpu="H100!")
    assert one == two == pickle.loads(pickle.dumps(one))
    assert hash(one) == hash(two)
    with pytest.raises(FrozenInstanceError):
        one.port = 9000  # type: ignore[misc]  # the mistake


def test_defaults_are_derived_once() -> None:
    """The served name from the model, the GPU snapshot from GPU and snapshot, a tuple from a list."""
    assert HUB.served_name == HUB.source == "Qwen/Qwen3-8B-FP8"
    assert (Model(path="/models/tiny/").served_name, Model(path="/models/tiny/").source) == ("tiny", "/models/tiny/")
    assert Model(path="/models/tiny", served_name="chat").served_name == "chat"
    assert a_deployment().gpu_snapshot is False
    assert a_deployment(gpu="H100").gpu_snapshot is True
    assert a_deployment(gpu="H100", snapshot=False, gpu_snapshot=None).gpu_snapshot is False
    assert a_deployment(plugins=[StandIn()]).plugins == (StandIn(),)


@pytest.mark.parametrize(("gpu", "count"), [(None, 0), ("H100", 1), ("H100!", 1), ("A100-80GB:4", 4), ("B200!:8", 8)])
def test_the_gpu_says_how_many_there_are(gpu: str | None, count: int) -> None:
    """Modal's notation: a name, `!` against a silent upgrade, a count."""
    assert a_deployment(gpu=gpu).gpu_count == count


def test_the_engine_is_the_plugin_that_launches() -> None:
    """At any position. A plugin that only inherits `launch` from `Plugin` is no engine."""
    assert a_deployment(plugins=(Extra(), StandIn())).engine == StandIn()
    assert a_deployment(plugins=(StandIn(), Extra())).engine == StandIn()


@pytest.mark.fault("a name or path of a deployment has a line break or NUL", area="recipe", outcome="refused")
@pytest.mark.parametrize("text", ["a\nb", "a\0", "a\u2028b", "a\r"], ids=ascii)
def test_names_and_paths_are_one_line(text: str) -> None:
    """They become arguments, log lines and lines of a Dockerfile."""
    with pytest.raises(ConfigurationError, match=r"Model\.path is .*one line"):
        Model(path=f"/models/{text}")
    with pytest.raises(ConfigurationError, match=r"Model\.served_name is .*one line"):
        Model(path="/models/a", served_name=text)
    with pytest.raises(ConfigurationError, match=r"Deployment\.region is .*one line"):
        a_deployment(region=text)


@pytest.mark.parametrize("repo_id", ["../..", "a/..", "../a", "./a", "a/b/c", "a/b\n", "ä/b"])
def test_a_repository_is_owner_and_name(repo_id: str) -> None:
    """It becomes the name of a folder."""
    with pytest.raises(ConfigurationError, match=r"Model\.repo_id is"):
        Model(repo_id=repo_id, revision="0" * 40)


@pytest.mark.fault("a GPU's name is misspelt", area="values", outcome="refused")
@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        (
            "H1000",
            r"'H1000', and no GPU of that name is known\. Did you mean 'H100' or .*Modal has T4, L4, .*unlisted_gpu=True",
        ),
        ("h10", r"Did you mean 'H100'"),
        ("A100-80", r"Did you mean 'A100-80GB' or"),
        ("L40SS", r"Did you mean 'L40S'"),
        ("RTX409O", r"Did you mean .*'RTX4090'"),
        ("Hopper!", r"no GPU of that name is known"),
        ("H100:0", r"asks for 0 GPUs; write it like 'H100!:2', with 1 to 8 of them, or 'H100!' for one"),
        ("H100!:9", r"asks for 9 GPUs"),
        ("H100:01", r"asks for 01 GPUs"),
        ("H100:99999999999999999999", r"asks for 9+ GPUs"),
        ("H100:", r"write it like 'H100'"),
        ("H100:-1", r"write it like 'H100'"),
        ("H100 :2", r"write it like 'H100'"),
        ("H100!!", r"write it like 'H100'"),
        ("", r"Deployment.gpu is ''; write it like 'H100'"),
        ("\uff28100", r"write it like 'H100'"),
        (
            ("H100", "A100"),
            r"Deployment.gpu is \('H100', 'A100'\), a tuple; it has to be one name: a snapshot of one kind of GPU",
        ),
        (["H100"], r"a list; it has to be one name"),
        (True, r"Deployment.gpu is True, a bool; it has to be text or None"),
        (8, r"Deployment.gpu is 8, an int; it has to be text or None"),
    ],
)
def test_a_gpu_that_does_not_exist_is_refused(gpu: object, says: str) -> None:
    """When the deployment is made, with the name that was probably meant."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        a_deployment(gpu=gpu)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "gpu",
    [
        "T4",
        "A10",
        "A100-40GB",
        "H100!",
        "h100",
        "H200:8",
        "B200+",
        "RTX-PRO-6000:2",
        "RTX4090",
        "RTX-4090",
        "rtx5090",
        "GH200",
        "any",
    ],
)
def test_gpus_of_modal_and_of_own_machines_are_known(gpu: str) -> None:
    """In upper or lower case, with or without a dash."""
    assert a_deployment(gpu=gpu).gpu == gpu


def test_an_unknown_gpu_needs_unlisted_gpu() -> None:
    """For a user's own machine. Its count is read all the same."""
    assert a_deployment(gpu="X9000:2", unlisted_gpu=True).gpu_count == 2
    with pytest.raises(ConfigurationError, match="asks for 0 GPUs"):
        a_deployment(gpu="X9000:0", unlisted_gpu=True)


@pytest.mark.parametrize(
    ("wanted", "seen", "fits"),
    [
        ("H100", "NVIDIA H100 80GB HBM3", True),
        ("RTX4090", "NVIDIA GeForce RTX 4090", True),
        ("A100-80GB", "NVIDIA A100-SXM4-80GB", True),
        ("A100-40GB", "NVIDIA A100-SXM4-80GB", False),
        ("RTX-PRO-6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", True),
        ("L40", "NVIDIA L40S", False),
        ("H100", "NVIDIA GH100", False),
        ("B200+", "NVIDIA B200", True),
        ("any", "NVIDIA T4", True),
    ],
)
def test_a_gpus_name_is_found_in_the_drivers_name(wanted: str, seen: str, fits: bool) -> None:
    """Word by word."""
    assert is_this_gpu(wanted, seen) is fits


@pytest.mark.fault("the plugins of a deployment hold something that is no plugin", area="values", outcome="refused")
@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        (None, r"holds None, a NoneType without a hook"),
        (7, r"holds 7, an int without a hook"),
        ({"engine": "sglang"}, r"a dict without a hook"),
        (math, r"holds a module"),
        (len, r"holds a builtin_function_or_method"),
        (object(), r"an object without a hook; put instances of plugins' classes there"),
        ((StandIn(),), r"a tuple without a hook"),
    ],
)
def test_an_object_that_is_no_plugin_is_refused(plugin: object, says: str) -> None:
    """Pluggy would register it and never call it."""
    with pytest.raises(ConfigurationError, match=says):
        a_deployment(plugins=(plugin, StandIn()))


def test_a_plugin_that_is_not_frozen_is_refused() -> None:
    """Core keeps plugins in sets. The message names the option."""

    @dataclass(frozen=True, kw_only=True)
    class Listing(Extra):
        plugin_name = "listing"
        files: list[str] = field(default_factory=list)

    class Open:
        plugin_name = "open"
        __hash__ = None  # type: ignore[assignment]  # what a dataclass that is not frozen has

    with pytest.raises(ConfigurationError, match=r"'listing' cannot be hashed: its option files .*Write tuples"):
        a_deployment(plugins=(Listing(), StandIn()))
    with pytest.raises(
        ConfigurationError, match=r"'open' cannot be hashed: decorate its class with @dataclass\(frozen=True"
    ):
        a_deployment(plugins=(Open(), StandIn()))
