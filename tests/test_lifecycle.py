"""The six hooks: signatures, documentation, order, and errors that name the plugin."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import subprocess
import sys
import textwrap
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from typing_extensions import override

from torpor import (
    BuildPlan,
    Deployment,
    Engine,
    EnginePlugin,
    ImagePatch,
    Lifecycle,
    Model,
    Plugin,
    PluginError,
    Recipe,
    hookimpl,
)
from torpor.hook_methods import ARGUMENTS
from torpor.hookspecs import HOOK_NAMES
from torpor.lifecycle import TRACE_VARIABLE
from torpor.testing import StandIn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    import httpx

SIGNATURES = {
    "prepare_image": "(self, deployment: 'Deployment') -> 'ImagePatch | None'",
    "compile_kernels": "(self, deployment: 'Deployment') -> 'BuildPlan | None'",
    "launch": "(self, deployment: 'Deployment', recipe: 'Recipe') -> 'Engine | None'",
    "warmup": "(self, deployment: 'Deployment', engine: 'Engine', client: 'httpx.Client') -> 'None'",
    "pre_snapshot": "(self, deployment: 'Deployment', engine: 'Engine', client: 'httpx.Client') -> 'None'",
    "post_restore": "(self, deployment: 'Deployment', engine: 'Engine', client: 'httpx.Client') -> 'None'",
}
"""Golden: a change here breaks every plugin there is."""

HEADINGS = ["When:", "Where:", "Returns:", "Must not:", "Example:"]

CALLS: list[str] = []
"""What the plugins below did; plugins themselves hold no state."""


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def deploy(*plugins: object) -> Deployment:
    """A deployment of the plugins, with the stand-in if none of them launches an engine."""
    launches = any(hasattr(getattr(plugin, "launch", None), "torpor_impl") for plugin in plugins)
    engines = () if launches else (StandIn(),)
    return Deployment(name="tiny", model=Model(path="/models/tiny"), plugins=(*plugins, *engines))  # type: ignore[arg-type]


def doc_of(hook: str) -> str:
    """A hook's docstring without its indentation."""
    return inspect.cleandoc(getattr(Plugin, hook).__doc__)


def test_there_are_six_hooks_in_the_order_of_the_timeline() -> None:
    """The hooks are exactly the methods of `Plugin` that carry the specification's mark."""
    marked = [name for name, member in vars(Plugin).items() if hasattr(member, "torpor_spec")]
    assert marked == list(HOOK_NAMES) == list(SIGNATURES)


@pytest.mark.parametrize("hook", HOOK_NAMES)
def test_a_hooks_signature_is_golden(hook: str) -> None:
    """Names, order, annotations; no defaults, nothing keyword-only."""
    assert str(inspect.signature(getattr(Plugin, hook))) == SIGNATURES[hook]


@pytest.mark.parametrize("hook", HOOK_NAMES)
def test_a_hook_is_documented_under_fixed_headings(hook: str) -> None:
    """A summary line, then when and where it runs, what it returns, what it must not do, and an example."""
    doc = doc_of(hook)
    summary, _, rest = doc.partition("\n")
    assert re.fullmatch(r"[A-Z].*[.;].*|[A-Z].*\.", summary)
    assert re.findall(r"^[A-Z][\w ]*:$", rest, re.MULTILINE) == HEADINGS
    sections = re.split(r"^[A-Z][\w ]*:$", rest, flags=re.MULTILINE)[1:]
    assert all(section.strip() for section in sections)


@pytest.mark.parametrize("hook", HOOK_NAMES)
def test_a_hooks_example_is_a_plugin(hook: str) -> None:
    """In a frozen dataclass it compiles, registers and implements the hook. A planning hook returns a plan."""
    lifecycle = Lifecycle(deploy(example_of(hook)))
    assert "example" in lifecycle.implementers(hook)
    if hook in ("prepare_image", "compile_kernels"):
        recipe = lifecycle.recipe()
        assert recipe.env or recipe.steps


def test_the_example_of_an_engine_starts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name on the PATH gets model, port and the other plugins' arguments."""
    program = tmp_path / "my-engine"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    lifecycle = Lifecycle(deploy(example_of("launch")))
    engine = lifecycle.launch(Recipe(image=ImagePatch(engine_args=("--x", "1"))))
    assert engine.wait(30) == 0
    assert engine.log_tail() == ("--model /models/tiny --port 8000 --x 1",)


