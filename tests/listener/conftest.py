"""What listeners heard, for one test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.listener.hearing import BESIDE, HEARD, RELEASED

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _nothing_heard() -> Iterator[None]:
    HEARD.clear()
    BESIDE.clear()
    RELEASED.clear()
    yield
    RELEASED.set()
