"""`torpor plan`: what an app will do, from its values alone, and what would change from one app to another."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torpor.app_file import load_app
from torpor.cli.console import LEVEL_STYLES
from torpor.cli.layout import Layout
from torpor.cli.terminal import claim_output, result
from torpor.deployment import plugin_name
from torpor.doctor.app import cautions
from torpor.errors import ConfigurationError
from torpor.hookspecs import HOOK_NAMES
from torpor.plan.diff import changes
from torpor.plugin_checks import accepted, plugin_findings
from torpor.values.findings import Finding
from torpor.values.given_files import is_shallow, read_given
from torpor.values.plain_text import one_line
from torpor.values.start_limits import modal_start_limit_s, stage_limits

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.lifecycle import Lifecycle
    from torpor.recipe import Recipe

__all__ = ["plan_of", "show_plan"]


def plan_of(lifecycle: Lifecycle) -> dict[str, object]:
    """The plan as plain values, ready for JSON; what plugins' checks find is among the warnings."""
    deployment = lifecycle.deployment
    warnings = [finding for finding in plugin_findings(deployment) if finding.level != "ok"]
    recipe = lifecycle.recipe()
    engine = deployment.engine
    return {
        "deployment": deployment.name,
        "model": asdict(deployment.model),
        "engine": {
            "plugin": plugin_name(engine),
            "version": engine.engine_version,
            "guarded": engine.guarded,
            "public_paths": list(engine.public_paths),
            "command": list(engine.engine_argv(deployment, recipe)),
            "flags": _flags(deployment, recipe),
        },
        "gpu": deployment.gpu,
        "port": deployment.port,
        "scaling": asdict(deployment.scaling),
        "snapshot": {"memory": deployment.snapshot, "gpu": deployment.gpu_snapshot},
        "modal": {} if deployment.modal is None else deployment.modal.changed(),
        "timeouts_s": {
            name.removesuffix("_timeout_s"): getattr(deployment, name)
            for name in vars(deployment)
            if name.endswith("_timeout_s")
        },
        "start_limits_s": {**stage_limits(deployment, recipe), "modal": modal_start_limit_s(deployment, recipe)},
        "image": _image(recipe),
        "steps": [asdict(step) | {"plugin": recipe.origins[f"step:{step.name}"]} for step in recipe.steps],
        "preflight": [
            asdict(check) | {"plugin": recipe.origins[f"preflight:{check.name}"]} for check in recipe.preflight
        ],
        "hooks": {hook: list(lifecycle.implementers(hook)) for hook in HOOK_NAMES},
        "warnings": [asdict(finding) for finding in (*warnings, *cautions(deployment, recipe), *_places(lifecycle))],
    }


def _places(lifecycle: Lifecycle) -> list[Finding]:
    """What would be refused where the app is meant to run: by Modal, or by a snapshot on this machine."""
    deployment = lifecycle.deployment
    if "modal" in sys.modules:
        from torpor.platforms.modal.checks import gpu_refusal  # noqa: PLC0415 - for Modal only

        refusal = gpu_refusal(deployment)
        return [Finding(level="error", what="Modal", seen=refusal)] if refusal else []
    if not deployment.snapshot:
        return []
    from torpor.platforms.local.server import cache_root, relocate  # noqa: PLC0415 - not for Modal
    from torpor.snapshots.before_capture.lasting_folders import place_findings  # noqa: PLC0415

    recipe = relocate(lifecycle.recipe(), cache_root(), deployment.name)
    return [finding for finding in place_findings(deployment, recipe) if finding.level == "error"]


def _flags(deployment: Deployment, recipe: Recipe) -> dict[str, dict[str, str]]:
    """The engine's flags with their values and reasons; one that a plugin asked for has the plugin as its reason.

    A flag that is given several times has all its values.
    """
    engine = deployment.engine
    reasons, unknown = engine.flag_reasons(), f"plugin {plugin_name(engine)} gives no reason"
    flags: dict[str, dict[str, str]] = {}
    flag = ""
    for word in engine.engine_argv(deployment, recipe):
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            origin = recipe.origins.get(f"flag:{flag}")
            reason = f"plugin {origin} asked for it" if origin else reasons.get(flag, unknown)
            flags.setdefault(flag, {"value": "", "reason": reason})
            flags[flag]["value"] = f"{flags[flag]['value']} {value}".strip()
        elif flag:
            flags[flag]["value"] = f"{flags[flag]['value']} {word}".strip()
    return flags


