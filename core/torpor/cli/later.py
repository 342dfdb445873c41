"""What `torpor up` needs of snapshots, metrics and clients: imported at first use, so that an engine without them starts sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.cli.asking import Asked, answer_lines, ask_task
    from torpor.cli.metrics import metrics_served
    from torpor.cli.restore import Served
    from torpor.cli.waiting import WaitingLimits
    from torpor.client import chat
    from torpor.platforms.local.metrics.figures import CommandFigures

__all__ = ["Asked", "CommandFigures", "Served", "WaitingLimits", "answer_lines", "ask_task", "chat", "metrics_served"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.cli.asking": ("Asked", "answer_lines", "ask_task"),
        "torpor.cli.metrics": ("metrics_served",),
        "torpor.cli.restore": ("Served",),
        "torpor.cli.waiting": ("WaitingLimits",),
        "torpor.client": ("chat",),
        "torpor.platforms.local.metrics.figures": ("CommandFigures",),
    },
)
