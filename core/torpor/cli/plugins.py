"""`torpor plugins`."""

from __future__ import annotations

import json
from dataclasses import asdict

from torpor.cli.terminal import claim_output, result
from torpor.discovery import installed_plugins
from torpor.plain_text import one_line

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
    width = max((len(plugin.name) for plugin in found), default=0)
    for plugin in found:
        kind = "engine" if plugin.launches else "plugin"
        result(one_line(f"{plugin.name:<{width}}  {kind}  {plugin.status:<8}  {plugin.summary}"))
        result(f"{'':<{width}}          {plugin.distribution}, {plugin.target}")
        if plugin.hooks:
            result(f"{'':<{width}}          {', '.join(plugin.hooks)}")
