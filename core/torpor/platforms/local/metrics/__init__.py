"""The metrics of a command that serves, over HTTP, in Prometheus' format.

names      every metric: its kind, its labels, its meaning
counted    counts starts, stages and failures as they end
figures    what is read at each scrape: states, queues, memory, snapshots
collector  both as one `prometheus_client` collector
engines    the engines' own metrics, passed on
server     the address of its own on which they can be read

Names of this package are imported on first use: `prometheus_client` is 50 ms, which a command without metrics does not pay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.platforms.local.metrics.collector import CommandMetrics
    from torpor.platforms.local.metrics.figures import CommandFigures
    from torpor.platforms.local.metrics.server import MetricsServer, metrics_address

__all__ = ["CommandFigures", "CommandMetrics", "MetricsServer", "metrics_address"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.platforms.local.metrics.collector": ("CommandMetrics",),
        "torpor.platforms.local.metrics.figures": ("CommandFigures",),
        "torpor.platforms.local.metrics.server": ("MetricsServer", "metrics_address"),
    },
)
