"""`Lifecycle`: the typed door to the hooks; the only module that talks to pluggy's relay.

One ordinary method per hook. A plugin sees its hooks called in the order in which the deployment lists the plugins
(pluggy calls last-registered first, so they are registered in reverse). An exception out of a hook carries a note with
hook and plugin.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from torpor.deployment import plugin_name
from torpor.errors import PluginError
from torpor.hookspecs import HOOK_NAMES, PROJECT, Plugin
from torpor.recipe import BuildPlan, ImagePatch, Recipe

if TYPE_CHECKING:
    import httpx

    from torpor.deployment import Deployment
    from torpor.engine import Engine

__all__ = ["TRACE_VARIABLE", "Lifecycle"]

TRACE_VARIABLE = "TORPOR_TRACE"
"""Set to 1, every hook call is printed to standard error: hook, plugin, seconds, outcome."""

_T = TypeVar("_T")

Observer = Callable[[str, str, float], None]
"""Told after every hook implementation: hook, plugin, seconds."""


class Lifecycle:
    """All plugins of one deployment, callable hook by hook.

    Args:
        deployment: whose plugins to register.
        observer: told after every hook implementation (hook, plugin, seconds).

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
            PluginError: it returned None.
        """
        results = self._call("launch", recipe=recipe)
        engine: Engine | None = results[0][1] if results else None
        if engine is None:
            raise PluginError(
                f"Plugin {plugin_name(self.deployment.engine)!r}: launch returned None; it has to return the started engine "
                "(torpor.Engine.start gives one)."
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
            # a hook with firstresult gives the value itself, the others a list without the Nones
            results += [(implementation.plugin_name, item) for item in (value if isinstance(value, list) else [value])]
        return results

    def _register(self, plugin: object) -> None:
        name = plugin_name(plugin)
        _check_markers(name, plugin)
        try:
            self._manager.register(plugin, name=name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"Plugin {name!r} cannot be registered: {error}") from error
        for caller in self._manager.get_hookcallers(plugin) or ():
            if any(mine.wrapper or mine.hookwrapper for mine in caller.get_hookimpls() if mine.plugin is plugin):
                raise PluginError(
                    f"Plugin {name!r}: {caller.name} is a hook wrapper; core calls one plugin at a time, so there is nothing to "
                    "wrap. Drop the wrapper option and list the plugin before or after the other one."
                )

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


def _check_markers(name: str, plugin: object) -> None:
    """A method with a hook's name and no marker would silently never run."""
    for hook in HOOK_NAMES:
        method = getattr(type(plugin), hook, None)
        if method is None or method is getattr(Plugin, hook):
            continue
        if getattr(method, f"{PROJECT}_impl", None) is None:
            raise PluginError(
                f"Plugin {name!r} has a method {hook} without @hookimpl, so it would never run: add the marker."
            )
    for attribute in dir(type(plugin)):
        method = getattr(type(plugin), attribute, None)
        if getattr(method, f"{PROJECT}_impl", None) is not None and attribute not in HOOK_NAMES:
            raise PluginError(
                f"Plugin {name!r} marks {attribute} with @hookimpl, but there is no such hook; there are: {', '.join(HOOK_NAMES)}."
            )


def _expect(value: object, wanted: type[_T], plugin: str, hook: str) -> _T:
    if not isinstance(value, wanted):
        raise PluginError(
            f"Plugin {plugin!r}: {hook} returned {type(value).__name__}; it has to return a torpor.{wanted.__name__} or None."
        )
    return value