def example_of(hook: str) -> object:
    """An instance of a plugin class with the example of the hook's docstring."""
    source = textwrap.dedent(doc_of(hook).partition("Example:\n")[2].partition("\n\n")[2])
    marker = "@hookimpl\n" if hook in HOOK_NAMES else ""
    assert source.startswith(f"{marker}@override\ndef {hook}")
    base = "EnginePlugin" if hook == "launch" else "Plugin"
    header = f"from __future__ import annotations\n@dataclass(frozen=True, kw_only=True)\nclass Example({base}):\n"
    names: dict[str, object] = {}
    exec(
        "from torpor import *\nfrom dataclasses import dataclass\nfrom typing_extensions import override\nimport os",
        names,
    )
    exec(compile(header + textwrap.indent(source, "    "), f"{hook}.example", "exec"), names)
    kind = names["Example"]
    assert isinstance(kind, type)
    return kind()


@dataclass(frozen=True, kw_only=True)
class Talker(Plugin):
    """Records its calls."""

    name: str = "talker"

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        CALLS.append(self.name)
        return ImagePatch(env={self.name.upper(): "1"})


@dataclass(frozen=True, kw_only=True)
class First(Talker):
    """Asks to be called first."""

    plugin_name = "first"

    @hookimpl(tryfirst=True)
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        CALLS.append("first")
        return ImagePatch()


@dataclass(frozen=True, kw_only=True)
class Last(Talker):
    """Asks to be called last."""

    plugin_name = "last"

    @hookimpl(trylast=True)
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        CALLS.append("last")
        return ImagePatch()


@dataclass(frozen=True, kw_only=True)
class Other(Talker):
    """A second plugin."""

    plugin_name = "other"
    name: str = "other"


def test_hooks_run_in_the_order_of_the_list() -> None:
    """Their values come back in that order, with the plugins' names."""
    lifecycle = Lifecycle(deploy(Talker(), Other()))
    assert [name for name, _ in lifecycle.prepare_image()] == ["talker", "other"] == CALLS
    assert lifecycle.implementers("prepare_image") == ("talker", "other", "standin")
    assert [name for name, _ in Lifecycle(deploy(Other(), Talker())).prepare_image()] == ["other", "talker"]


def test_tryfirst_and_trylast_override_the_order_of_the_list() -> None:
    """At any position in the list."""
    Lifecycle(deploy(Last(), Talker(), Other(), First())).prepare_image()
    assert CALLS == ["first", "talker", "other", "last"]


def test_a_plugin_without_the_hook_is_not_called() -> None:
    """The specification's own methods do not count as implementations."""
    lifecycle = Lifecycle(deploy(Talker()))
    assert lifecycle.compile_kernels() == ()
    assert lifecycle.implementers("compile_kernels") == ()
    assert lifecycle.implementers("launch") == ("standin",)


def test_a_free_standing_class_may_take_fewer_arguments() -> None:
    """A third party's plugin need not derive from `Plugin`."""

    class Free:
        plugin_name: ClassVar[str] = "free"

        @hookimpl
        def prepare_image(self) -> ImagePatch:
            return ImagePatch(env={"FREE": "1"})

    assert Lifecycle(deploy(Free())).recipe().env == {"FREE": "1"}


def test_a_planning_hook_may_return_none() -> None:
    """It then adds nothing to the recipe."""

    class Silent(Plugin):
        @hookimpl
        @override
        def prepare_image(self, deployment: Deployment) -> ImagePatch | None:
            return None

    assert Lifecycle(deploy(Silent(), Talker())).prepare_image() == (("talker", ImagePatch(env={"TALKER": "1"})),)


@pytest.mark.parametrize(
    ("hook", "value", "says"),
    [
        (
            "prepare_image",
            {"env": {}},
            "Plugin 'wrong': prepare_image returned dict; it has to return a torpor.ImagePatch",
        ),
        (
            "compile_kernels",
            ImagePatch(),
            "compile_kernels returned ImagePatch; it has to return a torpor.BuildPlan or None",
        ),
    ],
)
def test_a_value_of_another_class_is_refused(hook: str, value: object, says: str) -> None:
    """The message names plugin, hook, the returned value and the expected class."""
    methods = {hook: hookimpl(_returning(value)), "plugin_name": "wrong"}
    wrong = type("Wrong", (Plugin,), methods)
    with pytest.raises(PluginError, match=says):
        Lifecycle(deploy(wrong())).recipe()


def test_a_hook_without_its_marker_is_refused() -> None:
    """Pluggy would silently ignore it."""

    class Bare(Plugin):
        @override
        def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
            pass

    with pytest.raises(PluginError, match=r"Plugin 'bare' has a method warmup without @hookimpl, .* add the marker"):
        Lifecycle(deploy(Bare()))


