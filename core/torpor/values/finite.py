"""Numbers out of JSON that others wrote: JSON has whole numbers without end, and Python's reader takes NaN and Infinity."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = ["is_finite"]


def is_finite(value: object) -> TypeIs[int | float]:
    """Whether a value is a number that a float can hold. `math.isfinite` raises OverflowError for a whole number that it cannot."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
