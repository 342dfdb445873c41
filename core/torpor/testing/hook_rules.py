"""Rules about the plugin's hooks: their names, markers and arguments."""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from typing import TYPE_CHECKING

from torpor.deployment import plugin_name
from torpor.errors import TorporError
from torpor.hook_methods import (
    ACTING_HOOKS,
    ARGUMENTS,
    HOOK_NAMES,
    hook_fault,
    listener_fault,
    marked_names,
    parameter_fault,
)
from torpor.hookspecs import Plugin
from torpor.lifecycle import Lifecycle
from torpor.listener.listener import LISTENER_METHODS, listens
from torpor.plugin_checks import answer_of
from torpor.testing.failing import broken, told
from torpor.testing.inspection import implemented_hooks, own_method
from torpor.testing.witness import refusing_effects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torpor.deployment import Deployment

__all__ = ["HookRules"]


class HookRules:
    """Rules about hooks: they match the specification."""

    def test_marks_every_hook(self, plugin: object) -> None:
        """Every method with a hook's name is marked; otherwise it would never run."""
        bare = [hook for hook in HOOK_NAMES if own_method(plugin, hook) and hook not in marked_names(plugin)]
        if bare:
            broken(
                f"{type(plugin).__name__} has {', '.join(bare)} without @hookimpl.",
                rule="every hook implementation carries the marker; pluggy silently ignores a method without it.",
                cure="put @hookimpl (torpor.hookimpl) above each of them.",
            )
        if not implemented_hooks(plugin) and not any(listens(plugin, method) for method in LISTENER_METHODS):
            broken(
                f"{type(plugin).__name__} implements no hook and hears nothing.",
                rule=f"a plugin implements at least one of {', '.join(HOOK_NAMES)}, or listens ({', '.join(LISTENER_METHODS)}).",
                cure="override the hook that you need and mark it with @hookimpl, or override on_event.",
            )

    def test_marks_nothing_but_hooks(self, plugin: object) -> None:
        """Every marked method, and every method with a similar name, is a hook."""
        strange = [name for name in marked_names(plugin) if name not in HOOK_NAMES]
        strange += [name for name in _public_methods(type(plugin)) if _nearest_hook(name) and name not in strange]
        for name in strange:
            meant = _nearest_hook(name)
            broken(
                f"{type(plugin).__name__}.{name} is no hook{f'; {meant} is' if meant else ''}.",
                rule=f"hooks are {', '.join(HOOK_NAMES)}; a method under another name never runs.",
                cure=f"rename it{f' to {meant}' if meant else ''}, or drop @hookimpl and choose another name.",
            )

    def test_hooks_are_plain_methods(self, plugin: object) -> None:
        """A hook is a plain method; anything else would never run or do nothing."""
        for hook in HOOK_NAMES:
            raw = inspect.getattr_static(type(plugin), hook, None)
            if hook not in marked_names(plugin) or (fault := hook_fault(raw)) is None:
                continue
            broken(
                f"{type(plugin).__name__}.{hook} {fault[0]}.",
                rule="a hook is a plain method: no async def, no yield, no lambda, no static or class method, no wrapper.",
                cure=fault[1],
            )

    def test_listener_methods_are_plain_methods(self, plugin: object) -> None:
        """`on_event` and `while_serving` are plain methods without a marker; anything else would never run."""
        if fault := listener_fault(plugin):
            method, seen, cure = fault
            broken(
                f"{type(plugin).__name__}.{method} {seen}.",
                rule="on_event(self, event) and while_serving(self, serving, ending) are plain methods without @hookimpl.",
                cure=cure,
            )

    def test_hooks_that_act_return_nothing(self, plugin: object) -> None:
        """Hooks that act return nothing: a returned value was probably meant to do something."""
        for hook in ACTING_HOOKS:
            if hook in implemented_hooks(plugin) and (returned := _returned(getattr(type(plugin), hook))):
                broken(
                    f"{type(plugin).__name__}.{hook} {returned}.",
                    rule=f"{', '.join(ACTING_HOOKS)} return nothing: core refuses a value, after minutes of a start.",
                    cure="drop the return and annotate the hook with -> None; raise an error to fail the stage.",
                )

    def test_check_gives_findings(self, plugin: object, deployment: Deployment) -> None:
        """`check` returns findings, the same twice."""
        first, second = answer_of(plugin, deployment), answer_of(plugin, deployment)
        if isinstance(first, str) or first != second:
            seen = first if isinstance(first, str) else f"gave {first!r}, then {second!r} for the same deployment"
            broken(
                f"{type(plugin).__name__}.check {seen}.",
                rule="check returns findings (torpor.Finding) for a deployment, () for none; it is repeatable and never raises.",
                cure="return a tuple of findings or yield them, computed from the deployment and the options alone.",
            )

    def test_check_touches_nothing(self, plugin: object, deployment: Deployment) -> None:
        """`check` uses no network, changes no file and starts no process."""
        with refusing_effects() as seen:
            answer_of(plugin, deployment)
        if seen:
            broken(
                f"{type(plugin).__name__}.check {told(seen, None)}.",
                rule="check only looks at values: every command asks it, and so does the import of a Modal app.",
                cure="make it a Preflight of compile_kernels, which core runs before a launch.",
            )

    def test_hooks_take_the_specifications_arguments(self, plugin: object) -> None:
        """A hook takes arguments of its specification, by their names, and nothing else."""
        for hook in implemented_hooks(plugin):
            raw = inspect.getattr_static(type(plugin), hook)
            if hook_fault(raw) is None and (fault := parameter_fault(hook, raw)):
                broken(
                    f"{type(plugin).__name__}.{hook} {fault}.",
                    rule=f"{hook} takes any of ({', '.join(ARGUMENTS[hook])}) by these names, without defaults, *args or **kwargs.",
                    cure="take what you use, as the specification names it, and make the rest an option of the class.",
                )

    def test_attributes_have_no_effects(self, plugin: object) -> None:
        """Reading an attribute has no effect: core and pluggy read all of them."""
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
        """Core accepts the plugin, and its plans merge with those of its deployment."""
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


def _returned(hook: Callable[..., object]) -> str:
    """The value that a hook declares or returns, in words; empty for a hook that returns nothing."""
    said = inspect.unwrap(hook).__annotations__.get("return", None)
    if said not in (None, "None", "NoReturn", "typing.NoReturn", "Never"):
        return f"says that it returns {said if isinstance(said, str) else getattr(said, '__name__', said)}"
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(hook))))
    except (OSError, TypeError, SyntaxError):  # made without a source: what it returns is seen when it runs
        return ""
    for node in _own_statements(tree.body[0]):
        if isinstance(node, ast.Return) and not (node.value is None or _is_none(node.value)):
            return f"has `{ast.unparse(node)}`"
    return ""


def _own_statements(function: ast.AST) -> Iterator[ast.AST]:
    """Every node of a function, without nested functions and classes."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield node
            yield from _own_statements(node)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _public_methods(kind: type) -> list[str]:
    return [
        name
        for name in dir(kind)
        if not name.startswith("_") and callable(getattr(kind, name, None)) and not hasattr(Plugin, name)
    ]


def _nearest_hook(name: str) -> str | None:
    close = difflib.get_close_matches(name, HOOK_NAMES, n=1, cutoff=0.8)
    return close[0] if close and close[0] != name else None
