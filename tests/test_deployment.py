"""`Deployment`, `Model` and `Scaling`: bad values are refused with a message that says what to change."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, dataclass
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from torpor import ConfigurationError, Deployment, Engine, ImagePatch, Model, Plugin, Scaling, hookimpl
from torpor.testing import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor import Recipe

REVISION = "220b46e3b2180893580a4454f21f22d3ebb187d3"
HUB = Model(repo_id="Qwen/Qwen3-8B-FP8", revision=REVISION)


@dataclass(frozen=True, kw_only=True)
class Extra(Plugin):
    """Goes beside an engine."""

    plugin_name = "extra"
    words: tuple[str, ...] = ()

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch()


@dataclass(frozen=True, kw_only=True)
class OtherEngine(Plugin):
    """Launches, too."""

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
        return Engine.start(("true",))


def a_deployment(**fields: object) -> Deployment:
    """A good deployment, but for the given fields."""
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
    """One paragraph that names field, value, and what is allowed; the exit code of the command line is 2."""
    make, says = BAD_DEPLOYMENTS[name]
    with pytest.raises(ConfigurationError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("make", [lambda: a_deployment(prot=1), lambda: StandIn(falt=None)])  # type: ignore[call-arg]
def test_an_unknown_field_or_option_is_refused_by_name(make: Callable[[], object]) -> None:
    """Dataclasses do it; `torpor` turns it into a paragraph (`torpor.apps`)."""
    with pytest.raises(TypeError, match=r"unexpected keyword argument '(prot|falt)'"):
        make()


def test_a_deployment_is_a_value() -> None:
    """Equal fields make equal deployments; it survives a pickle; nobody changes it."""
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
    """Modal's notation: a name, `!` for no silent upgrade, a count."""
    assert a_deployment(gpu=gpu).gpu_count == count


def test_the_engine_is_the_plugin_that_launches() -> None:
    """Wherever it stands; a plugin that only inherits `launch` from `Plugin` launches nothing."""
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
    """It becomes a folder's name."""
    with pytest.raises(ConfigurationError, match=r"Model\.repo_id is"):
        Model(repo_id=repo_id, revision="0" * 40)
