"""Checks a plugin's hook methods before any of them is called, and refuses those that would never run or do nothing.

Pluggy silently ignores a hook that it does not recognise. A hook that is a coroutine or generator function returns at once,
without running its body. Either way an engine would never be warmed up, or never be put to sleep.
"""

from __future__ import annotations

import functools
import inspect
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, cast

from torpor.errors import PluginError
from torpor.listener.listener import LISTENER_METHODS, LONGEST_DEADLINE_S, Listener
from torpor.values.field_types import article, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "ACTING_HOOKS",
    "ARGUMENTS",
    "HOOK_NAMES",
    "PROJECT",
    "check_hooks",
    "hook_fault",
    "listener_fault",
    "marked_names",
    "parameter_fault",
]

PROJECT = "torpor"

HOOK_NAMES = ("prepare_image", "compile_kernels", "launch", "warmup", "pre_snapshot", "post_restore")

ARGUMENTS = {
    "prepare_image": ("deployment",),
    "compile_kernels": ("deployment",),
    "launch": ("deployment", "recipe"),
    **dict.fromkeys(("warmup", "pre_snapshot", "post_restore"), ("deployment", "engine", "client")),
}
"""The parameters that a hook may have; pluggy passes only those that a hook names."""

ACTING_HOOKS = ("warmup", "pre_snapshot", "post_restore")
"""Hooks that return nothing."""

_NEVER_RUN = re.compile(r"\b(Coroutine|Awaitable|Task|Future|Generator|Iterator|Async\w+)\b")
_PLAIN = "Write it as a plain method: def, with self as its first parameter."
_NOT_ASYNC = "Write def, use the httpx.Client that the hook gets, and asyncio.run(...) where something must be awaited."
_NO_YIELD = (
    "Drop the yield; what has to happen after other plugins' hooks belongs into a later hook, or is marked trylast."
)
_KEYWORD, _KEYWORDS = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
_IMPL, _SPEC = f"{PROJECT}_impl", f"{PROJECT}_spec"


def check_hooks(name: str, plugin: object) -> None:
    """Refuse a plugin with a hook that would not run as written.

    Args:
        name: the plugin's name.
        plugin: the instance.

    Raises:
        PluginError: names plugin and hook, and says what to change.
    """
    if (not_run := listener_fault(plugin)) is not None:
        raise PluginError(f"Plugin {name!r}: {not_run[0]} {not_run[1]}. {not_run[2]}")
    marked = marked_names(plugin)
    for hook in HOOK_NAMES:
        raw = inspect.getattr_static(plugin, hook, None)
        if raw is None or hasattr(raw, _SPEC):
            continue
        if hook not in marked and _mark(raw) is None:
            raise PluginError(
                f"Plugin {name!r} has a method {hook} without @hookimpl, so it would never run: add the marker."
            )
        if fault := hook_fault(raw):
            what, cure = fault
            raise PluginError(f"Plugin {name!r}: {hook} {what}. {cure}")
        if wrong := parameter_fault(hook, raw):
            raise PluginError(f"Plugin {name!r} cannot be registered: {hook} {wrong}.")
    for attribute in marked:
        if attribute not in HOOK_NAMES:
            raise PluginError(
                f"Plugin {name!r} marks {attribute} with @hookimpl, but there is no such hook; there are: {', '.join(HOOK_NAMES)}."
                f"{_meant(attribute)}"
            )


def listener_fault(plugin: object) -> tuple[str, str, str] | None:
    """What of a listener would not work as written, why, and what to do; None if all would."""
    if not isinstance(plugin, Listener):
        return None
    faults = (_deadline_fault(plugin), *(_listening_fault(plugin, method) for method in LISTENER_METHODS))
    return next((fault for fault in faults if fault is not None), None)


def _deadline_fault(plugin: Listener) -> tuple[str, str, str] | None:
    given: object = plugin.listener_deadline_s
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 < given <= LONGEST_DEADLINE_S:
        return None
    cure = (
        f"Give seconds, more than 0 and at most {LONGEST_DEADLINE_S:g}: so long a sleep waits for a plugin that hangs."
    )
    return "listener_deadline_s", f"is {shown(given)}", cure


