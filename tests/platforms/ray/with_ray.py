"""The mark of tests that ask Ray itself."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["needs_ray"]

_MARKS = (
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (torpor[ray])"),
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),  # Ray's own use of pydantic
)


def needs_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Skip the test where Ray is not installed, and pass over what its import warns of."""
    for mark in _MARKS:
        test = mark(test)
    return test
