"""`torpor plugins`."""

from __future__ import annotations

import json
from dataclasses import asdict

from torpor.cli.layout import Layout
from torpor.cli.terminal import claim_output, result
from torpor.discovery import installed_plugins
from torpor.values.plain_text import one_line

__all__ = ["list_plugins"]


def list_plugins(*, as_json: bool) -> None:
    """Print the installed plugins."""
    claim_output()
    found = installed_plugins()
    if as_json:
        result(json.dumps([asdict(plugin) for plugin in found], indent=2))
        return
    if not found:
        result("No plugin is installed: no package here has an entry point in the group 'torpor'.")
    layout, width = Layout(), max((len(plugin.name) for plugin in found), default=0)
    for plugin in found:
        kind = "engine" if plugin.launches else "plugin"
        style = "green" if plugin.status == "loaded" else "red"
        layout.field(f"{one_line(plugin.name):<{width}}  {kind}  {one_line(plugin.status):<8}  ", plugin.summary, style)
        for line in (f"{plugin.distribution}, {plugin.target}", ", ".join(plugin.hooks)):
            if line:
                layout.field(" " * (width + 10), line)
