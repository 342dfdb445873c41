"""What the contract's rules want to know about a plugin: its hooks, its plans, the strings in them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, cast

from torpor.hook_methods import HOOK_NAMES, PROJECT, marked_names
from torpor.hookspecs import Plugin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.deployment import Deployment

__all__ = [
    "PLANNING_HOOKS",
    "hook_options",
    "implemented_hooks",
    "own_method",
    "plan",
    "plan_all",
    "strings_in",
]

PLANNING_HOOKS = ("prepare_image", "compile_kernels")


def implemented_hooks(plugin: object) -> tuple[str, ...]:
    """The hooks that the plugin implements and marks, in the order of the timeline."""
    marked = marked_names(plugin)
    return tuple(hook for hook in HOOK_NAMES if hook in marked)


def hook_options(plugin: object, hook: str) -> Mapping[str, object]:
    """What the hook's marker was given: `tryfirst`, `trylast`, ...; empty without a marker."""
    return getattr(getattr(type(plugin), hook, None), f"{PROJECT}_impl", None) or {}


def own_method(plugin: object, name: str) -> Callable[..., object] | None:
    """The plugin's own method of that name, not the one that it has from `Plugin`."""
    method = getattr(type(plugin), name, None)
    if method is None or not callable(method) or method is getattr(Plugin, name, None):
        return None
    return cast("Callable[..., object]", method)


def plan(plugin: object, hook: str, deployment: Deployment) -> object:
    """What a planning hook returns; None for a plugin that does not implement it."""
    if hook not in implemented_hooks(plugin):
        return None
    method = cast("Callable[..., object]", getattr(plugin, hook))
    takes_deployment = "deployment" in inspect.signature(method).parameters
    return method(deployment) if takes_deployment else method()


def plan_all(plugin: object, deployment: Deployment) -> dict[str, object]:
    """What both planning hooks return."""
    return {hook: plan(plugin, hook, deployment) for hook in PLANNING_HOOKS}


def strings_in(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a plan, with the place where it stands: `steps[0].argv[2]`, `env['HF_HOME']`."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(item, f"{where}[{key!r}]")
    elif isinstance(value, tuple | list | set | frozenset):
        for number, item in enumerate(value):
            yield from strings_in(item, f"{where}[{number}]")
    elif is_dataclass(value):
        for field in fields(value):
            yield from strings_in(getattr(value, field.name), f"{where}.{field.name}" if where else field.name)