def test_a_marker_on_an_unknown_hook_is_refused() -> None:
    """The message lists the hooks."""

    class Wishful(Plugin):
        @hookimpl
        def after_wake(self, engine: Engine) -> None:
            pass

    with pytest.raises(PluginError, match=r"'wishful' marks after_wake .* no such hook; there are: prepare_image, "):
        Lifecycle(deploy(Wishful()))


def test_an_argument_that_no_hook_has_is_refused() -> None:
    """By pluggy's own check. The message names the plugin."""

    class Greedy(Plugin):
        @hookimpl
        def warmup(self, engine: Engine, gpu: str) -> None:  # type: ignore[override]  # the mistake
            pass

    with pytest.raises(PluginError, match=r"(?s)Plugin 'greedy' cannot be registered: .*gpu"):
        Lifecycle(deploy(Greedy()))


def test_a_wrapper_is_refused() -> None:
    """Core calls one plugin at a time, so there is nothing to wrap."""

    class Wrapper(Plugin):
        @hookimpl(wrapper=True)
        def warmup(self, client: httpx.Client):  # type: ignore[override, no-untyped-def]
            return (yield)

    with pytest.raises(PluginError, match=r"Plugin 'wrapper': warmup is a hook wrapper.*Drop the wrapper option"):
        Lifecycle(deploy(Wrapper()))


def test_an_exception_carries_hook_and_plugin() -> None:
    """In a note. Class and message stay unchanged."""

    class Failing(Plugin):
        @hookimpl
        @override
        def compile_kernels(self, deployment: Deployment) -> BuildPlan:
            raise LookupError("no such kernel")

    with pytest.raises(LookupError, match="no such kernel") as caught:
        Lifecycle(deploy(Failing())).recipe()
    assert caught.value.__notes__ == ["in hook compile_kernels of plugin 'failing'"]


def test_an_observer_is_told_of_every_call() -> None:
    """It gets hook, plugin and seconds, also of a call that failed."""
    told: list[tuple[str, str, bool]] = []
    lifecycle = Lifecycle(deploy(Talker(), Other()), observer=lambda *call: told.append((*call[:2], call[2] >= 0)))
    lifecycle.prepare_image()
    assert told == [("prepare_image", name, True) for name in ("talker", "other", "standin")]


