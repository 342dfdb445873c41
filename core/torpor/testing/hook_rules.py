"""Rules about the plugin's hooks: their names, markers and arguments."""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING

from torpor.deployment import plugin_name
from torpor.errors import TorporError
from torpor.hookspecs import HOOK_NAMES, Plugin
from torpor.lifecycle import Lifecycle
from torpor.testing.failing import broken, told
from torpor.testing.inspection import implemented_hooks, marked_names, own_method
from torpor.testing.witness import refusing_effects

if TYPE_CHECKING:
    from torpor.deployment import Deployment

__all__ = ["HookRules"]


class HookRules:
    """A plugin's hooks are those of the specification."""

    def test_marks_every_hook(self, plugin: object) -> None:
        """A method with a hook's name is marked, or it would never run."""
        bare = [hook for hook in HOOK_NAMES if own_method(plugin, hook) and hook not in marked_names(plugin)]
        if bare:
            broken(
                f"{type(plugin).__name__} has {', '.join(bare)} without @hookimpl.",
                rule="every hook implementation carries the marker; pluggy passes over a method without it in silence.",
                cure="put @hookimpl (torpor.hookimpl) above each of them.",
            )
        if not implemented_hooks(plugin):
            broken(
                f"{type(plugin).__name__} implements no hook.",
                rule=f"a plugin implements at least one of {', '.join(HOOK_NAMES)}.",
                cure="override the hook that you need and mark it with @hookimpl.",
            )

    def test_marks_nothing_but_hooks(self, plugin: object) -> None:
        """What is marked, or nearly called like a hook, is a hook."""
        strange = [name for name in marked_names(plugin) if name not in HOOK_NAMES]
        strange += [name for name in _public_methods(type(plugin)) if _nearest_hook(name) and name not in strange]
        for name in strange:
            meant = _nearest_hook(name)
            broken(
                f"{type(plugin).__name__}.{name} is no hook{f'; {meant} is' if meant else ''}.",
                rule=f"hooks are {', '.join(HOOK_NAMES)}; a method under another name never runs.",
                cure=f"rename it{f' to {meant}' if meant else ''}, or drop @hookimpl and choose another name.",
            )

    def test_hooks_take_the_specifications_arguments(self, plugin: object) -> None:
        """A hook takes arguments of its specification, by their names, and nothing else."""
        for hook in implemented_hooks(plugin):
            allowed = [name for name in inspect.signature(getattr(Plugin, hook)).parameters if name != "self"]
            for parameter in inspect.signature(getattr(plugin, hook)).parameters.values():
                fault = _parameter_fault(parameter, allowed)
                if fault:
                    broken(
                        f"{type(plugin).__name__}.{hook} has the parameter {parameter}: {fault}.",
                        rule=f"{hook} takes any of ({', '.join(allowed)}) by these names, without defaults, *args or **kwargs.",
                        cure="take what you use, as the specification names it, and make the rest an option of the class.",
                    )

    def test_attributes_have_no_effects(self, plugin: object) -> None:
        """Reading an attribute does nothing: core and pluggy read all of them."""
        for name in dir(type(plugin)):
            if name.startswith("__"):
                continue
            failure: Exception | None = None
            with refusing_effects() as seen:
                try:
                    getattr(plugin, name)
                except Exception as error:
                    failure = error
            if failure is not None or seen:
                broken(
                    f"Reading {type(plugin).__name__}.{name} {told(seen, failure)}.",
                    rule="attributes and properties have no effects and do not raise: registration reads every one of them.",
                    cure=f"make {name} a method, or compute it from the options alone.",
                )

    def test_registers(self, plugin: Plugin, deployment: Deployment) -> None:
        """Core takes the plugin, and its plans fit together with those of its deployment."""
        if not any(mine is plugin or mine == plugin for mine in deployment.plugins):
            broken(
                f"The fixture `deployment` holds {', '.join(map(plugin_name, deployment.plugins))}, but not {plugin!r}.",
                rule="`deployment` holds the plugin of the fixture `plugin`.",
                cure="take `plugin` as an argument of your `deployment` fixture and list it in plugins=(...).",
            )
        try:
            Lifecycle(deployment).recipe()
        except TorporError as error:
            broken(
                f"Core refuses {type(plugin).__name__}: {error}",
                rule="a plugin registers in a deployment, and its plans merge with the other plugins'.",
                cure="do what the message says; if the deployment is at fault, override the fixture `deployment`.",
            )


def _public_methods(kind: type) -> list[str]:
    return [
        name
        for name in dir(kind)
        if not name.startswith("_") and callable(getattr(kind, name, None)) and not hasattr(Plugin, name)
    ]


def _nearest_hook(name: str) -> str | None:
    close = difflib.get_close_matches(name, HOOK_NAMES, n=1, cutoff=0.8)
    return close[0] if close and close[0] != name else None


def _parameter_fault(parameter: inspect.Parameter, allowed: list[str]) -> str | None:
    match parameter.kind:
        case inspect.Parameter.VAR_POSITIONAL | inspect.Parameter.VAR_KEYWORD:
            return "pluggy passes nothing to it"
        case inspect.Parameter.KEYWORD_ONLY:
            return "it is keyword-only, which pluggy's versions treat differently"
    if parameter.default is not inspect.Parameter.empty:
        return "it has a default, and pluggy passes nothing to a parameter with one"
    if parameter.name not in allowed:
        return "the specification has none of that name"
    return None