def _image(recipe: Recipe) -> dict[str, object]:
    return asdict(recipe.image) | {"origins": dict(recipe.origins)}


def show_plan(app_file: str, *, other: str, as_json: bool) -> None:
    """Print the plan of an app file, or what differs in another one.

    Args:
        app_file: the app.
        other: an app file, or a plan that `--json` printed; empty for none.
        as_json: print JSON.

    Raises:
        ConfigurationError: a plugin's check finds an error in the deployment, or in the other one; what differs is printed
            all the same.
    """
    claim_output()
    app = load_app(app_file)
    if other:
        compared = None if other.endswith(".json") else load_app(other)
        after = _plan_in(other) if compared is None else plan_of(compared.lifecycle)
        _show_changes(plan_of(app.lifecycle), after, as_json=as_json)
        for one in filter(None, (app, compared)):
            accepted(one.deployment)
        return
    accepted(app.deployment)
    if as_json:
        result(json.dumps(plan_of(app.lifecycle), indent=2))
    else:
        _print(app.lifecycle)


def _holds_plan(values: dict[str, object]) -> bool:
    parts = {"deployment": str, "engine": dict, "image": dict}
    return all(isinstance(values.get(part), kind) for part, kind in parts.items())


def _plan_in(name: str) -> dict[str, object]:
    """The plan in a file that `--json` printed."""
    try:
        plan = json.loads(read_given(Path(name), ""))
    except (ConfigurationError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{name} cannot be read as a plan: {str(error).rstrip('. ')}. `torpor plan APP --json` prints one."
        ) from error
    if not isinstance(plan, dict) or not is_shallow(plan) or not _holds_plan(plan):
        raise ConfigurationError(f"{name} holds no plan; `torpor plan APP --json` prints one.")
    return cast("dict[str, object]", plan)


def _show_changes(before: dict[str, object], after: dict[str, object], *, as_json: bool) -> None:
    found = changes(_values(before), _values(after))
    if as_json:
        result(json.dumps([asdict(change) for change in found], indent=2))
        return
    layout = Layout()
    for change in found:
        layout.heading(change.path)
        if change.kind != "added":
            layout.field("  - ", _shown(change.before), "red")
        if change.kind != "removed":
            layout.field("  + ", _shown(change.after), "green")
    if not found:
        layout.row("the plans are the same")


def _values(plan: dict[str, object]) -> dict[str, object]:
    """A plan as JSON has it, without what follows from the rest: the command line and the limits of a start."""
    values: dict[str, dict[str, object]] = json.loads(json.dumps(plan))
    values["engine"].pop("command", None)
    values.pop("start_limits_s", None)
    return dict(values)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _print(lifecycle: Lifecycle) -> None:
    deployment, layout = lifecycle.deployment, Layout()
    recipe = lifecycle.recipe()
    _print_head(deployment, recipe, layout)
    _print_image(recipe, layout)
    _print_steps(recipe, layout)
    layout.heading("engine command")
    layout.command("  ", deployment.engine.engine_argv(deployment, recipe))
    layout.blank()
    layout.heading("why each flag")
    for name, one in _flags(deployment, recipe).items():
        layout.field(f"  {one_line(name)}{' ' * bool(one['value'])}", one["value"])
        layout.field("      ", one["reason"])
    layout.blank()
    _print_stages(lifecycle, [plugin_name(plugin) for plugin in deployment.plugins], layout)
    if warnings := (*accepted(deployment), *cautions(deployment, recipe), *_places(lifecycle)):
        layout.blank()
        layout.heading("warnings")
        for finding in warnings:
            by = f" [{finding.plugin}]" if finding.plugin else ""
            layout.field(f"  {finding.what}{by}: ", finding.seen, LEVEL_STYLES[finding.level])
            if finding.cure:
                layout.field("      -> ", finding.cure)


