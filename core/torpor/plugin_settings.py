"""Checks the settings of plugins in the environment (`torpor.values.setting_names`): a misspelt one would have no effect."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from torpor.deployment import plugin_name
from torpor.values.findings import Finding
from torpor.values.setting_names import SETTING_PREFIX, declared_settings, setting_variable

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
    declared = {plugin_name(plugin): declared_settings(plugin_name(plugin), plugin) for plugin in deployment.plugins}
    all_known = {setting_variable(plugin, setting) for plugin, settings in declared.items() for setting in settings}
    for name in sorted(environ):
        if not name.startswith(SETTING_PREFIX) or name in all_known:
            continue
        named = [plugin for plugin in declared if name.startswith(setting_variable(plugin, ""))]
        if not named:
            continue  # another app on this machine may have that plugin
        plugin = max(named, key=len)
        known = [setting_variable(plugin, setting) for setting in declared[plugin]]
        begins = len(setting_variable(plugin, ""))  # what all have in common makes none of them similar
        close = get_close_matches(name[begins:], [one[begins:] for one in known], n=1)
        there = f"there are {', '.join(known)}" if known else "it has no settings"
        yield Finding(
            level="error",
            plugin=plugin,
            what="settings",
            seen=f"the environment has {name}, which is no setting of plugin {plugin!r}: {there}",
            cure=f"write {name[:begins]}{close[0]}" if close else "unset it",
        )
