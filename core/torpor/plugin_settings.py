"""Checks the settings of plugins in the environment (`torpor.values.setting_names`): a misspelt one would have no effect."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from torpor.deployment import plugin_name
from torpor.values.findings import Finding
from torpor.values.setting_names import BETWEEN, SETTING_PREFIX, setting_variable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torpor.deployment import Deployment

__all__ = ["setting_findings"]


def setting_findings(deployment: Deployment, environ: Mapping[str, str]) -> Iterator[Finding]:
    """An error for each variable that names a plugin of the deployment and none of its settings: it would have no effect.

    Args:
        deployment: whose plugins.
        environ: the environment.
    """
    declared: dict[str, tuple[str, ...]] = {
        plugin_name(plugin): tuple(getattr(plugin, "settings", ())) for plugin in deployment.plugins
    }
    for name in sorted(environ):
        plugin, between, _ = name.removeprefix(SETTING_PREFIX).lower().partition(BETWEEN)
        if not name.startswith(SETTING_PREFIX) or not between or plugin not in declared:
            continue  # another app on this machine may have that plugin
        known = [setting_variable(plugin, setting) for setting in declared[plugin]]
        if name not in known:
            close = get_close_matches(name, known, n=1)
            there = f"there are {', '.join(known)}" if known else "it has no settings"
            yield Finding(
                level="error",
                plugin=plugin,
                what="settings",
                seen=f"the environment has {name}, which is no setting of plugin {plugin!r}: {there}",
                cure=f"write {close[0]}" if close else "unset it",
            )
