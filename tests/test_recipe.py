"""What plugins ask for is merged, and two that want one thing differently are both named."""

from __future__ import annotations

import pickle

import pytest

from torpor import (
    BuildPlan,
    BuildStep,
    Cache,
    ConfigurationError,
    ConflictError,
    ImagePatch,
    Preflight,
    Recipe,
)
from torpor.recipe import requirement_name, split_flags


def a_step(name: str = "download", order: int = 10, **fields: object) -> BuildStep:
    """A build step with the usual fields."""
    return BuildStep(name=name, argv=("run", name), order=order, timeout_s=60, **fields)  # type: ignore[arg-type]


def a_check(name: str = "weights") -> Preflight:
    """A preflight check."""
    return Preflight(name=name, argv=("check",), timeout_s=5, cure="Download them again.")


def merged(**patches: ImagePatch) -> Recipe:
    """The recipe of some plugins' patches, in order."""
    return Recipe.merge(list(patches.items()), [])


def test_patches_add_up_in_the_plugins_order() -> None:
    """Everything that differs in its key is kept; the same value twice is one."""
    recipe = merged(
        engine=ImagePatch(base="engine:1", apt=("curl",), pip=("a>=1",), env={"A": "1"}, engine_args=("--x", "1")),
        cache=ImagePatch(apt=("curl", "git"), pip=("a>=1", "b"), env={"A": "1", "B": "2"}, volumes={"/vol/c": "cache"}),
        other=ImagePatch(base="engine:1", python_sources=("mine",), engine_args=("--y", "--x=1")),
    )
    assert recipe.image.base == "engine:1"
    assert recipe.image.apt == ("curl", "git")
    assert recipe.image.pip == ("a>=1", "b")
    assert recipe.env == {"A": "1", "B": "2"}
    assert recipe.volumes == {"/vol/c": "cache"}
    assert recipe.image.python_sources == ("mine",)
    assert recipe.engine_args == ("--x", "1", "--y")


def test_every_value_has_an_origin() -> None:
    """Errors and `torpor plan` can say which plugin is behind it."""
    recipe = Recipe.merge(
        [
            (
                "engine",
                ImagePatch(
                    base="i", env={"A": "1"}, pip=("Foo_Bar>=1",), volumes={"/vol/c": "c"}, engine_args=("--x",)
                ),
            )
        ],
        [("cache", BuildPlan(steps=(a_step(),), preflight=(a_check(),)))],
    )
    assert recipe.origins == {
        "image:base": "engine",
        "env:A": "engine",
        "pip:foo-bar": "engine",
        "volume:/vol/c": "engine",
        "flag:--x": "engine",
        "step:download": "cache",
        "preflight:weights": "cache",
    }


@pytest.mark.parametrize(
    ("one", "two", "what"),
    [
        (ImagePatch(base="a:1"), ImagePatch(base="b:2"), r"image 'base': 'one' says 'a:1', 'two' says 'b:2'"),
        (ImagePatch(env={"A": "1"}), ImagePatch(env={"A": "2"}), r"env 'A': 'one' says '1', 'two' says '2'"),
        (
            ImagePatch(volumes={"/v": "a"}),
            ImagePatch(volumes={"/v": "b"}),
            r"volume '/v': 'one' says 'a', 'two' says 'b'",
        ),
        (ImagePatch(pip=("x>=1",)), ImagePatch(pip=("X==2",)), r"pip 'x': 'one' says 'x>=1', 'two' says 'X==2'"),
        (
            ImagePatch(engine_args=("--x", "1")),
            ImagePatch(engine_args=("--x", "2")),
            r"flag '--x': .*\('1',\).*\('2',\)",
        ),
        (ImagePatch(engine_args=("--x",)), ImagePatch(engine_args=("--x=2",)), r"flag '--x'"),
    ],
)
def test_two_values_for_one_thing_name_both_plugins(one: ImagePatch, two: ImagePatch, what: str) -> None:
    """And both values, and what to do."""
    with pytest.raises(ConflictError, match=r"Plugins 'one' and 'two' both claim " + what) as caught:
        merged(one=one, two=two)
    assert str(caught.value).endswith("Change an option of one of them, or drop one.")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        (BuildPlan(steps=(a_step(),)), "a build step 'download'"),
        (BuildPlan(preflight=(a_check(),)), "a preflight check 'weights'"),
    ],
)
def test_two_steps_of_one_name_name_both_plugins(plan: BuildPlan, what: str) -> None:
    """Even equal ones: two downloads of one name are two downloads."""
    other = pickle.loads(pickle.dumps(plan))
    with pytest.raises(ConflictError, match=f"Plugins 'one' and 'two' both claim {what}"):
        Recipe.merge([], [("one", plan), ("two", other)])


