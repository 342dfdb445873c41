"""Settings of plugins in the environment: `TORPOR_PLUGIN_<PLUGIN>__<SETTING>`, in one form for every plugin.

A setting is for what differs from machine to machine and must not change a plan: an address, a token, a level of detail. What
changes the image or the engine is an option of the plugin's class.
"""

from __future__ import annotations

__all__ = ["BETWEEN", "SETTING_PREFIX", "setting_variable"]

SETTING_PREFIX = "TORPOR_PLUGIN_"
BETWEEN = "__"


def setting_variable(plugin: str, setting: str) -> str:
    """The environment variable of a plugin's setting: `otel` and `endpoint` give `TORPOR_PLUGIN_OTEL__ENDPOINT`."""
    return f"{SETTING_PREFIX}{plugin.upper()}{BETWEEN}{setting.upper()}"
