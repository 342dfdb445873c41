"""Fast reading of weights, for Torpor: the plugin `FastLoad`."""

from __future__ import annotations

from torpor_fast_load.plugin import FastLoad

__all__ = ["FastLoad"]
