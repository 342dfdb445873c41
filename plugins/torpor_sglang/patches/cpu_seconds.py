"""Lets the metrics of CPU time survive a restore, which sets a process's CPU clock back to zero."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from torpor.launcher import Patch, after_import

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["PATCH", "never_decrease"]


def never_decrease(metrics: ModuleType) -> None:
    """Let the counters of `prometheus_client.metrics` ignore a negative amount instead of raising."""
    counter = metrics.Counter
    increase: Callable[..., None] = counter.inc

    def inc(self: object, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        increase(self, max(0, amount), exemplar)

    counter.inc = inc


PATCH = Patch(
    name="cpu-seconds",
    reason=(
        "SGLang 0.5.23 counts its CPU time; a restored process starts from zero, and the negative difference "
        "ends the scheduler within seconds (prometheus_client: counters take no negative amount)"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.18", "0.5.23"),
    applies=lambda: importlib.util.find_spec("prometheus_client") is not None,
    apply=lambda: after_import("prometheus_client.metrics", never_decrease),
)
