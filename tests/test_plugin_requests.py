"""What a plugin may ask for: its place among the others, their values, a flag with a reason, settings of the environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import pytest

from torpor import (
    ConfigurationError,
    ConflictError,
    Deployment,
    ImagePatch,
    Lifecycle,
    Model,
    Plugin,
    PluginError,
    hookimpl,
    override,
)
from torpor.plan.collect import plan_of
from torpor.plugin_checks import plugin_findings
from torpor.plugin_order import ordered
from torpor.testing import StandIn
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from torpor import EnginePlugin


@dataclass(frozen=True, kw_only=True)
class Placed(Plugin):
    """Has a place relative to others; a test sets it."""

    plugin_name: ClassVar[str] = "placed"
    folder: str = "/vol/a"


def placed(name: str, *, before: tuple[str, ...] = (), after: tuple[str, ...] = ()) -> tuple[str, Plugin]:
    """A plugin of this name with its wishes."""
    kind = type(name.title(), (Placed,), {"plugin_name": name, "runs_before": before, "runs_after": after})
    return name, kind()


def names(*plugins: tuple[str, Plugin]) -> list[str]:
    """In the order in which they run."""
    return [plugin.plugin_name for plugin in ordered(plugins)]


def deployment(*plugins: Plugin, engine: EnginePlugin | None = None) -> Deployment:
    """A deployment with these plugins."""
    return Deployment(name="asks", model=Model(path="/models/a"), plugins=(*plugins, engine or StandIn()))


def test_plugins_run_as_listed_unless_one_wants_another_place() -> None:
    """Only those move that have to; a name that nobody has is no error."""
    assert names(placed("a"), placed("b"), placed("c")) == ["a", "b", "c"]
    assert names(placed("a"), placed("b"), placed("c", before=("a",))) == ["b", "c", "a"]
    assert names(placed("a", after=("c",)), placed("b"), placed("c")) == ["b", "c", "a"]
    assert names(placed("a", after=("nobody",)), placed("b", before=("nobody",))) == ["a", "b"]


def test_a_deployment_calls_hooks_in_that_order() -> None:
    """In the deployment's own list, so plan and stages show it."""
    _, last = placed("last", after=("standin",))
    made = deployment(last)
    assert [plugin.plugin_name for plugin in made.plugins] == ["standin", "last"]


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        (
            [placed("a", before=("b",)), placed("b", before=("a",))],
            r"'a' before 'b' \(a.runs_before\), 'b' before 'a' \(b.runs_before\)",
        ),
        (
            [placed("x"), placed("a", after=("c",)), placed("b", after=("a",)), placed("c", after=("b",))],
            r"'b' before 'c' \(c.runs_after\)",
        ),
        ([placed("a", before=("a",))], "runs_before names the plugin itself"),
    ],
)
def test_a_circle_is_refused_by_name(plugins: list[tuple[str, Plugin]], said: str) -> None:
    """Each step of it, and who asks for it."""
    with pytest.raises(ConfigurationError, match=said):
        ordered(plugins)


def test_a_plugin_reads_another_ones_options() -> None:
    """By name; what is missing is an error that lists what there is."""
    made = deployment(Placed(folder="/vol/b"))
    assert made.option("placed", "folder") == "/vol/b"
    assert made.plugin("placed") == Placed(folder="/vol/b")
    assert made.plugin("nobody") is None
    with pytest.raises(ConfigurationError, match="no plugin 'nobody'; there are: placed, standin"):
        made.option("nobody", "folder")
    with pytest.raises(ConfigurationError, match="'placed' has no option 'fold'; there are: folder"):
        made.option("placed", "fold")


@dataclass(frozen=True, kw_only=True)
class Asks(Plugin):
    """Asks for an engine's flag, with a reason."""

    plugin_name: ClassVar[str] = "asks"
    settings: ClassVar[tuple[str, ...]] = ("endpoint",)
    argv: tuple[str, ...] = ("--max-num-batched-tokens", "512")
    reason: str = "prompts have this length"

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(engine_args=self.argv, flag_reasons={self.argv[0]: self.reason})


def test_plan_shows_the_reason_of_a_flag_that_a_plugin_asked_for() -> None:
    """With the plugin's name."""
    flags = plan_of(Lifecycle(deployment(Asks()))).engine.flags
    assert flags["--max-num-batched-tokens"].value == "512"
    assert flags["--max-num-batched-tokens"].reason == "plugin asks asked for it: prompts have this length"


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        ({"--other": "why"}, r"a reason for '--other', which is not among engine_args \(--x\)"),
        ({"--x": " "}, "an empty reason for --x"),
    ],
)
def test_a_reason_belongs_to_a_flag(reasons: dict[str, str], said: str) -> None:
    """A misspelt flag would lose its reason silently."""
    with pytest.raises(ConfigurationError, match=said):
        ImagePatch(engine_args=("--x", "1"), flag_reasons=reasons)


