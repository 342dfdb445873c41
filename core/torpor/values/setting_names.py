"""Settings of plugins in the environment: `TORPOR_PLUGIN_<PLUGIN>__<SETTING>`, in one form for every plugin.

A setting is for what differs from machine to machine and must not change a plan: an address, a token, a level of detail. What
changes the image or the engine is an option of the plugin's class.
"""

from __future__ import annotations

import re

from torpor.errors import ConfigurationError
from torpor.values.field_types import shown

__all__ = ["SETTING_PREFIX", "declared_settings", "setting_variable"]

SETTING_PREFIX = "TORPOR_PLUGIN_"
"""A setting of a plugin: `TORPOR_PLUGIN_<PLUGIN>__<SETTING>`, e.g. `TORPOR_PLUGIN_OTEL__ENDPOINT`. The plugin declares it."""

_BETWEEN = "__"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_NOT_OF_A_VARIABLE = re.compile(r"[^A-Z0-9_]")


def setting_variable(plugin: str, setting: str) -> str:
    """The environment variable of a plugin's setting: `otel` and `endpoint` give `TORPOR_PLUGIN_OTEL__ENDPOINT`.

    What no shell takes in a variable's name, as the hyphen of `my-plugin`, becomes `_`.
    """
    return f"{SETTING_PREFIX}{_NOT_OF_A_VARIABLE.sub('_', f'{plugin}{_BETWEEN}{setting}'.upper())}"


def declared_settings(name: str, plugin: object) -> tuple[str, ...]:
    """The settings that a plugin declares; none if it cannot read any.

    Args:
        name: the plugin's name.
        plugin: the instance.

    Raises:
        ConfigurationError: `settings` is no tuple of names.
    """
    if not callable(getattr(plugin, "setting", None)):
        return ()
    given: object = getattr(plugin, "settings", ())
    if not isinstance(given, tuple) or not all(isinstance(one, str) and _NAME.fullmatch(one) for one in given):
        raise ConfigurationError(
            f"Plugin {name!r}: settings is {shown(given)}; it has to be a tuple of names of letters, digits and underscores, e.g. "
            "('endpoint',)."
        )
    return given
