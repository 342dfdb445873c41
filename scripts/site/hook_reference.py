"""The hook reference: signatures and docstrings of `torpor.hookspecs.Plugin`, as Markdown."""

from __future__ import annotations

import inspect
import textwrap
from typing import TYPE_CHECKING

from scripts.site.docstrings import parse, prose

from torpor.hookspecs import HOOK_NAMES, Plugin

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_reference", "hook_reference", "hook_timeline", "signature"]


def hook_timeline() -> str:
    """The block that opens the README and the specification."""
    text = parse(inspect.getmodule(Plugin)).text
    lines = text.split("\n\n")[0].splitlines()
    return "\n".join(["```text", *(line.removeprefix("    ") for line in lines), "```"])


def hook_reference() -> str:
    """A section for each hook, in the order of the timeline."""
    return "\n\n".join("\n".join(_section(name)) for name in HOOK_NAMES)


def check_reference() -> str:
    """A section for the one question that is no hook."""
    return "\n".join(_section("check"))


def signature(name: str) -> str:
    """A hook's signature as its source has it."""
    function = inspect.signature(getattr(Plugin, name))
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