@pytest.mark.parametrize(
    ("argv", "engine", "said"),
    [
        (
            ("--max-num-batched-tokens", "256"),
            VLLM(device="cpu", extra_args=("--max-num-batched-tokens", "512")),
            r"Plugin 'asks' asks for the engine's flag --max-num-batched-tokens with 256, and VLLM.extra_args has it with 512",
        ),
        (
            ("--tensor-parallel-size", "2"),
            VLLM(device="cpu"),
            r"Plugin 'asks' asks for the engine's flag --tensor-parallel-size. .*the plugin sets it",
        ),
    ],
)
def test_flags_that_contradict_each_other_are_refused_by_name(
    argv: tuple[str, ...], engine: EnginePlugin, said: str
) -> None:
    """The plugin that asks, the flag, both values."""
    made = deployment(Asks(argv=argv), engine=engine)
    with pytest.raises((ConfigurationError, ConflictError), match=said):
        engine.engine_argv(made, Lifecycle(made).recipe())


def test_equal_flags_are_no_contradiction() -> None:
    """A plugin may ask for what the user gave already."""
    engine = VLLM(device="cpu", extra_args=("--max-num-batched-tokens", "512"))
    made = deployment(Asks(), engine=engine)
    assert "--max-num-batched-tokens" in engine.engine_argv(made, Lifecycle(made).recipe())


def test_a_setting_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """One form for all plugins; an empty variable is none."""
    assert Asks().setting("endpoint", "http://here") == "http://here"
    monkeypatch.setenv("TORPOR_PLUGIN_ASKS__ENDPOINT", "http://there")
    assert Asks().setting("endpoint") == "http://there"
    monkeypatch.setenv("TORPOR_PLUGIN_ASKS__ENDPOINT", "")
    assert Asks().setting("endpoint", "http://here") == "http://here"
    with pytest.raises(PluginError, match="reads its setting 'token', but declares endpoint"):
        Asks().setting("token")


def test_a_misspelt_setting_is_an_error_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the nearest one; a variable of a plugin that this app does not have is another app's."""
    monkeypatch.setenv("TORPOR_PLUGIN_ASKS__ENDPIONT", "x")
    monkeypatch.setenv("TORPOR_PLUGIN_OTHER__THING", "x")
    monkeypatch.setenv("TORPOR_PLUGIN_STANDIN__THING", "x")
    found = {finding.plugin: finding for finding in plugin_findings(deployment(Asks()))}
    assert set(found) == {"asks", "standin"}
    assert found["asks"].level == "error"
    assert "TORPOR_PLUGIN_ASKS__ENDPIONT, which is no setting of plugin 'asks'" in found["asks"].seen
    assert found["asks"].cure == "write TORPOR_PLUGIN_ASKS__ENDPOINT"
    assert found["standin"].seen.endswith("it has no settings")


def test_every_plugin_has_variables_that_a_shell_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hyphen becomes `_`; capitals in a name and two underscores do not hide a misspelt setting; no name is the class's."""
    hyphen = type("Hyphen", (Asks,), {"plugin_name": "my-plugin"})()
    odd = type("Odd", (Asks,), {"plugin_name": "My__Odd"})()
    unnamed = type("Unnamed", (Asks,), {"plugin_name": ""})()
    for variable in ("MY_PLUGIN__ENDPOINT", "MY__ODD__ENDPOINT", "UNNAMED__ENDPOINT"):
        monkeypatch.setenv(f"TORPOR_PLUGIN_{variable}", variable)
    assert [one.setting("endpoint") for one in (hyphen, odd, unnamed)] == [
        "MY_PLUGIN__ENDPOINT",
        "MY__ODD__ENDPOINT",
        "UNNAMED__ENDPOINT",
    ]
    assert plugin_findings(deployment(hyphen, odd, unnamed)) == ()
    monkeypatch.setenv("TORPOR_PLUGIN_MY__ODD__WRONG", "x")
    (found,) = plugin_findings(deployment(hyphen, odd, unnamed))
    assert (found.plugin, found.cure) == ("My__Odd", "unset it")


@pytest.mark.parametrize("given", ["endpoint", ["endpoint"], ("end point",), ("a=b",), ("",), (1,)])
def test_settings_are_a_tuple_of_names(given: object) -> None:
    """A text in place of a tuple would declare its letters."""
    wrong = type("Wrong", (Asks,), {"plugin_name": "wrong", "settings": given})
    with pytest.raises(ConfigurationError, match=r"'wrong': settings is .*tuple of names"):
        deployment(wrong())
