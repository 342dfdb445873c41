"""The hook reference: signatures and docstrings of `torpor.Plugin` and `torpor.EnginePlugin`, as Markdown."""

from __future__ import annotations

import inspect
import textwrap
from typing import TYPE_CHECKING

from scripts.site.docstrings import parse, prose

from torpor.hookspecs import HOOK_NAMES, EnginePlugin, Plugin
from torpor.listener.events import EVENTS, LifecycleEvent
from torpor.listener.listener import LISTENER_METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "check_reference",
    "engine_reference",
    "event_reference",
    "hook_reference",
    "hook_timeline",
    "listener_reference",
    "signature",
]


def hook_timeline() -> str:
    """The block that opens the README and the specification."""
    text = parse(inspect.getmodule(Plugin)).text
    lines = text.split("\n\n")[0].splitlines()
    return "\n".join(["```text", *(line.removeprefix("    ") for line in lines), "```"])


def hook_reference() -> str:
    """A section for each hook, in the order of the timeline."""
    return "\n\n".join("\n".join(_section(name)) for name in HOOK_NAMES)


def check_reference() -> str:
    """A section for `check`, which is no hook."""
    return "\n".join(_section("check"))


def listener_reference() -> str:
    """A section for each method of a listener."""
    return "\n\n".join("\n".join(_section(name)) for name in LISTENER_METHODS)


def event_reference() -> str:
    """A table of the events that a listener hears, and what each says beside the facts of all."""
    common = parse(LifecycleEvent).entries("Attributes")
    rows = [f"| every event | | {_named(common)} |"]
    for kind in EVENTS:
        told = parse(kind)
        said = told.entries("Attributes") if "Attributes" in told.sections else {}
        rows.append(f"| `{kind.__name__}` | {told.summary} | {_named(said)} |")
    return "\n".join(["| event | when | attributes |", "| --- | --- | --- |", *rows])


def _named(attributes: Mapping[str, str]) -> str:
    return "; ".join(f"`{name}`: {meaning.rstrip('.')}" for name, meaning in attributes.items())


def engine_reference() -> str:
    """A table of what `EnginePlugin` adds: the questions of core and other plugins about an engine."""
    rows = [f"| `{name}` | {meaning} |" for name, meaning in parse(EnginePlugin).entries("Attributes").items()]
    for name, value in vars(EnginePlugin).items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            taken = list(inspect.signature(value).parameters)[1:] if inspect.isfunction(value) else None
            called = name if taken is None else f"{name}({', '.join(taken)})"
            rows.append(f"| `{called}` | {parse(value).summary} |")
    return "\n".join(["| question | what it is |", "| --- | --- |", *rows])


def signature(name: str) -> str:
    """The signature of a hook or question as its source has it."""
    function = inspect.signature(getattr(EnginePlugin, name))
    parameters = ", ".join(str(parameter).replace("'", "") for parameter in function.parameters.values())
    return f"def {name}({parameters}) -> {function.return_annotation}"


def _section(name: str) -> Iterator[str]:
    told = parse(getattr(Plugin, name))
    yield from (f"## {name}", "", f"**{told.summary}**", "", "```text", signature(name), "```", "")
    yield from (told.text, "") if told.text else ()
    for heading, body in told.sections.items():
        if heading != "Example":
            yield from (f"{heading}", f":   {prose(body)}", "")
    intro, _, code = told.sections["Example"].partition("\n\n")
    yield from (f"### Example of {name}", "", prose(intro), "", "```python", textwrap.dedent(code), "```")
