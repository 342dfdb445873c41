"""One start of a deployment: what core does around the hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.runtime.boot import Boot

__all__ = ["Boot"]

__getattr__, __dir__ = lazy_names(__name__, {"torpor.runtime.boot": ("Boot",)})
