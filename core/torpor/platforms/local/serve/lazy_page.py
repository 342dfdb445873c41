"""The page of the control paths. Jinja2 is imported with the first request for it: it takes 5 MB of a gateway that idles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.platforms.local.serve.page import control_page

__all__ = ["control_page"]

__getattr__, __dir__ = lazy_names(__name__, {"torpor.platforms.local.serve.page": ("control_page",)})
