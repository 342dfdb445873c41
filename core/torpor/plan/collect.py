"""The plan of an app, from its values alone: nothing is started, fetched or asked over a network."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from torpor.adapter_checks import adapter_findings
from torpor.build_steps.relocation import relocate
from torpor.deployment import plugin_name
from torpor.doctor.app import cautions
from torpor.doctor.capture_size import expected
from torpor.doctor.several_gpus import known_of_image
from torpor.hookspecs import HOOK_NAMES
from torpor.plan.values import EnginePlan, Flag, Plan, SleepPlan
from torpor.platforms.modal.checks import gpu_refusal
from torpor.plugin_checks import plugin_findings
from torpor.runtime.start_limits import modal_start_limit_s, stage_limits
from torpor.snapshots.before_capture.lasting_folders import place_findings
from torpor.snapshots.store.paths import cache_root
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.deployment import Deployment
    from torpor.lifecycle import Lifecycle
    from torpor.recipe import Recipe

__all__ = ["plan_of"]


def plan_of(lifecycle: Lifecycle) -> Plan:
    """The plan of a deployment; what plugins' checks find is among the warnings."""
    deployment, recipe = lifecycle.deployment, lifecycle.recipe()
    return Plan(
        deployment=deployment.name,
        task=deployment.task,
        model=deployment.model,
        engine=_engine(deployment, recipe),
        gpu=deployment.gpu,
        port=deployment.port,
        scaling=deployment.scaling,
        memory_snapshot=deployment.snapshot,
        gpu_snapshot=deployment.gpu_snapshot,
        sleep=_sleep(deployment) if deployment.gpu_snapshot else None,
        sleep_parts=deployment.engine.sleep_parts(deployment),
        modal={} if deployment.modal is None else deployment.modal.changed(),
        ray={} if deployment.ray is None else deployment.ray.changed(),
        timeouts_s={
            name.removesuffix("_timeout_s"): getattr(deployment, name)
            for name in vars(deployment)
            if name.endswith("_timeout_s")
        },
        start_limits_s=stage_limits(deployment, recipe),
        modal_start_limit_s=modal_start_limit_s(deployment, recipe),
        recipe=recipe,
        plugins=tuple(map(plugin_name, deployment.plugins)),
        hooks={hook: lifecycle.implementers(hook) for hook in HOOK_NAMES},
        warnings=tuple(_warnings(deployment, recipe)),
    )


def _sleep(deployment: Deployment) -> SleepPlan:
    told, wanted = deployment.engine.rank_sleep(deployment), expected(deployment)
    return SleepPlan(
        ranks=wanted.ranks,
        released=told.released if told else (),
        weights=told.weights if told else "",
        on_gpus_bytes=wanted.on_gpus,
        snapshot_bytes=wanted.images,
        weights_inside=wanted.weights_inside,
    )


def _engine(deployment: Deployment, recipe: Recipe) -> EnginePlan:
    engine = deployment.engine
    command = tuple(engine.engine_argv(deployment, recipe))
    return EnginePlan(
        plugin=plugin_name(engine),
        version=engine.engine_version,
        guarded=engine.guarded,
        public_paths=deployment.public_paths,
        command=command,
        flags=_flags(deployment, recipe, command),
    )


def _flags(deployment: Deployment, recipe: Recipe, command: tuple[str, ...]) -> dict[str, Flag]:
    """The flags of a command line with their reasons; one that a plugin asked for has the plugin as its reason.

    A flag that is given several times has all its values.
    """
    engine = deployment.engine
    reasons, unknown = engine.flag_reasons(), f"plugin {plugin_name(engine)} gives no reason"
    values: dict[str, list[str]] = {}
    flag = ""
    for word in command:
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            values.setdefault(flag, []).append(value)
        elif flag:
            values[flag].append(word)
    return {
        name: Flag(
            value=" ".join(filter(None, given)),
            reason=_asked(origin, recipe.image.flag_reasons.get(name, ""))
            if (origin := recipe.origins.get(f"flag:{name}"))
            else reasons.get(name, unknown),
        )
        for name, given in values.items()
    }


def _asked(plugin: str, reason: str) -> str:
    return f"plugin {plugin} asked for it{f': {reason}' if reason else ''}"


def _warnings(deployment: Deployment, recipe: Recipe) -> Iterator[Finding]:
    yield from (finding for finding in plugin_findings(deployment) if finding.level != "ok")
    yield from cautions(deployment, recipe)
    on_modal = "modal" in sys.modules  # the app file imports it
    yield from known_of_image(deployment, recipe, on_modal=on_modal)
    if on_modal:
        yield from _refused_by_modal(deployment)
        return
    relocated = relocate(recipe, cache_root(), deployment.name)
    known = set(plugin_findings(deployment))
    yield from (one for one in adapter_findings(deployment, relocated.env, here=True) if one not in known)
    if deployment.snapshot:
        yield from (one for one in place_findings(deployment, relocated) if one.level == "error")


def _refused_by_modal(deployment: Deployment) -> Iterator[Finding]:
    if refusal := gpu_refusal(deployment):
        yield Finding(level="error", what="Modal", seen=refusal)