def test_steps_run_by_order_whatever_the_plugins_order() -> None:
    """Downloads precede compilation; equal orders keep the plugins' order."""
    recipe = Recipe.merge(
        [],
        [
            ("kernels", BuildPlan(steps=(a_step("compile", 20), a_step("tune", 30)), preflight=(a_check("kernels"),))),
            (
                "weights",
                BuildPlan(steps=(a_step("download", 10), a_step("convert", 20)), preflight=(a_check("weights"),)),
            ),
        ],
    )
    assert [step.name for step in recipe.steps] == ["download", "compile", "convert", "tune"]
    assert [check.name for check in recipe.preflight] == ["kernels", "weights"]


def test_engine_arguments_reach_the_steps_that_ask_for_them() -> None:
    """They are appended to the command, and belong to the cache's key; other steps stay as they are."""
    cache = Cache(volume_dir="/vol/k", image_dir="/opt/k", key=("v1",))
    asks, asks_not = a_step("compile", 20, engine_args=True, cache=cache), a_step()
    patch = ImagePatch(engine_args=("--tp-size", "2"))
    recipe = Recipe.merge([("one", patch)], [("two", BuildPlan(steps=(asks, asks_not)))])
    assert recipe.steps[0] == asks_not
    assert recipe.steps[1].argv == ("run", "compile", "--tp-size", "2")
    assert recipe.steps[1].cache is not None
    assert recipe.steps[1].cache.key == ("v1", "--tp-size", "2")


@pytest.mark.parametrize("path", ["vol/cache", "/vol/cache/", "~/cache"])
def test_a_mount_has_to_be_absolute(path: str) -> None:
    """The message names plugin and path."""
    with pytest.raises(ConfigurationError, match=f"Plugin 'one': volume mount '{path}' has to be absolute"):
        merged(one=ImagePatch(volumes={path: "cache"}))


def test_flags_are_grouped_with_their_values() -> None:
    """In either spelling; what does not begin with a flag is refused."""
    assert split_flags(("--a", "1", "2", "--b", "--c=3", "--d=")) == [
        ("--a", ("1", "2")),
        ("--b", ()),
        ("--c", ("3",)),
        ("--d", ("",)),
    ]
    assert split_flags(()) == []
    with pytest.raises(ConfigurationError, match=r"begin with 'x'; they have to begin with a --flag"):
        split_flags(("x", "--a"))


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("Foo_Bar[x]>=1", "foo-bar"),
        ("a.b==2; python_version>'3'", "a-b"),
        ("pkg @ file:///x", "pkg"),
        ("plain", "plain"),
    ],
)
def test_requirements_are_compared_by_normalised_name(requirement: str, name: str) -> None:
    """PEP 503."""
    assert requirement_name(requirement) == name


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"argv": ()}, "BuildStep 'x' has neither argv nor script: there is nothing to run"),
        ({"argv": ("a",), "timeout_s": 0}, "timeout_s is 0 .above 0 is allowed."),
        ({"argv": ("a",), "retries": -1}, "retries is -1 .0 or more is allowed."),
    ],
)
def test_a_step_that_cannot_run_is_refused(fields: dict[str, object], says: str) -> None:
    """Nothing to run, no time to run in."""
    with pytest.raises(ConfigurationError, match=says):
        BuildStep(**{"name": "x", "order": 1, "timeout_s": 1, **fields})  # type: ignore[arg-type]
