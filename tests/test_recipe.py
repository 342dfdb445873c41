"""Plugins' patches and plans are merged. A conflict names both plugins."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from collections.abc import Callable


def a_step(name: str = "download", order: int = 10, **fields: object) -> BuildStep:
    """A build step with ordinary fields."""
    return BuildStep(name=name, argv=("run", name), order=order, timeout_s=60, **fields)  # type: ignore[arg-type]


def a_check(name: str = "weights") -> Preflight:
    """A preflight check."""
    return Preflight(name=name, argv=("check",), timeout_s=5, cure="Download them again.")


def merged(**patches: ImagePatch) -> Recipe:
    """The merged recipe of several plugins' patches, in order."""
    return Recipe.merge(list(patches.items()), [])


def test_patches_add_up_in_the_plugins_order() -> None:
    """Values with different keys are all kept; the same value twice counts once."""
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
    """Errors and `torpor plan` name the plugin that a value comes from."""
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
def test_a_conflict_names_both_plugins(one: ImagePatch, two: ImagePatch, what: str) -> None:
    """It also names both values and what to do."""
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
    """Even if the steps are equal: two downloads of one name are two downloads."""
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
    """They are appended to the command and are part of the cache key. Other steps stay unchanged."""
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
    """In both spellings. Arguments that do not begin with a flag are refused."""
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
    """By the rules of PEP 503."""
    assert requirement_name(requirement) == name


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"argv": ()}, "BuildStep 'x' has neither argv nor script: there is nothing to run"),
        ({"argv": ("a",), "timeout_s": 0}, "timeout_s is 0 seconds; it has to be above 0"),
        ({"argv": ("a",), "retries": -1}, "retries is -1; allowed are 0 to 1000 further attempts"),
    ],
)
def test_a_step_that_cannot_run_is_refused(fields: dict[str, object], says: str) -> None:
    """It has no command, or no time."""
    with pytest.raises(ConfigurationError, match=says):
        BuildStep(**{"name": "x", "order": 1, "timeout_s": 1, **fields})  # type: ignore[arg-type]


BREAKS = ["\n", "\r", "\r\n", "\0", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029"]


def with_break(field: str, text: str) -> object:
    """A value with that text in one field."""
    cache = {"volume_dir": "/vol/k", "image_dir": "/opt/k", "key": ("v1",)}
    made: dict[str, Callable[[], object]] = {
        "base": lambda: ImagePatch(base=text),
        "apt": lambda: ImagePatch(apt=(text,)),
        "pip": lambda: ImagePatch(pip=(text,)),
        "env": lambda: ImagePatch(env={"A": text}),
        "env name": lambda: ImagePatch(env={text: "1"}),
        "mount": lambda: ImagePatch(volumes={f"/vol/{text}": "cache"}),
        "volume": lambda: ImagePatch(volumes={"/vol/c": text}),
        "source": lambda: ImagePatch(python_sources=(text,)),
        "engine argument": lambda: ImagePatch(engine_args=("--x", text)),
        "step name": lambda: a_step(text),
        "argv": lambda: BuildStep(name="s", argv=("run", text), order=1, timeout_s=1),
        "script": lambda: BuildStep(name="s", argv=(), script=text, order=1, timeout_s=1),
        "step env": lambda: a_step(env={"A": text}),
        "step env name": lambda: a_step(env={text: "1"}),
        "step volume": lambda: a_step(volumes={"/vol/c": text}),
        "output": lambda: a_step(outputs=(text,)),
        "secret": lambda: a_step(secrets=(text,)),
        "cache key": lambda: Cache(**{**cache, "key": (text,)}),  # type: ignore[arg-type]
        "cache folder": lambda: Cache(**{**cache, "image_dir": text}),  # type: ignore[arg-type]
        "probe": lambda: Cache(**cache, probes=(("nvcc", text),)),  # type: ignore[arg-type]
    }
    return made[field]()


FIELDS = [
    *("base", "apt", "pip", "env", "env name", "mount", "volume", "source", "step name", "script", "step env"),
    *("step env name", "step volume", "output", "secret", "cache folder"),
]


@pytest.mark.fault("a line break in a value would become a line of a Dockerfile", area="recipe", outcome="refused")
@pytest.mark.parametrize("line_break", BREAKS, ids=ascii)
@pytest.mark.parametrize("field", FIELDS)
def test_a_line_break_is_refused_when_the_value_is_made(field: str, line_break: str) -> None:
    """Any kind of line break, and NUL, also at the end, in every field that becomes part of a Dockerfile."""
    for text in (f"x{line_break}RUN id", f"x{line_break}"):
        with pytest.raises(ConfigurationError) as caught:
            with_break(field, text)
        assert line_break not in str(caught.value)


@pytest.mark.parametrize("field", ["engine argument", "argv", "cache key", "probe"])
def test_an_argument_may_have_lines_but_no_nul(field: str) -> None:
    """A step on this machine may run a program of several lines. A step for a Dockerfile may not; Modal's platform refuses it."""
    with_break(field, "x\ny")
    with pytest.raises(ConfigurationError, match=r"'x\\x00y'; an argument is text without NUL"):
        with_break(field, "x\0y")


def test_a_value_of_a_variable_is_never_in_the_message() -> None:
    """It may be a secret. The message names the variable and the position."""
    with pytest.raises(ConfigurationError, match=r"ImagePatch\.env: KEY has a line break at character 7") as caught:
        ImagePatch(env={"KEY": "secret\nvalue"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "Ä", "A.B", "A$B", "${A}"])
def test_an_invalid_variable_name_is_refused(name: str) -> None:
    """`ENV A B=1` would set something else."""
    with pytest.raises(ConfigurationError, match=r"ImagePatch\.env has the name"):
        ImagePatch(env={name: "1"})


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (lambda: ImagePatch(base="ubuntu AS other"), "a registry reference of one word"),
        (lambda: ImagePatch(base=""), "a registry reference of one word"),
        (lambda: ImagePatch(base="--platform=x"), "a registry reference of one word"),
        (lambda: ImagePatch(apt=("-o=Dpkg::Options",)), "a Debian package is written like"),
        (lambda: ImagePatch(apt=("curl git",)), "a Debian package is written like"),
        (lambda: ImagePatch(pip=("--index-url=http://x.test",)), "An option of pip is none"),
        (lambda: ImagePatch(pip=("",)), "begins with a package's name"),
        (lambda: ImagePatch(apt=(1,)), "holds 1, an int; it has to be text"),  # type: ignore[arg-type]
    ],
)
def test_an_invalid_image_or_package_name_is_refused(patch: Callable[[], ImagePatch], message: str) -> None:
    """An additional word in the name of a base image or package would change the command."""
    with pytest.raises(ConfigurationError, match=message):
        patch()


def test_ordinary_values_pass() -> None:
    """References with a digest, packages with a version, requirements with markers and URLs, any value of one line."""
    ImagePatch(
        base="localhost:5000/team/engine:v1.2-cu129@sha256:0123abcd",
        apt=("curl", "libstdc++6", "gcc-12=12.2.0-14", "libc6:amd64"),
        pip=("a[x,y]>=1,<2 ; python_version < '3.13'", "b @ https://x.test/b-1.whl", "torch==2.9.0+cu129"),
        env={"_A1": "", "B": "\t'quoted' \"twice\" $HOME `id` \\ # ü %s", "C": "\\"},
    )
