"""`torpor plugins`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from torpor.discovery import installed_plugins

__all__ = ["list_plugins"]


def list_plugins(*, as_json: bool) -> None:
    """Print the installed plugins."""
    found = installed_plugins()
    if as_json:
        typer.echo(json.dumps([asdict(plugin) for plugin in found], indent=2))
        return
    if not found:
        typer.echo("No plugin is installed: no package here has an entry point in the group 'torpor'.")
    width = max((len(plugin.name) for plugin in found), default=0)
    for plugin in found:
        kind = "engine" if plugin.launches else "plugin"
        typer.echo(f"{plugin.name:<{width}}  {kind}  {plugin.status:<8}  {plugin.summary}")
        typer.echo(f"{'':<{width}}          {plugin.distribution}, {plugin.target}")
        if plugin.hooks:
            typer.echo(f"{'':<{width}}          {', '.join(plugin.hooks)}")
