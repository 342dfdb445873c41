"""The mark of tests that ask Ray itself."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

import pytest

from tests.platforms.ray.conftest import REQUIRE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["needs_ray"]

_MISSING = importlib.util.find_spec("ray") is None and not os.environ.get(REQUIRE_VARIABLE)
_MARKS = (
    pytest.mark.skipif(_MISSING, reason="Ray is not installed (`make ray`)"),
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`"),  # Ray's own use of pydantic
)


def needs_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Skip the test where Ray is neither installed nor required, and pass over what its import warns of."""
    for mark in _MARKS:
        test = mark(test)
    return test
