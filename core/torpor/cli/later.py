"""What `torpor up` needs of snapshots, metrics and clients: imported at first use, so that an engine without them starts sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.cli.metrics import metrics_served
    from torpor.cli.restore import Served
    from torpor.client import chat
    from torpor.platforms.local.metrics.figures import CommandFigures

__all__ = ["CommandFigures", "Served", "chat", "metrics_served"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.cli.metrics": ("metrics_served",),
        "torpor.cli.restore": ("Served",),
        "torpor.client": ("chat",),
        "torpor.platforms.local.metrics.figures": ("CommandFigures",),
    },
)
