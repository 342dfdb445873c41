"""A Ray cluster in namespaces of its own, one for each module that asks for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUIRE_VARIABLE = "TORPOR_REQUIRE_RAY"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A short path: Ray's sockets lie below it, and their names have at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="tr-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def refuse(reason: str) -> None:
    """Skip the tests; fail if they are required."""
    if os.environ.get(REQUIRE_VARIABLE):
        pytest.fail(f"{REQUIRE_VARIABLE} is set, but: {reason}")
    pytest.skip(reason)
