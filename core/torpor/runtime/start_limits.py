"""How long each stage of a start may take, and their sum.

Modal ends a container whose enter methods together take longer than `startup_timeout`, and names no stage. Torpor therefore
gives Modal the sum of the stages' own deadlines: a stage that is too slow meets its own deadline first, and Torpor names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.guard.protocol import LETS_GO_S
from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.recipe import Recipe

__all__ = ["CONTROL_TIMEOUT_S", "modal_start_limit_s", "stage_limits"]

CONTROL_TIMEOUT_S = 10.0
"""Seconds for a call of the guard that does not wait for requests."""

_MARGIN_S = 60.0
"""For work without a deadline of its own: imports, the launch itself, the time between two stages."""


def stage_limits(deployment: Deployment, recipe: Recipe) -> dict[str, float]:
    """The deadline of each stage in seconds, in the order of a start.

    Args:
        deployment: its time-outs count.
        recipe: its preflight checks have time-outs of their own.
    """
    return {
        Stage.PREFLIGHT: sum(check.timeout_s for check in recipe.preflight),
        Stage.READY: deployment.startup_timeout_s,
        Stage.WARMUP: deployment.warmup_timeout_s,
        Stage.CANARY: deployment.warmup_timeout_s,
        Stage.DRAIN: deployment.drain_timeout_s + LETS_GO_S + CONTROL_TIMEOUT_S,
        Stage.PRE_SNAPSHOT: deployment.sleep_timeout_s,
        Stage.POST_RESTORE: deployment.wake_timeout_s,
        Stage.CANARY_CHECK: deployment.wake_timeout_s,
        Stage.SERVE: CONTROL_TIMEOUT_S,
    }


def modal_start_limit_s(deployment: Deployment, recipe: Recipe) -> float:
    """Seconds that a container's enter methods may take together in the longest case.

    The container that takes the snapshot starts cold, sleeps and wakes. If its wake fails, it ends the engine and starts
    cold again, unless the deployment forbids that.
    """
    limits = stage_limits(deployment, recipe)
    cold = sum(limits[stage] for stage in (Stage.PREFLIGHT, Stage.READY, Stage.WARMUP, Stage.CANARY))
    total = cold + _MARGIN_S
    if deployment.snapshot:
        total += sum(
            limits[stage] for stage in (Stage.DRAIN, Stage.PRE_SNAPSHOT, Stage.POST_RESTORE, Stage.CANARY_CHECK)
        )
        if deployment.cold_start_on_failed_wake:
            total += deployment.stop_timeout_s + cold
    return total + limits[Stage.SERVE]
