"""How long each stage of a start may take: one table, and one sum.

Modal ends a container whose enter methods take longer than `startup_timeout` together, and says only that. The sum here
is what the stages' own deadlines add up to, so Torpor always says first which stage was too slow, and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.recipe import Recipe

__all__ = ["CONTROL_TIMEOUT_S", "LETS_GO_S", "modal_start_limit_s", "stage_limits"]

CONTROL_TIMEOUT_S = 10.0
"""Seconds for one call of the guard that waits for nothing."""

LETS_GO_S = 10.0
"""Seconds that an engine may take to let go of a request whose client was cut off; the guard waits as long."""

_MARGIN_S = 60.0
"""For what has no deadline of its own: imports, the launch itself, the time between two stages."""


def stage_limits(deployment: Deployment, recipe: Recipe) -> dict[str, float]:
    """The deadline of each stage in seconds, by the name that records give it, in the order of a start.

    Args:
        deployment: whose time-outs count.
        recipe: its preflight checks have time-outs of their own.
    """
    return {
        "preflight": sum(check.timeout_s for check in recipe.preflight),
        "ready": deployment.startup_timeout_s,
        "warmup": deployment.warmup_timeout_s,
        "canary": deployment.warmup_timeout_s,
        "drain": deployment.drain_timeout_s + LETS_GO_S + CONTROL_TIMEOUT_S,
        "pre_snapshot": deployment.sleep_timeout_s,
        "post_restore": deployment.wake_timeout_s,
        "canary_check": deployment.wake_timeout_s,
        "serve": CONTROL_TIMEOUT_S,
    }


def modal_start_limit_s(deployment: Deployment, recipe: Recipe) -> float:
    """Seconds that a container's enter methods may take together, the longest way through them.

    The container that takes the snapshot starts cold, sleeps and wakes. If its wake fails, it ends the engine and starts
    cold again, unless the deployment forbids that.
    """
    limits = stage_limits(deployment, recipe)
    cold = sum(limits[stage] for stage in ("preflight", "ready", "warmup", "canary"))
    total = cold + _MARGIN_S
    if deployment.snapshot:
        total += sum(limits[stage] for stage in ("drain", "pre_snapshot", "post_restore", "canary_check"))
        if deployment.cold_start_on_failed_wake:
            total += deployment.stop_timeout_s + cold
    return total + limits["serve"]
