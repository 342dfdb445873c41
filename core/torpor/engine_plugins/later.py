"""What warms up and asks: imported at first use. `concurrent.futures` takes 5 ms of `torpor plan` and 1.7 ms of a restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.engine_plugins.media import media_questions
    from torpor.engine_plugins.task_warmup import warm_up_deployment

__all__ = ["media_questions", "warm_up_deployment"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.engine_plugins.media": ("media_questions",),
        "torpor.engine_plugins.task_warmup": ("warm_up_deployment",),
    },
)
