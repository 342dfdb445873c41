"""Plugins that are installed on this machine: the entry-point group `torpor`.

Apps list their plugins themselves, so only listings and checks on the laptop use this. A container has no package metadata.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import entry_points

from torpor.hookspecs import HOOK_NAMES, PROJECT

__all__ = ["ALLOW_VARIABLE", "BLOCK_VARIABLE", "GROUP", "InstalledPlugin", "installed_plugins"]

GROUP = "torpor"
ALLOW_VARIABLE = "TORPOR_LOAD_PLUGINS"
"""Names of the plugins' entry points that are loaded, separated by commas, and no others. Unset: all."""
BLOCK_VARIABLE = "TORPOR_BLOCK_PLUGINS"
"""Names of entry points that are never loaded, separated by commas. It wins over `TORPOR_LOAD_PLUGINS`."""


@dataclass(frozen=True, kw_only=True)
class InstalledPlugin:
    """One entry point of the group.

    Attributes:
        name: entry name.
        target: `module:Class`.
        distribution: name and version of the package that brings it.
        status: `loaded`, `blocked`, `not allowed`, or `failed: ...` with the reason.
        summary: first line of the class's docstring.
        hooks: hooks that it implements.
        launches: whether it is an engine plugin.
    """

    name: str
    target: str
    distribution: str
    status: str
    summary: str = ""
    hooks: tuple[str, ...] = ()
    launches: bool = False


def installed_plugins() -> tuple[InstalledPlugin, ...]:
    """Every entry point of the group, loaded unless the environment forbids it; a failure becomes its status."""
    allowed, blocked = _names(ALLOW_VARIABLE), _names(BLOCK_VARIABLE) or set()
    found = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "?"
        status, summary, hooks = "loaded", "", tuple[str, ...]()
        if entry.name in blocked:
            status = f"blocked by {BLOCK_VARIABLE}"
        elif allowed is not None and entry.name not in allowed:
            status = f"not in {ALLOW_VARIABLE}"
        else:
            try:
                plugin = entry.load()
                summary = (plugin.__doc__ or "").strip().partition("\n")[0]
                hooks = _hooks_of(plugin)
            except Exception as error:
                status = f"failed: {type(error).__name__}: {error}"
        found.append(
            InstalledPlugin(
                name=entry.name,
                target=entry.value,
                distribution=distribution,
                status=status,
                summary=summary,
                hooks=hooks,
                launches="launch" in hooks,
            )
        )
    return tuple(found)


def _hooks_of(plugin: object) -> tuple[str, ...]:
    return tuple(
        hook for hook in HOOK_NAMES if getattr(getattr(plugin, hook, None), f"{PROJECT}_impl", None) is not None
    )


def _names(variable: str) -> set[str] | None:
    value = os.environ.get(variable)
    return None if value is None else {name.strip() for name in value.split(",") if name.strip()}
