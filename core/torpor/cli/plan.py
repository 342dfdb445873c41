"""`torpor plan`: what an app will do, from its values alone."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from torpor.apps import load_deployment
from torpor.deployment import plugin_name
from torpor.hookspecs import HOOK_NAMES
from torpor.lifecycle import Lifecycle

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.recipe import Recipe

__all__ = ["plan_of", "show_plan"]


def plan_of(deployment: Deployment) -> dict[str, object]:
    """The plan as plain values, ready for JSON."""
    lifecycle = Lifecycle(deployment)
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
        },
        "gpu": deployment.gpu,
        "port": deployment.port,
        "scaling": asdict(deployment.scaling),
        "snapshot": {"memory": deployment.snapshot, "gpu": deployment.gpu_snapshot},
        "timeouts_s": {
            name.removesuffix("_timeout_s"): getattr(deployment, name)
            for name in vars(deployment)
            if name.endswith("_timeout_s")
        },
        "image": _image(recipe),
        "steps": [asdict(step) | {"plugin": recipe.origins[f"step:{step.name}"]} for step in recipe.steps],
        "preflight": [
            asdict(check) | {"plugin": recipe.origins[f"preflight:{check.name}"]} for check in recipe.preflight
        ],
        "hooks": {hook: list(lifecycle.implementers(hook)) for hook in HOOK_NAMES},
    }


def _image(recipe: Recipe) -> dict[str, object]:
    return asdict(recipe.image) | {"origins": dict(recipe.origins)}


def show_plan(app_file: str, *, as_json: bool) -> None:
    """Print the plan of an app file."""
    deployment = load_deployment(app_file)
    if as_json:
        typer.echo(json.dumps(plan_of(deployment), indent=2))
        return
    for line in _lines(deployment):
        typer.echo(line)


def _lines(deployment: Deployment) -> list[str]:
    lifecycle = Lifecycle(deployment)
    recipe = lifecycle.recipe()
    engine, model, scaling = deployment.engine, deployment.model, deployment.scaling
    revision = f" @ {model.revision[:12]}" if model.revision else ""
    lines = [
        f"{deployment.name}: {model.source}{revision}, served as {model.served_name}",
        (
            f"  engine    {plugin_name(engine)} {engine.engine_version} on {deployment.gpu or 'the CPU'}, port {deployment.port}"
            f"{', behind the guard' if engine.guarded else ', WITHOUT a guard: every route of it is public'}"
        ),
        f"  scaling   {scaling.target_concurrency} requests target, {scaling.max_concurrency} at most per replica",
        f"  snapshot  memory {_on(deployment.snapshot)}, GPU {_on(bool(deployment.gpu_snapshot))}",
        "",
        "image",
        f"  base      {recipe.image.base or '(the platform default)'}",
    ]
    lines += [f"  pip       {line}" for line in recipe.image.pip] + [f"  apt       {name}" for name in recipe.image.apt]
    lines += [
        f"  volume    {path} <- {volume}  [{recipe.origins[f'volume:{path}']}]"
        for path, volume in recipe.volumes.items()
    ]
    lines += [f"  env       {name}={value}  [{recipe.origins[f'env:{name}']}]" for name, value in recipe.env.items()]
    lines += ["", "build steps"]
    for number, step in enumerate(recipe.steps, start=1):
        needs = ["gpu"] * step.gpu + [f"secret {name}" for name in step.secrets] + list(step.volumes)
        command = shlex.join(([f"<{step.script}>"] if step.script else []) + list(step.argv))
        lines.append(
            f"  {number}. {step.name}  [{recipe.origins[f'step:{step.name}']}]  at most {step.timeout_s:g} s; {', '.join(needs)}"
        )
        lines.append(f"     {command}")
    lines += [
        f"  before each launch: {check.name}  [{recipe.origins[f'preflight:{check.name}']}]"
        for check in recipe.preflight
    ]
    lines += ["", "engine command", f"  {shlex.join(engine.engine_argv(deployment, recipe))}", "", "stages"]
    lines += [f"  {hook:<16}  {', '.join(lifecycle.implementers(hook)) or '-'}" for hook in HOOK_NAMES]
    return lines


def _on(switch: bool) -> str:
    return "on" if switch else "off"
