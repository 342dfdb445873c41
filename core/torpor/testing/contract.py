"""`PluginContract`: what every plugin has to keep, one test per rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from torpor.deployment import Deployment, Model
from torpor.testing.failing import broken
from torpor.testing.hook_rules import HookRules
from torpor.testing.inspection import implemented_hooks
from torpor.testing.listener_rules import ListenerRules
from torpor.testing.plan_rules import PlanRules
from torpor.testing.plugin import StandIn
from torpor.testing.value_rules import ValueRules

if TYPE_CHECKING:
    from torpor.hookspecs import Plugin

__all__ = ["PluginContract"]

_MODEL = Model(repo_id="torpor/contract", revision="0123456789abcdef0123456789abcdef01234567")


class PluginContract(ValueRules, HookRules, PlanRules, ListenerRules):
    """Rules for every plugin. Subclass it, name the class `Test...`, and override the fixture `plugin`.

    Override `deployment` too when the plugin needs more than a model from the hub: a GPU, a certain engine, a port. It
    has to hold the very plugin of the fixture `plugin`.
    """

    @pytest.fixture
    def plugin(self) -> object:
        """The plugin under test."""
        broken(
            f"{type(self).__name__} has no fixture `plugin`.",
            rule="the contract's class says which plugin it tests.",
            cure="add a method `plugin` with @pytest.fixture to the class and return an instance of your plugin.",
        )

    @pytest.fixture
    def deployment(self, plugin: Plugin) -> Deployment:
        """A deployment that holds the plugin: alone if it launches, else beside the stand-in engine."""
        plugins = (plugin,) if "launch" in implemented_hooks(plugin) else (plugin, StandIn())
        return Deployment(name="contract", model=_MODEL, plugins=plugins)