def _listening_fault(plugin: Listener, method: str) -> tuple[str, str, str] | None:
    raw, wanted = inspect.getattr_static(plugin, method), getattr(Listener, method)
    if raw is wanted:
        return None
    if _mark(raw) is not None:
        return method, "is marked with @hookimpl, and is no hook", "Core calls it without a marker: drop @hookimpl."
    if isinstance(raw, staticmethod | classmethod):
        return method, f"is a {type(raw).__name__}; core calls it on the plugin", _PLAIN
    if wrong := _body_fault(raw) or _shape_fault(raw):
        return (method, *wrong)
    taken = list(inspect.signature(wanted).parameters)
    try:
        inspect.signature(cast("Callable[..., object]", raw)).bind(*taken)
    except TypeError as error:
        return method, f"does not take ({', '.join(taken)}): {error}", f"Write def {method}({', '.join(taken)})."
    return None


def parameter_fault(hook: str, raw: object) -> str | None:
    """What is wrong with the parameters of a hook; None if they match the specification."""
    taken, allowed = list(inspect.signature(cast("Callable[..., object]", raw)).parameters.values()), ARGUMENTS[hook]
    takes = f"{hook} takes self and any of ({', '.join(allowed)})"
    if not taken or taken[0].name in allowed or taken[0].kind in (_KEYWORD, _KEYWORDS):
        return f"has no self: {takes}"
    for parameter in taken[1:]:
        if fault := _fault_of(parameter, allowed):
            return f"has the parameter {parameter}: {fault}; {takes}"
    return None


def _fault_of(parameter: inspect.Parameter, allowed: tuple[str, ...]) -> str | None:
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, _KEYWORDS):
        return "pluggy passes nothing to it"
    if parameter.kind is _KEYWORD:
        return "it is keyword-only, which pluggy's versions treat differently"
    if parameter.default is not inspect.Parameter.empty:
        return "it has a default, and pluggy passes nothing to a parameter with one"
    if parameter.name not in allowed:
        return "the specification has none of that name"
    return None


def _meant(attribute: str) -> str:
    if attribute == "check":
        return " Core asks check without a marker: drop @hookimpl."
    close = get_close_matches(attribute.strip("_"), HOOK_NAMES, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def marked_names(plugin: object) -> tuple[str, ...]:
    """Attributes of the plugin's class that carry the mark of `@hookimpl`, of any kind."""
    kind = type(plugin)
    return tuple(name for name in dir(kind) if _mark(inspect.getattr_static(kind, name, None)) is not None)


def _mark(raw: object) -> Mapping[str, object] | None:
    """The mark of `@hookimpl` on a class attribute; for a static or class method it is on the function."""
    mark: Mapping[str, object] | None = getattr(raw, _IMPL, None)
    return mark if mark is not None else getattr(getattr(raw, "__func__", None), _IMPL, None)


def hook_fault(raw: object) -> tuple[str, str] | None:
    """Why a hook would not run or do nothing, and what to do; None for a plain method."""
    options = _mark(raw) or {}
    if options.get("wrapper") or options.get("hookwrapper"):
        return (
            "is a hook wrapper; core calls one plugin at a time, so there is nothing to wrap",
            "Drop the wrapper option and list the plugin before or after the other one.",
        )
    if options.get("specname"):
        return f"is marked with specname={options['specname']!r}", "Name the method after the hook that it implements."
    if isinstance(raw, staticmethod | classmethod):
        return f"is a {type(raw).__name__}; a hook is called on the plugin, whose options it reads", _PLAIN
    if isinstance(raw, functools.partial | functools.partialmethod):
        return f"is a functools.{type(raw).__name__}, which pluggy passes over without a word", _PLAIN
    return _body_fault(raw) or _shape_fault(raw)


def _body_fault(raw: object) -> tuple[str, str] | None:
    """The fault of a method whose call would not run its body; None if it would."""
    called = inspect.unwrap(raw) if callable(raw) else raw
    for method in (raw, called):
        if inspect.isasyncgenfunction(method) or inspect.iscoroutinefunction(method):
            return "is an async def: nobody awaits it, so its body would never run", _NOT_ASYNC
        if inspect.isgeneratorfunction(method):
            return "holds a yield: calling it makes a generator, and its body would never run", _NO_YIELD
    return None


def _shape_fault(raw: object) -> tuple[str, str] | None:
    if not inspect.isfunction(raw):
        return f"is {article(raw)} and no method, so it would never run", _PLAIN
    if raw.__name__ == "<lambda>":
        return "is a lambda, which returns whatever it computes", _PLAIN
    returned = str(raw.__annotations__.get("return", ""))
    if _NEVER_RUN.search(returned):
        return f"says that it returns {returned}: core would not run it, and the hook would do nothing", _PLAIN
    return None
