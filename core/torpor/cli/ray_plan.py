"""`torpor ray plan`: what a Ray cluster would serve, which nodes it needs, and what is refused."""

from __future__ import annotations

import json
import shlex
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torpor.cli.exit_codes import WRONG_INPUT
from torpor.cli.layout import Layout
from torpor.cli.terminal import claim_output, result, say
from torpor.platforms import ray as platform
from torpor.platforms.ray.config import PORT, Source, config_of
from torpor.platforms.ray.planned import ray_plan
from torpor.values.addresses import EVERYWHERE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.platforms.ray.config import ServeConfig
    from torpor.platforms.ray.nodes import NodeGroup
    from torpor.platforms.ray.options import DeploymentOptions
    from torpor.platforms.ray.planned import RayPlan
    from torpor.platforms.ray.served import Served

__all__ = ["checked_with_ray", "run_ray_plan"]

_FIELD = 12


def run_ray_plan(files: Sequence[str], *, snapshots: str, app_folder: str, as_json: bool) -> None:
    """Show what Ray would serve. Exits with 2 if it cannot serve all of it.

    Args:
        files: app files.
        snapshots: URL of the store; empty for none.
        app_folder: folder of the app files on the nodes; empty for their paths here.
        as_json: print JSON.

    Raises:
        ConfigurationError: an app file cannot be used, or two do not go together.
    """
    claim_output()
    source = Source(snapshots=snapshots, app_folder=app_folder)
    plan = ray_plan(files, source)
    version = "" if plan.refused else checked_with_ray(config_of(plan.apps, source, host=EVERYWHERE, port=PORT))
    if as_json:
        result(json.dumps({**plan.as_json(), "checked_with_ray": version or None}, indent=2))
    else:
        _show(plan, version)
    if plan.refused:
        sys.exit(WRONG_INPUT)


def checked_with_ray(config: ServeConfig) -> str:
    """The version of the Ray whose schemas accept a configuration; empty if Ray with Serve is not installed here.

    Raises:
        ConfigurationError: they refuse it.
    """
    if find_spec("ray") is None:
        return ""
    try:
        return platform.check_with_ray(config)
    except ImportError as error:  # Ray without Serve, or a damaged one
        say(f"note: Ray is installed here, and Ray Serve cannot be imported: {error}")
        return ""


def _show(plan: RayPlan, version: str) -> None:
    layout = Layout()
    for one in plan.apps:
        _show_application(layout, one, plan)
    if plan.by_model:
        layout.heading(plan.by_model)
        layout.field("  route".ljust(_FIELD), "/: forwards each request by its `model`")
    for group in plan.groups:
        number = f"{group.least} to {group.most}, one for each replica of {', '.join(group.deployments)}"
        layout.heading(f"nodes {group.name}")
        layout.field("  each".ljust(_FIELD), _each(group))
        layout.field("  number".ljust(_FIELD), number)
    layout.heading("every Ray process, from its start")
    for name, value in plan.environment.items():
        layout.row(f"  {name}={shlex.quote(value)}")
    if plan.refused:
        layout.field("refused: ", ", ".join(plan.refused), "red")
    elif version:
        layout.field("", f"Ray {version}, which is installed here, accepts the options.")
    else:
        layout.field("", "Ray Serve is not installed here, so its own schemas did not read the options.")


def _show_application(layout: Layout, one: Served, plan: RayPlan) -> None:
    layout.heading(one.application)
    layout.field("  app".ljust(_FIELD), plan.source.file(one.app.file))
    model = one.app.deployment.model
    layout.field("  model".ljust(_FIELD), model.served_name)
    if model.adapters:
        layout.field("  adapters".ljust(_FIELD), ", ".join(model.adapters))
    layout.field("  route".ljust(_FIELD), one.route_prefix)
    if one.options is not None:
        layout.field("  replicas".ljust(_FIELD), _replicas(one.options))
        layout.field("  requests".ljust(_FIELD), _requests(one.options))
        layout.field("  each".ljust(_FIELD), _actor(one.options))
        restores = one.restores(plan.source.snapshots)
        starts = "restored from the newest snapshot that fits its node, else cold" if restores else "cold"
        layout.field("  starts".ljust(_FIELD), starts)
        layout.field("  ends".ljust(_FIELD), f"within {one.options['graceful_shutdown_timeout_s']:g} s")
    for finding in one.findings:
        layout.finding(finding)


def _replicas(options: DeploymentOptions) -> str:
    scaling = options["autoscaling_config"]
    return (
        f"{scaling['min_replicas']} to {scaling['max_replicas']}; one more at {scaling['target_ongoing_requests']} requests each, "
        f"one fewer after {scaling['downscale_delay_s']:g} s without need"
    )


def _requests(options: DeploymentOptions) -> str:
    return f"{options['max_ongoing_requests']} at once for a replica; {options['max_queued_requests']} may wait, others get 503"


def _actor(options: DeploymentOptions) -> str:
    actor = options["ray_actor_options"]
    parts = [f"{actor['num_cpus']:g} CPU"]
    if actor["num_gpus"]:
        parts.append(f"{actor['num_gpus']} x {actor.get('accelerator_type', 'any GPU')}")
    if "memory" in actor:
        parts.append(f"{actor['memory'] >> 20} MiB")
    parts += [f"{key}={value}" for key, value in actor.get("label_selector", {}).items()]
    return ", ".join(parts)


def _each(group: NodeGroup) -> str:
    parts = [f"{group.cpus} CPU"]
    if group.gpus:
        parts.append(f"{group.gpus} x {group.kind or 'any GPU'}")
    if group.memory_mib is not None:
        parts.append(f"{group.memory_mib} MiB")
    if group.region is not None:
        parts.append(f"in {group.region}")
    return ", ".join(parts)