def _print_head(deployment: Deployment, recipe: Recipe, layout: Layout) -> None:
    engine, model, scaling = deployment.engine, deployment.model, deployment.scaling
    revision = f" @ {model.revision[:12]}" if model.revision else ""
    layout.field(f"{deployment.name}: ", f"{model.source}{revision}, served as {model.served_name}", "bold")
    layout.field(
        "  engine    ",
        f"{plugin_name(engine)} {engine.engine_version} on {deployment.gpu or 'the CPU'}, port {deployment.port}"
        f"{', behind the guard' if engine.guarded else ', WITHOUT a guard: every route of it is public'}",
    )
    layout.field(
        "  scaling   ",
        f"{scaling.target_concurrency} requests target, {scaling.max_concurrency} at most per replica; replicas "
        f"from {scaling.min_containers} to {scaling.max_containers or 'what the platform allows'}, "
        f"{scaling.buffer_containers} kept ahead, each idle for {scaling.scaledown_window_s} s at most",
    )
    layout.field("  snapshot  ", f"memory {_on(deployment.snapshot)}, GPU {_on(bool(deployment.gpu_snapshot))}")
    layout.field("  start     ", _start_limits(deployment, recipe))
    if modal := {} if deployment.modal is None else deployment.modal.changed():
        layout.field("  modal     ", ", ".join(f"{name}={value!r}" for name, value in modal.items()))
    layout.blank()


def _start_limits(deployment: Deployment, recipe: Recipe) -> str:
    limits = ", ".join(
        f"{stage} {seconds:g} s" for stage, seconds in stage_limits(deployment, recipe).items() if seconds
    )
    return f"at most {limits}; Modal gives a start {modal_start_limit_s(deployment, recipe):g} s in all"


def _print_image(recipe: Recipe, layout: Layout) -> None:
    layout.heading("image")
    layout.field("  base      ", recipe.image.base or "(the platform default)")
    if recipe.image.python_link:
        layout.field("  python    ", "linked to python3 where the base image has none")
    for name in recipe.image.apt:
        layout.field("  apt       ", name)
    for line in recipe.image.pip:
        layout.field("  pip       ", line)
    for path, volume in recipe.volumes.items():
        layout.field("  volume    ", f"{path} <- {volume}  [{recipe.origins[f'volume:{path}']}]")
    for name, value in recipe.env.items():
        layout.field("  env       ", f"{name}={value}  [{recipe.origins[f'env:{name}']}]")
    layout.blank()


def _print_steps(recipe: Recipe, layout: Layout) -> None:
    layout.heading("build steps")
    for number, step in enumerate(recipe.steps, start=1):
        needs = ["gpu"] * step.gpu + [f"secret {name}" for name in step.secrets] + list(step.volumes)
        origin = recipe.origins[f"step:{step.name}"]
        layout.field(
            f"  {number}. ",
            f"{step.name}  [{origin}]  {'; '.join(filter(None, (f'at most {step.timeout_s:g} s', ', '.join(needs))))}",
        )
        layout.command("     ", [*([f"<{step.script}>"] if step.script else []), *step.argv])
    for check in recipe.preflight:
        layout.field("  before each launch: ", f"{check.name}  [{recipe.origins[f'preflight:{check.name}']}]")
    layout.blank()


def _print_stages(lifecycle: Lifecycle, plugins: list[str], layout: Layout) -> None:
    """Which plugin is called in which stage, and its place in the order."""
    widths = [len(name) for name in plugins]
    rows = [("stages", plugins)]
    for hook in HOOK_NAMES:
        called = list(lifecycle.implementers(hook))
        rows.append((f"  {hook}", [str(called.index(name) + 1) if name in called else "-" for name in plugins]))
    for stage, cells in rows:
        row = f"{stage:<18}  {'  '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))}".rstrip()
        layout.heading(row) if stage == "stages" else layout.row(row)


def _on(switch: bool) -> str:
    return "on" if switch else "off"
