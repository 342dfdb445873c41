"""`torpor plan`: what an app will do, and what would change from one app to another."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from torpor.app_file import load_app
from torpor.cli.layout import Layout
from torpor.cli.terminal import claim_output, result
from torpor.plan.collect import plan_of
from torpor.plan.diff import plan_changes, saved_plan
from torpor.plan.text import write_plan
from torpor.plugin_checks import accepted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.app_file import App
    from torpor.values.changes import Change

__all__ = ["show_plan"]


def show_plan(app_file: str, *, other: str, as_json: bool) -> None:
    """Print the plan of an app file, or what differs in another one.

    Args:
        app_file: the app.
        other: an app file, or a plan that `--json` printed; empty for none.
        as_json: print JSON.

    Raises:
        ConfigurationError: a plugin's check finds an error in one of the deployments; what differs is printed all the same.
    """
    claim_output()
    app = load_app(app_file)
    if other:
        _compare(app, other, as_json=as_json)
        return
    accepted(app.deployment)
    plan = plan_of(app.lifecycle)
    if as_json:
        result(json.dumps(plan.as_json(), indent=2))
    else:
        write_plan(plan, Layout())


def _compare(app: App, other: str, *, as_json: bool) -> None:
    compared = None if other.endswith(".json") else load_app(other)
    after = saved_plan(other) if compared is None else plan_of(compared.lifecycle).as_json()
    found = plan_changes(plan_of(app.lifecycle).as_json(), after)
    if as_json:
        result(json.dumps([asdict(change) for change in found], indent=2))
    else:
        _show_changes(found)
    for one in filter(None, (app, compared)):
        accepted(one.deployment)


def _show_changes(found: Sequence[Change]) -> None:
    layout = Layout()
    for change in found:
        layout.heading(change.path)
        if change.kind != "added":
            layout.field("  - ", _shown(change.before), "red")
        if change.kind != "removed":
            layout.field("  + ", _shown(change.after), "green")
    if not found:
        layout.row("the plans are the same")


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