def test_calls_can_be_traced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`TORPOR_TRACE=1` prints every call to standard error; 0 or an empty value does not."""
    for value in ("", "0"):
        monkeypatch.setenv(TRACE_VARIABLE, value)
        Lifecycle(deploy(Talker())).recipe()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(TRACE_VARIABLE, "1")
    Lifecycle(deploy(Talker())).recipe()
    line = r"torpor: prepare_image \[{}\] 0\.\d{{3}} s: done\n"
    assert re.fullmatch(line.format("talker") + line.format("standin"), capsys.readouterr().err)


def test_a_launch_without_an_engine_is_refused() -> None:
    """Core needs the engine that it has to wait for."""

    class Empty(EnginePlugin):
        @hookimpl
        @override
        def launch(self, deployment: Deployment, recipe: Recipe) -> Engine | None:
            return None

    with pytest.raises(PluginError, match="Plugin 'empty': launch returned None; it has to return the started engine"):
        Lifecycle(deploy(Empty())).launch(Recipe(image=ImagePatch()))


def _returning(value: object) -> Callable[..., object]:
    def hook(self: object, deployment: Deployment) -> object:
        return value

    return hook


def _plain(self: object, client: httpx.Client) -> None:
    """An ordinary hook."""


async def _coroutine(self: object, client: httpx.Client) -> None:
    """A coroutine that never waits."""


async def _async_generator(self: object, client: httpx.Client) -> AsyncIterator[None]:
    yield


def _generator(self: object, client: httpx.Client) -> Iterator[None]:
    yield


def _timed(hook: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(hook)
    def timed(self: object, client: httpx.Client) -> object:
        return hook(self, client)

    return timed


def _promises(self: object, client: httpx.Client) -> Awaitable[None]:
    return _coroutine(self, client)


class Called:
    """A callable object."""

    def __call__(self, client: httpx.Client) -> None:
        """Warm up."""


def _new(hook: Callable[..., object]) -> Callable[..., Iterator[None]]:
    """A new function, because a marker stays on a function."""
    assert isinstance(hook, types.FunctionType)
    made = types.FunctionType(hook.__code__, hook.__globals__, hook.__name__)
    made.__annotations__ = dict(hook.__annotations__)
    return made


_marked: Callable[[Any], Any] = hookimpl  # so that a type checker lets the mistakes pass

STRANGE_HOOKS: dict[str, tuple[object, str]] = {
    "coroutine": (
        _marked(_new(_coroutine)),
        r"warmup is an async def: nobody awaits it, so its body would never run\. Write def",
    ),
    "generator": (_marked(_new(_generator)), r"warmup holds a yield: .* body would never run\. Drop the yield"),
    "async generator": (_marked(_new(_async_generator)), r"warmup is an async def"),
    "wrapped coroutine": (_marked(_timed(_new(_coroutine))), r"warmup is an async def"),
    "wrapped generator": (_marked(contextlib.contextmanager(_new(_generator))), r"warmup holds a yield"),
    "promise": (_marked(_new(_promises)), r"warmup says that it returns Awaitable\[None\]: core would not run it"),
    "static method": (
        staticmethod(_marked(_new(_plain))),
        r"warmup is a staticmethod; a hook is called on the plugin",
    ),
    "static method, marked outside": (_marked(staticmethod(_new(_plain))), r"warmup is a staticmethod"),
    "class method": (classmethod(_marked(_new(_plain))), r"warmup is a classmethod"),
    "class method, marked outside": (_marked(classmethod(_new(_plain))), r"warmup is a classmethod"),
    "partial": (
        _marked(functools.partial(_new(_plain), None)),
        r"warmup is a functools\.partial, which pluggy passes over",
    ),
    "partial of a coroutine": (_marked(functools.partial(_new(_coroutine), None)), r"warmup is a functools\.partial"),
    "partial method": (_marked(functools.partialmethod(_new(_plain))), r"warmup is a functools\.partialmethod"),
    "lambda": (
        _marked(lambda self, client: client.get(str(self))),
        r"warmup is a lambda, which returns whatever it computes",
    ),
    "object": (
        _marked(Called()),
        r"warmup is a Called and no method, so it would never run\. Write it as a plain method",
    ),
    "not marked": (_new(_plain), r"has a method warmup without @hookimpl"),
    "partial, not marked": (functools.partial(_new(_plain), None), r"has a method warmup without @hookimpl"),
    "another name": (
        hookimpl(specname="launch")(_new(_plain)),
        r"warmup is marked with specname='launch'\. Name the method",
    ),
    "old wrapper": (hookimpl(hookwrapper=True)(_new(_generator)), r"warmup is a hook wrapper"),
}


@pytest.mark.fault("a hook of a plugin is no plain method and would never run", area="hooks", outcome="refused")
@pytest.mark.parametrize("name", STRANGE_HOOKS)
@pytest.mark.parametrize("base", [Plugin, object], ids=["derived", "free-standing"])
def test_a_hook_that_would_never_run_is_refused_when_the_deployment_is_made(name: str, base: type) -> None:
    """The message has plugin, hook and fix. Every command and a Modal app's import make the deployment first."""
    hook, says = STRANGE_HOOKS[name]
    strange = type("Strange", (base,), {"warmup": hook, "plugin_name": "strange"})
    with pytest.raises(PluginError, match=rf"^Plugin 'strange'\W.*{says}") as caught:
        deploy(strange())
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("hook", HOOK_NAMES)
def test_every_hook_is_checked(hook: str) -> None:
    """Planning hooks, `launch` and acting hooks."""

    async def never(self: object) -> None:
        """Never run."""

    strange = type("Strange", (Plugin,), {hook: hookimpl(never), "plugin_name": "strange"})
    with pytest.raises(PluginError, match=rf"Plugin 'strange': {hook} is an async def"):
        deploy(strange())


def test_a_hook_of_a_base_class_is_checked() -> None:
    """In any base class."""

    class Base(Plugin):
        @hookimpl
        async def warmup(self, client: httpx.Client) -> None:  # type: ignore[override]  # the mistake
            pass

    class Derived(Base):
        pass

    with pytest.raises(PluginError, match="Plugin 'derived': warmup is an async def"):
        deploy(Derived())


