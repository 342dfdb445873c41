"""transformers for Torpor: the engine plugin `Transformers`, and its server `python -m torpor_transformers.serve`.

The name is imported on first use: the server's process needs nothing of Torpor's but the guard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor import lazy_names

if TYPE_CHECKING:
    from torpor_transformers.plugin import Transformers

__all__ = ["Transformers"]

__getattr__, __dir__ = lazy_names(__name__, {"torpor_transformers.plugin": ("Transformers",)})
