"""`Lifecycle`: typed calls of the hooks. No other module uses pluggy's hook relay.

It has one method per hook. Hooks are called in the order in which the deployment lists its plugins (pluggy calls the last
registered plugin first, so plugins are registered in reverse). An exception from a hook carries a note with hook and plugin.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from torpor import listener
from torpor.deployment import plugin_name
from torpor.engine.handle import Engine
from torpor.errors import PluginError
from torpor.hook_methods import ACTING_HOOKS, PROJECT, check_hooks
from torpor.hookspecs import Plugin
from torpor.listener.listener import LISTENER_METHODS, listens
from torpor.recipe import BuildPlan, ImagePatch, Recipe
from torpor.values.field_types import article

if TYPE_CHECKING:
    import httpx

    from torpor.deployment import Deployment
    from torpor.listener.delivery import Listeners

__all__ = ["TRACE_VARIABLE", "Lifecycle"]

TRACE_VARIABLE = "TORPOR_TRACE"
"""Set to 1, every hook call is printed to standard error: hook, plugin, seconds, outcome."""

_KILLED_S = 5.0

_T = TypeVar("_T")

Observer = Callable[[str, str, float], None]
"""Told after every hook implementation: hook, plugin, seconds."""


class Lifecycle:
    """All plugins of one deployment, callable hook by hook.

    Args:
        deployment: whose plugins to register.
        observer: told after every hook implementation (hook, plugin, seconds).

    Attributes:
        listeners: the plugins that hear what becomes of replicas; None if there are none.

    Raises:
        PluginError: a plugin has a hook without its marker, or pluggy refuses it.
    """

    def __init__(self, deployment: Deployment, *, observer: Observer | None = None) -> None:
        self.deployment = deployment
        self._observer = observer
        self._trace = os.environ.get(TRACE_VARIABLE, "") not in ("", "0")
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Plugin)
        for plugin in reversed(deployment.plugins):
            self._register(plugin)
        self._hooks: Any = self._manager.hook
        self.listeners = _listeners(deployment)

    def bound(self, deployment: Deployment, *, observer: Observer | None = None) -> Lifecycle:
        """The same registered plugins, for their deployment with other values (an address) and another observer.

        Args:
            deployment: has the same plugin objects.
            observer: as of the constructor.
        """
        assert [*map(id, deployment.plugins)] == [*map(id, self.deployment.plugins)]
        other = copy.copy(self)
        other.deployment, other._observer = deployment, observer  # noqa: SLF001 - of the same class
        return other

    def prepare_image(self) -> tuple[tuple[str, ImagePatch], ...]:
        """What each plugin wants in the image, as pairs of plugin name and patch, in the deployment's order."""
        return tuple(
            (name, _expect(patch, ImagePatch, name, "prepare_image")) for name, patch in self._call("prepare_image")
        )

    def compile_kernels(self) -> tuple[tuple[str, BuildPlan], ...]:
        """What each plugin wants done ahead of a start, as pairs of plugin name and plan, in the deployment's order."""
        return tuple(
            (name, _expect(plan, BuildPlan, name, "compile_kernels")) for name, plan in self._call("compile_kernels")
        )

    def recipe(self) -> Recipe:
        """Merge all patches and plans.

        Raises:
            ConflictError: two plugins claim different values for one thing.
        """
        return Recipe.merge(self.prepare_image(), self.compile_kernels())

    def launch(self, recipe: Recipe) -> Engine:
        """Have the engine plugin start its process.

        Raises:
            PluginError: it returned no engine; a process that it returned in place of one was ended.
        """
        results = self._call("launch", recipe=recipe)
        engine: object = results[0][1] if results else None
        if not isinstance(engine, Engine):
            _drop(engine)
            engine_plugin = plugin_name(self.deployment.engine)
            if engine is None:
                raise PluginError(
                    f"Plugin {engine_plugin!r}: launch returned None; it has to return the started engine (torpor.start_engine "
                    "gives one)."
                )
            raise PluginError(
                f"Plugin {engine_plugin!r}: launch returned {article(engine)}; it has to return the started engine "
                "(torpor.start_engine gives one)."
            )
        return engine

    def warmup(self, engine: Engine, client: httpx.Client) -> None:
        """Run every plugin's warm-up."""
        self._call("warmup", engine=engine, client=client)

    def pre_snapshot(self, engine: Engine, client: httpx.Client) -> None:
        """Put the engine to sleep."""
        self._call("pre_snapshot", engine=engine, client=client)

    def post_restore(self, engine: Engine, client: httpx.Client) -> None:
        """Wake the engine."""
        self._call("post_restore", engine=engine, client=client)

    def implementers(self, hook: str) -> tuple[str, ...]:
        """Names of the plugins that implement a hook, in the order in which they are called."""
        caller: pluggy.HookCaller = getattr(self._hooks, hook)
        return tuple(implementation.plugin_name for implementation in reversed(caller.get_hookimpls()))

    def _call(self, hook: str, **arguments: object) -> list[tuple[str, Any]]:
        """Call a hook one plugin at a time, in pluggy's order, so that time, value and blame go to one plugin."""
        results: list[tuple[str, Any]] = []
        caller: pluggy.HookCaller = getattr(self._hooks, hook)
        for implementation in reversed(caller.get_hookimpls()):
            others = [plugin for plugin in self.deployment.plugins if plugin is not implementation.plugin]
            only = self._manager.subset_hook_caller(hook, remove_plugins=others)
            with self._attributed(hook, implementation.plugin_name):
                value = only(deployment=self.deployment, **arguments)
            if hook in ACTING_HOOKS:
                _expect_nothing(value, implementation.plugin_name, hook)
            # a hook with firstresult gives the value itself, the others a list without the Nones
            results += [(implementation.plugin_name, item) for item in (value if isinstance(value, list) else [value])]
        return results

    def _register(self, plugin: object) -> None:
        name = plugin_name(plugin)
        check_hooks(name, plugin)
        try:
            self._manager.register(plugin, name=name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"Plugin {name!r} cannot be registered: {error}") from error

    @contextlib.contextmanager
    def _attributed(self, hook: str, plugin: str) -> Iterator[None]:
        """Time a hook implementation, and name hook and plugin on whatever it raises."""
        started = time.perf_counter()
        outcome = "done"
        try:
            yield
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
            error.add_note(f"in hook {hook} of plugin {plugin!r}")
            raise
        finally:
            seconds = time.perf_counter() - started
            if self._trace:
                print(f"torpor: {hook} [{plugin}] {seconds:.3f} s: {outcome}", file=sys.stderr, flush=True)
            if self._observer:
                self._observer(hook, plugin, seconds)