@pytest.mark.fault("a hook's parameter would get nothing", area="hooks", outcome="refused")
@pytest.mark.parametrize(
    ("hook", "says"),
    [
        (lambda self, client=None: None, r"the parameter client=None: it has a default, and pluggy passes nothing"),  # noqa: ARG005
        (lambda self, *, client: None, r"the parameter client: it is keyword-only"),  # noqa: ARG005
        (lambda self, *given: None, r"the parameter \*given: pluggy passes nothing to it"),  # noqa: ARG005
        (lambda self, **given: None, r"the parameter \*\*given: pluggy passes nothing to it"),  # noqa: ARG005
        (lambda self, clint: None, r"the parameter clint: the specification has none of that name"),  # noqa: ARG005
        (lambda client: None, r"has no self: warmup takes self and any of \(deployment, engine, client\)"),  # noqa: ARG005
        (lambda: None, r"has no self"),
    ],
    ids=lambda value: "" if callable(value) else value[:30],
)
def test_a_hook_parameter_that_gets_no_value_is_refused(hook: Any, says: str) -> None:
    """Otherwise the hook would fail or run without it, after minutes of a start."""
    hook.__name__ = "warmup"
    strange = type("Strange", (Plugin,), {"warmup": _marked(hook), "plugin_name": "strange"})
    with pytest.raises(PluginError, match=rf"Plugin 'strange' cannot be registered: warmup .*{says}"):
        deploy(strange())


@pytest.mark.parametrize("hook", HOOK_NAMES)
def test_the_arguments_of_a_hook_are_those_of_its_specification(hook: str) -> None:
    """Two places list them."""
    assert ("self", *ARGUMENTS[hook]) == tuple(inspect.signature(getattr(Plugin, hook)).parameters)


@pytest.mark.fault("a marker stands on a method with a misspelt name", area="hooks", outcome="refused")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("warm_up", r"Did you mean 'warmup'\?"),
        ("pre_snapshots", r"Did you mean 'pre_snapshot'\?"),
        ("prepareImage", r"Did you mean 'prepare_image'\?"),
        ("check", r"Core asks check without a marker: drop @hookimpl\."),
        ("shutdown", r"there are: prepare_image, .*post_restore\.$"),
    ],
)
def test_a_marker_on_a_misspelt_name_says_what_was_meant(name: str, says: str) -> None:
    """When the deployment is made."""
    strange = type("Strange", (Plugin,), {name: _marked(_new(_plain)), "plugin_name": "strange"})
    with pytest.raises(PluginError, match=rf"'strange' marks {name} with @hookimpl, but there is no such hook.*{says}"):
        deploy(strange())


@pytest.mark.fault("a hook that acts returns a value", area="hooks", outcome="refused")
@pytest.mark.parametrize("hook", ["warmup", "pre_snapshot", "post_restore"])
@pytest.mark.parametrize("value", [False, 0, "", (), {"ok": True}, [None]], ids=repr)
def test_a_value_of_a_hook_that_acts_is_refused(hook: str, value: object) -> None:
    """Core would not read the value, whatever it is."""

    def acting(self: object) -> object:
        return value

    talking = type("Talking", (Plugin,), {hook: hookimpl(acting), "plugin_name": "talking"})
    lifecycle = Lifecycle(deploy(talking(), Quiet()))
    with pytest.raises(
        PluginError, match=rf"Plugin 'talking': {hook} returned an? \w+; a hook that acts returns nothing"
    ):
        getattr(lifecycle, hook)(None, None)


@pytest.mark.fault("a hook calls a coroutine and returns it", area="hooks", outcome="refused")
def test_a_coroutine_that_a_hook_returns_is_refused_and_closed() -> None:
    """No annotation shows it. Its body never runs, and Python prints no warning about it later."""

    class Forgetful(Plugin):
        @hookimpl
        def warmup(self, client):  # type: ignore[no-untyped-def, override]
            return _coroutine(self, client)

    lifecycle = Lifecycle(deploy(Forgetful(), Quiet()))
    with pytest.raises(PluginError, match=r"'forgetful': warmup returned a coroutine, which nobody runs"):
        lifecycle.warmup(None, None)  # type: ignore[arg-type]  # no hook reads them


@pytest.mark.fault("launch returns something that is no engine", area="hooks", outcome="refused")
def test_a_process_in_place_of_an_engine_is_refused_and_ended() -> None:
    """Core could neither wait for it nor end it."""
    started: list[subprocess.Popen[bytes]] = []

    class Raw(EnginePlugin):
        @hookimpl
        def launch(self):  # type: ignore[no-untyped-def, override]
            started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
            return started[0]

    with pytest.raises(PluginError, match=r"'raw': launch returned a Popen; it has to return the started engine"):
        Lifecycle(deploy(Raw())).launch(Recipe(image=ImagePatch()))
    assert started[0].poll() is not None


class Quiet(EnginePlugin):
    """An engine plugin whose hooks do nothing."""

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine | None:
        return None
