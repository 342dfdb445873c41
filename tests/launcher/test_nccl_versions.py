"""`torpor.engine_patches.nccl_versions`: versions of NCCL, as numbers and as text."""

from __future__ import annotations

import pytest

from torpor.engine_patches.nccl_versions import (
    LEAST_NCCL,
    can_suspend,
    nccl_of_code,
    nccl_of_text,
    nccl_text,
    nccl_too_old,
    too_old_text,
)


@pytest.mark.parametrize(
    ("code", "text", "suspends"),
    [
        (22705, "2.27.5", False),
        (22809, "2.28.9", False),
        (22903, "2.29.3", False),
        (22907, "2.29.7", True),
        (23007, "2.30.7", True),
        (23102, "2.31.2", True),
        (30001, "3.0.1", True),
    ],
)
def test_a_version_is_the_same_as_a_number_and_as_text(code: int, text: str, suspends: bool) -> None:
    """2.29.7 is the first that can suspend."""
    assert nccl_text(nccl_of_code(code)) == text
    assert nccl_of_text(text) == nccl_of_code(code)
    assert can_suspend(nccl_of_code(code)) is suspends


def test_text_without_a_version_has_none() -> None:
    """Pip writes what follows a version after it."""
    assert nccl_of_text("2.30.7.post1") == (2, 30, 7)
    assert nccl_of_text("") is nccl_of_text("2.30") is nccl_of_text("nccl") is None


def test_the_sentence_names_the_version_and_the_least_one() -> None:
    """So that a reader knows what to look for."""
    said = too_old_text((2, 28, 9))
    assert "2.28.9" in said
    assert nccl_text(LEAST_NCCL) in said
    assert nccl_too_old((2, 28, 9)).startswith(said)
    assert nccl_too_old(LEAST_NCCL) == ""