def _listeners(deployment: Deployment) -> Listeners | None:
    """The plugins that listen; a deployment without any imports no more of `torpor.listener`."""
    if not any(listens(plugin, method) for plugin in deployment.plugins for method in LISTENER_METHODS):
        return None
    return listener.Listeners(deployment.name, deployment.plugins)


def _expect(value: object, wanted: type[_T], plugin: str, hook: str) -> _T:
    if not isinstance(value, wanted):
        _drop(value)
        raise PluginError(
            f"Plugin {plugin!r}: {hook} returned {type(value).__name__}; it has to return a torpor.{wanted.__name__} or None."
        )
    return value


def _expect_nothing(value: object, plugin: str, hook: str) -> None:
    """A hook that acts has nothing to return; what it returns all the same was probably meant to be run."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    for item in values:
        _drop(item)
        never = (
            ", which nobody runs: what it would do was not done"
            if inspect.isawaitable(item) or inspect.isgenerator(item)
            else ""
        )
        raise PluginError(
            f"Plugin {plugin!r}: {hook} returned {article(item)}{never}; a hook that acts returns nothing. To fail the stage raise "
            "an error; drop the return."
        )


def _drop(value: object) -> None:
    """End what a hook should not have returned: a coroutine that would warn, a process that would live on."""
    if inspect.iscoroutine(value) or inspect.isgenerator(value):
        value.close()
    elif isinstance(value, subprocess.Popen):
        value.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            value.wait(_KILLED_S)
