"""Checks the contract's rules without a test run: which rules a deployment's plugins break, for `torpor doctor`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest

from torpor.deployment import plugin_name
from torpor.testing.hook_rules import HookRules
from torpor.testing.plan_rules import PlanRules
from torpor.testing.value_rules import ValueRules
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.deployment import Deployment

__all__ = ["contract_findings"]


def contract_findings(deployment: Deployment) -> Iterator[Finding]:
    """Check each plugin of the deployment, with its options, against the contract; an error for each broken rule."""
    broken = False
    for plugin in deployment.plugins:
        for seen, cure in _broken_rules(plugin, deployment):
            broken = True
            yield Finding(level="error", what="contract", seen=f"plugin {plugin_name(plugin)}: {seen}", cure=cure)
    if not broken:
        names = ", ".join(plugin_name(plugin) for plugin in deployment.plugins)
        yield Finding(level="ok", what="contract", seen=f"every rule is kept by {names}")


def _broken_rules(plugin: object, deployment: Deployment) -> Iterator[tuple[str, str]]:
    """What was seen, the rule included, and what to do."""
    given = {"plugin": plugin, "deployment": deployment}
    for rules in (ValueRules(), HookRules(), PlanRules()):
        for name, rule in inspect.getmembers(rules, inspect.ismethod):
            wanted = inspect.signature(rule).parameters
            if not name.startswith("test_") or not set(wanted) <= set(given):
                continue
            try:
                rule(**{parameter: given[parameter] for parameter in wanted})
            except pytest.skip.Exception:
                continue
            except pytest.fail.Exception as failure:
                seen, _, cure = str(failure.msg).partition(" To do: ")
                yield seen, cure
